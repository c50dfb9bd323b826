"""Measurement operators: the interface of live operators, and the recipes that build them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch

from cryobench.core.dimensions import check_dims
from cryobench.errors import IncompatibleError, Unsupported
from cryobench.limits import check_memory
from cryobench.numerics.linalg import conjugate_gradients, dot, norm, per_item, tiny

if TYPE_CHECKING:
    import pandas as pd

Shape = tuple[int, ...]
"""The axes S of an image (H, W) or of a volume (D, H, W)."""
Window = tuple[slice, ...]
"""A part of an image: for each axis of S a slice(start, stop), 0 <= start < stop <= n."""


@dataclass(frozen=True, eq=False)
class Imaging:
    """The imaging conditions that an operator may depend on: shape, Å per pixel, and CTF.

    shape: (H, W), or (D, H, W) for volumes. pixel_size: one number per image, None if unknown. table: one row per image
    in RELION's columns, or None. through_ctf: whether the images were taken through the CTFs of the table.
    """

    shape: Shape
    pixel_size: tuple[float | None, ...] = ()
    table: pd.DataFrame | None = None
    through_ctf: bool = True


class LinearOperator(ABC):
    """A live linear measurement operator A: [B, C, *S] -> [B, M, *s], real, batched.

    S has two axes (images) or three (volumes), C is 1 unless `channels` says otherwise; s has any number of axes.
    A subclass implements `A` and `A_adjoint`; the other methods default to iterations with a relative tolerance of
    `cg_tol`. Structured operators override them with closed forms. Names follow deepinv, except that `compute_norm`
    is ||A||, not its square.
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
    """Whether every entry of A is non-negative, so that measurements can be counts."""
    noise_in_range: bool = False
    """Whether y is stored in a space larger than the range of A, so that noise is confined to that range."""
    identity: bool = False
    """Whether A x = x."""
    closed_form: bool = False
    """Whether `A_dagger`, `A_dagger_A` and `prox_l2` are computed without iteration."""
    block: int = 1
    """Side in pixels of the square blocks that A measures independently of each other; 1 without blocks."""
    images: int | None = None
    """Number of images it was built for, if it differs between images; None if it is the same for all."""
    convolution: bool = False
    """Whether A^T A is a convolution of cubes, whatever the number of measurements: `kernel` returns it."""
    views: bool = False
    """Whether its M measurements are images of M views of the unknown, each of which an operator after it measures."""
    cg_tol: float = 1e-6
    cg_max_steps: int = 1000

    @abstractmethod
    def A(self, x: torch.Tensor) -> torch.Tensor:
        """Apply A: [B, C, *S] -> [B, M, *s]."""

    @abstractmethod
    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """The transpose of A: [B, M, *s] -> [B, C, *S]."""

    def A_adjoint_A(self, x: torch.Tensor) -> torch.Tensor:
        """A^T A x, [B, C, *S]."""
        return self.A_adjoint(self.A(x))

    def kernel(self) -> torch.Tensor:
        """K of A^T A x(r) = sum_s K(r - s) x(s) for cubes of n voxels a side, float64 [2 n, 2 n, 2 n] with K(d) at
        index d modulo 2 n. Those of operators with different measurements of the same unknown add up.

        Raises `Unsupported` where A^T A is no `convolution`, by default always.
        """
        raise Unsupported("A^T A of the operator is no convolution (kernel)")

    def A_dagger(self, y: torch.Tensor) -> torch.Tensor:
        """The minimum-norm least-squares solution of A x = y, [B, C, *S]."""
        return self._solve(self.A_adjoint(y), 0.0)

    def A_dagger_A(self, x: torch.Tensor, gamma: torch.Tensor | float = math.inf) -> torch.Tensor:
        """(A^T A + I / gamma)^-1 A^T A x, [B, C, *S]; gamma > 0 for all images, or one per image, of any shape.

        At gamma = inf it is A^+ A x, the measured component of x. With x* any least-squares solution,
        `z + A_dagger_A(x* - z, gamma)` is `prox_l2(z, y, gamma)`, at gamma = inf the projection on all solutions.
        """
        return self._solve(self.A_adjoint_A(x), per_item(1 / torch.as_tensor(gamma, dtype=x.dtype).to(x.device), x))

    def prox_l2(self, z: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
        """argmin_x 1/2 ||A x - y||^2 + 1/(2 gamma) ||x - z||^2, [B, C, *S]."""
        return z + self._solve(self.A_adjoint(y - self.A(z)), 1 / gamma)

    def _solve(self, b: torch.Tensor, shift: torch.Tensor | float) -> torch.Tensor:
        """(A^T A + shift)^-1 b, of minimum norm."""
        return conjugate_gradients(
            lambda x: self.A_adjoint_A(x) + shift * x, b, tol=self.cg_tol, max_steps=self.cg_max_steps
        )

    def on_range(self, y: torch.Tensor) -> torch.Tensor:
        """A A^+ y, the projection of y [B, M, *s] on the range of A; noise is confined to it if `noise_in_range`."""
        return self.A(self.A_dagger(y))

    def compute_norm(self) -> float:
        """The spectral norm ||A|| (not its square); the maximum if A differs between images."""
        return float(self._norms.max())

    @cached_property
    def _norms(self) -> torch.Tensor:
        """||A|| of each image by iteration, for operators without a closed form of it."""
        return power_norms(self)

    @property
    def norms(self) -> torch.Tensor:
        """||A|| of each image, [1 or B, 1, ..., 1] with as many axes as x; by default the maximum for all."""
        return torch.full((1, *[1] * len(self.domain_shape)), self.compute_norm(), dtype=self.dtype, device=self.device)

    @property
    def rank(self) -> int:
        """Rank of A, or an upper bound if it is unknown."""
        return min(math.prod(self.domain_shape), math.prod(self.measurement_shape))

    @property
    def noise_rank(self) -> int:
        """Dimension of the space that `on_range` projects on, to which noise is confined if `noise_in_range`."""
        return self.rank

    @property
    def domain_shape(self) -> tuple[int, ...]:
        """(C, *S), the shape of one unknown."""
        return (self.channels, *self.image_shape)

    @property
    def transfer(self) -> torch.Tensor | None:
        """The transfer function on the half spectrum (`numerics.fft.rfftn`), float64 [1 or B, 1, *S[:-1], S[-1] // 2
        + 1]; None for an operator that is not diagonal in the Fourier basis."""
        return None

    @property
    def positions(self) -> tuple[torch.Tensor, ...] | None:
        """Where measurements of shape (1, *s) lie that are values or local means at the points of a grid: along each
        axis of S their positions in pixels, increasing, float64 [s_axis] on the CPU. None for all others."""
        return None

    @cached_property
    def mean_response(self) -> torch.Tensor:
        """A 1, the measurements of a constant image of intensity one, [1 or B, M, *s]."""
        return self.A(torch.ones((1, *self.domain_shape), dtype=self.dtype, device=self.device))

    def select(self, images: slice | torch.Tensor) -> LinearOperator:
        """This operator for some of the images it was built for (a slice, or indices or a mask [B]).

        Returns the operator itself if it is the same for all images. `compute_norm` and `rank` remain those of all
        images, so that the result for an image does not depend on its batch.
        """
        return self

    def rows(self, part: slice | torch.Tensor) -> LinearOperator:
        """The operator for some of its measurements: x -> (A x)[:, part], `part` a slice, indices or a mask [M].

        Structured operators override it if the part also has closed forms.
        """
        chosen = chosen_rows(self, part)
        whole = torch.arange(self.measurement_shape[0], device=self.device)
        return self if torch.equal(chosen, whole) else RowsOperator(self, chosen)

    def crop(self, window: Window) -> Crop:
        """The operator of a window of the image, and the measurements that belong to it.

        It exists where A treats the window separately from the rest: the measurements that belong to the window depend
        on no other pixel, and no other measurement depends on the window. Pixels outside are then of no use for the
        window: A^T y and A^+ y in the window are those of its operator. Windows start and stop at multiples of
        `crop_step` pixels.

        Raises `Unsupported` with the reason where there is none, by default always; `ValueError` for a window outside
        the image.
        """
        checked_window(self, window)
        raise Unsupported("the operator has no operators of windows (crop)")

    def prepare(self) -> None:
        """Compute factorisations and constants now, so that they are timed as set-up and not as solving."""
        _ = self.mean_response, self.rank

    @property
    def crop_step(self) -> int:
        """Windows of `crop` start and stop at multiples of this many pixels; by default `block`."""
        return self.block

    @property
    def effective_compression(self) -> float:
        """Pixels per independent measurement, N / rank(A); infinite for A = 0."""
        return math.prod(self.domain_shape) / self.rank if self.rank else math.inf


@dataclass(frozen=True)
class Crop:
    """The operator of a window, and the index of its measurements in those of the whole image.

    For measurements y [B, M, *s] of the whole image, those of the window are `crop.of(y)`, and
    crop.of(A(x)) = crop.operator.A(x in the window). measurements: one slice for each axis of (M, *s).
    """

    operator: LinearOperator
    measurements: tuple[slice, ...]

    def of(self, y: torch.Tensor) -> torch.Tensor:
        """The measurements of the window, a view of y [B, M, *s]."""
        return y[(slice(None), *self.measurements)]


def checked_window(operator: LinearOperator, window: Window) -> Window:
    """The window itself. Raises `ValueError` for one outside the image, `Unsupported` for one that cuts blocks."""
    shape, edges = operator.image_shape, operator.crop_step
    bounds = [(part.start, part.stop, part.step) for part in window]
    inside = len(bounds) == len(shape) and all(
        step in (None, 1) and start is not None and stop is not None and 0 <= start < stop <= n
        for (start, stop, step), n in zip(bounds, shape, strict=True)
    )
    if not inside:
        raise ValueError(f"crop: {window} is no window of an image of {shape}; give slice(start, stop) for every axis")
    cut = [edge for start, stop, _ in bounds for edge in (start, stop) if edge % edges]
    if cut:
        raise Unsupported(f"windows start and stop at multiples of {edges} pixels, got {cut[0]}")
    return window


def chosen_rows(operator: LinearOperator, part: slice | torch.Tensor) -> torch.Tensor:
    """The indices of the chosen measurements, [m]. Raises `ValueError` if there are none."""
    count = operator.measurement_shape[0]
    chosen = torch.arange(count, device=operator.device)[part]
    if chosen.ndim != 1 or len(chosen) == 0:
        raise ValueError(f"rows: {part} selects none of {count} measurements; give a slice, indices or a mask of them")
    return chosen


class RowsOperator(LinearOperator):
    """Some of the measurements of an operator: y holds only those, and the adjoint sets the others to zero.

    part: their indices, [m]. After `select`, `compute_norm` remains that of all images.
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
        whole.index_add_(1, self._part, y)  # not an assignment: a measurement may be chosen twice
        return self._whole.A_adjoint(whole)

    @property
    def crop_step(self) -> int:
        return self._whole.crop_step

    def crop(self, window: Window) -> Crop:
        crop = self._whole.crop(window)
        if crop.measurements[0] not in (slice(None), slice(0, self._whole.measurement_shape[0])):
            raise Unsupported("the measurements of a window are only some of M, so rows() of it are not known")
        return Crop(crop.operator.rows(self._part), (slice(None), *crop.measurements[1:]))

    def select(self, images: slice | torch.Tensor) -> RowsOperator:
        selected = self._whole.select(images)
        if selected is self._whole:
            return self
        rows = RowsOperator(selected, self._part)
        rows._of_all = self._of_all
        return rows

    @property
    def norms(self) -> torch.Tensor:
        return self._norms

    def compute_norm(self) -> float:
        return float(self._of_all._norms.max())


class OperatorRecipe(ABC):
    """A registered operator: a frozen dataclass of its parameters, from which live operators are built.

    dims: the numbers of image axes that it supports, (2,) by default. floor: the spec of the solver that is the
    baseline of its tables. location_fields: the parameters that give the location of files; results depend on their
    contents only (`files_digest`).
    """

    dims: ClassVar[tuple[int, ...]] = (2,)
    floor: ClassVar[str] = "pinv"
    gives_views: ClassVar[bool] = False
    """Whether its M measurements are images of M views of the unknown: `views` states them."""
    location_fields: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def check(self, imaging: Imaging) -> tuple[int, ...] | None:
        """The shape (M, *s) of the measurements of these images, or None if only the live operator has it. Cheap.

        Raises `IncompatibleError` if this operator cannot measure them.
        """

    def draw(self, imaging: Imaging, seed: int) -> Mapping[str, torch.Tensor]:
        """The random arrays (masks) that `build` needs, by name; stored to build the same operator again.

        They depend only on (seed, this recipe, imaging).
        """
        return {}

    def views(self, imaging: Imaging, drawn: Mapping[str, torch.Tensor] | None = None) -> Imaging | None:
        """How its M measurements were taken as M images, each of which an operator after it measures; None (the
        default) if they are not images.

        drawn: as `build` receives them; None before they are drawn.
        """
        return None

    def files_digest(self) -> str:
        """A digest of the contents of the files that it reads, part of the identity of a result; '' for none."""
        return ""

    @abstractmethod
    def build(
        self, imaging: Imaging, drawn: Mapping[str, torch.Tensor], *, dtype: torch.dtype, device: torch.device
    ) -> LinearOperator:
        """The live operator for these arrays and these images, in this order.

        An operator that does not depend on the imaging conditions is the same for all images of one shape.
        """


def drawn_array(drawn: Mapping[str, torch.Tensor], name: str, shape: Sequence[int]) -> torch.Tensor:
    """One of the arrays that `build` receives. Raises `IncompatibleError` if it is missing or of another shape."""
    array = drawn.get(name)
    if array is None or tuple(array.shape) != tuple(shape):
        got = "none" if array is None else list(array.shape)
        raise IncompatibleError(f"the operator needs an array {name!r} of shape {list(shape)}, got {got}")
    return array


def check_operator(recipe: OperatorRecipe, imaging: Imaging) -> tuple[int, ...] | None:
    """Check the number of axes, then call `recipe.check`. Raises `IncompatibleError`."""
    check_dims("operator", recipe, imaging.shape)
    shape = recipe.check(imaging)
    if shape is not None:
        what = f"the operator, with measurements of {list(shape)} for each image,"
        check_memory(what, 8 * math.prod(shape), "measure less", IncompatibleError)
    return shape


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
    """||A|| of each image, [1 or B, 1, ..., 1], by the power method on A^T A, to a relative change of `tol`."""
    x = random_images(operator)
    found, active = norm(x), torch.ones_like(norm(x), dtype=torch.bool)
    for _ in range(max_steps):
        x = operator.A_adjoint_A(x / norm(x).clamp_min(tiny(x)))
        current = norm(x)
        changes = (current - found).abs() > tol * current
        # freeze converged images, so that the result for an image does not depend on the others
        found, active = torch.where(active, current, found), active & changes
        if not active.any():
            break
    return found.sqrt()


def random_images(operator: LinearOperator, *, seed: int = 0) -> torch.Tensor:
    """White noise [1 or B, C, *S], the same image for each of the B images that the operator was built for."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn((1, *operator.domain_shape), generator=draw, dtype=operator.dtype).to(operator.device)
    return x.repeat(operator.images or 1, *[1] * len(operator.domain_shape))


def adjoint_gap(operator: LinearOperator, *, seed: int = 0) -> float:
    """|<A x, y> - <x, A^T y>| / (||A x|| ||y||) for random x and y, 0 for an exact adjoint; the maximum over images."""
    draw = torch.Generator().manual_seed(seed)
    B = operator.images or 1
    x = torch.randn((B, *operator.domain_shape), generator=draw, dtype=operator.dtype).to(operator.device)
    y = torch.randn((B, *operator.measurement_shape), generator=draw, dtype=operator.dtype).to(operator.device)
    Ax = operator.A(x)
    forward, backward = dot(Ax, y).flatten(), dot(x, operator.A_adjoint(y)).flatten()
    return float(((forward - backward).abs() / (norm(Ax) * norm(y)).flatten()).max())


def mean_intensity(operator: LinearOperator, y: torch.Tensor) -> torch.Tensor:
    """The mean intensity estimated from measurements, [B, 1, ..., 1] as y: the constant image c that fits y best,

        c = <A 1, y> / ||A 1||^2,

    and 0 where A 1 = 0.
    """
    response = operator.mean_response
    energy = dot(response, response)
    return torch.where(energy > 0, dot(response, y) / energy.clamp_min(tiny(y)), 0.0)
