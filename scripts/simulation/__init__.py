"""Replays workloads through the real manager with a simulated device, in virtual time."""
