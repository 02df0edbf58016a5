"""Places of rows of different lengths in a table that lies row by row."""

import numpy as np


def ragged_places(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """int64: for each start, that place and those behind it, as many as its count."""
    places = np.repeat(starts - (counts.cumsum() - counts), counts)
    places += np.arange(places.size)
    return places
