"""A cryobench operator as a `deepinv.physics.LinearPhysics`.

Both libraries speak of A, A^T, A^+ and prox_l2, with the same gamma:

    prox_l2(z, y, gamma) = argmin_x gamma/2 ||A x - y||^2 + 1/2 ||x - z||^2

What differs is the norm. In deepinv 0.5.0 `compute_norm` is ||A||^2 unless given `squared=False` (and warns that
this will change), `compute_sqnorm` is ||A||^2; in cryobench `compute_norm` is ||A||.
"""

from __future__ import annotations

from collections.abc import Callable

import deepinv as dinv
import torch

from cryobench.core import LinearOperator

Linear = Callable[[torch.Tensor], torch.Tensor]


class OperatorPhysics(dinv.physics.LinearPhysics):
    """A / scale, for A a live cryobench operator; its closed forms stay closed forms.

    sigma: standard deviation of an entry's noise in what this physics measures. deepinv's methods read it from here.
    What comes in another dtype than the operator's is converted, and what goes out is converted back: deepinv's
    samplers go in float64.
    """

    def __init__(self, operator: LinearOperator, sigma: float = 0.0, scale: float = 1.0):
        super().__init__(
            img_size=(1, *operator.image_shape),
            noise_model=dinv.physics.GaussianNoise(sigma),
            device=operator.device,
        )
        self.operator, self.scale = operator, scale

    def A(self, x: torch.Tensor, **_: object) -> torch.Tensor:
        return _Linear.apply(x, self._A, self._A_adjoint)

    def A_adjoint(self, y: torch.Tensor, **_: object) -> torch.Tensor:
        return _Linear.apply(y, self._A_adjoint, self._A)

    def A_adjoint_A(self, x: torch.Tensor, **_: object) -> torch.Tensor:
        return _Linear.apply(x, self._A_adjoint_A, self._A_adjoint_A)

    def A_dagger(self, y: torch.Tensor, **_: object) -> torch.Tensor:
        return self._in_its_dtype(lambda y: self.operator.A_dagger(self.scale * y), y)

    def prox_l2(
        self, z: torch.Tensor | float | None, y: torch.Tensor, gamma: torch.Tensor | float, **_: object
    ) -> torch.Tensor:
        """argmin_x gamma/2 ||A x - y||^2 + 1/2 ||x - z||^2. gamma: of all images, or of each; at gamma = inf it is the
        projection of z on the least-squares solutions. z: None and numbers stand for constant images."""
        if not isinstance(z, torch.Tensor):
            z = y.new_full((len(y), *self.img_size), z or 0.0)
        each = torch.as_tensor(gamma, dtype=torch.float64).flatten().tolist()
        if len(each) > 1:
            parts = zip(z.split(1), y.split(1), each, strict=True)
            return torch.cat([self.prox_l2(z, y, gamma) for z, y, gamma in parts])
        if each[0] == 0:
            return z
        of_operator = each[0] / self.scale**2
        step = self._in_its_dtype(
            lambda z, y: self.operator.prox_l2(z, self.scale * y, of_operator) - z, z, y
        )  # the step alone is rounded to the operator's dtype, not z
        return z + step

    def compute_sqnorm(self, x0: torch.Tensor, **_: object) -> torch.Tensor:
        """||A||^2 as the operator knows it; no power method, and no draw from the global random state."""
        return torch.as_tensor((self.operator.compute_norm() / self.scale) ** 2, dtype=x0.dtype, device=x0.device)

    def _A(self, x: torch.Tensor) -> torch.Tensor:
        return self._in_its_dtype(self.operator.A, x) / self.scale

    def _A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self._in_its_dtype(self.operator.A_adjoint, y) / self.scale

    def _A_adjoint_A(self, x: torch.Tensor) -> torch.Tensor:
        return self._in_its_dtype(self.operator.A_adjoint_A, x) / self.scale**2

    def _in_its_dtype(self, function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        return function(*(tensor.to(self.operator.dtype) for tensor in inputs)).to(inputs[0].dtype)


class _Linear(torch.autograd.Function):
    """A linear map with its transpose as gradient: no graph is kept, and calls in the backward pass are counted."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, forward: Linear, transpose: Linear) -> torch.Tensor:
        ctx.maps = forward, transpose
        return forward(x)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        forward, transpose = ctx.maps
        return _Linear.apply(gradient, transpose, forward), None, None


def as_physics(operator: LinearOperator, sigma: float = 0.0, *, scale: float = 1.0) -> OperatorPhysics:
    """A / scale as a `deepinv.physics.LinearPhysics` with Gaussian noise of deviation `sigma` on what it measures."""
    return OperatorPhysics(operator, sigma, scale)
