"""The manager process: CPU policy on integers that turns requests into steps for a worker."""
