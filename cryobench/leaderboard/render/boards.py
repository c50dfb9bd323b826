"""Comparisons for all renderings: title, rows and remarks."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pandas as pd

from cryobench.leaderboard.leakage import IMAGES, NOTHING, STRUCTURE
from cryobench.leaderboard.ranking import NO, UNCLEAR
from cryobench.leaderboard.render.text import NO_VALUE, one_line
from cryobench.leaderboard.statistics.power import LEVEL, POWER
from cryobench.text import counted

LETTERED = f"rows with a common letter do not differ significantly ({LEVEL}, Holm)"
CEILING = "ceiling: not ranked: a bound on psnr to the measured image, computed from the clean one"
CEILING_OF_MAPS = "ceiling: not ranked: maps from the images with their true poses and labels"
OVERLAPS = {
    NOTHING: "",
    IMAGES: "‡ its prior may have been trained on these images: the same structure, split and seed",
    STRUCTURE: "† its prior was trained on other images of the same structure",
}
FRONT = "◆"
FRONTS = {"pareto_seconds": "seconds_per_image", "pareto_nfe": "nfe"}
"""Columns that state whether a row is on a Pareto front, and the cost of that front."""

MIXED = {
    "device": "rows come from different devices",
    "hardware": "times are not comparable: rows come from different hardware",
    "version": "rows come from different versions",
}
"""Columns that should be the same in all rows of a table, and the remark where they are not."""

NOT_COMPRESSIVE = 1.0 + 1e-9


@dataclass(frozen=True)
class Board:
    """A comparison.

    title_parts: by name. unit: what a row has values of, `image` or `data set`. columns: lists over the rows that have
    results; NaN or None where a value is missing.
    unranked: a line for each cell without results.
    """

    title_parts: Mapping[str, str]
    unit: str
    by: str
    metrics: Sequence[Mapping[str, str]]
    columns: Mapping[str, list[Any]]
    unranked: Sequence[str]

    def __len__(self) -> int:
        return len(self.columns["solver"])

    @property
    def title(self) -> str:
        """`sumpool:16 · noise none · demo, 4 images · seed 0 · C = 4.00`."""
        parts = dict(self.title_parts)
        parts["data"] = ", ".join(part for part in (parts["data"], parts.pop("n_images")) if part)
        return " · ".join(part for part in parts.values() if part)

    @property
    def subject(self) -> str:
        """The title without seed and images."""
        named = (self.title_parts[name] for name in ("operator", "noise", "data", "within", "dtype"))
        return " · ".join(part for part in named if part)

    @property
    def n_rows(self) -> int:
        return len(self) + len(self.unranked)


def boards(frame: pd.DataFrame) -> Iterator[Board]:
    """The comparisons of a leaderboard, in order. Columns are lists because slicing the frame would dominate the run
    time."""
    columns = {  # NaN for a missing float, None for anything else that is missing
        str(name): column.tolist() if column.dtype == "float64" else column.to_numpy(object, na_value=None).tolist()
        for name, column in frame.items()
    }
    columns |= {name: frame.index.get_level_values(name).tolist() for name in ("group", "floor", "ceiling", "dtype")}
    metrics, unit = frame.attrs["columns"], frame.attrs.get("unit", "image")
    for _, members in groupby(range(len(frame)), key=columns["group"].__getitem__):
        places = list(members)
        ran = [place for place in places if columns["status"][place] == "ok"]
        yield Board(
            title_parts=_title_parts(columns, places, unit),
            unit=unit,
            by=frame.attrs["by"],
            metrics=metrics,
            columns={name: [column[place] for place in ran] for name, column in columns.items()},
            unranked=[_unranked(columns, place) for place in places if columns["status"][place] != "ok"],
        )


def _title_parts(columns: Mapping[str, list[Any]], places: Sequence[int], unit: str) -> dict[str, str]:
    """`sumpool:16`, `noise none`, `demo`, `4 images`, `seed 0`, `C = 4.00`; '' for defaults."""

    def first(name: str) -> Any:
        values = (columns[name][place] for place in places)
        return next((value for value in values if value is not None and value == value), None)  # NaN is not itself

    images, compression = first("n_images"), first("compression")
    parts = {
        "operator": first("operator"),
        "noise": f"noise {first('noise')}",
        "data": first("data"),
        "n_images": "" if images is None else counted(images, unit),
        "seed": f"seed {first('seed')}",
        "within": "" if first("within") == "image" else f"within {first('within')}",
        "dtype": "" if first("dtype") == "float32" else first("dtype"),
        "compression": "" if compression is None else f"C = {compression:.2f}",
    }
    return {name: one_line(text) for name, text in parts.items()}


def _unranked(columns: Mapping[str, list[Any]], place: int) -> str:
    """`skipped tv: reason`, for a cell that has no result."""
    status, solver, reason = (columns[name][place] for name in ("status", "solver", "reason"))
    return one_line(f"{status} {solver}: {reason or 'no reason given'}")


def remarks(board: Board, shown: Sequence[str]) -> list[str]:
    """Remarks below the table. shown: the columns of the table."""
    return [*_of_rows(board), *_of_columns(board, shown)]


def _of_rows(board: Board) -> Iterator[str]:
    """Tests, images needed, solvers not above the floor; mixed hardware and versions; training data; compression."""
    ran = board.columns
    yield from dict.fromkeys(reason for reason in ran["untested"] if reason)
    if any(ran["letters"]):
        yield LETTERED
    needed = [
        f"{one_line(solver)} {count}"
        for solver, count, p in zip(ran["solver"], ran["images_needed"], ran["p_holm"], strict=True)
        if count is not None and not p <= LEVEL
    ]
    if needed:
        what = f"{board.unit}s needed to detect the observed difference to the first (power {POWER})"
        yield f"{what}: {'; '.join(needed)}"
    for verdict, what in ((NO, "no better than the floor"), (UNCLEAR, "not significantly better than the floor")):
        solvers = [one_line(s) for s, beats in zip(ran["solver"], ran["beats_floor"], strict=True) if beats == verdict]
        if solvers and (verdict == NO or not any(ran["untested"])):
            yield f"{what}: {'; '.join(solvers)}"
    for name, remark in MIXED.items():
        found = list(dict.fromkeys(value for value in ran[name] if value is not None))
        if len(found) > 1:
            yield f"{remark}: {', '.join(map(one_line, found))}"
    yield from (OVERLAPS[seen] for seen in (IMAGES, STRUCTURE) if seen in ran["overlap"])
    if any(value <= NOT_COMPRESSIVE for value in ran["compression"]):
        yield "C = 1: not compressive: as many independent measurements as pixels"


def _of_columns(board: Board, shown: Sequence[str]) -> Iterator[str]:
    """Meaning of columns and marks, and reasons for missing means."""
    ran = board.columns
    if any(cost in shown and any(ran[mark]) for mark, cost in FRONTS.items()):
        yield f"{FRONT} Pareto front: no other row is as good in {board.by} and as cheap"
    metrics = [column["name"] for column in board.metrics]
    if any(ran["ceiling"]):
        yield CEILING if "psnr" in metrics else CEILING_OF_MAPS
    incomplete = [name for name in metrics if math.isnan(sum(ran[name]))]  # cheap and rarely any
    empty = [name for name in incomplete if all(map(math.isnan, ran[name]))]  # not shown
    missing = [
        name
        for name in dict.fromkeys([*(name for name in shown if name in incomplete), *empty])
        if any(math.isnan(mean) and not ceiling for mean, ceiling in zip(ran[name], ran["ceiling"], strict=True))
    ]
    if missing:
        reasons = [json.loads(text) for text in dict.fromkeys(ran["unmeasured"]) if text]
        by_reason: dict[str, list[str]] = {}
        for name in missing:
            for why in dict.fromkeys(each[name] for each in reasons if name in each):
                by_reason.setdefault(why, []).append(name)
        for why, names in by_reason.items():
            yield f"{NO_VALUE} no {one_line(', '.join(names) + ': ' + why)}"
        explained = {name for names in by_reason.values() for name in names}
        if any(name in shown and name not in explained for name in missing):
            yield f"{NO_VALUE} no mean: not measured, or not defined for every image"
