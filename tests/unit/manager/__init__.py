"""Tests of the manager, driven by a simulated worker."""
