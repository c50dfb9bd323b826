"""`tv`: images have few edges."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import numpy as np
import torch

from cryobench.core import Shape
from cryobench.errors import DependencyError, ParameterError
from cryobench.numerics.linalg import one_channel, tiny
from cryobench.priors.sparsity import Sparsity

Kind = Literal["isotropic", "anisotropic"]
_PROXTV_STEPS = 1000
"""The default of prox-tv, 35, leaves an error of 1e-3 on an image of 16 x 24."""


@dataclass(frozen=True)
class TotalVariation(Sparsity):
    """K: differences to the next pixel along every axis, without periodic wrap (Rudin, Osher & Fatemi 1992).

        R(x) = sum_p |(K x)_p|    with cut = 1

    isotropic: |u| is the length of the gradient at a pixel; anisotropic: |u| is the magnitude of each
    difference.
    """

    kind: Annotated[Kind, "isotropic: length of the gradient at a pixel; anisotropic: every difference separately"] = (
        "isotropic"
    )

    def norm_squared(self, dims: int) -> float:
        return 4.0 * dims  # the largest eigenvalue 4 sin^2 of each axis (Chambolle 2004)

    def unsupported(self, shape: Shape) -> str | None:
        return "total variation needs more than one pixel" if math.prod(shape) == 1 else None

    def analysis(self, x: torch.Tensor) -> torch.Tensor:
        u = one_channel(x).new_zeros((x.shape[0], x.ndim - 2, *x.shape[2:]))
        for axis, n in enumerate(x.shape[2:]):
            here, onward = x[:, 0].narrow(axis + 1, 0, n - 1), x[:, 0].narrow(axis + 1, 1, n - 1)
            u[:, axis].narrow(axis + 1, 0, n - 1).copy_(onward - here)
        return u

    def adjoint(self, u: torch.Tensor) -> torch.Tensor:
        x = torch.zeros_like(u[:, :1])
        for axis, n in enumerate(u.shape[2:]):
            difference = u[:, axis].narrow(axis + 1, 0, n - 1)
            x[:, 0].narrow(axis + 1, 1, n - 1).add_(difference)
            x[:, 0].narrow(axis + 1, 0, n - 1).sub_(difference)
        return x

    def entries(self, shape: Shape) -> int:
        N = math.prod(shape)
        return N if self.kind == "isotropic" else sum(N // n * (n - 1) for n in shape)

    def magnitude(self, u: torch.Tensor) -> torch.Tensor:
        return u.abs() if self.kind == "anisotropic" else u.square().sum(dim=1, keepdim=True).sqrt()

    def clip(self, u: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
        if self.kind == "anisotropic":
            return super().clip(u, radius)
        return u * (radius / torch.maximum(self.magnitude(u), radius).clamp_min(tiny(u)))


@dataclass(frozen=True)
class ProxTv(TotalVariation):
    """Anisotropic total variation through the proximal step of the package prox-tv (Barbero & Sra 2018).

    K is the identity here. On the CPU, one image at a time.
    """

    dims = (2,)

    def norm_squared(self, dims: int) -> float:
        return 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind != "anisotropic" or self.cut != 1:
            raise ParameterError("backend=proxtv supports only anisotropic total variation with cut=1")
        _proxtv()

    def analysis(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def adjoint(self, u: torch.Tensor) -> torch.Tensor:
        return u

    def value(self, x: torch.Tensor) -> torch.Tensor:
        return TotalVariation(kind="anisotropic").value(x)

    def dual_prox(
        self,
        z: torch.Tensor,
        threshold: torch.Tensor,
        start: torch.Tensor | None = None,
        slack: torch.Tensor | float = 0.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weights = threshold.expand(len(z), *threshold.shape[1:]).flatten().tolist()
        images = z[:, 0].detach().cpu().double().numpy()
        tv1_2d = partial(_proxtv().tv1_2d, max_iters=_PROXTV_STEPS)
        x = np.stack([tv1_2d(image, w) for image, w in zip(images, weights, strict=True)])
        answer = torch.from_numpy(x).unsqueeze(1).to(z)
        return answer, z - answer

    def dual_step(self, u: torch.Tensor, radius: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        # Moreau decomposition: the prox of the conjugate from that of R
        return u - sigma * self.prox(u / sigma, radius / sigma)


def _proxtv():
    try:
        import prox_tv  # pyright: ignore[reportMissingImports]
    except ImportError as missing:
        raise DependencyError(
            "backend=proxtv needs the package prox-tv: pip install 'cryobench[proxtv]' (on Debian after liblapacke-dev)"
        ) from missing
    return prox_tv
