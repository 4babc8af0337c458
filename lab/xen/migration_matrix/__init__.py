"""Live relocation broken on purpose: cells, faults, what must come of each, checks."""
