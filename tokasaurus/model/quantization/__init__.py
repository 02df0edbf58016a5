"""Weights in few bits: what the options mean for each kind of layer."""
