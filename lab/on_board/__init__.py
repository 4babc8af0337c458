"""Programs that run in a board's dom0, with Python's standard library alone."""
