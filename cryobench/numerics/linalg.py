"""Batched linear algebra: a batch [B, ...] holds B items of any shape, and every operation is per item."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch


def item_axes(a: torch.Tensor) -> tuple[int, ...]:
    """All axes except that of the batch, for sums, means and maxima over each item."""
    return tuple(range(1, a.ndim))


def per_item(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """One number for each item of the batch `like` [B, ...], reshaped to [B, 1, ..., 1] so that it broadcasts per item.

    values: B numbers, or one for all, of any shape. Raises `ValueError` for another count, which would broadcast over
    the wrong axis.
    """
    if values.numel() not in (1, len(like)):
        raise ValueError(f"{values.numel()} numbers of shape {list(values.shape)} for a batch of {len(like)} items")
    return values.reshape(-1, *[1] * (like.ndim - 1))


def total(a: torch.Tensor) -> torch.Tensor:
    """Sum of each item, [B, 1, ..., 1] for [B, ...].

    Summed in float64 and in the memory order of a contiguous tensor: the rounding of a float32 sum, and decisions based
    on it, would depend on the batch size. Large items are summed piece by piece, because torch first converts all that
    it sums to float64.
    """
    return sum_pieces(lambda a: a, a).to(a.dtype)


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Inner product of each item, [B, 1, ..., 1] for inputs [B, ...]; either may have batch size 1. See `total`.

    Raises `ValueError` if the items differ in shape.
    """
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(f"an inner product of items of shape {list(a.shape[1:])} and {list(b.shape[1:])}")
    return sum_pieces(torch.mul, a, b).to(torch.result_type(a, b))


def sum_pieces(terms: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """The sum over each item of elementwise `terms` of tensors [B, ...], in float64, [B, 1, ..., 1].

    Items of more than `PIECE` entries are cut along their longest axis, so that neither the terms of a whole item nor
    their float64 copy are in memory.
    """
    shape = tensors[0].shape[1:]
    entries = math.prod(shape)
    if entries <= PIECE:
        return _summed(terms(*tensors))
    axis = max(range(len(shape)), key=lambda i: shape[i])
    thickness = max(1, PIECE * shape[axis] // entries)
    parts = zip(*(tensor.split(thickness, dim=1 + axis) for tensor in tensors), strict=True)
    sums = [_summed(terms(*part)) for part in parts]
    return sum(sums[1:], start=sums[0])


def _summed(values: torch.Tensor) -> torch.Tensor:
    return values.contiguous().sum(dim=item_axes(values), keepdim=True, dtype=torch.float64)


PIECE = 2**20
"""Entries of an item that are summed at once."""


def norm(a: torch.Tensor) -> torch.Tensor:
    """Euclidean norm of each item, [B, 1, ..., 1]."""
    return dot(a, a).sqrt()


def all_finite(a: torch.Tensor) -> bool:
    """Whether all entries are finite. A finite sum has finite terms, and is faster than `isfinite` of each."""
    return bool(a.sum().isfinite()) or bool(a.isfinite().all())


def tiny(like: torch.Tensor) -> float:
    """The smallest normal number of the dtype, as a lower bound of divisors."""
    return torch.finfo(like.dtype).tiny


def one_channel(x: torch.Tensor) -> torch.Tensor:
    """x [B, 1, *S] itself. Raises `ValueError` for more channels, where only the first would be used."""
    if x.shape[1] != 1:
        raise ValueError(f"expected images of one channel, [B, 1, ...], got shape {list(x.shape)}")
    return x


def sandwich(left: torch.Tensor, x: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left @ x @ right, [m, H], [B, 1, H, W] and [W, n] -> [B, 1, m, n].

    Multiplied image by image: in a single product the rounding would depend on the batch size.
    """
    B = one_channel(x).shape[0]
    return torch.bmm(torch.bmm(left.expand(B, -1, -1), x[:, 0]), right.expand(B, -1, -1)).unsqueeze(1)


def along_axes(matrices: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Apply a matrix [m_a, S_a] along each of the two or three axes S of x, [B, 1, *S] -> [B, 1, *m]."""
    *outer, rows, columns = matrices
    if not outer:
        return sandwich(rows, x, columns.mT)
    B, D = one_channel(x).shape[0], x.shape[2]
    x = sandwich(rows, x.reshape(B * D, 1, *x.shape[3:]), columns.mT)
    m, n = x.shape[2:]
    return torch.bmm(outer[0].expand(B, -1, -1), x.reshape(B, D, m * n)).reshape(B, 1, -1, m, n)


def concatenate_curves(curves: list[torch.Tensor]) -> torch.Tensor:
    """Concatenate curves [B_i, L_i] to [sum B_i, max L_i], shorter ones padded with NaN."""
    length = max(curve.shape[1] for curve in curves)
    return torch.cat(
        [torch.nn.functional.pad(curve, (0, length - curve.shape[1]), value=float("nan")) for curve in curves]
    )


def conjugate_gradients(
    apply: Callable[..., torch.Tensor],
    b: torch.Tensor,
    *,
    tol: float | torch.Tensor,
    max_steps: int,
    precondition: Callable[[torch.Tensor], tuple[torch.Tensor, ...]] | None = None,
    watch: Callable[[int, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Solve `apply(x) = b` for a symmetric positive semi-definite `apply`, independently for each image.

    Starts from zero, so that a singular system with b in the range gives the minimum-norm solution. An image
    stops when ||b - apply(x)|| <= tol ||b||, tol the same for all or one per image, [B, 1, ..., 1]. (Hestenes & Stiefel
    1952.)

    precondition: r -> (M^-1 r, ...), M^-1 symmetric and positive semi-definite; the norm is then <r, M^-1 r>^(1/2), and
    x stays in the range of M^-1. Further outputs, linear in r, are combined like the search direction p and passed to
    `apply` after it: with (M^-1 r, r) `apply` receives p and M p, without an implementation of M.

    watch: called after each step with its number and the norm of the residual relative to that of b, [B, 1, ..., 1].
    """
    precondition = precondition or (lambda r: (r,))
    x = torch.zeros_like(b)
    r = b.clone()
    p = z = precondition(r)
    rz = dot(r, z[0])
    goal, first = tol**2 * rz, rz.clamp_min(tiny(b))
    for number in range(1, max_steps + 1):
        active = rz > goal
        if not active.any():
            break
        q = apply(*p)
        curvature = dot(p[0], q)
        step = torch.where(active & (curvature > 0), rz / curvature.clamp_min(tiny(b)), 0.0)
        x = x + step * p[0]
        r = r - step * q
        z = precondition(r)
        rz_next = dot(r, z[0])
        beta = torch.where(active, rz_next / rz.clamp_min(tiny(b)), 0.0)
        p = tuple(new + beta * old for new, old in zip(z, p, strict=True))
        rz = torch.where(active & (curvature <= 0), 0.0, rz_next)
        if watch is not None:
            watch(number, (rz / first).sqrt())
    return x


def standardised(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y [B, ...] with mean 0 and standard deviation 1 of each item, and the means and deviations, [B, 1, ..., 1].

    Sums are in float64. A constant item is 0, with deviation 0.
    """
    axes = item_axes(y)
    mean = y.mean(axes, keepdim=True, dtype=torch.float64).to(y.dtype)
    x = y - mean
    deviation = x.square().mean(axes, keepdim=True, dtype=torch.float64).sqrt().to(y.dtype)
    return x.div_(deviation.clamp_min(tiny(deviation))), mean, deviation
