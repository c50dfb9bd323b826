"""Measurement operators: what a live one can do, and how a registered one is made."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch

from cryobench.core.dimensions import check_dims
from cryobench.numerics.linalg import conjugate_gradients, dot, norm, per_item, tiny

if TYPE_CHECKING:
    import pandas as pd

Shape = tuple[int, ...]
"""The axes S of an image (H, W) or of a volume (D, H, W)."""


@dataclass(frozen=True, eq=False)
class Imaging:
    """How images were taken, which an operator may depend on: their shape, Å per pixel, and CTF.

    shape: (H, W), or (D, H, W) of volumes. pixel_size: one number an image, None where it is not known. table: a row
    an image in RELION's columns, or None.
    """

    shape: Shape
    pixel_size: tuple[float | None, ...] = ()
    table: pd.DataFrame | None = None


class LinearOperator(ABC):
    """A live linear measurement operator A: [B, C, *S] -> [B, M, *s], real, batched.

    S has two axes (images) or three (volumes), C is 1 unless `channels` says otherwise; s has any number of axes.
    A subclass gives `A` and `A_adjoint`; the other methods then work by iteration, to a relative tolerance of
    `cg_tol`. Operators with structure override them with closed forms. The vocabulary is that of deepinv, except
    that `compute_norm` is ||A||, not its square.
    """

    image_shape: Shape
    """S."""
    channels: int = 1
    """C."""
    measurement_shape: tuple[int, ...]
    """(M, *s)."""
    dtype: torch.dtype
    device: torch.device
    nominal_compression: float
    nonnegative: bool = False
    """Whether every weight of A is non-negative, so that measurements can be counts."""
    noise_in_range: bool = False
    """Whether y is written in a larger space than is measured, so that noise lives on the range of A alone."""
    closed_form: bool = False
    """Whether `A_dagger`, `A_dagger_A` and `prox_l2` need no iteration."""
    block: int = 1
    """Side in pixels of the square blocks into which A cuts an image and measures each by itself; 1 without blocks."""
    images: int | None = None
    """How many images it was built for, where it differs from image to image; None where it is the same for all."""
    cg_tol: float = 1e-6
    cg_max_steps: int = 1000

    @abstractmethod
    def A(self, x: torch.Tensor) -> torch.Tensor:
        """Measure: [B, C, *S] -> [B, M, *s]."""

    @abstractmethod
    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """The transpose of A: [B, M, *s] -> [B, C, *S]."""

    def A_adjoint_A(self, x: torch.Tensor) -> torch.Tensor:
        """A^T A x, [B, C, *S]."""
        return self.A_adjoint(self.A(x))

    def A_dagger(self, y: torch.Tensor) -> torch.Tensor:
        """The least-norm least-squares solution of A x = y, [B, C, *S]."""
        return self._solve(self.A_adjoint(y), 0.0)

    def A_dagger_A(self, x: torch.Tensor, gamma: torch.Tensor | float = math.inf) -> torch.Tensor:
        """(A^T A + I / gamma)^-1 A^T A x, [B, C, *S]; gamma > 0 for all images, or one for each, of any shape.

        At gamma = inf it is A^+ A x, the part of x that is measured. With x* any least-squares solution,
        z + A_dagger_A(x* - z, gamma) is prox_l2(z, y, gamma), and the projection on all such solutions at gamma = inf.
        """
        return self._solve(self.A_adjoint_A(x), per_item(1 / torch.as_tensor(gamma, dtype=x.dtype).to(x.device), x))

    def prox_l2(self, z: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
        """argmin_x 1/2 ||A x - y||^2 + 1/(2 gamma) ||x - z||^2, [B, C, *S]."""
        return z + self._solve(self.A_adjoint(y - self.A(z)), 1 / gamma)

    def _solve(self, b: torch.Tensor, shift: torch.Tensor | float) -> torch.Tensor:
        """(A^T A + shift)^-1 b, of least norm."""
        return conjugate_gradients(
            lambda x: self.A_adjoint_A(x) + shift * x, b, tol=self.cg_tol, max_steps=self.cg_max_steps
        )

    def on_range(self, y: torch.Tensor) -> torch.Tensor:
        """A A^+ y, the part of y [B, M, *s] that an image can cause; where noise lives if it is `noise_in_range`."""
        return self.A(self.A_dagger(y))

    def compute_norm(self) -> float:
        """The spectral norm ||A|| (not its square); the largest, where A differs from image to image."""
        return float(power_norms(self).max())

    @property
    def norms(self) -> torch.Tensor:
        """||A|| of each image, [1 or B, 1, ..., 1] with as many axes as x; by default the largest for all."""
        return torch.full((1, *[1] * len(self.domain_shape)), self.compute_norm(), dtype=self.dtype, device=self.device)

    @property
    def rank(self) -> int:
        """Rank of A; where it is not known, the largest it can be."""
        return min(math.prod(self.domain_shape), math.prod(self.measurement_shape))

    @property
    def domain_shape(self) -> tuple[int, ...]:
        """(C, *S), the shape of one unknown."""
        return (self.channels, *self.image_shape)

    @property
    def transfer(self) -> torch.Tensor | None:
        """What multiplies the half spectrum of an image (`numerics.fft.rfftn`), float64 [1 or B, 1, *S[:-1], S[-1] // 2
        + 1]; None for an operator that is not diagonal in Fourier."""
        return None

    @cached_property
    def mean_response(self) -> torch.Tensor:
        """A 1, the measurement of a constant image of intensity one, [1 or B, M, *s]."""
        return self.A(torch.ones((1, *self.domain_shape), dtype=self.dtype, device=self.device))

    def select(self, images: slice | torch.Tensor) -> LinearOperator:
        """This operator for some of the images it was built for (a slice, or indices or a mask [B]).

        Only an operator that differs from image to image has anything to select. `compute_norm` and `rank` stay those
        of all, so that what a solver does with an image does not depend on its batch.
        """
        return self

    def rows(self, part: slice | torch.Tensor) -> LinearOperator:
        """The operator for some of its measurements: x -> (A x)[:, part], `part` a slice, indices or a mask [M].

        Operators with structure override it where the part has closed forms too.
        """
        chosen = chosen_rows(self, part)
        whole = torch.arange(self.measurement_shape[0], device=self.device)
        return self if torch.equal(chosen, whole) else RowsOperator(self, chosen)

    def prepare(self) -> None:
        """Do now what is done once (factorisations), so that it is timed as set-up and not as solving."""
        _ = self.mean_response, self.rank

    @property
    def effective_compression(self) -> float:
        """Pixels over independent measurements, N / rank(A); infinite for an operator that measures nothing."""
        return math.prod(self.domain_shape) / self.rank if self.rank else math.inf


def chosen_rows(operator: LinearOperator, part: slice | torch.Tensor) -> torch.Tensor:
    """The numbers of the chosen measurements, [m]. Raises `ValueError` where there are none."""
    count = operator.measurement_shape[0]
    chosen = torch.arange(count, device=operator.device)[part]
    if chosen.ndim != 1 or len(chosen) == 0:
        raise ValueError(f"rows: {part} selects none of {count} measurements; give a slice, indices or a mask of them")
    return chosen


class RowsOperator(LinearOperator):
    """Some of the measurements of an operator. y holds only those; the others count as zero in the adjoint.

    part: their numbers, [m]. `compute_norm` stays that of all images in what is selected.
    """

    def __init__(self, operator: LinearOperator, part: torch.Tensor):
        self._whole, self._part, self._of_all = operator, part, self
        for name in ("image_shape", "channels", "dtype", "device", "nonnegative", "noise_in_range", "block", "images"):
            setattr(self, name, getattr(operator, name))
        count = operator.measurement_shape[0]
        self.measurement_shape = (len(self._part), *operator.measurement_shape[1:])
        self.nominal_compression = operator.nominal_compression * count / len(self._part)
        self.cg_tol, self.cg_max_steps = operator.cg_tol, operator.cg_max_steps

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return self._whole.A(x)[:, self._part]

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        whole = y.new_zeros((len(y), *self._whole.measurement_shape))
        whole[:, self._part] = y
        return self._whole.A_adjoint(whole)

    def select(self, images: slice | torch.Tensor) -> RowsOperator:
        selected = self._whole.select(images)
        if selected is self._whole:
            return self
        rows = RowsOperator(selected, self._part)
        rows._of_all = self._of_all
        return rows

    @cached_property
    def _norms(self) -> torch.Tensor:
        return power_norms(self)

    @property
    def norms(self) -> torch.Tensor:
        return self._norms

    def compute_norm(self) -> float:
        return float(self._of_all._norms.max())


class OperatorRecipe(ABC):
    """A registered operator: a frozen dataclass of its parameters, from which live operators are built.

    dims: the numbers of axes of the images that it takes, (2,) unless it says otherwise.
    """

    dims: ClassVar[tuple[int, ...]] = (2,)

    @abstractmethod
    def check(self, imaging: Imaging) -> tuple[int, ...] | None:
        """The shape (M, *s) of what these images give, or None where only the live operator can say. Costs nothing.

        Raises `IncompatibleError` where this operator cannot measure them.
        """

    def draw(self, imaging: Imaging, seed: int) -> Mapping[str, torch.Tensor]:
        """The random arrays (masks) that `build` makes the operator of, by name: what must be kept to build it again.

        They depend on (seed, this recipe, imaging) alone.
        """
        return {}

    @abstractmethod
    def build(
        self, imaging: Imaging, drawn: Mapping[str, torch.Tensor], *, dtype: torch.dtype, device: torch.device
    ) -> LinearOperator:
        """The live operator of these arrays, for these images in this order.

        An operator that does not depend on how an image was taken is the same for all of one shape.
        """


def check_operator(recipe: OperatorRecipe, imaging: Imaging) -> tuple[int, ...] | None:
    """`recipe.check`, after the number of axes. Raises `IncompatibleError`."""
    check_dims("operator", recipe, imaging.shape)
    return recipe.check(imaging)


def build_operator(
    recipe: OperatorRecipe,
    imaging: Imaging | Shape,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> LinearOperator:
    """Check, draw and build the live operator of a recipe for these images, or for any images of a shape."""
    if not isinstance(imaging, Imaging):
        imaging = Imaging(tuple(imaging))
    check_operator(recipe, imaging)
    return recipe.build(imaging, recipe.draw(imaging, seed), dtype=dtype, device=torch.device(device))


def power_norms(operator: LinearOperator, *, tol: float = 1e-6, max_steps: int = 1000) -> torch.Tensor:
    """||A|| of each image, [1 or B, 1, ..., 1]: by the power method on A^T A, to a relative change of `tol`."""
    x = random_images(operator)
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


def random_images(operator: LinearOperator, *, seed: int = 0) -> torch.Tensor:
    """White noise [1 or B, C, *S], B the images that the operator was built for: the same image for each of them."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn((1, *operator.domain_shape), generator=draw, dtype=operator.dtype).to(operator.device)
    return x.repeat(operator.images or 1, *[1] * len(operator.domain_shape))


def adjoint_gap(operator: LinearOperator, *, seed: int = 0) -> float:
    """|<A x, y> - <x, A^T y>| / (||A x|| ||y||) for random x and y, 0 for an exact adjoint; the largest of all
    images."""
    draw = torch.Generator().manual_seed(seed)
    B = operator.images or 1
    x = torch.randn((B, *operator.domain_shape), generator=draw, dtype=operator.dtype).to(operator.device)
    y = torch.randn((B, *operator.measurement_shape), generator=draw, dtype=operator.dtype).to(operator.device)
    Ax = operator.A(x)
    forward, backward = dot(Ax, y).flatten(), dot(x, operator.A_adjoint(y)).flatten()
    return float(((forward - backward).abs() / (norm(Ax) * norm(y)).flatten()).max())


def mean_intensity(operator: LinearOperator, y: torch.Tensor) -> torch.Tensor:
    """The mean intensity that measurements imply, [B, 1, ..., 1] as y: the constant image c that fits y best,

        c = <A 1, y> / ||A 1||^2,

    and 0 where a constant image leaves no trace (A 1 = 0).
    """
    response = operator.mean_response
    energy = dot(response, response)
    return torch.where(energy > 0, dot(response, y) / energy.clamp_min(tiny(y)), 0.0)
