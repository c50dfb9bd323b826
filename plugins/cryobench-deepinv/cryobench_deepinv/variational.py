"""deepinv's proximal gradient descent with a regulariser: `deepinv_tv_pgd` and `deepinv_wavelet_pgd`.

    u <- prox_{step lam R}(u - step A^T (A u - y)),    step = 1 / ||A||^2

from the `pinv` solution, on images in [0, 1] and physics of unit norm (Combettes & Wajs 2005, "Signal Recovery by
Proximal Forward-Backward Splitting", eq. 3.6).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import deepinv as dinv
import torch

from cryobench.core import Problem, Progress, Reconstruction, Solver
from cryobench.errors import ParameterError
from cryobench.rng import Rng
from cryobench.spec import Range
from cryobench_deepinv.denoisers import NO_WAVELETS, has_wavelets
from cryobench_deepinv.running import ImageTask, one_by_one

THRESHOLD = 0.1
"""`ths` of `WaveletPrior.prox`, a multiple of the weight, which PGD leaves at its default."""


@dataclass(frozen=True)
class Pgd(Solver):
    """`deepinv.optim.PGD` with a regulariser."""

    steps: Annotated[int, Range(10, 500, log=True), "number of steps"] = 100
    lam: Annotated[float, Range(1e-6, 0.1, log=True), "weight of the regulariser"] = 1e-4

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ParameterError(f"deepinv PGD: steps must be at least 1, got {self.steps}")
        if not 0 <= self.lam < math.inf:
            raise ParameterError(f"deepinv PGD: lam must be zero or positive, got {self.lam:g}")

    @abstractmethod
    def regulariser(self) -> dinv.optim.Prior:
        """R, a new instance for each image, because deepinv's are warm-started from the previous call."""

    @property
    def lambda_reg(self) -> float:
        """The value of `lam` passed to deepinv."""
        return self.lam

    @torch.no_grad()
    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        def restore(_: int, task: ImageTask, report: Callable[[], None]) -> torch.Tensor:
            prior = self.regulariser()
            prior.explicit_prior = False  # else each step evaluates the objective, which is unused, with one more A
            proximal = prior.prox

            def counted(*arguments: Any, **named: Any) -> torch.Tensor:
                report()
                return proximal(*arguments, **named)

            prior.prox = counted
            method = dinv.optim.PGD(
                data_fidelity=dinv.optim.L2(), prior=prior, lambda_reg=self.lambda_reg, stepsize=1.0,
                max_iter=self.steps,
            )  # fmt: skip
            return method(task.y, task.physics, init=task.start)

        return one_by_one(problem, rng, restore, steps=self.steps, progress=progress)


@dataclass(frozen=True)
class TvPgd(Pgd):
    """Proximal gradient descent on 1/2 ||A u - y||^2 + lam TV(u), TV isotropic (Rudin, Osher & Fatemi 1992), by
    `deepinv.optim.PGD` and `deepinv.optim.TVPrior`, whose prox is a warm-started inner iteration.
    """

    inner: Annotated[int, "maximum number of inner steps of the TV prox"] = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner < 1:
            raise ParameterError(f"deepinv_tv_pgd: inner must be at least 1, got {self.inner}")

    def regulariser(self) -> dinv.optim.Prior:
        return dinv.optim.TVPrior(n_it_max=self.inner)


@dataclass(frozen=True)
class WaveletPgd(Pgd):
    """Iterative soft thresholding (Daubechies, Defrise & De Mol 2004), 1/2 ||A u - y||^2 + lam |W u|_1 without the
    approximation band, by `deepinv.optim.PGD` and `deepinv.optim.WaveletPrior`, threshold lam per step. (deepinv's PGD
    cannot change the threshold of that prior, 0.1 times the weight, so the weight is 10 lam.)

    deepinv's transform extends images by zeros (`mode="zero"`, redundant at the border), so its prox is only
    approximate for wavelets longer than `haar`.
    """

    family: Annotated[str, "a wavelet of PyWavelets: haar, db4, sym8, ..."] = "sym8"
    level: Annotated[int, "number of levels"] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        import pywt

        if self.family not in pywt.wavelist(kind="discrete"):
            raise ParameterError(
                f"deepinv_wavelet_pgd: PyWavelets has no discrete wavelet {self.family!r}; it has haar, db4, sym8, ..."
            )
        if self.level < 1:
            raise ParameterError(f"deepinv_wavelet_pgd: level must be at least 1, got {self.level}")

    def unsupported(self, problem: Problem) -> str | None:
        return None if has_wavelets() else NO_WAVELETS

    @property
    def lambda_reg(self) -> float:
        return self.lam / THRESHOLD

    def regulariser(self) -> dinv.optim.Prior:
        return dinv.optim.WaveletPrior(level=self.level, wv=self.family)
