"""The commands of xenlab."""
