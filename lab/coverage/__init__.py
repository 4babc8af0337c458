"""What the cases of a run execute of the hypervisor: counters that were read on boards, as lines, functions and tables.

``xenlab nightly --coverage`` keeps the counters (:mod:`lab.case.counting`), ``xenlab coverage`` reads them.
"""
