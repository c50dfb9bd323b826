"""The network architectures of `ddpm`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cryobench.core import Shape
from cryobench.errors import IncompatibleError
from cryobench.extras import of_extra

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel


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
        with of_extra("diffusion"):
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
    "medium": Architecture(channels=(96, 128, 160), blocks=2, unshuffle=4, prediction="v_prediction"),
    "cryosense-128": dataclasses.replace(_CRYOSENSE, side=128),
    "cryosense-256": dataclasses.replace(_CRYOSENSE, side=256),
}
"""tiny: for trials and tests. small, medium: of the packaged priors embedded and folds. The others: of CryoSENSE."""
