"""Limits on the memory and the number of cells of a request, checked before memory is allocated.

Imports only the standard library.
"""

from __future__ import annotations

import math
import os
import resource
from functools import cache
from pathlib import Path

from cryobench.errors import CryobenchError, ParameterError

MAX_CELLS = 100_000
"""Maximum number of cells of a run or a suite."""
_CGROUP = Path("/sys/fs/cgroup/memory.max")


def available_memory() -> int:
    """Bytes of memory of this machine, or the lower limit of its container or of this process (`ulimit -v`)."""
    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    return min([_machine_memory(), *(limit for limit in limits if limit != resource.RLIM_INFINITY)])


@cache
def _machine_memory() -> int:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(total, int(_CGROUP.read_text()))
    except (OSError, ValueError):  # no limit ("max"), or none that can be read
        return total


def check_memory(what: str, needed: int, advice: str, error: type[CryobenchError] = ParameterError) -> None:
    """Raise `error` if `needed` bytes are more than the memory of this machine. what: the request, as a subject."""
    available = available_memory()
    if needed > available:
        raise error(
            f"{what} needs {bytes_text(needed)} of memory, more than the {bytes_text(available)} here; {advice}"
        )


def check_cells(what: str, *factors: int) -> None:
    """Raise `ParameterError` if the product of these numbers is more than `MAX_CELLS`."""
    cells = math.prod(factors)
    if cells > MAX_CELLS:
        raise ParameterError(f"{what} has {cells:,} cells; give at most {MAX_CELLS:,}, in several runs")


def bytes_text(count: int) -> str:
    """A number of bytes in a readable unit: 512 bytes, 16.4 GB."""
    if count < 1000:
        return f"{count} bytes"
    if count >= 10**21:
        return "more than 10^21 bytes"
    power = min((len(str(count)) - 1) // 3, 6)
    return f"{count / 1000**power:.3g} {'kMGTPE'[power - 1]}B"
