"""Results over time: a database filled from run folders, the regression rule, and the gate.

The run folders stay the source of truth: what is here can be imported from them again, except for which builds
were accepted and which issues are known.
"""
