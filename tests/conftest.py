"""Hypothesis draws the same examples in every run, so that a red CI means the change under test.

`HYPOTHESIS_PROFILE=search` draws new ones each time: for finding bugs, before landing a change.
No test is timed, so neither has an example a deadline nor has drawing one. Fixtures of property
tests are constants, such as a build of the kernels.
"""

import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

_UNTIMED = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("repeatable", _UNTIMED, derandomize=True)
settings.register_profile("search", _UNTIMED, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(autouse=True)
def _own_noise() -> None:
    """What a test draws from torch's generator does not depend on the tests before it."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _nothing_of_the_shells(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Engines of tests keep their files to themselves, have no key, are behind no proxy, and trace
    and paint as the tests say."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        patch.setenv("no_proxy", "127.0.0.1,localhost")
        patch.delenv("TOKASAURUS_API_KEY", raising=False)
        patch.setenv("COLUMNS", "80")
        for name in [name for name in os.environ if name.startswith("OTEL_")]:
            patch.delenv(name)
        yield
