"""Tools: what clients may offer a model, and the calls in what models write."""
