"""The settings of a training run, and the network architectures."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cryobench.core import Shape
from cryobench.errors import IncompatibleError, ParameterError

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

T = 1000
"""Noise levels."""
BETAS = (1e-4, 0.02)
"""The first and last of the T variances beta_t, evenly spaced (Ho, Jain & Abbeel 2020, section 4)."""


@dataclass(frozen=True)
class Architecture:
    """A network architecture.

    channels: of each level. blocks: residual blocks per level. attention: levels with attention. unshuffle: factor of
    the pixel-unshuffling before the network. groups: of the group normalisation. side: of the images, None for any.
    """

    channels: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...] = ()
    unshuffle: int = 1
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    groups: int = 32
    side: int | None = None

    def check(self, shape: Shape) -> None:
        """Raise `IncompatibleError` for images of a shape that the network does not support."""
        if self.side is not None and shape != (self.side, self.side):
            raise IncompatibleError(
                f"the network is for images of {self.side} x {self.side}, got {shape[0]} x {shape[1]}; resample them "
                f"to {self.side}, or choose another --network"
            )
        step = self.unshuffle * 2 ** (len(self.channels) - 1)
        if shape[0] != shape[1] or shape[0] % step:
            raise IncompatibleError(
                f"the network needs square images whose side is a multiple of {step}, got {shape[0]} x {shape[1]}; "
                f"resample them to {max(step, round(shape[0] / step) * step)}, or choose another --network"
            )

    def build(self, shape: Shape) -> UNet2DModel:
        """The network for images of this shape, with random weights from torch's global generator."""
        from diffusers.models.unets.unet_2d import UNet2DModel

        self.check(shape)
        levels, planes = len(self.channels), self.unshuffle**2
        down = ["AttnDownBlock2D" if level in self.attention else "DownBlock2D" for level in range(levels)]
        up = ["AttnUpBlock2D" if level in self.attention else "UpBlock2D" for level in reversed(range(levels))]
        return UNet2DModel(
            sample_size=shape[0] // self.unshuffle,
            in_channels=planes,
            out_channels=planes,
            layers_per_block=self.blocks,
            block_out_channels=self.channels,
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            norm_num_groups=self.groups,
        )


_CRYOSENSE = Architecture(channels=(128, 128, 256, 256, 512, 512), blocks=2, attention=(4,))
ARCHITECTURES = {
    "tiny": Architecture(channels=(16, 32), blocks=1, unshuffle=4, prediction="v_prediction", groups=8),
    "small": Architecture(channels=(64, 128, 128), blocks=1, unshuffle=4, prediction="v_prediction"),
    "cryosense-128": dataclasses.replace(_CRYOSENSE, side=128),
    "cryosense-256": dataclasses.replace(_CRYOSENSE, side=256),
}
"""tiny: for trials and tests. small: the network of the packaged prior. The others: the networks of CryoSENSE."""


@dataclass(frozen=True)
class Settings:
    """A training run. On a CPU the final weights depend on these settings and the images only.

    data, validation: source specs. network: a key of `ARCHITECTURES`. warm_start: the prior that gives the initial
    weights, embedded, a folder or hf:OWNER/NAME; "" for random weights. steps: updates of the weights. batch: images
    per step, over all processes. lr: peak learning rate of AdamW, reached after `warmup` steps, with cosine decay to 0
    at the last step. ema: decay of the averaged weights, which are the result. clip: maximum norm of the gradient.
    turns: rotate by multiples of 90 degrees and flip images at random. target: the noisy "images", or the "clean" ones
    on the scale of the noisy ones. levels: distribution of noise levels, "uniform" in t, or "mixed", half the images
    uniform in t and half uniform in log sigma_t between 0.02 and 20. patience: stop when the validation loss has not
    decreased for this number of steps; 0 for never. validate_every, sample_every, checkpoint_every: in steps.
    """

    data: tuple[str, ...]
    validation: tuple[str, ...] = ()
    network: str = "small"
    warm_start: str = ""
    steps: int = 20_000
    batch: int = 16
    lr: float = 3e-4
    warmup: int = 500
    ema: float = 0.999
    clip: float = 1.0
    turns: bool = True
    target: str = "images"
    levels: str = "uniform"
    patience: int = 0
    seed: int = 0
    validate_every: int = 500
    sample_every: int = 2000
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        if self.network not in ARCHITECTURES:
            raise ParameterError(f"unknown network {self.network!r}; expected one of {', '.join(ARCHITECTURES)}")
        minimum = {"steps": 1, "batch": 1, "warmup": 0, "patience": 0, "validate_every": 1, "sample_every": 1,
                 "checkpoint_every": 1}  # fmt: skip
        for name, bound in minimum.items():
            if getattr(self, name) < bound:
                raise ParameterError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        for name, known in (("target", ("images", "clean")), ("levels", ("uniform", "mixed"))):
            if getattr(self, name) not in known:
                raise ParameterError(f"{name} must be {' or '.join(known)}, got {getattr(self, name)!r}")
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
        free = {"steps", "lr", "patience", "validate_every", "sample_every", "checkpoint_every"}
        names = [field.name for field in dataclasses.fields(self) if field.name not in free]
        return [name for name in names if getattr(self, name) != getattr(other, name)]

    def to_dict(self) -> dict[str, Any]:
        """The settings as numbers, strings and lists."""
        return {name: list(value) if isinstance(value, tuple) else value
                for name, value in dataclasses.asdict(self).items()}  # fmt: skip

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """The inverse of `to_dict`; also reads `preset`, the former name of `network`."""
        typed: dict[str, Any] = {"network" if name == "preset" else name:
                                 tuple(value) if isinstance(value, list) else value
                                 for name, value in values.items()}  # fmt: skip
        return cls(**typed)
