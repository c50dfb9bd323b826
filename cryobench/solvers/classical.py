"""`dct`, `wavelet` and `tv`, and `sparse` with any sparsity prior, solved by the methods of `proximal`."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch

from cryobench.core import Problem, Progress, Reconstruction, Solver, mean_intensity, unsupported_dims
from cryobench.errors import IncompatibleError, ParameterError
from cryobench.numerics.linalg import dot, norm, per_item, tiny
from cryobench.priors.dct import DctSparsity
from cryobench.priors.sparsity import Sparsity
from cryobench.priors.tv import Kind, ProxTv, TotalVariation
from cryobench.priors.wavelet import WaveletSparsity
from cryobench.rng import Rng
from cryobench.solvers.methods import Fista, PrimalDual
from cryobench.solvers.pinv import expected_misfit, minimum_norm
from cryobench.solvers.proximal import Objective, combined, least_squares_result, minimise
from cryobench.spec import Component, Range


@dataclass(frozen=True)
class Regularised(Solver):
    """min 1/2 ||A x - y||^2 + lam R(x), or min R(x) subject to A x = y, for a sparsity prior R."""

    dims = (2, 3)

    lam: Annotated[
        float | Literal["auto"],
        Range(1e-3, 100, log=True, also=("auto",)),
        "weight of R; auto: from the noise level, see docs/classical.md",
    ] = "auto"
    form: Annotated[Literal["auto", "penalty", "constraint"], "auto: constraint where y is exact and lam=auto"] = "auto"
    cut: Annotated[
        float | None,
        Range(1, 4, also=(None,)),
        "R splits off the dense part, see docs/classical.md; none: 1 (the plain norm) with a "
        "stated lam, else 2 (dct), 2.5 (wavelet) or 1.5 (tv)",
    ] = None
    method: Annotated[Literal["auto", "primal_dual", "fista"], "auto: fista where A has no closed form"] = "auto"
    steps: Annotated[int, "maximum number of steps"] = 5000
    tol: Annotated[float, "stop an image at this duality gap, relative to its objective"] = 5e-5
    box: Annotated[bool, "constrain every pixel to the range of the scale, [-1, 1] by default"] = False
    share: Annotated[float, "form=penalty, lam=auto, exact y: misfit relative to the structure in y"] = 0.01
    trace: Annotated[bool, "keep objective, change and gap of every step as curves"] = False

    default_cut = 2.0  # measured for each prior: docs/adr/0006

    def __post_init__(self) -> None:
        name = type(self).__name__.lower()
        if self.lam != "auto" and not 0 <= self.lam < math.inf:
            raise ParameterError(f"{name}: lam must be zero, positive or auto, got {self.lam:g}")
        if self.form == "constraint" and self.lam != "auto":
            raise ParameterError(f"{name}: form=constraint has no weight; omit lam={self.lam:g}, or form")
        if self.method == "fista" and (self.form == "constraint" or self.box):
            raise ParameterError(f"{name}: method=fista supports only form=penalty without box; use method=primal_dual")
        if not 0 < self.share < 1:
            raise ParameterError(f"{name}: share must lie in (0, 1), got {self.share:g}")
        if self.steps < 1:
            raise ParameterError(f"{name}: steps must be at least 1, got {self.steps}")
        if not 0 <= self.tol < math.inf:
            raise ParameterError(f"{name}: tol must be zero or positive, got {self.tol:g}")
        _ = self.sparsity  # checks the parameters of R

    @property
    def sparsity(self) -> Sparsity:
        """R."""
        plain = 1.0 if self.lam != "auto" else self.default_cut
        return self.regulariser(plain if self.cut is None else self.cut)

    @abstractmethod
    def regulariser(self, cut: float) -> Sparsity:
        """R with this cut."""

    def bounds(self, problem: Problem) -> tuple[float, float] | None:
        """The range of every pixel with `box`; None without."""
        return problem.scale.range if self.box else None

    def unsupported(self, problem: Problem) -> str | None:
        if self.box and problem.scale.range is None:
            return f"box=true needs intensities of known range; scaling {problem.scale.name} has none, use minmax"
        if problem.operator.channels != 1:
            return f"it supports images of one channel, got {problem.operator.channels}"
        shape = problem.operator.image_shape
        return unsupported_dims(self.sparsity, shape) or self.sparsity.unsupported(shape)

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        objective = self.objective(problem)
        iterate = partial(minimise, steps=self.steps, tol=self.tol, trace=self.trace, progress=progress)
        methods = {
            "none": least_squares_result,
            "fista": lambda objective: iterate(Fista(objective)),
            "primal_dual": lambda objective: iterate(PrimalDual(objective)),
        }
        # the method is chosen per image, so that results do not depend on the batch
        parts = []
        for name, chosen in self._methods(problem, objective).items():
            images = torch.nonzero(chosen.flatten()).flatten()
            if len(images):
                own = objective if len(images) == problem.batch else objective.take(images)
                parts.append((images, methods[name](own)))
        return combined(parts)

    def _methods(self, problem: Problem, objective: Objective) -> dict[str, torch.Tensor]:
        """The images of each method, bool [B, 1, ..., 1]; those of `none` need no iteration."""
        operator, constrained = problem.operator, objective.constrained
        # with full column rank the constraint has a unique solution
        none = constrained & (operator.rank == math.prod(operator.image_shape))
        if self.method == "auto":
            fista = ~constrained & (not operator.closed_form and not self.box)
        else:
            fista = torch.full_like(constrained, self.method == "fista")
        return {"none": none, "fista": fista & ~none, "primal_dual": ~fista & ~none}

    def objective(self, problem: Problem) -> Objective:
        """The objective for a problem: its form and, with `lam=auto`, the target misfit that determines the weight."""
        operator, prior = problem.operator, self.sparsity
        least_squares = minimum_norm(problem)
        structure = least_squares - per_item(mean_intensity(operator, problem.y), least_squares)
        measured = operator.A(structure)
        measured_norm = per_item(norm(measured), least_squares)
        if self.lam != "auto":
            lam = torch.full_like(measured_norm, self.lam)
            misfit, constrained = torch.full_like(lam, math.inf), torch.zeros_like(lam, dtype=torch.bool)
        else:
            misfit = self._misfit(problem, measured_norm)
            constrained = misfit == 0
            # initial weight: lam K^T u = A^T r at the minimiser, for a residual r of norm `misfit` and |u| = 1
            gain = norm(operator.A_adjoint(measured)) / measured_norm.clamp_min(tiny(misfit))
            lam = misfit * gain / math.sqrt(structure[0].numel() * prior.norm_squared(structure.ndim - 2))
            lam, misfit = torch.where(constrained, 1.0, lam), torch.where(constrained, math.inf, misfit)
        residual = operator.A(least_squares) - problem.y
        constant = per_item(dot(residual, residual), least_squares) / 2
        return Objective(operator, prior, least_squares, norm(structure), constant, constrained, lam, misfit,
                         self.bounds(problem))  # fmt: skip

    def _misfit(self, problem: Problem, structure: torch.Tensor) -> torch.Tensor:
        """The target misfit, 0 for the constraint form. structure: the misfit of a constant image."""
        if self.form == "constraint":
            return torch.zeros_like(structure)
        misfit = per_item(expected_misfit(problem), structure)
        if self.form == "penalty" or self.method == "fista":
            misfit = torch.where(misfit > 0, misfit, self.share * structure)
        # a constant image has the misfit `structure` at any larger lam, so a larger target could not be reached
        return torch.minimum(misfit, 0.99 * structure)


@dataclass(frozen=True)
class Dct(Regularised):
    """Sparse in the orthonormal DCT; see `cryobench show dct` for the prior.

        R(x) = sum_i |(K x)_i|    K: the DCT without the mean
        x = argmin_x 1/2 ||A x - y||^2 + lam R(x)

    Where y is exact, x has the least R(x) of all with A x = y.
    """

    def regulariser(self, cut: float) -> Sparsity:
        return DctSparsity(cut)


@dataclass(frozen=True)
class Wavelet(Regularised):
    """Sparse in an orthonormal wavelet basis.

        R(x) = sum_i |(K x)_i|    K: the wavelet transform without the approximation band
        x = argmin_x 1/2 ||A x - y||^2 + lam R(x)

    Where y is exact, x has the least R(x) of all with A x = y.
    """

    family: Annotated[str, "an orthogonal wavelet of PyWavelets: haar, db4, sym8, coif2, ..."] = "sym8"
    level: Annotated[int | None, "number of levels; none: the number of times that all sides can be halved"] = None

    default_cut = 2.5

    def regulariser(self, cut: float) -> Sparsity:
        return WaveletSparsity(cut, self.family, self.level)


@dataclass(frozen=True)
class Tv(Regularised):
    """Few edges: total variation.

        R(x) = sum_p |grad x(p)|    over the pixels p
        x = argmin_x 1/2 ||A x - y||^2 + lam R(x)

    Where y is exact, x has the least R(x) of all with A x = y.
    """

    kind: Annotated[Kind, "isotropic: length of the gradient at a pixel; anisotropic: every difference separately"] = (
        "isotropic"
    )
    backend: Annotated[Literal["torch", "proxtv"], "proxtv: the proximal step of the package prox-tv"] = "torch"

    default_cut = 1.5

    @property
    def dims(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The dimensions of the backend: prox-tv supports images only."""
        return self.sparsity.dims

    def regulariser(self, cut: float) -> Sparsity:
        return TotalVariation(cut, self.kind) if self.backend == "torch" else ProxTv(cut, self.kind)


