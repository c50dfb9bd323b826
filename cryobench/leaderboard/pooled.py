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

from cryobench.leaderboard.cells import hardware_of
from cryobench.leaderboard.leakage import IMAGES, NOTHING, STRUCTURE, overlap
from cryobench.leaderboard.table import leaderboard
from cryobench.record import Record, numbers_of

UNIT = "data set"
"""What a pooled comparison has many of, in the place of images."""
_OVERLAPS = (NOTHING, STRUCTURE, IMAGES)
"""From none to the most."""


def pooled_leaderboard(records: Sequence[Record], *, by: str | None = None) -> tuple[list[Record], pd.DataFrame]:
    """The pooled records, and their leaderboard (`table.leaderboard`)."""
    found = pooled(records)
    frame = leaderboard(found, by=by)
    frame.attrs["unit"] = UNIT
    frame["untested"] = frame["untested"].str.replace(r"\bimage(s?)\b", rf"{UNIT}\1", regex=True)
    return found, frame


def pooled(records: Sequence[Record]) -> list[Record]:
    """One record for all of the same solver, operator, noise, seed, dtype, image shape, number of images and label of
    the data set, in order of first appearance. What the label does not state may differ.

    Its images are the data sets, and its values the means of each metric over the images of each; of several records
    of one data set the newest counts. Times and counts are means, memory is the largest. Where a metric is missing for
    one data set, the reason is kept. A record without results is listed where the others of its data sets are.
    """
    sets: dict[tuple, dict[str, None]] = {}
    groups: dict[tuple, list[Record]] = {}
    for record in records:
        problem = _problem(record)
        sets.setdefault(problem, {})[_digest(record)] = None
        own = record.hash if record.status != "ok" else ""
        groups.setdefault((problem, record.solver, record.floor, record.ceiling, own), []).append(record)
    return [
        _joined(group) if group[0].status == "ok" else _over(group[0], sorted(sets[problem]))
        for (problem, *_), group in groups.items()
    ]


def _problem(record: Record) -> tuple:
    shape = tuple(record.problem.get("image_shape") or ())
    return (record.operator, record.noise, record.data, record.seed, record.environment.get("dtype"),
            record.problem.get("within"), shape, len(record.images))  # fmt: skip


def _digest(record: Record) -> str:
    return str(record.problem.get("data_digest"))


def _over(record: Record, digests: Sequence[str]) -> Record:
    """The record, as of these data sets."""
    whole = hashlib.sha256("".join(digests).encode()).hexdigest()
    return dataclasses.replace(
        record,
        data=f"{record.data}, {len(record.images)} images each",
        images=list(digests),
        problem=record.problem | {"data_digest": f"pooled:{whole}", "unpooled": record.data},
    )


def _joined(records: Sequence[Record]) -> Record:
    newest = sorted(records, key=lambda record: str(record.environment.get("created", "")))
    records = [record for _, record in sorted({_digest(record): record for record in newest}.items())]
    first = max(records, key=lambda record: _OVERLAPS.index(overlap(record)))
    names = dict.fromkeys(name for record in records for name in (*record.values, *record.together))
    memory = [record.peak_memory_mib for record in records if record.peak_memory_mib is not None]
    return dataclasses.replace(
        _over(first, [_digest(record) for record in records]),
        hash=hashlib.sha256("".join(record.hash for record in records).encode()).hexdigest(),
        values={name: [_mean(numbers_of(record, name)) for record in records] for name in names},
        together={},
        solver_info={},
        timing=_means([record.timing for record in records]),
        counters=_means([record.counters for record in records]),
        peak_memory_mib=max(memory, default=None),
        environment=first.environment | _machines(records),
        unmeasured={name: reason for record in records for name, reason in record.unmeasured.items()},
    )


def _machines(records: Sequence[Record]) -> dict[str, str]:
    """Device and version where they differ, joined."""
    found = {}
    hardware = sorted({name for record in records if (name := hardware_of(record)) is not None})
    if len(hardware) > 1:
        kind = str(records[0].environment.get("device", "")).partition(" ")[0]
        found["device"] = f"{kind} {' and '.join(hardware)}"
    versions = sorted({str(record.environment.get("version")) for record in records})
    return found | ({"version": " and ".join(versions)} if len(versions) > 1 else {})


def _mean(numbers: Sequence[float] | None) -> float:
    return fmean(numbers) if numbers else float("nan")


def _means(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each entry that all have."""
    return {name: fmean(part[name] for part in parts) for name in parts[0] if all(name in part for part in parts)}
