"""Programs that run in a board's dom0, with Python's standard library alone, and where things lie on a board."""

GUESTS = "/var/lib/xenlab/guests"  # provisioning puts guest payloads here
PYTHON = "/usr/lib/xenlab/python"  # provisioning puts these programs here, as lab/on_board
RUN = f"env PYTHONPATH={PYTHON} python3 -S -m"  # a module's name follows
