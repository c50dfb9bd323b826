"""What the images of each solver are worth as a map, beside their errors: one row per solver, operator and noise.

The rows are made of the cells of a run on particles of one structure (`metrics: map`), and of its controls: the same
solver on noise alone, and on particles of another structure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cryobench.leaderboard.render import escape_markdown
from cryobench.leaderboard.render.text import NO_VALUE
from cryobench.leaderboard.statistics.bootstrap import mean
from cryobench.metrics.rings import ring_frequencies
from cryobench.plan.structure import FULL, NOISE, OTHER, PARTICLES
from cryobench.record import CLEAN, Record, numbers_of
from cryobench.results.store import CURVES

if TYPE_CHECKING:
    from cryobench.results.store import Results

KEYS = ("operator", "noise", "seed", "particles")
COLUMNS = (
    *KEYS,
    "solver",
    "reference",
    "rank",
    "psnr_rank",
    "psnr",
    "map_truth",
    "map_halves",
    "map_fsc",
    "map_false",
    "map_missing",
    "noise_halves",
    "noise_share",
    "other_truth",
    "status",
    "reason",
)
MEANING = {
    "rank": "by map_truth; numbers of maps are one per cell, and differences are not tested",
    "psnr_rank": "by psnr",
    "psnr": "dB, of the images, against the images without noise where they are known",
    "map_truth": "Å, resolution of the map against the structure, at 0.5",
    "map_halves": "Å, of its halves, at 0.143",
    "map_fsc": "mean correlation of the map with the structure",
    "map_false": "volume above the contour in the map only, relative to that of the structure",
    "map_missing": "volume above the contour in the structure only",
    "noise_halves": "Å, map_halves of the same solver on images of noise alone: what it makes of nothing",
    "noise_share": "repeatable power of that map relative to that of the particles; near 0 where nothing "
    "is made of noise",
    "other_truth": "Å, map_truth of particles of another structure",
}
"""Of the columns with numbers, for the notes of tables."""


@dataclass(frozen=True)
class Part:
    """A cell of a table, and its part in it."""

    part: str
    record: Record


def structure_table(parts: Iterable[Part]) -> pd.DataFrame:
    """A row for each solver, operator, noise, seed and number of particles, the best first; the row `reference` is
    that of all pixels. Numbers are missing (NaN) where a control was not run or has none, and for cells that failed.
    """
    cells: dict[tuple[object, ...], dict[str, Record]] = {}
    full: dict[tuple[object, ...], Record] = {}
    for given in parts:
        record, count = given.record, len(given.record.images)
        if given.part == FULL:
            full[record.noise, record.seed, count] = record
        else:
            key = record.operator, record.noise, record.seed, count, record.solver
            cells.setdefault(key, {})[given.part] = record
    known = {key: own for key, own in cells.items() if PARTICLES in own}
    most = {key[:3]: max(k[3] for k in known if k[:3] == key[:3]) for key in known}  # type: ignore[type-var]
    rows = []
    for key, own in known.items():
        # the controls are run once, on as many images as the largest table has particles
        controls = cells.get((*key[:3], most[key[:3]], key[4]), {}) if key[3] == most[key[:3]] else {}
        rows.append(_row(own[PARTICLES], controls))
    for key in dict.fromkeys(key[:4] for key in known):
        if key[1:] in full:
            rows.append(_row(full[key[1:]], {}) | {"operator": key[0], "solver": "all pixels", "reference": True})
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return _ranked(frame)


def _row(record: Record, controls: dict[str, Record]) -> dict[str, object]:
    row: dict[str, object] = {
        "operator": record.operator,
        "noise": record.noise,
        "seed": record.seed,
        "particles": len(record.images),
        "solver": record.solver + (" (floor)" if record.floor else ""),
        "reference": False,
        "psnr": _number(record, "psnr" + CLEAN, "psnr"),
        "status": record.status,
        "reason": record.reason or next((record.unmeasured[name] for name in ("map_truth", "map_halves")
                                         if name in record.unmeasured), ""),
    }  # fmt: skip
    row |= {name: _number(record, name) for name in COLUMNS if name.startswith("map_")}
    noise, other = controls.get(NOISE), controls.get(OTHER)
    row["noise_halves"] = math.nan if noise is None else _number(noise, "map_halves")
    power = _number(record, "map_power")
    row["noise_share"] = math.nan if noise is None or not power > 0 else _number(noise, "map_power") / power
    row["other_truth"] = math.nan if other is None else _number(other, "map_truth")
    return row


def _number(record: Record, *names: str) -> float:
    """The mean of the first column that a record has."""
    for name in names:
        value = mean(numbers_of(record, name) or ()) if record.status == "ok" else None
        if value is not None:
            return value
    return math.nan


def _ranked(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with its ranks, in the order of first appearance of its problems, the best solver of each first."""
    ordered: list[pd.DataFrame] = []
    for _, own in frame.groupby(list(KEYS), sort=False):
        solvers = ~own["reference"].astype(bool)
        own = own.assign(
            rank=own["map_truth"].where(solvers).rank(method="min"),
            psnr_rank=own["psnr"].where(solvers).rank(method="min", ascending=False),
            order=own["map_truth"].fillna(own["map_halves"]),
        )
        ordered.append(own.sort_values(["reference", "order"], ascending=[False, True], kind="stable"))
    columns = list(COLUMNS)
    if not ordered:
        return frame
    joined = pd.concat(ordered, ignore_index=True)[columns]
    return pd.DataFrame(joined.astype({"rank": "Int64", "psnr_rank": "Int64", "reference": "bool"}))


