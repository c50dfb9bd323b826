"""Records pooled over data sets: one number of each data set, with intervals and tests over data sets.

Where a method uses all images of a data set at once, they share a map and are not independent. The independent unit is
the data set, such as a seed of a simulation.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from statistics import fmean

import pandas as pd

from cryobench.leaderboard.table import DEFAULT_BY, leaderboard
from cryobench.record import Record, numbers_of

UNIT = "data set"
"""What a pooled comparison has many of, in the place of images."""


def pooled_leaderboard(records: Sequence[Record], *, by: str = DEFAULT_BY) -> tuple[list[Record], pd.DataFrame]:
    """The pooled records, and their leaderboard (`table.leaderboard`)."""
    found = pooled(records)
    frame = leaderboard(found, by=by)
    frame.attrs["unit"] = UNIT
    frame["untested"] = frame["untested"].str.replace("images", f"{UNIT}s")
    return found, frame


def pooled(records: Sequence[Record]) -> list[Record]:
    """One record for all that differ in the content of data sets of the same label alone, in order of first appearance.

    Its images are the data sets, and its values the means of each metric over the images of each. Times and counts are
    means, memory is the largest. Where a metric is missing for one data set, the reason is kept. Skipped and failed
    records are left as they are.
    """
    groups: dict[tuple, list[Record]] = {}
    for record in records:
        key = record.hash if record.status != "ok" else ""
        same = (record.solver, record.operator, record.noise, record.data, record.seed, record.floor, record.ceiling,
                record.problem.get("within"), len(record.images))  # fmt: skip
        groups.setdefault((key, *same), []).append(record)
    return [_joined(group) if group[0].status == "ok" else group[0] for group in groups.values()]


def _joined(records: Sequence[Record]) -> Record:
    records = sorted(records, key=lambda record: str(record.problem.get("data_digest")))
    first = records[0]
    names = dict.fromkeys(name for record in records for name in (*record.values, *record.together))
    values = {name: [_mean(numbers_of(record, name)) for record in records] for name in names}
    digests = [str(record.problem.get("data_digest")) for record in records]
    memory = [record.peak_memory_mib for record in records if record.peak_memory_mib is not None]
    return dataclasses.replace(
        first,
        hash=hashlib.sha256("".join(record.hash for record in records).encode()).hexdigest(),
        data=f"{first.data}, {len(first.images)} images each",
        images=digests,
        values=values,
        together={},
        solver_info={},
        timing=_means([record.timing for record in records]),
        counters=_means([record.counters for record in records]),
        peak_memory_mib=max(memory, default=None),
        problem=first.problem | {"data_digest": f"pooled:{hashlib.sha256(''.join(digests).encode()).hexdigest()}"},
        unmeasured={name: reason for record in records for name, reason in record.unmeasured.items()},
    )


def _mean(numbers: Sequence[float] | None) -> float:
    return fmean(numbers) if numbers else float("nan")


def _means(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each entry that all have."""
    return {name: fmean(part[name] for part in parts) for name in parts[0] if all(name in part for part in parts)}
