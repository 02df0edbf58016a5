"""Drawing tokens from logits, with noise that depends on nothing but (seed, position, token)."""
