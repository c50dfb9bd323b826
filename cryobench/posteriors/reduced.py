"""Measurements as independent coordinates of the image, for dense linear algebra.

With A = U diag(s) V^T of rank r and white noise of variance P, y says of x exactly what

    b = diag(s)^-1 U^T y = V^T x + e,    e_i ~ N(0, P / s_i^2) independent

says. P = 0 is allowed. Where the noise is confined to the range of A, P is its variance in a measured coefficient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from cryobench.core import LinearOperator, Problem
from cryobench.operators.noise import noise_power

LARGEST = 1024
"""Largest number of pixels for which A is written as a matrix, 32 x 32."""


@dataclass(frozen=True, eq=False)
class Reduced:
    """rows: V^T [r, N]. b: [B, r]. variance: of e, [B, r]. All float64, for images with one operator."""

    rows: torch.Tensor
    b: torch.Tensor
    variance: torch.Tensor


def reduced(problem: Problem) -> list[tuple[slice, Reduced]]:
    """The coordinates of the images: all together, or one by one where the operator differs between them."""
    operator = problem.operator
    each = [slice(0, problem.batch)] if operator.images is None else [slice(i, i + 1) for i in range(problem.batch)]
    power = noise_power(problem).double().expand(problem.batch, *problem.sigma.shape[1:])
    found = []
    for part in each:
        U, s, rows = torch.linalg.svd(matrix(operator.select(part)), full_matrices=False)
        kept = s > s.max().clamp_min(0) * max(len(U), rows.shape[1]) * torch.finfo(operator.dtype).eps
        U, s, rows = U[:, kept], s[kept], rows[kept]
        b = problem.y[part].double().flatten(1) @ U / s
        found.append((part, Reduced(rows, b, power[part].flatten(1) / s.square())))
    return found


def matrix(operator: LinearOperator) -> torch.Tensor:
    """A as a matrix, float64 [M, N]. The operator must be that of one image, or the same for all."""
    N = math.prod(operator.domain_shape)
    unit = torch.eye(N, dtype=operator.dtype, device=operator.device).reshape(N, *operator.domain_shape)
    return operator.A(unit).double().flatten(1).mT
