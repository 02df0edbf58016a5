"""Parts of `scripts/gpu_check.py`: each runs in a process and a time box of its own."""
