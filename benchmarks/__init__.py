"""Measurements of what reuse saves and costs, through the real host on the small Wan."""