@dataclass(frozen=True)
class Curves:
    """Correlations of maps with the structure, [L] by solver, and the frequency of their shells in 1/Å (or cycles per
    pixel without a pixel size), [L]."""

    curves: dict[str, np.ndarray]
    frequency: np.ndarray


def curves_of(parts: Iterable[Part], store: Results) -> dict[tuple[str, str, int, int], Curves]:
    """The curves of the cells in a results folder, by problem (`KEYS`); of all pixels with every operator."""
    found: dict[tuple[str, str, int, int], Curves] = {}
    full: dict[tuple[str, int, int], np.ndarray] = {}
    for given in parts:
        record, folder = given.record, store.find(given.record.hash)
        if given.part not in (PARTICLES, FULL) or record.status != "ok" or folder is None:
            continue
        with np.load(folder / CURVES) as arrays:
            if "map_truth" not in arrays:
                continue
            curve = arrays["map_truth"][0]
        place = record.noise, record.seed, len(record.images)
        if given.part == FULL:
            full[place] = curve
            continue
        pixel_size = record.problem["pixel_size_angstrom"][0] or 1.0
        own = Curves({}, ring_frequencies(tuple(record.problem["image_shape"])).numpy() / pixel_size)
        found.setdefault((record.operator, *place), own).curves[record.solver] = curve
    for key, own in found.items():
        if key[1:] in full:
            own.curves["all pixels"] = full[key[1:]]
    return found


def problems(frame: pd.DataFrame) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
    """The rows of each problem with its operator, noise, seed and number of particles, in order."""
    keys = [tuple(row) for row in frame[list(KEYS)].itertuples(index=False)]
    return [(key, frame.loc[[own == key for own in keys]]) for key in dict.fromkeys(keys)]


def heading(key: tuple[Any, ...]) -> str:
    """The title of a problem."""
    operator, noise, seed, particles = key
    return f"{operator} · noise {noise} · {particles} particles · seed {seed}"


def by_particles(frame: pd.DataFrame) -> dict[tuple[Any, ...], dict[str, tuple[list[int], list[float]]]]:
    """By operator, noise and seed: the numbers of particles and the resolutions `map_truth` of each solver, where there
    are several numbers."""
    found: dict[tuple[Any, ...], dict[str, dict[int, float]]] = {}
    for row in frame.to_dict("records"):
        lines = found.setdefault((row["operator"], row["noise"], row["seed"]), {})
        lines.setdefault(row["solver"], {})[row["particles"]] = row["map_truth"]
    return {
        key: {name: (sorted(line), [line[count] for count in sorted(line)]) for name, line in lines.items()}
        for key, lines in found.items()
        if len({count for line in lines.values() for count in line}) > 1
    }


def markdown(frame: pd.DataFrame, data: str) -> str:
    """The table in Markdown, a section for each problem, with the meaning of its columns."""
    names = shown(frame)
    lines = [f"# {escape_markdown(data)}", ""]
    for (operator, noise, seed, particles), own in problems(frame):
        lines += [f"## `{operator}`, noise `{noise}`, {particles} particles, seed {seed}", ""]
        lines += [f"| solver | {' | '.join(names)} |", "|:--|" + "--:|" * len(names)]
        for solver, reason, cells in zip(own["solver"], own["reason"], texts(own, names), strict=True):
            lines.append(f"| {' | '.join(map(escape_markdown, (solver, *cells)))} |")
            if reason:
                lines.append(f"| {escape_markdown(reason)} |" + " |" * len(names))
        lines.append("")
    return "\n".join([*lines, *(f"- `{name}`: {MEANING[name]}" for name in names)]) + "\n"


def shown(frame: pd.DataFrame) -> list[str]:
    """The columns of numbers that have one."""
    return [name for name in MEANING if name in frame and bool(frame[name].notna().to_numpy().any())]


def texts(frame: pd.DataFrame, names: Sequence[str]) -> list[list[str]]:
    """The cells of these columns as text, a row for each of the table."""
    digits = {"map_fsc": 3, "noise_share": 3, "psnr": 2, "map_false": 2, "map_missing": 2}

    def text(name: str, value: Any) -> str:
        if value is None or value is pd.NA or value != value:
            return NO_VALUE
        return str(value) if name in ("rank", "psnr_rank") else f"{value:.{digits.get(name, 1)}f}"

    columns = {name: frame[name].tolist() for name in names}
    return [[text(name, columns[name][row]) for name in names] for row in range(len(frame))]