@dataclass(frozen=True)
class _HasPrior:
    """The first field of `Sparse`, in a base class so that it precedes those of `Regularised`: the bare value of a spec
    binds it."""

    prior: Annotated[Sparsity, Component("priors"), "a sparsity prior: dct, tv, wavelet or a plugin's"] = (
        TotalVariation()
    )


@dataclass(frozen=True)
class Sparse(Regularised, _HasPrior):
    """Any sparsity prior, of this package or a plugin: R is that of `prior`, as in `sparse:tv,prior.kind=anisotropic`.

        R(x) = min_a sum_i |a_i| + sqrt(n) / cut ||K x - a||    with cut = 1: sum_i |(K x)_i|
        x = argmin_x 1/2 ||A x - y||^2 + lam R(x)

    Where y is exact, x has the least R(x) of all with A x = y.
    """

    cut: Annotated[float | None, Range(1, 4, also=(None,)), "overrides the cut of the prior"] = None

    def __post_init__(self) -> None:
        if not isinstance(self.prior, Sparsity):
            raise IncompatibleError(f"sparse requires a sparsity prior (such as tv), got {self.prior}")
        super().__post_init__()

    @property
    def sparsity(self) -> Sparsity:
        return self.prior if self.cut is None else self.regulariser(self.cut)

    def regulariser(self, cut: float) -> Sparsity:
        return dataclasses.replace(self.prior, cut=cut)
