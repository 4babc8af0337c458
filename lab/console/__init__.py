"""The serial console of a board: one always-on recorder, its client, and what its lines mean.

``recorder`` is a process of its own (``python -m lab.console.recorder``); ``client.Console`` follows it;
``patterns`` tells crashes, warnings and milestones.
"""

HOST = "127.0.0.1"  # where recorders listen, and nowhere else
