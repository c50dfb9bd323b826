"""`sumpool`: every mask times the image, summed over non-overlapping blocks.

    y[i] = pool_K(mask_i * x),   i = 1..M

Cut the image into its P = (H/K)(W/K) blocks of K^2 pixels: A is block-diagonal, for each block p a dense matrix
B_p [M, K^2] of mask values. `A` and `A^T` are one batched matrix product, and everything else follows from the
eigenvalues of the smaller of B_p B_p^T [M, M] and B_p^T B_p [K^2, K^2], found once. No autograd is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch

from cryobench.core import Crop, Imaging, OperatorRecipe, Shape, Window, check_dims, checked_window
from cryobench.core.operator import chosen_rows, drawn_array
from cryobench.errors import IncompatibleError, ParameterError, shortened
from cryobench.limits import check_memory
from cryobench.numerics.memory import return_freed
from cryobench.operators.factored import FactoredOperator, Response
from cryobench.operators.masks import PixelMask, RandomBinary
from cryobench.spec import Component

_WIDTH = 12
"""Columns to a multiple of which products are padded."""
_STRIP_BYTES = 2**28
"""Images whose matrices in float64 have up to this size are one strip, whose factors are all kept; the strips of larger
ones have an eighth of it."""
_VECTOR_BYTES = 2**30
"""Largest size of all eigenvectors; larger ones are computed again at each use."""


@dataclass(frozen=True)
class SumPool(OperatorRecipe):
    """Multi-mask block sum pooling: `count` masked copies of the image, each summed over `block` x `block` pixels.

        y_i(q) = sum_p m_i(p) x(p)    over the K^2 pixels p of block q

    m_i: the masks. A is a dense matrix for each block, and everything is closed form.
    """

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
        M, K2 = self.masks_drawn, self.block**2
        check_memory(
            f"sumpool:{self.block} with {shortened(str(M), 30)} masks of {H} x {W} pixels",
            # the masks in float32 as they are drawn, their blocks as bytes, the eigenvalues in float64
            5 * M * H * W + 8 * min(M, K2) * (H * W // K2),
            "give a smaller count or block",
        )
        return (M, H // self.block, W // self.block)

    def draw(self, imaging: Imaging, seed: int) -> dict[str, torch.Tensor]:
        return {"masks": self.mask.draw(self.masks_drawn, imaging.shape, seed)}

    def build(
        self, imaging: Imaging, drawn: Mapping[str, torch.Tensor], *, dtype: torch.dtype, device: torch.device
    ) -> SumPoolOperator:
        masks = drawn_array(drawn, "masks", (self.masks_drawn, *imaging.shape))
        return SumPoolOperator(masks, self.block, dtype=dtype, device=device)


class SumPoolOperator(FactoredOperator):
    """Block-diagonal pooling operator. masks: [M, H, W]; measurements are [B, M, H/K, W/K].

    Large images are processed in strips, whole rows of blocks with matrices of an eighth of `_STRIP_BYTES` in float64.
    They keep the matrices (as bytes where the masks are whole numbers up to 255), the eigenvalues, and the eigenvectors
    up to `_VECTOR_BYTES`; everything else is computed strip by strip.
    """

    def __init__(self, masks: torch.Tensor, block: int, *, dtype: torch.dtype, device: torch.device | str):
        M, H, W = masks.shape
        return_freed(4 * H * W)
        self._set_shape((H, W), M, block, dtype, torch.device(device))
        self.nonnegative = bool(masks.min() >= 0)
        self.matrices = self._matrices_of(masks)
        """B_p for every block, [P, M, K^2], in the dtype; bytes where a large image allows it."""

    def _set_shape(self, shape: Shape, M: int, block: int, dtype: torch.dtype, device: torch.device) -> None:
        self.block = block
        self.image_shape = shape
        self.measurement_shape = (M, shape[0] // block, shape[1] // block)
        self.nominal_compression = block**2 / M
        self.dtype, self.device = dtype, device
        self._casts: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def _matrices_of(self, masks: torch.Tensor) -> torch.Tensor:
        bytewise = len(self._strips) > 1 and all(torch.equal(mask, mask.byte().to(mask.dtype)) for mask in masks)
        M, h, w = self.measurement_shape
        dtype = torch.uint8 if bytewise else self.dtype
        matrices = torch.empty((h * w, M, self.block**2), dtype=dtype, device=self.device)
        for i in range(M):  # one at a time: a copy of the masks of a large image may not fit
            matrices[:, i] = self._to_blocks(masks[i : i + 1].to(self.device, dtype))[:, 0]
        return matrices

    def A(self, x: torch.Tensor) -> torch.Tensor:
        def measured(strip: slice, x: torch.Tensor) -> torch.Tensor:
            return self._blocks_to_measurements(_product(self._B(strip, x.dtype), self._image_to_blocks(x)))

        return self._by_strips(measured, x, self.measurement_shape)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        def projected(strip: slice, y: torch.Tensor) -> torch.Tensor:
            return self._blocks_to_image(_product(self._B(strip, y.dtype).mT, self._measurements_to_blocks(y)))

        return self._by_strips(projected, y, self.domain_shape)

    def A_adjoint_A(self, x: torch.Tensor) -> torch.Tensor:
        if self._gram_is_cheaper and len(self._strips) == 1:
            return self._blocks_to_image(_product(self._gram, self._image_to_blocks(x)))
        return self.A_adjoint(self.A(x))

    def rows(self, part: slice | torch.Tensor) -> SumPoolOperator:
        """The operator for some of the masks, with closed forms of its own."""
        masks = self._blocks_to_image(self.matrices[:, chosen_rows(self, part)].mT)[:, 0]
        return SumPoolOperator(masks, self.block, dtype=self.dtype, device=self.device)

    def crop(self, window: Window) -> Crop:
        rows, columns = (
            slice(part.start // self.block, part.stop // self.block) for part in checked_window(self, window)
        )
        M, h, w = self.measurement_shape
        part = object.__new__(SumPoolOperator)
        shape = tuple(side.stop - side.start for side in window)
        part._set_shape(shape, M, self.block, self.dtype, self.device)
        part.nonnegative = self.nonnegative

        def inside(blocks: torch.Tensor) -> torch.Tensor:
            return blocks.unflatten(0, (h, w))[rows, columns].flatten(0, 1)

        part.matrices = inside(self.matrices)
        if len(part._strips) == 1:
            part.matrices = part.matrices.to(self.dtype)
        if "_factors" in vars(self):
            s, V = self._factors
            if V is not None:
                part._factors = inside(s), inside(V)
        return Crop(part, (slice(None), rows, columns))

    # ------------------------------------------------------------------------------------------- factorisation

    def prepare(self) -> None:
        super().prepare()
        if len(self._strips) > 1:
            return
        whole = self._strips[0]
        _ = self._gram if self._gram_is_cheaper else None
        for dtype in {self.dtype, torch.float64}:
            _ = self._B(whole, dtype), self._V(whole, dtype)
        _ = self._V_r(whole, self.dtype)

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
        f = response(self.eigenvalues)
        return self._by_strips(lambda strip, r: self._filtered(strip, f, r), residual, self.domain_shape)

    def _filtered(self, strip: slice, f: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The part of `apply_filter` in a strip. f: the response, [P, n]."""
        dtype = residual.dtype
        B, V = self._B(strip, dtype), self._V(strip, dtype)
        r = self._measurements_to_blocks(residual)
        f = f[self._blocks(strip)].to(dtype).unsqueeze(-1)
        if self._measurement_side:
            x = _product(B.mT, _product(V, f * _product(V.mT, r)))
        else:
            x = _product(V, f * _product(V.mT, _product(B.mT, r)))
        return self._blocks_to_image(x)

    def A_dagger(self, y: torch.Tensor) -> torch.Tensor:
        """In float64, with one step of iterative refinement, because a Gram matrix squares the condition number."""
        f = self._inverse(0.0)(self.eigenvalues)

        def refined(strip: slice, y: torch.Tensor) -> torch.Tensor:
            y64 = y.double()
            x = self._filtered(strip, f, y64)
            Ax = self._blocks_to_measurements(_product(self._B(strip, torch.float64), self._image_to_blocks(x)))
            return (x + self._filtered(strip, f, y64 - Ax)).to(y.dtype)

        return self._by_strips(refined, y, self.domain_shape)

    def filter_range(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        def filtered(strip: slice, x: torch.Tensor) -> torch.Tensor:
            s = self._range_eigenvalues[self._blocks(strip)].unsqueeze(-1)
            w = torch.where(s > 0, s / (s + shift.flatten()), 0.0).to(x.dtype)
            V = self._V_r(strip, x.dtype)
            return self._blocks_to_image(_product(V, w * _product(V.mT, self._image_to_blocks(x))))

        return self._by_strips(filtered, x, self.domain_shape)

    @cached_property
    def _range_eigenvalues(self) -> torch.Tensor:
        """The eigenvalues, [P, n], 0 where they count as zero."""
        return torch.where(self.eigenvalues > self.eigenvalue_tolerance, self.eigenvalues, 0.0)

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
    def _factors(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Eigenvalues [P, n] and eigenvectors [P, n, n] of the smaller Gram matrix of each block, in float64; the
        vectors are None where they take more than `_VECTOR_BYTES`."""
        P, n = self.matrices.shape[0], min(self.matrices.shape[1:])
        s = torch.empty((P, n), dtype=torch.float64, device=self.device)
        V = s.new_empty((P, n, n)) if P * n * n * 8 <= _VECTOR_BYTES else None
        for strip in self._strips:
            blocks = self._blocks(strip)
            s[blocks], vectors = self._eigh(strip)
            if V is not None:
                V[blocks] = vectors
        return s.clamp_min_(0), V

    def _eigh(self, strip: slice) -> tuple[torch.Tensor, torch.Tensor]:
        B = self._B(strip, torch.float64)
        return torch.linalg.eigh(B @ B.mT if self._measurement_side else B.mT @ B)

    # ----------------------------------------------- matrices of the blocks of a strip, converted once if it is whole

    def _B(self, strip: slice, dtype: torch.dtype) -> torch.Tensor:
        """B_p, [p, M, K^2]."""
        return self._kept("B", dtype, lambda: self.matrices[self._blocks(strip)])

    def _V(self, strip: slice, dtype: torch.dtype) -> torch.Tensor:
        """The eigenvectors of the smaller Gram matrix, [p, n, n]."""
        V = self._factors[1]
        return self._kept("V", dtype, lambda: self._eigh(strip)[1] if V is None else V[self._blocks(strip)])

    def _V_r(self, strip: slice, dtype: torch.dtype) -> torch.Tensor:
        """The eigenvectors of B^T B, [p, K^2, n], 0 where null, computed in float64."""

        def vectors() -> torch.Tensor:
            V = self._V(strip, torch.float64)
            if not self._measurement_side:
                return V
            # B^T V s^-1/2, orthonormal up to errors amplified by small s; one Newton-Schulz step squares these errors
            s, tolerance = (values[self._blocks(strip)] for values in (self.eigenvalues, self.eigenvalue_tolerance))
            V = self._B(strip, torch.float64).mT @ (V * torch.where(s > tolerance, s, torch.inf).rsqrt().unsqueeze(-2))
            return V @ (1.5 * torch.eye(V.shape[-1], dtype=V.dtype, device=V.device) - 0.5 * V.mT @ V)

        return self._kept("V_r", dtype, vectors)

    def _kept(self, name: str, dtype: torch.dtype, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """A tensor in a dtype, kept if one strip is the whole image."""
        if len(self._strips) > 1:
            return make().to(dtype)
        if (name, dtype) not in self._casts:
            self._casts[name, dtype] = make().to(dtype)
        return self._casts[name, dtype]

    # -------------------------------------------------------------------------------------------------- strips

    @cached_property
    def _strips(self) -> list[slice]:
        """Rows of blocks that are processed at once."""
        M, h, w = self.measurement_shape
        row_bytes = 8 * max(M, _WIDTH) * self.block**2 * w
        count = _STRIP_BYTES // row_bytes
        if count < h:  # a closed form holds several matrices of a strip
            count = max(1, count // 8)
        return [slice(start, min(start + count, h)) for start in range(0, h, count)]

    def _blocks(self, strip: slice) -> slice:
        """The blocks of a strip, a part of the first axis of `matrices`."""
        w = self.measurement_shape[2]
        return slice(strip.start * w, strip.stop * w)

    def _by_strips(
        self, apply: Callable[[slice, torch.Tensor], torch.Tensor], given: torch.Tensor, shape: tuple[int, ...]
    ) -> torch.Tensor:
        """apply(strip, its part of `given`) for every strip, [B, *shape]; images or measurements, cut along axis 2."""
        if len(self._strips) == 1:
            return apply(self._strips[0], given)
        result = given.new_empty((len(given), *shape))
        for strip in self._strips:
            self._part(result, strip)[:] = apply(strip, self._part(given, strip))
        return result

    def _part(self, values: torch.Tensor, strip: slice) -> torch.Tensor:
        """The rows of an image or of measurements that belong to a strip, a view."""
        rows = values.shape[2] // self.measurement_shape[1]
        return values[:, :, strip.start * rows : strip.stop * rows]

    # -------------------------------------------------------------------------- images <-> blocks, all [P, ., B]

    def _to_blocks(self, images: torch.Tensor) -> torch.Tensor:
        """[C, H, W] -> [P, C, K^2]."""
        (C, H, W), K = images.shape, self.block
        blocks = images.reshape(C, H // K, K, W // K, K).permute(1, 3, 0, 2, 4)
        return blocks.reshape(-1, C, K * K).contiguous()

    def _image_to_blocks(self, x: torch.Tensor) -> torch.Tensor:
        return self._to_blocks(x[:, 0]).mT

    def _blocks_to_image(self, blocks: torch.Tensor) -> torch.Tensor:
        w, K, B = self.measurement_shape[2], self.block, blocks.shape[-1]
        return blocks.reshape(-1, w, K, K, B).permute(4, 0, 2, 1, 3).reshape(B, 1, -1, w * K)

    def _measurements_to_blocks(self, y: torch.Tensor) -> torch.Tensor:
        return y.flatten(2).permute(2, 1, 0)

    def _blocks_to_measurements(self, blocks: torch.Tensor) -> torch.Tensor:
        M, _, w = self.measurement_shape
        return blocks.permute(2, 1, 0).reshape(blocks.shape[-1], M, -1, w)


_TINY_MATRIX = 16
_SMALL_PRODUCT = 400


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
