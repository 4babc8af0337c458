"""The pytest plugin: what a case is given, what is gathered, how its end is judged."""
