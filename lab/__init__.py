"""A hardware-in-the-loop test lab for the Xen hypervisor."""
