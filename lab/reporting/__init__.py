"""A run folder shown: JUnit, one HTML page, the terminal. Pure functions from records to files.

Whatever was captured from a board is hostile: every text is escaped for where it goes, and control characters
are shown instead of obeyed.
"""
