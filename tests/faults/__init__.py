"""Faults that must cost a line, never a render."""
