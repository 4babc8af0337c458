"""A hardware-in-the-loop test lab for the Xen hypervisor."""

__version__ = "0.1.0"  # the one place: the package, `xenlab --version` and the tags take it from here
