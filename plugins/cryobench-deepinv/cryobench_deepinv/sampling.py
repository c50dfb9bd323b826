"""deepinv's samplers: `deepinv_dps`, `deepinv_ddrm` and `deepinv_diffpir`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import deepinv as dinv
import numpy as np
import torch

from cryobench.core import Problem, Progress, Reconstruction
from cryobench.errors import ParameterError
from cryobench.rng import Rng
from cryobench.solvers.draws import averaged
from cryobench.spec import ByName, Range
from cryobench_deepinv import decomposed
from cryobench_deepinv.denoisers import Denoiser
from cryobench_deepinv.running import ImageTask, WithDenoiser


@dataclass(frozen=True)
class Sampler(WithDenoiser):
    """A sampler of deepinv. With `samples` > 1 the result is the mean of the draws, with their standard deviation."""

    samples: Annotated[int, ByName(), "reconstructions to draw; more than one: their mean and standard deviation"] = 1
    steps: Annotated[int, Range(10, 200, log=True), "network evaluations"] = 100

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ParameterError(f"{self._name}: steps must be at least 2, got {self.steps}")
        self._check("samples", 1)

    @property
    def evaluations(self) -> int:
        return self.steps

    def solve_in_range(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        model = self.model(problem, rng)
        mean, deviation, draws = averaged(
            lambda number, report: self.draw(problem, model, rng, report, number).x, self.samples, progress
        )
        x = mean.to(problem.y.dtype)
        if deviation is None:
            return Reconstruction(x, draws=draws)
        return Reconstruction(x, deviation=deviation.to(x.dtype), samples=self.samples, draws=draws)

    @property
    def _name(self) -> str:
        return f"deepinv_{type(self).__name__.lower()}"

    def _check(self, name: str, low: float, high: float = math.inf) -> None:
        value = getattr(self, name)
        if not (low <= value <= high and math.isfinite(value)):
            condition = f"lie in [{low:g}, {high:g}]" if math.isfinite(high) else f"be at least {low:g}"
            raise ParameterError(f"{self._name}: {name} must {condition}, got {value:g}")


@dataclass(frozen=True)
class Dps(Sampler):
    """`deepinv.sampling.DPS`: diffusion posterior sampling (Chung et al. 2023, "Diffusion Posterior Sampling for
    General Noisy Inverse Problems"), as the variance-preserving reverse SDE with DDPM steps and the score

        grad log p(x_t) - weight grad f
        f = ||A x0(x_t) - y||                                    guidance=norm
        f = ||A x0(x_t) - y||^2 / 2 (sigma^2 + sigma_t^2)        guidance=annealed

    on images in [0, 1] and physics of unit norm. Unlike in `dps` the guidance is part of the score, so its effect in a
    step decreases with the noise level: with guidance=norm deepinv's default weight of 1 nearly ignores y;
    guidance=annealed is designed for weights of about 1.
    """

    weight: Annotated[float, Range(1, 1000, log=True), "weight of the data term in the score"] = 100.0
    guidance: Annotated[Literal["norm", "annealed"], "the norm of the residual, or its square over variances"] = "norm"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("weight", 0)

    def restore(self, task: ImageTask, denoiser: Denoiser) -> torch.Tensor:
        sampler = dinv.sampling.DPS(
            denoiser, num_steps=self.steps + 1, weight=self.weight, guidance=self.guidance, device=task.y.device
        )
        # the shape alone: DPS would take it from A^+ y
        return sampler(task.y, task.physics, x_init=(1, 1, *task.operator.image_shape))


@dataclass(frozen=True)
class Ddrm(Sampler):
    """`deepinv.sampling.DDRM`: denoising diffusion restoration (Kawar et al. 2022, "Denoising Diffusion Restoration
    Models", eqs. 7-8), which samples in the basis of the singular vectors of A. Noise levels fall evenly from 1 to 0 on
    images in [0, 1].

    Operators without a factorisation are skipped; see `cryobench_deepinv.decomposed`. deepinv 0.5.0 draws noise of
    half the variance given in the paper (it divides by the root of two, also if coefficients are real).
    """

    eta: Annotated[float, Range(0, 1), "fraction of fresh noise in unmeasured components"] = 0.85
    etab: Annotated[float, Range(0, 1), "weight of the measurements in measured components"] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("eta", 0, 1)
        self._check("etab", 0, 1)

    def unsupported(self, problem: Problem) -> str | None:
        return decomposed.unsupported(problem.operator)

    def restore(self, task: ImageTask, denoiser: Denoiser) -> torch.Tensor:
        # the last level is 0, at which the denoiser is the identity and the prior is not evaluated
        sampler = dinv.sampling.DDRM(denoiser, sigmas=np.linspace(1, 0, self.steps + 1), eta=self.eta, etab=self.etab)
        return sampler(task.y, decomposed.as_decomposable(task.operator, task.sigma, scale=task.scale))


@dataclass(frozen=True)
class DiffPir(Sampler):
    """`deepinv.sampling.DiffPIR` (Zhu et al. 2023, "Denoising Diffusion Models for Plug-and-Play Image Restoration",
    algorithm 1), with the quadratic spacing of its levels. If y is exact its proximal step is a projection.
    """

    zeta: Annotated[float, Range(0, 1), "fraction of fresh noise in the variance of a step"] = 0.1
    lam: Annotated[float, Range(0.5, 50, log=True), "weight of the prior if y is noisy"] = 7.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("zeta", 0, 1)
        self._check("lam", 0)

    def restore(self, task: ImageTask, denoiser: Denoiser) -> torch.Tensor:
        sampler = dinv.sampling.DiffPIR(
            denoiser, dinv.optim.L2(), sigma=task.sigma, max_iter=self.steps, zeta=self.zeta, lambda_=self.lam,
            device=task.y.device,
        )  # fmt: skip
        return sampler(task.y, task.physics)
