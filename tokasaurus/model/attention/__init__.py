"""Paged attention behind one narrow interface (`backend.py`), one module per backend."""
