"""Runs architectures without a native spec through transformers' attention interface."""
