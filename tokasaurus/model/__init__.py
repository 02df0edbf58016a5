"""The decoder, its layers and kernels, checkpoint loading and sampling: all tensor code."""
