"""A cryobench operator as a `deepinv.physics.LinearPhysics`.

Both libraries define A, A^T, A^+ and prox_l2, with the same gamma:

    prox_l2(z, y, gamma) = argmin_x gamma/2 ||A x - y||^2 + 1/2 ||x - z||^2

The norm differs. In deepinv 0.5.0 `compute_norm` is ||A||^2 unless `squared=False` is given (and warns that this will
change), and `compute_sqnorm` is ||A||^2; in cryobench `compute_norm` is ||A||.
"""

from __future__ import annotations

from collections.abc import Callable

import deepinv as dinv
import torch

from cryobench.core import LinearOperator

Linear = Callable[[torch.Tensor], torch.Tensor]


class OperatorPhysics(dinv.physics.LinearPhysics):
    """A / scale, where A is a live cryobench operator; its closed forms are used.

    sigma: standard deviation of the noise of an entry of the measurements, read by deepinv's methods. Inputs are
    converted to the operator's dtype and outputs back to that of the input, because deepinv's samplers use float64.
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
        """argmin_x gamma/2 ||A x - y||^2 + 1/2 ||x - z||^2. gamma: for all images, or per image; at gamma = inf the
        result is the projection of z on the least-squares solutions. z: a number is a constant image, None is zero."""
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
        )  # only the step is rounded to the operator's dtype, not z
        return z + step

    def compute_sqnorm(self, x0: torch.Tensor, **_: object) -> torch.Tensor:
        """||A||^2 from the operator, without the power method and the global random state."""
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
    """A linear map with its transpose as gradient: no graph is stored, and calls in the backward pass are counted."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, forward: Linear, transpose: Linear) -> torch.Tensor:
        ctx.maps = forward, transpose
        return forward(x)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        forward, transpose = ctx.maps
        return _Linear.apply(gradient, transpose, forward), None, None


def as_physics(operator: LinearOperator, sigma: float = 0.0, *, scale: float = 1.0) -> OperatorPhysics:
    """A / scale as a `deepinv.physics.LinearPhysics` with Gaussian noise of standard deviation `sigma`."""
    return OperatorPhysics(operator, sigma, scale)
