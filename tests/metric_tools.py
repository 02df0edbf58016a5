"""Finds promtool and statsd where `make metric-tools` puts them, or on the PATH."""

import os
import shutil
import sys
from pathlib import Path

import pytest

PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
"""To run them with: statsd needs node, which may have come with it."""

PROMTOOL = shutil.which("promtool", path=PATH)
STATSD = shutil.which("statsd", path=PATH)

needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool isn't there; run make metric-tools"
)
needs_statsd = pytest.mark.skipif(
    STATSD is None, reason="the statsd daemon isn't there; run make metric-tools"
)
