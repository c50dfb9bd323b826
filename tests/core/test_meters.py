"""The meters of the cost of a solver."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch

from cryobench.core.meters import NETWORK, Stopwatch, calling, count, counting

CPU = torch.device("cpu")


MEASURED = """
import time
import torch
from cryobench.core.meters import PeakMemory
torch.ones(4).add_(1)  # loads what the block would load
with PeakMemory(torch.device("cpu")) as small:
    pass
with PeakMemory(torch.device("cpu")) as large:
    held = torch.ones(64 * 2**20 // 4).add_(1)
    time.sleep(1)  # much longer than the interval: on a busy machine the thread waits for its turn
    del held
print(small.mib, large.mib)
"""


def test_the_peak_resident_set_of_a_block_is_measured():
    """In a process of its own: the heap of this one can hold 64 MiB that earlier tests freed."""
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True, timeout=120)
    small, large = map(float, done.stdout.split())
    assert 60 < large < 80
    assert small < 5


def test_a_stopwatch_adds_up():
    watch = Stopwatch(CPU)
    for _ in range(2):
        with watch:
            time.sleep(0.01)
    assert 0.02 <= watch.seconds < 5


def test_counts_are_collected_only_inside_a_block():
    count(NETWORK, 5)
    with counting() as outer:
        count(NETWORK, 2)
        with counting() as inner:
            count(NETWORK, 3)
    assert (outer.images[NETWORK], inner.images[NETWORK]) == (2, 3)


def test_calls_are_timed_by_name_and_outside_a_block_they_cost_nothing():
    images = torch.zeros(3, 1, 2, 2)
    with calling("A", images):
        pass
    with counting() as tally:
        for name in ("A", "A", NETWORK):
            with calling(name, images):
                time.sleep(0.01)
    assert tally.images == {"A": 6, NETWORK: 3}
    assert tally.seconds["A"] > tally.seconds[NETWORK] >= 0.01


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_calls_are_timed_on_the_device():
    image = torch.rand(1, 4096, 4096, device="cuda")
    with counting() as tally, calling("A", image):
        for _ in range(20):
            image = image @ image / 4096
    torch.cuda.synchronize()
    assert tally.seconds["A"] > 1e-3
