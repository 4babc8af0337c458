"""A run of many cases on many boards, from set-up to reports."""
