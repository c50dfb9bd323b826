"""`diffusion`: features from the middle of a diffusion model's network.

The features that a network learns in order to denoise tell images apart (Baranchuk et al. 2022, ICLR; Xiang et al.
2023, ICCV). An image is resampled to the size of the training images and given their mean and standard deviation. The
network sees it as x_t = sqrt(a_t) x at the level t whose noise has the stated deviation sigma_t, without noise added:
particle images are noisy themselves. The output of the middle block, averaged over positions, is the feature vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch

from cryobench.core import Encoder, Shape
from cryobench.errors import DataError, ParameterError
from cryobench.io.fourier_crop import fourier_resize
from cryobench.priors.diffusion import Diffusion, DiffusionModel, Embedded
from cryobench.spec import ByName, Component

_INTENSITY = (0.0, 0.5)
"""Mean and standard deviation of images for a prior that does not state them."""


@dataclass(frozen=True)
class DiffusionEncoder(Encoder):
    """Features of the middle block of a diffusion prior's network, averaged over positions.

    Images are resampled to the size of the prior's training images, and scaled to their mean and standard deviation
    (0 and 0.5 where the prior does not state them). The CTF is not corrected: training images have one.
    """

    prior: Annotated[Diffusion, Component("priors", folder="diffusion"), ByName(), "the diffusion model"] = Embedded()
    sigma: Annotated[float, "noise level of the network, as a standard deviation on the scale of the prior"] = 0.5
    batch: Annotated[int, "images at once"] = 16

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise ParameterError(f"diffusion: sigma must be positive, got {self.sigma:g}")
        if self.batch < 1:
            raise ParameterError(f"diffusion: batch must be at least 1, got {self.batch}")

    def check(self, shape: Shape) -> None:
        self.prior.check(self._shape())

    def features(self, images: torch.Tensor, transfer: torch.Tensor | None, pixel_size: float) -> torch.Tensor:
        side = self._shape()[0]
        model = self.prior.load(images.device)
        level = model.level_of(self.sigma)
        factor = model.alpha_between(level) ** 0.5
        mean, deviation = self.prior.intensity or _INTENSITY
        found = []
        with torch.no_grad():
            for some in images.split(self.batch):
                arrays = some.detach().cpu().numpy()
                x = torch.from_numpy(np.stack([fourier_resize(image, side) for image in arrays])).to(images.device)
                spread = x.std(dim=(1, 2), keepdim=True, correction=0)
                x = (x - x.mean(dim=(1, 2), keepdim=True)) / torch.where(spread > 0, spread, 1.0) * deviation + mean
                found.append(_middle(model, factor * x[:, None], level))
        return torch.cat(found)

    def _shape(self) -> Shape:
        """The shape of the images that the network sees. Raises `DataError` where the prior does not state it."""
        shape = self.prior.trained_shape
        if shape is None or shape[0] != shape[1]:
            stated = "does not state the size of its training images" if shape is None else "is not for square images"
            raise DataError(f"diffusion: the prior {self.prior.source} {stated}; give one that is trained on squares")
        return shape


def _middle(model: DiffusionModel, x: torch.Tensor, level: float) -> torch.Tensor:
    """The mean over positions of the output of the middle block for x_t [B, 1, H, W], float64 [B, f]."""
    found: list[torch.Tensor] = []

    def keep(module: Any, given: Any, output: torch.Tensor) -> None:
        found.append(output.double().mean(dim=(2, 3)))

    block = getattr(model.unet, "mid_block", None)
    if block is None:
        raise DataError("diffusion: the network of the prior has no middle block; give a prior that has one")
    handle = block.register_forward_hook(keep)
    try:
        model.network(x, level)
    finally:
        handle.remove()
    return found[0]
