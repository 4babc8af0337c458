"""One board looked at: whether it can be used, and what it is."""
