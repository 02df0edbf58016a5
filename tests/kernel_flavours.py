"""Build flavours of the CPU kernels to test: those that run here, and instructions in C++.

No machine has all instruction sets, so the code for those that this one may lack is also built over
an emulation of the few instructions it asks for by name (unit/model/kernels/emulated_avx512.h).
"""

import hashlib
import platform
from pathlib import Path

import pytest

from tokasaurus.model.kernels.loader import Kernels, load_flavour, load_kernels, runnable_flavours

_HEADER = Path(__file__).parent / "unit" / "model" / "kernels" / "emulated_avx512.h"
_EMULATED = {
    "emulated_avx512": ("-DEMULATE_AVX512", "-DEMULATE_VNNI", "-DEMULATE_BF16"),
    "emulated_avx512_plain": ("-DEMULATE_AVX512",),
    "emulated_avx_vnni": ("-DEMULATE_AVX_VNNI",),
}
_CAN_EMULATE = platform.machine() in ("x86_64", "AMD64") and "avx2" in runnable_flavours()

FLAVOURS = [
    runnable_flavours()[0],
    # A build takes up to a minute.
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (*runnable_flavours()[1:], *(_EMULATED if _CAN_EMULATE else ()))
    ),
]
"""For parameters of fixtures and tests."""


def kernels_of(flavour: str) -> Kernels:
    """The kernels of one of FLAVOURS; from then on `load_kernels` knows it."""
    if flavour not in _EMULATED:
        return load_kernels(flavour)
    version = hashlib.sha256(_HEADER.read_bytes()).hexdigest()[:16]
    flags = ("-O1", "-march=x86-64-v3", *_EMULATED[flavour], "-include", str(_HEADER))
    return load_flavour(flavour, (*flags, f"-DEMULATION_VERSION={version}"))
