"""Checkpoint files: reading, streaming into layers, dummy weights."""
