"""The decoder's layers. Each allocates its weights and loads them from checkpoint tensors."""
