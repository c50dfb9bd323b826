"""What a training run is: the numbers that its weights follow from, and the networks it can train."""

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
    """A network: channels of its levels, residual blocks in each, which levels attend, the pixel-unshuffling before it,
    what it predicts, the groups of its normalisation, and the side of the images it is for, where it is for one."""

    channels: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...] = ()
    unshuffle: int = 1
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    groups: int = 32
    side: int | None = None

    def check(self, shape: Shape) -> None:
        """Raise `IncompatibleError` unless images of this shape can be halved as often as the network does."""
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
"""tiny is for trying things out and for tests, small is the packaged prior's, the others are those of CryoSENSE."""


@dataclass(frozen=True)
class Settings:
    """A training run. Which weights come out depends on these and the images, on nothing else on a CPU.

    data, validation: source specs. warm_start: the prior whose weights it begins with, embedded, a folder or
    hf:OWNER/NAME; "" for random ones. steps: updates of the weights. batch: images a step, over all processes.
    lr: peak learning rate of AdamW, reached after `warmup` steps and falling to 0 as a cosine at the last one.
    ema: decay of the averaged weights, which are what is kept. clip: largest norm of the gradient.
    turns: whether images are turned by quarters and flipped at random. target: the "images" as they are, or their
    "clean" ones, each on the scale of its noisy one. levels: how often a noise level is trained on: "uniform" in t, or
    "mixed", half the images so and half of them uniform in log sigma_t between 0.02 and 20. patience: stop once the
    validation loss has not fallen for so many steps; 0 for never. validate_every, sample_every, checkpoint_every: in
    steps.
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
            raise ParameterError(f"unknown network {self.network!r}; there are {', '.join(ARCHITECTURES)}")
        least = {"steps": 1, "batch": 1, "warmup": 0, "patience": 0, "validate_every": 1, "sample_every": 1,
                 "checkpoint_every": 1}  # fmt: skip
        for name, bound in least.items():
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
            raise ParameterError("a training run needs at least one source of images, got none; give --data")
        if self.patience and not self.validation:
            raise ParameterError(f"patience is {self.patience}, and there is no validation loss to wait for; give "
                                 "--validation")  # fmt: skip

    def learning_rate(self, step: int) -> float:
        """Of update `step`, 0 to steps - 1: a linear rise over `warmup` steps, then half a cosine down to 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(self.steps - self.warmup, 1)))

    def decay(self, step: int) -> float:
        """Of the average, at update `step`: less at the start, so that the first weights are soon forgotten."""
        return min(self.ema, (1 + step) / (10 + step))

    def differences(self, other: Settings) -> list[str]:
        """The names of what differs and may not, when a run goes on: all but how long, how fast and how often."""
        free = {"steps", "lr", "patience", "validate_every", "sample_every", "checkpoint_every"}
        names = [field.name for field in dataclasses.fields(self) if field.name not in free]
        return [name for name in names if getattr(self, name) != getattr(other, name)]

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers, texts and lists."""
        return {name: list(value) if isinstance(value, tuple) else value
                for name, value in dataclasses.asdict(self).items()}  # fmt: skip

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """The inverse of `to_dict`; also reads `preset`, the former name of `network`."""
        typed: dict[str, Any] = {"network" if name == "preset" else name:
                                 tuple(value) if isinstance(value, list) else value
                                 for name, value in values.items()}  # fmt: skip
        return cls(**typed)
