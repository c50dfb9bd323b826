"""Memory that was freed and that the C library keeps for reuse."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

LARGE = 2**26
"""Bytes of an image from which on `return_freed` has an effect."""
_RETURNED = 2**22
_M_MMAP_THRESHOLD = -3


def return_freed(nbytes: int) -> None:
    """For images of `LARGE` bytes and more, have the arrays of 4 MiB and more that are freed returned to the system.

    glibc keeps arrays of up to 32 MiB for reuse, such as those of the strips of an image: 0.3 GiB in the iterations on
    a micrograph. The setting holds for the rest of the process, where these arrays then cost a request to the system
    each. Does nothing with other C libraries.
    """
    if nbytes >= LARGE:
        _set()


@cache
def _set() -> None:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(library, "mallopt") and hasattr(library, "malloc_trim"):
        library.mallopt(_M_MMAP_THRESHOLD, _RETURNED)
        library.malloc_trim(0)
