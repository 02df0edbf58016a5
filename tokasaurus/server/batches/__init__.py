"""Requests from files: checked, run beside interactive ones, answered into files."""
