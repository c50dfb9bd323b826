"""How the metrics of matched cells changed, image by image. Needs numpy alone.

The signed-rank test, with Holm's correction over all that is tested, metrics and cells alike: where nothing has changed
but by chance, the whole answer holds a significant change at most once in twenty times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from cryobench.leaderboard.compare.change import Change, Verdict
from cryobench.leaderboard.compare.matching import stated
from cryobench.leaderboard.statistics.bootstrap import interval_ends, mean
from cryobench.leaderboard.statistics.pairs import RESAMPLES, difference
from cryobench.leaderboard.statistics.power import LEVEL, reachable
from cryobench.leaderboard.statistics.signed_rank import holm, signed_rank
from cryobench.record import Record


def measured(ran: Iterable[tuple[Record, Record]], name: str) -> Iterator[tuple[Change, np.ndarray]]:
    """The changes of a metric, not tested yet, and the differences [images] of each."""
    for before, after in ran:
        if name in before.values and name in after.values and stated(before, name) == stated(after, name):
            old, new = mean(before.values[name]), mean(after.values[name])
            change = Change.of(after, name, old, new, *stated(after, name), verdict=_before_tests(old, new))
            yield change, difference(_by_image(after, name), _by_image(before, name))


def _before_tests(old: float | None, new: float | None) -> Verdict:
    """What the means alone say."""
    if old is not None and new is not None:
        return Verdict.UNTESTED
    return Verdict.LOST if old is not None else Verdict.GAINED if new is not None else Verdict.NO_NUMBER


def _by_image(record: Record, name: str) -> np.ndarray:
    """The values of a metric in the order of the names of the images."""
    order = sorted(range(len(record.images)), key=record.images.__getitem__)
    return np.array(record.values[name], dtype=float)[order]


def tested(series: Sequence[tuple[Change, np.ndarray]]) -> list[Change]:
    """The changes with their differences, intervals, tests and verdicts."""
    told = [change for change, _ in series]
    lengths: dict[int, list[int]] = {}
    for place, (change, differences) in enumerate(series):
        if change.verdict == Verdict.UNTESTED and differences.any():
            lengths.setdefault(len(differences), []).append(place)
        elif change.verdict == Verdict.UNTESTED:
            told[place] = replace(change, difference=0.0, lo=0.0, hi=0.0, verdict=Verdict.IDENTICAL)
    fewest = _fewest_images({n_images: len(places) for n_images, places in lengths.items()})
    p, ways = np.full(len(told), math.nan), np.zeros(len(told), dtype=int)
    for n_images, places in lengths.items():
        differences = np.stack([series[place][1] for place in places])
        for place, lo, hi in zip(places, *interval_ends(differences, resamples=RESAMPLES), strict=True):
            of_mean = mean(series[place][1].tolist())
            told[place] = replace(told[place], difference=of_mean, lo=_number(lo), hi=_number(hi))
        if n_images >= fewest:
            p[places], ways[places] = signed_rank(differences)
    found = np.flatnonzero(~np.isnan(p))
    for place, p_holm in zip(found.tolist(), holm(p[found]).tolist(), strict=True):
        verdict = _verdict(told[place], p_holm, int(ways[place]))
        told[place] = replace(told[place], p=float(p[place]), p_holm=p_holm, verdict=verdict)
    return told


def _fewest_images(counts: dict[int, int]) -> float:
    """The images from which on changes are tested, of so many changes by their number of images.

    Those of fewer images could not become significant among as many tests, and would only make it harder for others.
    What is tested follows from the numbers of images alone, and not from the values: so Holm's correction still holds.
    """
    for n_images in sorted(counts):
        if reachable(n_images, sum(count for other, count in counts.items() if other >= n_images)):
            return n_images
    return math.inf


def _verdict(change: Change, p_holm: float, way: int) -> Verdict:
    """What a tested change is: significant only where ranks and mean point the same way."""
    if p_holm > LEVEL or change.difference is None or way != np.sign(change.difference):
        return Verdict.WITHIN_NOISE
    if change.direction not in ("higher", "lower"):
        return Verdict.CHANGED
    return Verdict.BETTER if (way > 0) == (change.direction == "higher") else Verdict.WORSE


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
