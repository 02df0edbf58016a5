"""Hypothesis draws the same examples in every run, so that a red CI means the change under test.

`HYPOTHESIS_PROFILE=search` draws new ones each time: for finding bugs, before landing a change.
No example has a deadline, as no test is timed.
"""

import os

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("search", print_blob=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
