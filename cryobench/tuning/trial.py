"""A trial: a setting that was tried, and what it came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from cryobench.spec import as_text

Values = dict[str, Any]
"""A value for each field that is searched."""


@dataclass(frozen=True)
class Trial:
    """Plain data, so that a journal can hold it.

    scores: of the problems in order, as many as were tried. left_out: why, by the number of a problem that the solver
    does not take; the first trial's goes for all. evaluations: of the network. reason: why it failed, else ''.
    """

    values: Values
    scores: Sequence[float] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    evaluations: float = 0.0
    seconds: float = 0.0
    pruned: bool = False
    reason: str = ""

    @property
    def failed(self) -> bool:
        return self.reason != ""

    @property
    def score(self) -> float | None:
        """The mean over the problems; None for a trial that failed or was given up."""
        return None if self.failed or self.pruned else fmean(self.scores)

    @property
    def setting(self) -> dict[str, str]:
        """The values as they stand in a spec."""
        return {name: as_text(value) for name, value in self.values.items()}

    def __str__(self) -> str:
        came = f"failed ({self.reason})" if self.failed else "pruned" if self.pruned else f"{self.score:.5g}"
        return f"{came} at {','.join(f'{name}={text}' for name, text in self.setting.items())}"
