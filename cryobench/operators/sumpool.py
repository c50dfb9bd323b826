"""`sumpool`: every mask times the image, summed over non-overlapping blocks.

    y[i] = pool_K(mask_i * x),   i = 1..M

Cut the image into its P = (H/K)(W/K) blocks of K^2 pixels: A is block-diagonal, for each block p a dense matrix
B_p [M, K^2] of mask values. `A` and `A^T` are one batched matrix product, and everything else follows from the
eigenvalues of the smaller of B_p B_p^T [M, M] and B_p^T B_p [K^2, K^2], found once. No autograd is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch

from cryobench.core import Imaging, OperatorRecipe, check_dims
from cryobench.core.operator import chosen_rows, drawn_array
from cryobench.errors import IncompatibleError, ParameterError, shortened
from cryobench.limits import check_memory
from cryobench.operators.factored import FactoredOperator, Response
from cryobench.operators.masks import PixelMask, RandomBinary
from cryobench.spec import Component


@dataclass(frozen=True)
class SumPool(OperatorRecipe):
    """Multi-mask block sum pooling: `count` masked copies of the image, each summed over `block` x `block` pixels."""

    block: Annotated[int, "side K of the pooled blocks, in pixels"]
    count: Annotated[int | None, "number M of masks; none: ceil(K^2 / 4), a compression of 4"] = None
    mask: Annotated[PixelMask, Component("masks"), "masks that multiply the image"] = RandomBinary()

    def __post_init__(self) -> None:
        if self.block < 1:
            raise ParameterError(f"sumpool: block must be at least 1 pixel, got {self.block}")
        if self.count is not None and self.count < 1:
            raise ParameterError(f"sumpool: count must be at least 1 mask, got {self.count}")
        if not isinstance(self.mask, PixelMask):
            raise IncompatibleError(f"sumpool requires a pixel mask (such as random_binary), got {self.mask}")

    @property
    def masks_drawn(self) -> int:
        """The number M of masks."""
        return math.ceil(self.block**2 / 4) if self.count is None else self.count

    def check(self, imaging: Imaging) -> tuple[int, ...]:
        check_dims("mask", self.mask, imaging.shape)
        H, W = imaging.shape
        if H % self.block or W % self.block:
            common = math.gcd(H, W)
            divisors = ", ".join(str(k) for k in range(1, common + 1) if common % k == 0)
            raise IncompatibleError(
                f"sumpool:{self.block} does not divide images of {H} x {W} pixels; block sizes that do: {divisors}"
            )
        M = self.masks_drawn
        check_memory(
            f"sumpool:{self.block} with {shortened(str(M), 30)} masks of {H} x {W} pixels",
            _BYTES_PER_ENTRY * H * W * (M + min(M, self.block**2)),
            "give a smaller count",
        )
        return (M, H // self.block, W // self.block)

    def draw(self, imaging: Imaging, seed: int) -> dict[str, torch.Tensor]:
        return {"masks": self.mask.draw(self.masks_drawn, imaging.shape, seed)}

    def build(
        self, imaging: Imaging, drawn: Mapping[str, torch.Tensor], *, dtype: torch.dtype, device: torch.device
    ) -> SumPoolOperator:
        masks = drawn_array(drawn, "masks", (self.masks_drawn, *imaging.shape))
        return SumPoolOperator(masks, self.block, dtype=dtype, device=device)


_BYTES_PER_ENTRY = 20
"""Peak memory in bytes for each of the H W (M + n) entries of the matrices and their eigenvectors, n = min(M, K^2), as
measured: 18 to 20."""


class SumPoolOperator(FactoredOperator):
    """Block-diagonal pooling operator. masks: [M, H, W]; measurements are [B, M, H/K, W/K]."""

    def __init__(self, masks: torch.Tensor, block: int, *, dtype: torch.dtype, device: torch.device | str):
        M, H, W = masks.shape
        self.block = block
        self.image_shape = (H, W)
        self.measurement_shape = (M, H // block, W // block)
        self.nominal_compression = block**2 / M
        self.dtype, self.device = dtype, torch.device(device)
        self.nonnegative = bool(masks.min() >= 0)
        self.matrices = self._to_blocks(masks.to(self.device, dtype))
        """B_p for every block, [P, M, K^2]."""
        self._casts: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return self._blocks_to_measurements(_product(self.matrices, self._image_to_blocks(x)))

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self._blocks_to_image(_product(self.matrices.mT, self._measurements_to_blocks(y)))

    def A_adjoint_A(self, x: torch.Tensor) -> torch.Tensor:
        if self._gram_is_cheaper:
            return self._blocks_to_image(_product(self._gram, self._image_to_blocks(x)))
        return self.A_adjoint(self.A(x))

    def rows(self, part: slice | torch.Tensor) -> SumPoolOperator:
        """The operator for some of the masks, with closed forms of its own."""
        masks = self._blocks_to_image(self.matrices[:, chosen_rows(self, part)].mT)[:, 0]
        return SumPoolOperator(masks, self.block, dtype=self.dtype, device=self.device)

    # ------------------------------------------------------------------------------------------- factorisation

    def prepare(self) -> None:
        super().prepare()
        _ = self._gram if self._gram_is_cheaper else None
        for dtype in {self.dtype, torch.float64}:
            _ = self._in(dtype)
        _ = self._cast("V_r", self._range[1], self.dtype)

    @property
    def eigenvalues(self) -> torch.Tensor:
        return self._factors[0]

    @property
    def eigenvalue_tolerance(self) -> torch.Tensor:
        """10 n eps s_max per block, n the Gram size and eps that of float64: singular values below about
        1.5e-6 (K = 32) to 1e-7 (K = 2) of the block's largest count as zero, because a Gram matrix does not resolve
        them."""
        s = self.eigenvalues
        return 10 * s.shape[-1] * torch.finfo(s.dtype).eps * s.amax(dim=-1, keepdim=True)

    def apply_filter(self, response: Response, residual: torch.Tensor) -> torch.Tensor:
        """B^T V f(s) V^T r on the measurement side, V f(s) V^T B^T r on the pixel side, in the residual's dtype."""
        dtype = residual.dtype
        B, V = self._in(dtype)
        r = self._measurements_to_blocks(residual)
        f = response(self.eigenvalues).to(dtype).unsqueeze(-1)
        if self._measurement_side:
            x = _product(B.mT, _product(V, f * _product(V.mT, r)))
        else:
            x = _product(V, f * _product(V.mT, _product(B.mT, r)))
        return self._blocks_to_image(x)

    def A_dagger(self, y: torch.Tensor) -> torch.Tensor:
        """In float64, with one step of iterative refinement, because a Gram matrix squares the condition number."""
        y64 = y.double()
        x = super().A_dagger(y64)
        B, _ = self._in(torch.float64)
        Ax = self._blocks_to_measurements(_product(B, self._image_to_blocks(x)))
        return (x + super().A_dagger(y64 - Ax)).to(y.dtype)

    def filter_range(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        s, V = self._range
        w = torch.where(s > 0, s / (s + shift.flatten()), 0.0).to(x.dtype)
        V = self._cast("V_r", V, x.dtype)
        return self._blocks_to_image(_product(V, w * _product(V.mT, self._image_to_blocks(x))))

    @property
    def _measurement_side(self) -> bool:
        return self.matrices.shape[1] <= self.matrices.shape[2]

    @property
    def _gram_is_cheaper(self) -> bool:
        """Per image and block, a product with B^T B costs K^4 and products with B and then B^T cost 2 M K^2."""
        return 2 * self.matrices.shape[1] > self.matrices.shape[2]

    @cached_property
    def _gram(self) -> torch.Tensor:
        return self.matrices.mT @ self.matrices

    @cached_property
    def _factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Eigenvalues [P, n] and eigenvectors [P, n, n] of the smaller Gram matrix of each block, in float64."""
        B = self.matrices.double()
        s, V = torch.linalg.eigh(B @ B.mT if self._measurement_side else B.mT @ B)
        return s.clamp_min(0), V

    @cached_property
    def _range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The eigenvalues [P, n, 1] of B^T B, 0 where null, and their eigenvectors V_r [P, K^2, n], in float64."""
        s, V = self._factors
        kept = s > self.eigenvalue_tolerance
        if self._measurement_side:
            # B^T V s^-1/2, orthonormal up to errors amplified by small s; one Newton-Schulz step squares these errors
            V = self.matrices.double().mT @ (V * torch.where(kept, s, torch.inf).rsqrt().unsqueeze(-2))
            V = V @ (1.5 * torch.eye(V.shape[-1], dtype=V.dtype, device=V.device) - 0.5 * V.mT @ V)
        return torch.where(kept, s, 0.0).unsqueeze(-1), V

    def _in(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """The matrices B [P, M, K^2] and the eigenvectors V [P, n, n] in a dtype."""
        return self._cast("B", self.matrices, dtype), self._cast("V", self._factors[1], dtype)

    def _cast(self, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A tensor in a dtype, converted once."""
        if (name, dtype) not in self._casts:
            self._casts[name, dtype] = tensor.to(dtype)
        return self._casts[name, dtype]

    # -------------------------------------------------------------------------- images <-> blocks, all [P, ., B]

    def _to_blocks(self, images: torch.Tensor) -> torch.Tensor:
        """[C, H, W] -> [P, C, K^2]."""
        C, (H, W), K = images.shape[0], self.image_shape, self.block
        blocks = images.reshape(C, H // K, K, W // K, K).permute(1, 3, 0, 2, 4)
        return blocks.reshape(-1, C, K * K).contiguous()

    def _image_to_blocks(self, x: torch.Tensor) -> torch.Tensor:
        return self._to_blocks(x[:, 0]).mT

    def _blocks_to_image(self, blocks: torch.Tensor) -> torch.Tensor:
        (_, h, w), K, B = self.measurement_shape, self.block, blocks.shape[-1]
        return blocks.reshape(h, w, K, K, B).permute(4, 0, 2, 1, 3).reshape(B, 1, *self.image_shape)

    def _measurements_to_blocks(self, y: torch.Tensor) -> torch.Tensor:
        return y.flatten(2).permute(2, 1, 0)

    def _blocks_to_measurements(self, blocks: torch.Tensor) -> torch.Tensor:
        return blocks.permute(2, 1, 0).reshape(-1, *self.measurement_shape)


_TINY_MATRIX = 16
_SMALL_PRODUCT = 400
_WIDTH = 12


def _product(matrices: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """matrices [P, m, n] @ columns [P, n, B]; the rounding of a column depends neither on B nor on its position.

    On the CPU torch uses one kernel for m n B < 400 and another above, which on some processors treats the last columns
    that do not fill its registers separately; all of these round differently. Columns are therefore padded with zeros
    to a multiple of 12 that selects the second kernel. For tiny matrices explicit multiply-adds are faster. Strided
    columns would change the rounding too, so columns are made contiguous.
    """
    B = columns.shape[-1]
    m, n = matrices.shape[1:]
    if matrices.device.type != "cpu":
        return matrices @ columns.contiguous()
    if m * n <= _TINY_MATRIX:
        columns = columns.contiguous()
        product = matrices[:, :, :1] * columns[:, :1]
        for j in range(1, n):
            product.addcmul_(matrices[:, :, j : j + 1], columns[:, j : j + 1])
        return product
    width = _WIDTH * math.ceil(_SMALL_PRODUCT / (m * n * _WIDTH))
    filled = torch.nn.functional.pad(columns, (0, -B % width)).contiguous()
    return (matrices @ filled)[..., :B].contiguous()
