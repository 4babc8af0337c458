"""labgrid: resources, drivers, the strategy, the services of a lab, and ``Board``, the live handle of a place."""

import os

# Before gRPC is loaded: its fork handlers bring down children that ansible-runner and pexpect fork off.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
