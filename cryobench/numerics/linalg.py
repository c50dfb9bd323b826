"""Batched linear algebra on images: inner products per image, conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch


def total(a: torch.Tensor) -> torch.Tensor:
    """Sum of each image, [B, 1, 1, 1] for [B, ., ., .].

    Summed in float64 and in the order of a dense tensor: the order of a float32 sum, and a decision that hangs on it,
    would depend on the size of the batch.
    """
    return a.contiguous().sum(dim=(1, 2, 3), keepdim=True, dtype=torch.float64).to(a.dtype)


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Inner product of each image, [B, 1, 1, 1] for [B, ., ., .] inputs; either may have batch size 1. See `total`."""
    return total(a * b)


def norm(a: torch.Tensor) -> torch.Tensor:
    """Euclidean norm of each image, [B, 1, 1, 1]."""
    return dot(a, a).sqrt()


def tiny(like: torch.Tensor) -> float:
    """The smallest normal number of that dtype, to divide by in place of zero."""
    return torch.finfo(like.dtype).tiny


def sandwich(left: torch.Tensor, x: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left @ x @ right, [m, H], [B, 1, H, W] and [W, n] -> [B, 1, m, n].

    Image by image: folding the batch into one product would let its size change the rounding.
    """
    B = x.shape[0]
    return torch.bmm(torch.bmm(left.expand(B, -1, -1), x[:, 0]), right.expand(B, -1, -1)).unsqueeze(1)


def concatenate_curves(curves: list[torch.Tensor]) -> torch.Tensor:
    """[B_i, L_i] one below the other, [sum B_i, max L_i], shorter ones continued by NaN."""
    length = max(curve.shape[1] for curve in curves)
    return torch.cat(
        [torch.nn.functional.pad(curve, (0, length - curve.shape[1]), value=float("nan")) for curve in curves]
    )


def conjugate_gradients(
    apply: Callable[..., torch.Tensor],
    b: torch.Tensor,
    *,
    tol: float,
    max_steps: int,
    precondition: Callable[[torch.Tensor], tuple[torch.Tensor, ...]] | None = None,
) -> torch.Tensor:
    """Solve `apply(x) = b` for a symmetric positive semi-definite `apply`, each image on its own.

    Starts from zero, so that on a singular system with b in the range the least-norm solution comes out. An image
    stops when ||b - apply(x)|| <= tol ||b||. (Hestenes & Stiefel 1952.)

    precondition: r -> (M^-1 r, ...), M^-1 symmetric and positive semi-definite; the norm is then <r, M^-1 r>^(1/2), and
    x stays in the range of M^-1. What it gives beside M^-1 r, linear in r too, `apply` is given beside a direction:
    with (M^-1 r, r) that is M times the direction, which M itself need not be known for.
    """
    precondition = precondition or (lambda r: (r,))
    x = torch.zeros_like(b)
    r = b.clone()
    p = z = precondition(r)
    rz = dot(r, z[0])
    goal = tol**2 * rz
    for _ in range(max_steps):
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
        onward = torch.where(active, rz_next / rz.clamp_min(tiny(b)), 0.0)
        p = tuple(new + onward * old for new, old in zip(z, p, strict=True))
        rz = torch.where(active & (curvature <= 0), 0.0, rz_next)
    return x
