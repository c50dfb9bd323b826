"""What a solver costs is measured from outside it."""

from __future__ import annotations

import time

import torch

from cryobench.meters import NETWORK, PeakMemory, Stopwatch, count, counting

CPU = torch.device("cpu")


def test_the_resident_set_of_a_block_is_seen():
    with PeakMemory(CPU) as small:
        pass
    with PeakMemory(CPU) as large:
        held = torch.ones(64 * 2**20 // 4).add_(1)
        time.sleep(0.02)
        del held
    assert 55 < large.mib < 130
    assert small.mib < 20


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
    assert (outer[NETWORK], inner[NETWORK]) == (2, 3)
