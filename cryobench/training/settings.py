"""The settings of a training run, whatever its objective."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryobench.errors import ParameterError
from cryobench.spec import Spec

AUTO, NONE, RAM, DEVICE = "auto", "none", "ram", "device"
PRELOADS = (AUTO, NONE, RAM, DEVICE)
"""Where the data of a run are kept: read when needed, all in memory, all on the device; auto chooses by their size."""
_DDPM = {"turns": True, "target": "images", "levels": "uniform"}
"""Parameters of `ddpm` that were settings, with their defaults."""


@dataclass(frozen=True)
class Settings:
    """A training run. On a CPU the final weights depend on these settings and the images only.

    data, validation: source specs. objective: the spec of the training objective, with all of its parameters where runs
    are compared. warm_start: the model that gives the initial weights, as the objective names it; "" for random
    weights. steps: updates of the weights. batch: samples per step, over all processes. lr: peak learning rate of
    AdamW, reached after `warmup` steps, with cosine decay to 0 at the last step. ema: decay of the averaged weights,
    which are the result. clip: maximum norm of the gradient. patience: stop when the validation loss has not decreased
    for this number of steps; 0 for never. validate_every, sample_every, checkpoint_every: in steps. preload: where the
    data are kept, one of `PRELOADS`. bfloat16: compute the network and its gradient in bfloat16 on a CPU too; CUDA
    devices that compute in bfloat16 always do. networks: digest of the trained networks that the objective uses.
    """

    data: tuple[str, ...]
    validation: tuple[str, ...] = ()
    objective: str = "ddpm"
    warm_start: str = ""
    steps: int = 20_000
    batch: int = 16
    lr: float = 3e-4
    warmup: int = 500
    ema: float = 0.999
    clip: float = 1.0
    patience: int = 0
    seed: int = 0
    validate_every: int = 500
    sample_every: int = 2000
    checkpoint_every: int = 500
    preload: str = AUTO
    bfloat16: bool = False
    networks: str = ""

    def __post_init__(self) -> None:
        minimum = {"steps": 1, "batch": 1, "warmup": 0, "patience": 0, "validate_every": 1, "sample_every": 1,
                 "checkpoint_every": 1}  # fmt: skip
        for name, bound in minimum.items():
            if getattr(self, name) < bound:
                raise ParameterError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        if self.preload not in PRELOADS:
            raise ParameterError(f"preload must be one of {', '.join(PRELOADS)}, got {self.preload!r}")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ParameterError(f"{name} must be positive, got {getattr(self, name):g}")
        if not 0 <= self.ema < 1:
            raise ParameterError(f"ema must lie in [0, 1), got {self.ema:g}")
        if not self.data:
            raise ParameterError("training needs at least one source of images, got none; give --data")
        if self.patience and not self.validation:
            raise ParameterError(f"patience={self.patience} requires a validation loss; give "
                                 "--validation")  # fmt: skip

    def learning_rate(self, step: int) -> float:
        """The learning rate of update `step`, 0 to steps - 1: linear warm-up, then cosine decay to 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(self.steps - self.warmup, 1)))

    def decay(self, step: int) -> float:
        """The decay of the average at update `step`: smaller at the start, to forget the initial weights."""
        return min(self.ema, (1 + step) / (10 + step))

    def differences(self, other: Settings) -> list[str]:
        """The names of differing settings that must agree to continue a run: all but durations, rate and intervals."""
        free = {"steps", "lr", "patience", "validate_every", "sample_every", "checkpoint_every", "preload"}
        names = [field.name for field in dataclasses.fields(self) if field.name not in free]
        return [name for name in names if getattr(self, name) != getattr(other, name)]

    def to_dict(self) -> dict[str, Any]:
        """The settings as numbers, strings and lists."""
        return {name: list(value) if isinstance(value, tuple) else value
                for name, value in dataclasses.asdict(self).items()}  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """The inverse of `to_dict`; also reads runs of `ddpm` from before there were other objectives."""
        typed: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value
                                 for name, value in values.items()}  # fmt: skip
        if "objective" not in typed:
            network = typed.pop("preset", None) or typed.pop("network", "small")
            parameters = {name: typed.pop(name, default) for name, default in _DDPM.items()}
            given = tuple((name, str(value).lower()) for name, value in parameters.items())
            typed["objective"] = str(Spec("ddpm", network, given))
        return cls(**typed)
