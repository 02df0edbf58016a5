"""Hypothesis draws the same examples in every run, so that a red CI means the change under test.

`HYPOTHESIS_PROFILE=search` draws new ones each time: for finding bugs, before landing a change.
No example has a deadline, as no test is timed.
"""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("search", print_blob=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(scope="session", autouse=True)
def _nothing_of_the_shells(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Engines of tests keep their files to themselves, have no key and are behind no proxy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        patch.setenv("no_proxy", "127.0.0.1,localhost")
        patch.delenv("TOKASAURUS_API_KEY", raising=False)
        yield
