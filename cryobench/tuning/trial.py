"""One trial of a search: a setting and its score."""

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
    """A setting and its score.

    scores: one per problem, in order, up to the last one that was run. left_out: reasons, by problem number, why the
    solver does not support a problem; only the default trial has any. evaluations: network evaluations. seconds: of
    its cells. reason: why the trial failed, else ''. reused: whether all its cells were found in the store.
    """

    values: Values
    scores: Sequence[float] = ()
    left_out: Mapping[int, str] = field(default_factory=dict)
    evaluations: float = 0.0
    seconds: float = 0.0
    pruned: bool = False
    reason: str = ""
    reused: bool = False

    @property
    def failed(self) -> bool:
        return self.reason != ""

    @property
    def score(self) -> float | None:
        """The mean over the problems; None for a trial that failed or was pruned."""
        return None if self.failed or self.pruned else fmean(self.scores)

    @property
    def setting(self) -> dict[str, str]:
        """The values as text, as in a spec."""
        return {name: as_text(value) for name, value in self.values.items()}

    def __str__(self) -> str:
        result = f"failed ({self.reason})" if self.failed else "pruned" if self.pruned else f"{self.score:.5g}"
        return f"{result} at {','.join(f'{name}={text}' for name, text in self.setting.items())}"
