"""Faults that must end as a line in the log, never as a lost render."""
