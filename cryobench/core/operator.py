"""Measurement operators: what a live one can do, and how a registered one is made."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from cryobench.numerics.linalg import conjugate_gradients, dot, norm, tiny

if TYPE_CHECKING:
    import pandas as pd

Shape = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Imaging:
    """What is known of how images were taken, which an operator may depend on: their shape, Å per pixel, and CTF.

    pixel_size: one number an image, None where it is not known. table: a row an image in RELION's columns, or None.
    """

    shape: Shape
    pixel_size: tuple[float | None, ...] = ()
    table: pd.DataFrame | None = None


class LinearOperator(ABC):
    """A live linear measurement operator A: [B, 1, H, W] -> [B, M, h, w], real, batched.

    A subclass gives `A` and `A_adjoint`; the other methods then work by iteration, to a relative tolerance of
    `cg_tol`. Operators with structure override them with closed forms. The vocabulary is that of deepinv, except
    that `compute_norm` is ||A||, not its square.
    """

    image_shape: Shape
    measurement_shape: tuple[int, int, int]
    dtype: torch.dtype
    device: torch.device
    nominal_compression: float
    nonnegative: bool = False
    """Whether every weight of A is non-negative, so that measurements can be counts."""
    noise_in_range: bool = False
    """Whether y is written in a larger space than is measured, so that noise lives on the range of A alone."""
    closed_form: bool = False
    """Whether `A_dagger`, `A_dagger_A` and `prox_l2` need no iteration."""
    images: int | None = None
    """How many images it was built for, where it differs from image to image; None where it is the same for all."""
    cg_tol: float = 1e-6
    cg_max_steps: int = 1000

    @abstractmethod
    def A(self, x: torch.Tensor) -> torch.Tensor:
        """Measure: [B, 1, H, W] -> [B, M, h, w]."""

    @abstractmethod
    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """The transpose of A: [B, M, h, w] -> [B, 1, H, W]."""

    def A_adjoint_A(self, x: torch.Tensor) -> torch.Tensor:
        """A^T A x, [B, 1, H, W]."""
        return self.A_adjoint(self.A(x))

    def A_dagger(self, y: torch.Tensor) -> torch.Tensor:
        """The least-norm least-squares solution of A x = y, [B, 1, H, W]."""
        return self._solve(self.A_adjoint(y), 0.0)

    def A_dagger_A(self, x: torch.Tensor, gamma: torch.Tensor | float = math.inf) -> torch.Tensor:
        """(A^T A + I / gamma)^-1 A^T A x, [B, 1, H, W]; gamma > 0 for all images, or for each, [B, 1, 1, 1].

        At gamma = inf it is A^+ A x, the part of x that is measured. With x* any least-squares solution,
        z + A_dagger_A(x* - z, gamma) is prox_l2(z, y, gamma), and the projection on all such solutions at gamma = inf.
        """
        return self._solve(self.A_adjoint_A(x), 1 / gamma)

    def prox_l2(self, z: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
        """argmin_x 1/2 ||A x - y||^2 + 1/(2 gamma) ||x - z||^2, [B, 1, H, W]."""
        return z + self._solve(self.A_adjoint(y - self.A(z)), 1 / gamma)

    def _solve(self, b: torch.Tensor, shift: torch.Tensor | float) -> torch.Tensor:
        """(A^T A + shift)^-1 b, of least norm."""
        return conjugate_gradients(
            lambda x: self.A_adjoint_A(x) + shift * x, b, tol=self.cg_tol, max_steps=self.cg_max_steps
        )

    def on_range(self, y: torch.Tensor) -> torch.Tensor:
        """A A^+ y, the part of y [B, M, h, w] that an image can cause; where noise lives if it is `noise_in_range`."""
        return self.A(self.A_dagger(y))

    def compute_norm(self) -> float:
        """The spectral norm ||A|| (not its square); the largest, where A differs from image to image."""
        return float(power_norms(self).max())

    @property
    def norms(self) -> torch.Tensor:
        """||A|| of each image, [1 or B, 1, 1, 1]; the largest of them serves where they are not told apart."""
        return torch.full((1, 1, 1, 1), self.compute_norm(), dtype=self.dtype, device=self.device)

    @property
    def rank(self) -> int:
        """Rank of A; where it is not known, the largest it can be."""
        return min(math.prod(self.image_shape), math.prod(self.measurement_shape))

    @property
    def transfer(self) -> torch.Tensor | None:
        """What multiplies the half spectrum of an image (`rfft2`), float64 [1 or B, 1, H, W // 2 + 1]; None for an
        operator that is not diagonal in Fourier."""
        return None

    @cached_property
    def mean_response(self) -> torch.Tensor:
        """A 1, the measurement of a constant image of intensity one, [1 or B, M, h, w]."""
        return self.A(torch.ones((1, 1, *self.image_shape), dtype=self.dtype, device=self.device))

    def select(self, images: slice | torch.Tensor) -> LinearOperator:
        """This operator for some of the images it was built for (a slice, or indices or a mask [B]).

        Only an operator that differs from image to image has anything to select. `compute_norm` and `rank` stay those
        of all, so that what a solver does with an image does not depend on its batch.
        """
        return self

    def prepare(self) -> None:
        """Do now what is done once (factorisations), so that it is timed as set-up and not as solving."""
        _ = self.mean_response, self.rank

    @property
    def effective_compression(self) -> float:
        """Pixels over independent measurements, N / rank(A); infinite for an operator that measures nothing."""
        return math.prod(self.image_shape) / self.rank if self.rank else math.inf


class OperatorRecipe(ABC):
    """A registered operator: a frozen dataclass of its parameters."""

    @abstractmethod
    def check(self, image_shape: Shape) -> None:
        """Raise `IncompatibleError` when this operator cannot measure images of this shape. Costs nothing."""

    def measurement_shape(self, image_shape: Shape) -> tuple[int, int, int] | None:
        """The shape [M, h, w] of what images of this shape give; None where only the live operator can tell."""
        return None

    @abstractmethod
    def build(self, image_shape: Shape, *, seed: int, dtype: torch.dtype, device: torch.device) -> LinearOperator:
        """Make the live operator. Random parts depend on (seed, this recipe, image_shape) alone."""

    def check_for(self, imaging: Imaging) -> None:
        """Raise `IncompatibleError` when this operator cannot measure these images. Costs nothing."""
        self.check(imaging.shape)

    def build_for(self, imaging: Imaging, *, seed: int, dtype: torch.dtype, device: torch.device) -> LinearOperator:
        """Make the live operator for these images, in this order.

        Only an operator that depends on how an image was taken overrides it, and `check_for`; others are the same for
        all images.
        """
        return self.build(imaging.shape, seed=seed, dtype=dtype, device=device)

    def drawn(self, image_shape: Shape, seed: int) -> Mapping[str, torch.Tensor]:
        """The random arrays (masks) that `build` makes the operator of, by name: what must be kept to rebuild it."""
        return {}

    def rebuild(
        self,
        drawn: Mapping[str, torch.Tensor],
        imaging: Imaging,
        *,
        seed: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> LinearOperator:
        """`build_for`, of these arrays in place of those that would be drawn. Goes with `drawn`."""
        return self.build_for(imaging, seed=seed, dtype=dtype, device=device)


class DrawnRecipe(OperatorRecipe):
    """An operator that follows from what is drawn for it: a subclass gives `drawn`, and `of` what was drawn."""

    @abstractmethod
    def of(self, drawn: Mapping[str, torch.Tensor], *, dtype: torch.dtype, device: torch.device) -> LinearOperator:
        """The live operator of these arrays."""

    def build(self, image_shape: Shape, *, seed: int, dtype: torch.dtype, device: torch.device) -> LinearOperator:
        self.check(image_shape)
        return self.of(self.drawn(image_shape, seed), dtype=dtype, device=device)

    def rebuild(self, drawn: Mapping[str, torch.Tensor], imaging: Imaging, *, seed: int, dtype: torch.dtype,
                device: torch.device) -> LinearOperator:  # fmt: skip
        return self.of(drawn, dtype=dtype, device=device)


def power_norms(operator: LinearOperator, *, tol: float = 1e-6, max_steps: int = 1000) -> torch.Tensor:
    """||A|| of each image, [1 or B, 1, 1, 1]: by the power method on A^T A, to a relative change of `tol`."""
    start = torch.Generator().manual_seed(0)
    x = torch.randn((1, 1, *operator.image_shape), generator=start, dtype=operator.dtype).to(operator.device)
    x = x.repeat(operator.images or 1, 1, 1, 1)
    found, active = norm(x), torch.ones_like(norm(x), dtype=torch.bool)
    for _ in range(max_steps):
        x = operator.A_adjoint_A(x / norm(x).clamp_min(tiny(x)))
        current = norm(x)
        changes = (current - found).abs() > tol * current
        # an image that has ended stays as it is, whatever the others still do
        found, active = torch.where(active, current, found), active & changes
        if not active.any():
            break
    return found.sqrt()


def adjoint_gap(operator: LinearOperator, *, seed: int = 0) -> float:
    """|<A x, y> - <x, A^T y>| / (||A x|| ||y||) for random x and y, 0 for an exact adjoint; the largest of all
    images."""
    draw = torch.Generator().manual_seed(seed)
    B = operator.images or 1
    x = torch.randn((B, 1, *operator.image_shape), generator=draw, dtype=operator.dtype).to(operator.device)
    y = torch.randn((B, *operator.measurement_shape), generator=draw, dtype=operator.dtype).to(operator.device)
    Ax = operator.A(x)
    return float(((dot(Ax, y) - dot(x, operator.A_adjoint(y))).abs() / (norm(Ax) * norm(y))).max())


def mean_intensity(operator: LinearOperator, y: torch.Tensor) -> torch.Tensor:
    """The mean intensity that measurements imply, [B, 1, 1, 1]: the constant image c that fits y best,

        c = <A 1, y> / ||A 1||^2,

    and 0 where a constant image leaves no trace (A 1 = 0).
    """
    response = operator.mean_response
    energy = dot(response, response)
    return torch.where(energy > 0, dot(response, y) / energy.clamp_min(tiny(y)), 0.0)
