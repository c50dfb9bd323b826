"""Operators with a known factorisation: every closed form follows from one spectral filter.

For f a function of the eigenvalues of A A^T (equally, of A^T A, since A^T f(A A^T) = f(A^T A) A^T):

    A_dagger(y)        = A^T f(A A^T) y                 with f(s) = 1/s where s > tol, else 0
    prox_l2(z, y, g)   = z + A^T f(A A^T) (y - A z)     with f(s) = 1/(s + 1/g) where s > tol, else 0
    ||A||              = sqrt(max s)
    rank(A)            = number of s > tol

and, with V_r the eigenvectors of A^T A whose s > tol,

    A_dagger_A(x, g)   = V_r w(s) V_r^T x               with w(s) = s/(s + 1/g)

(The component of a residual along null eigenvectors is rounding error, which 1/(s + 1/g) = g would amplify.)

A subclass implements the eigenvalues s, the action of A^T f(A A^T) on a residual and of V_r w(s) V_r^T on an image.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable

import torch

from cryobench.core import LinearOperator
from cryobench.numerics.linalg import per_item

Response = Callable[[torch.Tensor], torch.Tensor]


class FactoredOperator(LinearOperator):
    """A linear operator whose pseudo-inverse and proximal step are closed form."""

    closed_form = True

    @property
    @abstractmethod
    def eigenvalues(self) -> torch.Tensor:
        """The eigenvalues of A A^T (or of A^T A, whichever is smaller), non-negative, any shape."""

    @property
    @abstractmethod
    def eigenvalue_tolerance(self) -> torch.Tensor | float:
        """Eigenvalues at or below it count as zero; broadcasts against `eigenvalues`."""

    @abstractmethod
    def apply_filter(self, response: Response, residual: torch.Tensor) -> torch.Tensor:
        """A^T f(A A^T) residual, [B, M, *s] -> [B, C, *S], for f = `response` of the eigenvalues."""

    @abstractmethod
    def filter_range(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """V_r w(s) V_r^T x, [B, C, *S], for w(s) = s / (s + shift), shift one number for each image or for all."""

    def A_dagger(self, y: torch.Tensor) -> torch.Tensor:
        return self.apply_filter(self._inverse(0.0), y)

    def A_dagger_A(self, x: torch.Tensor, gamma: torch.Tensor | float = math.inf) -> torch.Tensor:
        shift = 1 / torch.as_tensor(gamma, dtype=x.dtype, device=x.device)
        return self.filter_range(x, per_item(shift, x))

    def prox_l2(self, z: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
        return z + self.apply_filter(self._inverse(1 / gamma), y - self.A(z))

    def _inverse(self, shift: float) -> Response:
        """f(s) = 1 / (s + shift) where s is not null, else 0."""
        tolerance = self.eigenvalue_tolerance
        return lambda s: torch.where(s > tolerance, 1 / (s + shift).clamp_min(1e-300), 0.0)

    def compute_norm(self) -> float:
        return float(self.eigenvalues.max()) ** 0.5

    @property
    def rank(self) -> int:
        return int((self.eigenvalues > self.eigenvalue_tolerance).sum())
