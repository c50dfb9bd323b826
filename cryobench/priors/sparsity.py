"""Base class of the sparsity priors: R(x) = max <u, K x> over a dual ball, its value, projection and prox.

K is a linear analysis (a DCT, a wavelet transform, finite differences) and |.| the magnitude of its n penalised entries
(a coefficient, or the gradient at a pixel). The dual ball of radius r is

    B_r = { u : |u_i| <= r for all i, ||u|| <= r sqrt(n) / cut, u = 0 on entries that are not penalised }.

With `cut = 1` the second condition is inactive and R(x) = sum |K x|_i: the l1 norm, the total variation. For cut > 1,

    R(x) = min over a of   sum |a|_i + sqrt(n) / cut ||K x - a||,

so that K x = a + b is split into a sparse part a and a dense part b; entries of b are clipped at `cut` times its root
mean square. It is the regulariser of the square-root LASSO (Belloni, Chernozhukov & Wang 2011) with b as the noise: for
particle images, which consist of structure and white noise, it makes the structure sparse without a noise level. R is a
norm, so that results are equivariant to the scale of an image.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import Prior, Shape
from cryobench.errors import ParameterError
from cryobench.numerics.linalg import dot, norm, per_item, sum_pieces, total

_PROX_STEPS = 2000
"""Maximum number of steps of an iterative prox."""


@dataclass(frozen=True)
class Sparsity(Prior):
    """The norm R(x) = max <u, K x> over the dual ball; see the module."""

    cut: Annotated[float, "entries above this many RMS of the dense part are sparse; 1: the plain norm"] = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.cut < float("inf"):
            raise ParameterError(f"cut must be 1 (the plain norm) or more, got {self.cut:g}")

    dims = (2, 3)
    prox_tolerance = 1e-7
    """The relative duality gap at which an iterative `prox` stops."""

    def norm_squared(self, dims: int) -> float:
        """An upper bound of ||K||^2 for images of `dims` axes, tight for large ones. If 1, `prox` is closed form."""
        return 1.0

    def unsupported(self, shape: Shape) -> str | None:
        """The reason why this prior does not support images of this shape, or None."""
        return None

    @abstractmethod
    def analysis(self, x: torch.Tensor) -> torch.Tensor:
        """K x, [B, 1, *S] -> [B, C, *S]."""

    @abstractmethod
    def adjoint(self, u: torch.Tensor) -> torch.Tensor:
        """K^T u, [B, C, *S] -> [B, 1, *S]."""

    def penalised(self, u: torch.Tensor) -> torch.Tensor:
        """u with zeros in the entries that are not penalised."""
        return u

    def entries(self, shape: Shape) -> int:
        """The number n of magnitudes that R sums over."""
        return math.prod(shape)

    def magnitude(self, u: torch.Tensor) -> torch.Tensor:
        """|u|_i, [B, C or 1, *S]."""
        return u.abs()

    def clip(self, u: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
        """The nearest point with |u|_i <= radius."""
        return torch.clamp(u, -radius, radius)

    # ------------------------------------------------------------------------------------------------ derived methods

    def value(self, x: torch.Tensor) -> torch.Tensor:
        """R(x) of each image, [B, 1, ..., 1]."""
        m = self.magnitude(self.penalised(self.analysis(x)))
        if self.cut == 1:
            return total(m)
        # the maximiser is u = min(sqrt(theta) m, 1) with ||u||^2 = n / cut^2; if no theta reaches that norm, it is 1
        # wherever m > 0 (theta = inf, and 0 inf = nan counts as 0)
        theta = _root(m.square(), self._energy(x), per_item(m.new_ones(len(m)), m))
        u = (theta.sqrt() * m).nan_to_num_(0.0, posinf=1.0).clamp_max_(1)
        return dot(u, m)

    def project(self, u: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
        """The projection on the dual ball of this radius, [B, 1, ..., 1]: u is scaled down, then clipped."""
        if self.cut == 1:
            return self.clip(self.penalised(u), radius)
        r2 = radius.square()
        root = _root(self.magnitude(self.penalised(u)).square(), r2 * self._energy(u), r2)
        return self.clip(self.penalised(u) * root.clamp_max(1).sqrt(), radius)

    def dual_step(self, u: torch.Tensor, radius: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The prox of sigma times the conjugate of `radius` R: the projection, for any sigma."""
        return self.project(u, radius)

    def prox(self, z: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
        """argmin_x 1/2 ||x - z||^2 + threshold R(x). threshold: [B, 1, ..., 1]."""
        return self.dual_prox(z, threshold)[0]

    def dual_prox(
        self,
        z: torch.Tensor,
        threshold: torch.Tensor,
        start: torch.Tensor | None = None,
        slack: torch.Tensor | float = 0.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The prox x = z - K^T u and its dual solution u, the minimiser of 1/2 ||z - K^T u||^2 in the dual ball.

        For an orthonormal K this is one projection (with `cut = 1`, soft thresholding). Otherwise a dual method is used
        from the initial dual point `start`; the solution of a similar problem saves most steps. It may stop once a
        step moves x by no more than `slack`, [B, 1, ..., 1].
        """
        if self.norm_squared(z.ndim - 2) == 1:
            u = self.project(self.analysis(z), threshold)
            return z - self.adjoint(u), u
        return self._ascend(z, threshold, start, slack)

    def _ascend(
        self, z: torch.Tensor, threshold: torch.Tensor, start: torch.Tensor | None, slack: torch.Tensor | float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Fast gradient projection on the dual (Beck & Teboulle 2009, section 4.2) with restarts, until

            gap = threshold R(x) - <u, K x>  <=  prox_tolerance (1/2 ||x - z||^2 + threshold R(x)),

        the duality gap of x = z - K^T u and u, or until a step moves x by no more than `slack` or its rounding error.
        Checked at every tenth step, independently for each image.
        """
        step = 1 / self.norm_squared(z.ndim - 2)
        u = torch.zeros_like(self.analysis(z)) if start is None else self.project(start, threshold)
        v, t = u, per_item(z.new_ones(len(z)), z)
        x, done = z - self.adjoint(u), torch.zeros_like(t, dtype=torch.bool)
        still = (4 * torch.finfo(z.dtype).eps * norm(z)).clamp_min(slack)
        for i in range(_PROX_STEPS):
            x_before = z - self.adjoint(v)
            u_next = self.project(v + step * self.analysis(x_before), threshold)
            ascent = dot(v - u_next, u_next - u) > 0
            t_next = (1 + (1 + 4 * t**2).sqrt()) / 2
            momentum = torch.where(ascent, 0.0, (t - 1) / t_next)
            v, t = u_next + momentum * (u_next - u), torch.where(ascent, 1.0, t_next)
            u = torch.where(done, u, u_next)
            if i % 10 == 9:
                x = z - self.adjoint(u)
                penalty = threshold * self.value(x)
                gap = penalty - dot(u, self.analysis(x))
                close = gap <= self.prox_tolerance * (dot(x - z, x - z) / 2 + penalty)
                done = done | close | (norm(x - x_before) <= still)
                if done.all():
                    break
        return x, u

    def _energy(self, x: torch.Tensor) -> float:
        """The largest ||u||^2 in the dual ball of radius one."""
        return self.entries(tuple(x.shape[2:])) / self.cut**2


def _root(m2: torch.Tensor, level: torch.Tensor | float, cap: torch.Tensor) -> torch.Tensor:
    """theta of each image with sum min(theta m2, cap) = level, [B, 1, ..., 1]; inf if the sum is always below level.

    The sum is concave and piecewise linear in theta, so Newton's method from the left is exact after a few steps. Sums
    are computed in float64, so that they do not depend on the batch size.
    """
    theta = level / total(m2)
    clipped = torch.full(theta.shape, -1, device=m2.device)
    while True:
        bound = cap / theta
        count = sum_pieces(lambda m2, bound=bound: m2 >= bound, m2).long()
        if (count <= clipped).all():
            return theta
        clipped = torch.maximum(count, clipped)
        rest = sum_pieces(lambda m2, bound=bound: m2.masked_fill(m2 >= bound, 0), m2).to(m2.dtype)
        theta = torch.where(rest > 0, (level - cap * count) / rest, torch.inf)
