"""Live migrations that are broken on purpose: the cells, their faults, how each must end, and the checks."""
