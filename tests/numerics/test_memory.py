"""Freed memory of large images."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import sys
import numpy as np
from cryobench.numerics.memory import LARGE, return_freed

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def freed():
    '''Bytes that remain after 64 arrays of 6 MiB were filled and freed, all but a small one after each.'''
    before, kept = resident(), []
    arrays = []
    for _ in range(64):
        arrays.append(np.ones(6 * 2**17))
        kept.append(np.ones(100))
    del arrays
    return resident() - before

np.ones(20 * 2**17)  # freeing it raises the threshold of glibc to 20 MiB
return_freed(int(sys.argv[1]) * LARGE // 2)
print(freed())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_arrays_are_returned_if_images_are_large():
    small, large = (int(subprocess.run([sys.executable, "-c", SCRIPT, str(halves)], check=True, capture_output=True,
                                       text=True).stdout) for halves in (1, 2))  # fmt: skip
    assert large < 50 * 2**20
    assert small > 300 * 2**20
