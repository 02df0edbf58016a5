"""How many examples property tests take that cost a second or more.

CI repeats the same few in every run; `HYPOTHESIS_PROFILE=search`, which is for finding bugs,
draws many new ones.
"""

import os


def examples(repeated: int, *, searching: int) -> int:
    return searching if os.environ.get("HYPOTHESIS_PROFILE") == "search" else repeated
