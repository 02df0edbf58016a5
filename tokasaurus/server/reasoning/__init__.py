"""Splits what a model thinks off what it answers."""
