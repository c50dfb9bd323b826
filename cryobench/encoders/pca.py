"""`pca`: the leading principal components of CTF-corrected, low-passed images.

Each Fourier coefficient Y(k) with 0 < |k| <= lowpass |k_Nyquist| is corrected by the Wiener filter with a constant,

    X(k) = C(k) Y(k) / (C(k)^2 + wiener),

and multiplied by the root of the number of coefficients that it stands for in the half spectrum, so that distances of
the vectors are those of the filtered images (Parseval). The scores of their principal components are the features.
Images differ by the poses of their particles too, which these components describe as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import Encoder
from cryobench.errors import ParameterError
from cryobench.numerics.fft import rfftn
from cryobench.numerics.principal import principal_scores

_AT_ONCE = 512
"""Images that are transformed at once."""


@dataclass(frozen=True)
class Pca(Encoder):
    """Principal components of images that are CTF-corrected by a Wiener filter and low-passed.

    They are those of the images given together: a feature has a meaning within a data set only.
    """

    joint = True
    components: Annotated[int, "number of principal components; fewer where images or frequencies are fewer"] = 16
    lowpass: Annotated[float, "highest frequency, as a fraction of Nyquist"] = 0.5
    wiener: Annotated[float, "constant of the Wiener filter: power of the noise relative to that of the signal"] = 1.0

    def __post_init__(self) -> None:
        if self.components < 1:
            raise ParameterError(f"pca: components must be at least 1, got {self.components}")
        if not 0 < self.lowpass <= 1:
            raise ParameterError(f"pca: lowpass must be above 0 and at most 1, got {self.lowpass:g}")
        if not 0 < self.wiener < math.inf:
            raise ParameterError(f"pca: wiener must be positive, got {self.wiener:g}")

    def features(self, images: torch.Tensor, transfer: torch.Tensor | None, pixel_size: float) -> torch.Tensor:
        side = images.shape[-1]
        rows = torch.fft.fftfreq(side, 1 / side, device=images.device, dtype=torch.float64)[:, None]
        columns = torch.arange(side // 2 + 1, device=images.device, dtype=torch.float64)[None]
        radius = (rows.square() + columns.square()).sqrt()
        kept = (radius > 0) & (radius <= self.lowpass * (side / 2))
        if not kept.any():
            raise ParameterError(
                f"pca: lowpass={self.lowpass:g} leaves no frequency of images of {side} x {side}; give a lowpass of "
                f"at least {2 / side:.3g}"
            )
        alone = (columns == 0) | (2 * columns == side)  # their conjugates are in the half spectrum too
        weight = (2 - alone.double()).sqrt().expand_as(kept)[kept] / side
        found = []
        for part in torch.arange(len(images), device=images.device).split(_AT_ONCE):
            values = rfftn(images[part].double())[:, kept] * weight
            if transfer is not None:
                ctf = transfer[part][:, kept].double()
                values = values * (ctf / (ctf.square() + self.wiener))
            found.append(torch.view_as_real(values).flatten(1))
        return principal_scores(torch.cat(found), self.components)
