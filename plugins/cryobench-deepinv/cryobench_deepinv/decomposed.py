"""A cryobench operator as a `deepinv.physics.DecomposablePhysics`, A = U diag(s) V^T, for methods that need an SVD.

    sumpool            block by block: B_p = U_p diag(s_p) V_p^T, all K^2 rows of V_p^T
    diagonal in Fourier (fourier, ctf, identity and their compositions): A = H sign(w) |w| H
    other operators    a dense SVD, for images of at most 1024 pixels

H is the orthonormal Hartley transform, H x = Re F x - Im F x, which is real and its own inverse. It diagonalises A
since w(-k) = w(k). (In deepinv's own Fourier factorisations V^T maps to half spectra, where only V V^T = 1 holds.)

V is always square and orthonormal, because DDRM works in its basis. Columns of U beyond the rank of A are zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import deepinv as dinv
import torch
from torch.nn.functional import pad

from cryobench.core import LinearOperator, meters
from cryobench.errors import IncompatibleError
from cryobench.numerics.fft import whole_spectrum
from cryobench_deepinv.physics import Linear

MAX_PIXELS = 1024
"""The largest image for which a dense SVD is computed if the operator has no known factorisation: 8 MiB in float64."""


@dataclass(frozen=True)
class Factors:
    """A = U diag(s) V^T. s: non-negative, 0 where null, [1, 1, ., .]; coefficients are [B, 1, ., .] of that shape."""

    s: torch.Tensor
    U: Linear
    U_adjoint: Linear
    V: Linear
    V_adjoint: Linear


class OperatorDecomposed(dinv.physics.DecomposablePhysics):
    """A physics whose norm is known from the SVD, so neither the power method nor the global random state is used."""

    def compute_sqnorm(self, x0: torch.Tensor, **_: object) -> torch.Tensor:
        """||A||^2."""
        return self.mask.max().to(x0) ** 2


_factors_of: WeakKeyDictionary[LinearOperator, Factors] = WeakKeyDictionary()


def as_decomposable(operator: LinearOperator, sigma: float = 0.0, *, scale: float = 1.0) -> OperatorDecomposed:
    """A / scale as a `deepinv.physics.DecomposablePhysics`; factorised once. Its applications count as calls.

    Raises `IncompatibleError` for an operator without a factorisation, and for one that differs between images.
    """
    reason = unsupported(operator)
    if reason is not None:
        raise IncompatibleError(reason)
    if operator.images not in (None, 1):
        raise IncompatibleError(f"the operator differs between {operator.images} images; select one, as in select([0])")
    if operator not in _factors_of:
        _factors_of[operator] = _factorise(operator)
    factors = _factors_of[operator]
    return OperatorDecomposed(
        U=_counted("U", factors.U),
        U_adjoint=_counted("U_adjoint", factors.U_adjoint),
        V=_counted("V", factors.V),
        V_adjoint=_counted("V_adjoint", factors.V_adjoint),
        mask=factors.s / scale,
        img_size=(1, *operator.image_shape),
        noise_model=dinv.physics.GaussianNoise(sigma),
        device=operator.device,
    )


def unsupported(operator: LinearOperator) -> str | None:
    """The reason why this operator has no factorisation, or None."""
    pixels = math.prod(operator.image_shape)
    if operator.transfer is not None or _is_pooling(operator) or pixels <= MAX_PIXELS:
        return None
    return (
        f"the operator has no known singular value decomposition, and a dense one is limited to {MAX_PIXELS} pixels, "
        f"got {pixels}"
    )


def _factorise(operator: LinearOperator) -> Factors:
    if operator.transfer is not None:
        return _factorise_spectrum(operator, operator.transfer)
    if _is_pooling(operator):
        return _factorise_blocks(operator, operator.matrices, operator.block)  # type: ignore[attr-defined]
    pixels = math.prod(operator.image_shape)
    images = torch.eye(pixels, dtype=operator.dtype, device=operator.device)
    columns = operator.A(images.reshape(pixels, 1, *operator.image_shape)).flatten(1)
    return _factorise_blocks(operator, columns.mT.unsqueeze(0), None)


def _is_pooling(operator: LinearOperator) -> bool:
    return hasattr(operator, "matrices") and hasattr(operator, "block")


def _factorise_spectrum(operator: LinearOperator, transfer: torch.Tensor) -> Factors:
    """|w| and its sign in the Hartley basis."""
    w = whole_spectrum(transfer, operator.image_shape).to(operator.dtype)
    sign = w.sign()
    return Factors(w.abs(), lambda c: hartley(sign * c), lambda y: sign * hartley(y), hartley, hartley)


def hartley(x: torch.Tensor) -> torch.Tensor:
    """The orthonormal Hartley transform over the last two axes: real, symmetric, its own inverse (Bracewell 1983)."""
    spectrum = torch.fft.fft2(x, norm="ortho")
    return spectrum.real - spectrum.imag


def _factorise_blocks(operator: LinearOperator, matrices: torch.Tensor, block: int | None) -> Factors:
    """SVD of a block-diagonal A. matrices: B_p for every block, [P, M, n]; block: its side in pixels, None if the image
    is one block. Coefficients are [B, 1, P, n]; singular values below 10 max(M, n) eps s_max count as zero."""
    (H, W), (count, h, w), dtype = operator.image_shape, operator.measurement_shape, operator.dtype
    P, M, n = matrices.shape
    U, s, Vt = torch.linalg.svd(matrices.double(), full_matrices=n > M)
    U = U[..., : s.shape[-1]]
    s = torch.where(s > 10 * max(M, n) * torch.finfo(s.dtype).eps * s.amax(-1, keepdim=True), s, 0.0)
    missing = n - s.shape[-1]
    U, s, Vt = U.to(dtype), pad(s, (0, missing)).to(dtype), Vt.to(dtype)

    def to_blocks(x: torch.Tensor) -> torch.Tensor:
        """[B, 1, H, W] -> [B, P, n]."""
        if block is None:
            return x.reshape(-1, 1, n)
        return x.reshape(-1, H // block, block, W // block, block).transpose(2, 3).reshape(-1, P, n)

    def to_image(blocks: torch.Tensor) -> torch.Tensor:
        if block is not None:
            blocks = blocks.reshape(-1, H // block, W // block, block, block).transpose(2, 3)
        return blocks.reshape(-1, 1, H, W)

    def to_rows(y: torch.Tensor) -> torch.Tensor:
        """[B, count, h, w] -> [B, P, M]."""
        return y.flatten(1).unsqueeze(1) if block is None else y.flatten(2).mT

    def to_measurements(rows: torch.Tensor) -> torch.Tensor:
        return rows.reshape(-1, count, h, w) if block is None else rows.mT.reshape(-1, count, h, w)

    return Factors(
        s.reshape(1, 1, P, n),
        lambda c: to_measurements(_product(U, c[:, 0, :, : n - missing])),
        lambda y: pad(_product(U.mT, to_rows(y)), (0, missing)).unsqueeze(1),
        lambda c: to_image(_product(Vt.mT, c[:, 0])),
        lambda x: _product(Vt, to_blocks(x)).unsqueeze(1),
    )


def _product(matrices: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """matrices [P, m, n] times [B, P, n] -> [B, P, m], in their common dtype."""
    return (matrices.to(rows.dtype) @ rows.unsqueeze(-1)).squeeze(-1)


def _counted(name: str, function: Linear) -> Linear:
    def counted(x: torch.Tensor) -> torch.Tensor:
        with meters.calling(name, x):
            return function(x)

    return counted
