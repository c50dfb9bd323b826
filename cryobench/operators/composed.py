"""`outer@inner`: the composition of two operators, y = S C x.

A and its adjoint are compositions of those of the parts. If S has closed forms, A^+ and the proximal step follow from
one equation. With P the projection on the range of S^T, K = C C^T and any a > 0,

    (A^T A + 1/g)^-1 A^T r = C^T w,    (D - a + K) w = S^+ r on the range of P,
    D^+ = (S^T S)(a S^T S + 1/g)^-1 = 1/a (S^T S + 1/(a g))^-1 S^T S

(D = a + (S^T S)^+ / g there.) It is solved by conjugate gradients, preconditioned by D^+, a closed form of S: the
condition number is then that of K / a restricted to the range of S^T, independent of the conditioning of S and of g
(docs/adr/0008). At g = inf it gives the minimum-norm solution of P C x = S^+ r, which is the least-squares solution of
A x = r if C has full row rank on the range of S^T, K > 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch

from cryobench.core import (
    Crop,
    Imaging,
    LinearOperator,
    OperatorRecipe,
    Window,
    check_operator,
    checked_window,
    power_norms,
    random_images,
)
from cryobench.errors import IncompatibleError
from cryobench.numerics.linalg import conjugate_gradients, norm, per_item
from cryobench.operators.aliased import AliasedOperator
from cryobench.operators.identity import IdentityOperator
from cryobench.operators.spectral import SpectralOperator, product
from cryobench.operators.subsampling import SubsamplingOperator
from cryobench.operators.views import by_view
from cryobench.spec import Component

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-10}
"""Relative residual at which conjugate gradients stop."""
_CHUNK = 64
"""Images per batch when the norm is computed, to bound memory."""


@dataclass(frozen=True)
class Composed(OperatorRecipe):
    """The composition of two operators, written outer@inner: `sumpool:4@ctf` applies the CTF and then sum pooling.

        A x = A_outer A_inner x

    Noise is added to the output of the outer one.
    """

    outer: Annotated[OperatorRecipe, Component("operators"), "operator applied last"]
    inner: Annotated[OperatorRecipe, Component("operators"), "operator applied first; gives one image per image"]

    def __post_init__(self) -> None:
        # composition is associative: (a@b)@c and a@(b@c) must have one spec and one hash
        if isinstance(self.outer, Composed):
            object.__setattr__(self, "inner", Composed(self.outer.inner, self.inner))
            object.__setattr__(self, "outer", self.outer.outer)

    @property
    def dims(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The dimensions of the inner operator."""
        return self.inner.dims

    @property
    def floor(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the outer operator, or of the inner one if that gives views."""
        return self.inner.floor if self.gives_views else self.outer.floor

    @property
    def gives_views(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the inner operator does."""
        return self.inner.gives_views

    def check(self, imaging: Imaging) -> tuple[int, ...] | None:
        between = check_operator(self.inner, imaging)
        if between is None:
            return None
        seen = self._seen(imaging, between)
        measured = check_operator(self.outer, seen)
        if measured is None or not self.gives_views:
            return measured
        M, *s = measured
        return (between[0] * M, *s)

    def draw(self, imaging: Imaging, seed: int) -> dict[str, torch.Tensor]:
        parts = {"inner": self.inner.draw(imaging, seed)}
        between = self.inner.check(imaging)
        if between is None:
            live = self.inner.build(imaging, parts["inner"], dtype=torch.float32, device=torch.device("cpu"))
            between = live.measurement_shape
        parts["outer"] = self.outer.draw(self._seen(imaging, between, parts["inner"]), seed)
        return {f"{part}.{name}": array for part, arrays in parts.items() for name, array in arrays.items()}

    def build(
        self, imaging: Imaging, drawn: Mapping[str, torch.Tensor], *, dtype: torch.dtype, device: torch.device
    ) -> LinearOperator:
        inner = self.inner.build(imaging, _of("inner.", drawn), dtype=dtype, device=device)
        seen = self._seen(imaging, inner.measurement_shape, _of("inner.", drawn))
        check_operator(self.outer, seen)  # `check` does not do this if the inner operator states no shape
        outer = self.outer.build(seen, _of("outer.", drawn), dtype=dtype, device=device)
        return compose(outer, inner)

    def views(self, imaging: Imaging, drawn: Mapping[str, torch.Tensor] | None = None) -> Imaging | None:
        """The images of the inner operator's views as the outer one measures them, one for each."""
        seen = self.inner.views(imaging, None if drawn is None else _of("inner.", drawn))
        measured = None if seen is None else check_operator(self.outer, seen)
        return None if seen is None or measured is None or measured[0] != 1 else _after(seen, measured[1:])

    def _seen(
        self, imaging: Imaging, measured: tuple[int, ...], drawn: Mapping[str, torch.Tensor] | None = None
    ) -> Imaging:
        """The imaging conditions of the outer operator's input: same field of view, same microscope."""
        views = self.inner.views(imaging, drawn)
        if views is not None:
            return views
        count, *seen = measured
        if count != 1:
            raise IncompatibleError(
                f"the inner operator {self.inner} gives {count} images per image, the outer operator requires one; "
                "use a single mask in the inner operator (sumpool:4,count=1), or swap the two"
            )
        return _after(imaging, seen)


def _after(imaging: Imaging, seen: Sequence[int]) -> Imaging:
    """The imaging conditions of measurements of this shape of the same field of view."""
    # pixels of one size along all axes; the last two are those of images, also of a volume's projections
    axes = imaging.shape[-len(seen) :] if len(seen) <= len(imaging.shape) else ()
    scales = {n / m for n, m in zip(axes, seen, strict=True)} if axes and seen else set()
    scale = scales.pop() if len(scales) == 1 else None
    sizes = tuple(None if size is None or scale is None else size * scale for size in imaging.pixel_size)
    return Imaging(tuple(seen), sizes, imaging.table)


def _of(part: str, drawn: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The arrays of one part, with the prefix removed from their names."""
    return {name.removeprefix(part): array for name, array in drawn.items() if name.startswith(part)}


def compose(outer: LinearOperator, inner: LinearOperator) -> LinearOperator:
    """`outer` after `inner`; in closed form if one is the identity, both are diagonal in the Fourier basis, or `outer`
    decimates sides that are multiples of its steps after an `inner` that is diagonal there.

    After an `inner` that gives views, `outer` acts on each of them (`views`).
    Raises `IncompatibleError` if the output of `inner` does not fit the input of `outer`.
    """
    if inner.views:
        return by_view(outer, inner)
    if tuple(inner.measurement_shape) != outer.domain_shape:
        raise IncompatibleError(
            f"the inner operator gives [M, *s] = {list(inner.measurement_shape)}, the outer operator requires "
            f"{list(outer.domain_shape)}; choose operators that fit"
        )
    if isinstance(outer, IdentityOperator):
        return inner
    if isinstance(inner, IdentityOperator):
        return outer
    if isinstance(outer, SpectralOperator) and isinstance(inner, SpectralOperator):
        return product(outer, inner)
    if isinstance(outer, SubsamplingOperator) and outer.even and isinstance(inner, SpectralOperator):
        return AliasedOperator(outer, inner)
    return ComposedOperator(outer, inner)


class ComposedOperator(LinearOperator):
    """A = S C for S = `outer`, C = `inner`. Iterates to a relative residual of `cg_tol` (1e-6, in float64 1e-10).

    The residual is that of the equation in the module docstring, in the norm of its preconditioner: at g = inf of
    S^+ y = P C x. If S has no closed form, or for A^+ if C may lack full row rank, it is that of the normal equations,
    a weaker bound on the error of x. If S has full column rank, A^+ and A^+ A need no iteration beyond that of C.
    `rank` is exact if C has full row rank or S full column rank, else the upper bound min(rank S, rank C). Noise is
    that of the outer operator.
    """

    def __init__(self, outer: LinearOperator, inner: LinearOperator):
        self.outer, self.inner = outer, inner
        self.image_shape, self.channels = inner.image_shape, inner.channels
        self.measurement_shape = outer.measurement_shape
        self.dtype, self.device = inner.dtype, inner.device
        self.images = inner.images if outer.images is None else outer.images
        self.nominal_compression = outer.nominal_compression * inner.nominal_compression
        self.nonnegative = outer.nonnegative and inner.nonnegative
        self.noise_in_range = outer.noise_in_range
        self.cg_tol = TOLERANCE.get(self.dtype, 1e-6)
        self._of_all, self._which = self, torch.arange(self.images or 1)

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer.A(self.inner.A(x))

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self.inner.A_adjoint(self.outer.A_adjoint(y))

    def A_adjoint_A(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner.A_adjoint(self.outer.A_adjoint_A(self.inner.A(x)))

    def A_dagger(self, y: torch.Tensor) -> torch.Tensor:
        if not (self.outer.closed_form and self._of_all._full_row_rank):
            return super().A_dagger(y)
        v = self.outer.A_dagger(y)
        return self.inner.A_dagger(v) if self._full_column_rank else self._solve_whitened(v)

    def A_dagger_A(self, x: torch.Tensor, gamma: torch.Tensor | float = math.inf) -> torch.Tensor:
        if not self.outer.closed_form:
            return super().A_dagger_A(x, gamma)
        each = per_item(torch.as_tensor(gamma, dtype=x.dtype, device=x.device), x)
        if not (self._full_column_rank and self.inner.closed_form):
            return self._solve_whitened(self.outer.A_dagger_A(self.inner.A(x)), each)
        measured = self.inner.A_dagger_A(x)
        if each.isinf().all():
            return measured
        return torch.where(each.isinf(), measured, self._solve_whitened(self.inner.A(x), each))

    def prox_l2(self, z: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
        if not self.outer.closed_form:
            return super().prox_l2(z, y, gamma)
        return z + self._solve_whitened(self.outer.A_dagger(y - self.A(z)), gamma)

    def _solve_whitened(self, v: torch.Tensor, gamma: torch.Tensor | float = math.inf) -> torch.Tensor:
        """(A^T A + 1/gamma)^-1 A^T r for v = S^+ r, [B, 1, *s] -> [B, C, *S]."""
        a, C, S = self._gain, self.inner, self.outer
        a_gamma = a * per_item(torch.as_tensor(gamma, dtype=v.dtype, device=v.device), v)

        def whiten(r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return S.A_dagger_A(r, a_gamma) / a, r

        def apply(w: torch.Tensor, Dw: torch.Tensor) -> torch.Tensor:
            return Dw - a * w + C.A(C.A_adjoint(w))

        return C.A_adjoint(conjugate_gradients(apply, v, tol=self.cg_tol, max_steps=self.cg_max_steps,
                                               precondition=whiten))  # fmt: skip

    @cached_property
    def _gain(self) -> torch.Tensor:
        """a, an estimate of the mean eigenvalue of K, [1 or B, 1, ..., 1]: ||C^T r||^2 / ||r||^2, r random (Hutchinson
        1990).

        Computed per image: a changes the iterates, and a result must not depend on the other images of the batch.
        """
        r = random_images(self.outer)[:1].expand(self.inner.images or 1, *self.outer.domain_shape)
        a = (per_item(norm(self.inner.A_adjoint(r)), r) / norm(r)).square()
        return torch.where(a > 0, a, 1.0)

    @property
    def _full_row_rank(self) -> bool:
        """Whether C is known to have full row rank, so that A x = y has a solution whenever S x = y has one."""
        return self.inner.closed_form and self.inner.rank == math.prod(self.inner.measurement_shape)

    @property
    def _full_column_rank(self) -> bool:
        """Whether S has full column rank, P = 1: A and C then have the same null space. (C of full row rank: A^+ = C^+
        S^+.)"""
        return self.outer.rank == math.prod(self.outer.domain_shape)

    @property
    def noise_rank(self) -> int:
        return self.outer.noise_rank

    def on_range(self, y: torch.Tensor) -> torch.Tensor:
        """S S^+ y: detector noise is added to the output of the outer operator."""
        return self.outer.on_range(y)

    def compute_norm(self) -> float:
        return float(self._of_all._norms.max())

    @property
    def norms(self) -> torch.Tensor:
        return self._of_all._norms[self._which.to(self.device)]

    @cached_property
    def _norms(self) -> torch.Tensor:
        parts = [slice(start, start + _CHUNK) for start in range(0, self.images or 1, _CHUNK)]
        return torch.cat([power_norms(self.select(part)) for part in parts])

    @property
    def rank(self) -> int:
        return min(self.outer.rank, self.inner.rank)

    @property
    def positions(self) -> tuple[torch.Tensor, ...] | None:
        """Those of the outer operator where the inner one is diagonal in Fourier, and does not move the image."""
        return self.outer.positions if isinstance(self.inner, SpectralOperator) else None

    @cached_property
    def mean_response(self) -> torch.Tensor:
        return self.outer.A(self.inner.mean_response)

    def rows(self, part: slice | torch.Tensor) -> LinearOperator:
        # of all images, so that `compute_norm` does not depend on which are selected
        rows = compose(self._of_all.outer.rows(part), self._of_all.inner)
        return rows if self is self._of_all else rows.select(self._which)

    @property
    def crop_step(self) -> int:
        return self.inner.crop_step * self.outer.crop_step

    def crop(self, window: Window) -> Crop:
        """The composition of the parts' operators of the window, where both have one."""
        inner = self.inner.crop(checked_window(self, window))
        outer = self.outer.crop(inner.measurements[1:])
        return Crop(compose(outer.operator, inner.operator), outer.measurements)

    def select(self, images: slice | torch.Tensor) -> ComposedOperator:
        if self.images is None:
            return self
        part = ComposedOperator(self.outer.select(images), self.inner.select(images))
        index = images if isinstance(images, slice) else images.cpu()
        part._of_all, part._which = self._of_all, self._which[index]
        return part

    def prepare(self) -> None:
        self.outer.prepare()
        self.inner.prepare()
        _ = self._gain
        super().prepare()
