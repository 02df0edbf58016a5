"""Typed messages between processes, their wire form, and the channels that carry them."""
