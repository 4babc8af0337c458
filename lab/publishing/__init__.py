"""What the lab tells others: a site of pages, and what CI, dashboards and people are sent.

Stands on run folders and the history together, which do not know each other.
"""
