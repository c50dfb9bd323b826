"""deepinv's optimisation with a denoiser in place of a regulariser: `deepinv_dpir` and `deepinv_red`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import deepinv as dinv
import torch

from cryobench.errors import ParameterError
from cryobench.spec import Range
from cryobench_deepinv.denoisers import Denoiser
from cryobench_deepinv.running import ImageTask, WithDenoiser

DPIR_STEPS = 8
"""Number of steps in `deepinv.optim.dpir.get_DPIR_params`."""


@dataclass(frozen=True)
class Dpir(WithDenoiser):
    """`deepinv.optim.DPIR`: half-quadratic splitting with a denoiser (Zhang et al. 2021, "Plug-and-Play Image
    Restoration with Deep Denoiser Prior", eqs. 6-8), eight steps whose noise level falls from 49/255 to that of y.

    It is undefined for exact y, for which `least` is used as the noise level; deepinv itself uses at least 0.01 in the
    weight of the data. Both refer to ||A|| scaled to `gain`: with a larger gain the measurements have more weight.
    """

    least: Annotated[float, Range(0.001, 0.1, log=True), "minimum noise level of y, and last level"] = 0.01
    gain: Annotated[float, Range(0.1, 1000, log=True), "value to which ||A|| is scaled"] = 1.0

    def __post_init__(self) -> None:
        for name in ("least", "gain"):
            if not 0 < getattr(self, name) < math.inf:
                raise ParameterError(f"deepinv_dpir: {name} must be positive, got {getattr(self, name):g}")

    @property
    def evaluations(self) -> int:
        return DPIR_STEPS

    @property
    def norm(self) -> float:
        return self.gain

    def restore(self, task: ImageTask, denoiser: Denoiser) -> torch.Tensor:
        method = dinv.optim.DPIR(sigma=max(task.sigma, self.least), denoiser=denoiser, device=task.y.device)
        return method(task.y, task.physics)


@dataclass(frozen=True)
class Red(WithDenoiser):
    """`deepinv.optim.GD` with `deepinv.optim.RED`: regularisation by denoising by gradient descent (Romano, Elad &
    Milanfar 2017, "The Little Engine that Could: Regularization by Denoising", eq. 24)

        u <- u - (A^T (A u - y) + lam (u - D(u, sigma))) / (1 + lam)

    from the `pinv` solution, on images in [0, 1] and physics of unit norm.
    """

    steps: Annotated[int, Range(10, 200, log=True), "network evaluations"] = 50
    sigma: Annotated[float, Range(0.005, 0.5, log=True), "noise level of the denoiser, on images in [0, 1]"] = 0.05
    lam: Annotated[float, Range(1e-4, 10, log=True), "weight of the prior"] = 0.01

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ParameterError(f"deepinv_red: steps must be at least 1, got {self.steps}")
        for name in ("sigma", "lam"):
            if not 0 < getattr(self, name) < math.inf:
                raise ParameterError(f"deepinv_red: {name} must be positive, got {getattr(self, name):g}")

    @property
    def evaluations(self) -> int:
        return self.steps

    def restore(self, task: ImageTask, denoiser: Denoiser) -> torch.Tensor:
        method = dinv.optim.GD(
            data_fidelity=dinv.optim.L2(), prior=dinv.optim.RED(denoiser), lambda_reg=self.lam,
            stepsize=1 / (1 + self.lam), sigma_denoiser=self.sigma, max_iter=self.steps,
        )  # fmt: skip
        return method(task.y, task.physics, init=task.start)
