"""The record of one cell. Imports no package but the standard library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cryobench.errors import one_line, valid_text

CLEAN = "_clean"
"""Suffix of the columns of a metric that was computed against the clean image."""

LEADING = ("rank", "solver", "operator", "noise", "data", "seed", "n_images", "compression", "status", "reason")
"""First columns of a leaderboard; the metrics follow, each with the limits of its interval, NAME_lo and NAME_hi."""

COSTS = ("seconds_per_image", "nfe", "operator_calls", "peak_memory_mib")
"""Cost columns; lower is better."""

RANKING = (
    "tied",
    "letters",
    "diff_leader",
    "diff_leader_lo",
    "diff_leader_hi",
    "p_holm",
    "images_needed",
    "untested",
    "beats_floor",
    "pareto_seconds",
    "pareto_nfe",
)
"""Columns that compare a row of a leaderboard with the other rows of its comparison; see `ranking.standings`."""

TRAILING = (*RANKING, *COSTS, "unmeasured", "overlap", "within", "device", "hardware", "version")
"""Last columns of a leaderboard."""


@dataclass
class Record:
    """One cell of a run: one solver on one operator, noise and data set. Everything in it is plain JSON.

    hash: SHA-256 of everything that can change the results. reason: why it was skipped or failed, else ''. solver,
    operator, noise, data: short specs, with every parameter in `resolved`. compression: N / rank(A). values: metric
    columns, one number per image. together: metric columns with one number for all images. columns: the direction and
    unit of both. solver_info: per-image numbers of the solver. timing: seconds, with set-up separate. counters: calls
    per image. peak_memory_mib: see `meters.PeakMemory`. floor, ceiling: whether it is one of the two references; the
    ceiling is not a solver and is not ranked. unavailable: files requested with `--save` that the solver does not
    provide. unmeasured: by metric column, why it has no number for some or all images.
    """

    hash: str
    status: Literal["ok", "skipped", "failed"]
    reason: str
    solver: str
    operator: str
    noise: str
    data: str
    seed: int
    images: list[str]
    floor: bool = False
    ceiling: bool = False
    compression: float | None = None
    values: dict[str, list[float]] = field(default_factory=dict)
    together: dict[str, float] = field(default_factory=dict)
    columns: list[dict[str, str]] = field(default_factory=list)
    solver_info: dict[str, list[float]] = field(default_factory=dict)
    resolved: dict[str, Any] = field(default_factory=dict)
    timing: dict[str, float] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)
    peak_memory_mib: float | None = None
    problem: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    unavailable: list[str] = field(default_factory=list)
    unmeasured: dict[str, str] = field(default_factory=dict)


def numbers_of(record: Record, metric: str) -> list[float] | None:
    """The numbers of a metric column: one per image, or one of all images together; None if the record has none."""
    together = record.together.get(metric)
    return record.values.get(metric) if together is None else [together]


def plain(value: Any) -> Any:
    """A value as plain JSON: objects and lists of texts, numbers, truth values and None. Texts are made valid, and
    anything else becomes its text."""
    if isinstance(value, Mapping):
        return {valid_text(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if value is None or type(value) in (bool, int, float):
        return value
    return valid_text(value) if isinstance(value, str) else one_line(value)
