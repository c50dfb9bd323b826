"""`project`: the projections of a volume along N directions, as images of particles with known poses.

With x the volume, k a frequency of the image in cycles per box and R = A^T of a pose (`physics.projection`),

    y_i = F^-1 w_i X(R_i (k, 0)),    X(p) = sum_r x(r) exp(-2 pi i p . r / D)

F is the 2-D transform of D x D pixels, w_i the phase of the shift times a transfer function (1, or the CTF of a
particle), and X a non-uniform transform (`numerics.nufft`), exact to 1e-7, or 1e-12 in float64. Frequencies with
|k| >= D/2 are 0: the spectrum of a volume that turns is a ball. Without them no row or column of the images' spectra
stands for two frequencies, as the last one of an even D would, so that A is real and its adjoint exact:

    A^T y = Re sum_i sum_k m(k) / D^2 conj(w_i) F y_i exp(2 pi i R_i (k, 0) . r / D),    m = 1 at kx = 0, else 2

over the half of the disc with kx >= 0. A^T A is the convolution with

    K(d) = sum_i sum_k m(k) / D^2 |w_i|^2 cos(2 pi R_i (k, 0) . d / D)

whatever the number of images (docs/adr/0025).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch

from cryobench.core import Imaging, LinearOperator, OperatorRecipe
from cryobench.core.operator import chosen_rows
from cryobench.core.source import size_text
from cryobench.errors import DataError, IncompatibleError, ParameterError
from cryobench.io.poses import read_poses
from cryobench.io.star import origins_in_angstrom
from cryobench.numerics.fft import irfftn, rfftn
from cryobench.numerics.nufft import Points
from cryobench.numerics.toeplitz import Toeplitz
from cryobench.physics.ctf import COLUMNS, CtfParameters
from cryobench.physics.poses import ANGLES, Poses
from cryobench.physics.projection import shift_phase

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE = {torch.float32: 1e-7, torch.float64: 1e-12}
"""Relative error of the transforms."""
CG_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Relative residual at which conjugate gradients stop."""
CG_STEPS = {torch.float32: 200, torch.float64: 1000}
"""Steps at which they stop at the latest: what they would find later, A hardly measures."""
_LEAST_SIDE, _LEAST_POINTS = 4, 2**20
_POSES, _CTF = "poses", "ctf"


@dataclass(frozen=True)
class Project(OperatorRecipe):
    """Projections of a volume, [D, D, D] -> N images [D, D], by central slices of its spectrum.

        y_n = F^-1 w_n X(R_n (k, 0)),    X(p) = sum_r x(r) exp(-2 pi i <p, r> / D)

    R_n and w_n: the rotation of image n and the phase of its shift. The poses are those of a table of particles, in
    RELION's convention, or drawn uniformly over all orientations. An operator after it acts on each of the images:
    `ctf@project` with the CTF of each particle, `sumpool:4@ctf@project`. Frequencies from D/2 cycles per box on are not
    measured.
    """

    dims = (3,)
    floor = "cg"
    gives_views = True
    location_fields = ("poses",)

    count: Annotated[
        int | None, "number of random poses, drawn from the seed; with `poses`, of its first particles; none: all"
    ] = None
    poses: Annotated[
        str | None, "table of particles with poses (.star, .cs); none: random ones, or those that come with the volume"
    ] = None
    pixel_size: Annotated[float | None, "Å per voxel; none: the volume's own"] = None

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ParameterError(f"project: count must be at least 1 image, got {self.count}")
        if self.poses == "":
            raise ParameterError("project: the path is empty; expected a table, as project:poses=particles.star")
        if self.pixel_size is not None and not 0 < self.pixel_size < math.inf:
            raise ParameterError(f"project: pixel_size must be positive, in Å, got {self.pixel_size:g}")

    def check(self, imaging: Imaging) -> tuple[int, ...]:
        D = imaging.shape[0]
        if len(set(imaging.shape)) > 1:
            raise IncompatibleError(
                f"project needs a cube, got a volume of {size_text(imaging.shape)} voxels; give "
                "volume:...,size=VOXELS, which crops to a cube"
            )
        if D < _LEAST_SIDE:
            raise IncompatibleError(f"project needs volumes of at least {_LEAST_SIDE} voxels a side, got {D}")
        pixel_size = self._pixel_size(imaging)
        if self._random(imaging):
            return (int(self.count or 0), D, D)
        poses = self._table(imaging).poses
        if pixel_size is None and poses.shift.any():
            raise IncompatibleError(
                "project: the particles have shifts in Å, and the volume states no pixel size; give "
                "project:...,pixel_size=Å"
            )
        return (len(poses), D, D)

    def draw(self, imaging: Imaging, seed: int) -> dict[str, torch.Tensor]:
        """The poses, float64 [N, 5] as rot, tilt, psi and shift, and the CTF of the particles [N, 8], if known."""
        if self._random(imaging):
            return {_POSES: _packed(Poses.uniform(int(self.count or 0), seed))}
        particles = self._table(imaging)
        arrays = {_POSES: _packed(particles.poses)}
        if particles.ctf is not None:
            arrays[_CTF] = torch.stack([getattr(particles.ctf, name) for name in COLUMNS], dim=1)
        return arrays

    def build(
        self, imaging: Imaging, drawn: Mapping[str, torch.Tensor], *, dtype: torch.dtype, device: torch.device
    ) -> ProjectionOperator:
        poses, pixel_size = _unpacked(drawn), self._pixel_size(imaging)
        shift = poses.shift / pixel_size if pixel_size is not None else poses.shift
        return ProjectionOperator(imaging.shape[0], poses.matrices, shift, dtype=dtype, device=device)

    def views(self, imaging: Imaging, drawn: Mapping[str, torch.Tensor] | None = None) -> Imaging:
        """N images at the pixel size of the volume, with poses and, where they are known, CTFs in RELION's columns."""
        drawn = self.draw(imaging, 0) if drawn is None else drawn
        poses, ctf = _unpacked(drawn), drawn.get(_CTF)
        table = poses.to_table()
        if ctf is not None:
            table = table.join(CtfParameters(**dict(zip(COLUMNS, ctf.unbind(1), strict=True))).to_table())
        return Imaging(imaging.shape[1:], (self._pixel_size(imaging),) * len(poses), table)

    def files_digest(self) -> str:
        """Of the table of poses."""
        if self.poses is None:
            return ""
        path = Path(self.poses).expanduser()
        read_particles(path, self.count)  # says what is wrong with the file, if it cannot be read
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def _random(self, imaging: Imaging) -> bool:
        """Whether the poses are drawn."""
        if self.poses is not None:
            return False
        stated = imaging.table is not None and ANGLES[0] in imaging.table.columns
        if self.count is None and not stated:
            raise IncompatibleError(
                "project: the volumes come without poses; give project:count=200 for random ones, or "
                "project:poses=particles.star"
            )
        return self.count is not None and not stated

    def _table(self, imaging: Imaging) -> _Particles:
        if self.poses is not None:
            return read_particles(Path(self.poses).expanduser(), self.count)
        assert imaging.table is not None
        what = "the table of the data"
        return _particles(origins_in_angstrom(imaging.table, None, what), self.count, what)

    def _pixel_size(self, imaging: Imaging) -> float | None:
        """Å per voxel, the same for all volumes, or None if it is not known."""
        if self.pixel_size is not None:
            return self.pixel_size
        sizes = sorted({size for size in imaging.pixel_size if size is not None})
        if len(sizes) > 1:
            raise IncompatibleError(
                f"project: the volumes have pixel sizes from {sizes[0]:g} to {sizes[-1]:g} Å; expected one for all: "
                "run them separately, or give project:...,pixel_size=Å"
            )
        return sizes[0] if sizes and None not in imaging.pixel_size else None


@dataclass(frozen=True, eq=False)
class _Particles:
    """Poses of particles and, if they are known, their CTFs."""

    poses: Poses
    ctf: CtfParameters | None


def read_particles(path: Path, count: int | None) -> _Particles:
    """The first `count` particles of a table, by default all. Raises `DataError`."""
    try:
        state = path.stat()
    except OSError:
        return _particles(read_poses(path), count, str(path))  # raises the error
    return _read(path, count, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4)
def _read(path: Path, count: int | None, modified: int, size: int) -> _Particles:
    return _particles(read_poses(path), count, str(path))


def _particles(table: pd.DataFrame, count: int | None, what: str) -> _Particles:
    if count is not None and count > len(table):
        raise DataError(f"{what} has {len(table)} particles, fewer than count={count}; give a smaller one, or omit it")
    rows = table.iloc[:count].reset_index(drop=True)
    with_ctf = bool(set(COLUMNS.values()) & set(rows.columns))
    return _Particles(Poses.from_table(rows, what), CtfParameters.from_table(rows, what) if with_ctf else None)


def _packed(poses: Poses) -> torch.Tensor:
    return torch.cat([poses.angles, poses.shift], dim=1)


def _unpacked(drawn: Mapping[str, torch.Tensor]) -> Poses:
    """The poses that `build` receives. Raises `IncompatibleError` for an array of another shape."""
    array = drawn.get(_POSES)
    if array is None or array.ndim != 2 or array.shape[1] != 5:
        got = "none" if array is None else list(array.shape)
        raise IncompatibleError(f"the operator needs an array {_POSES!r} of shape [N, 5], got {got}")
    return Poses(array[:, :3].double(), array[:, 3:].double())


class ProjectionOperator(LinearOperator):
    """[B, 1, D, D, D] -> [B, N, D, D]: slices of the spectrum, the same N for all volumes.

    rotations: the matrices A of the poses, [N, 3, 3]. shift: of the particles, (x, y) in pixels [N, 2]. transfer: a
    factor for each frequency of the images on their half spectrum, real and even, [1 or N, 1, D, D // 2 + 1], or None.
    tolerance: relative error of the transforms, by default `TOLERANCE`.

    Images are computed in batches, so that the memory beyond that of y does not grow with N; `A_adjoint_A` does not
    depend on N at all. `transfer` and the images of y are in memory. The transforms run on the CPU for any device.
    """

    views = True
    convolution = True

    def __init__(
        self,
        side: int,
        rotations: torch.Tensor,
        shift: torch.Tensor,
        *,
        transfer: torch.Tensor | None = None,
        tolerance: float | None = None,
        dtype: torch.dtype,
        device: torch.device | str,
    ):
        count = len(rotations)
        self.image_shape = (side, side, side)
        self.measurement_shape = (count, side, side)
        self.nominal_compression = side / count
        self.dtype, self.device = dtype, torch.device(device)
        self.cg_tol, self.cg_max_steps = CG_TOLERANCE[dtype], CG_STEPS[dtype]
        self._tolerance = tolerance or TOLERANCE[dtype]
        self._rotations, self._shift, self._transfer_of = rotations.double().cpu(), shift.double().cpu(), transfer
        self._detector: LinearOperator | None = None
        k = torch.fft.fftfreq(side, 1 / side, dtype=torch.float64)
        ky, kx = k[:, None].expand(side, side // 2 + 1), k[: side // 2 + 1].abs().expand(side, -1)
        inside = kx**2 + ky**2 < (side / 2) ** 2 * (1 - 1e-6)
        self._inside = inside.flatten().nonzero()[:, 0]
        self._k = torch.stack([kx[inside], ky[inside]], dim=1)
        self._multiplicity = (2.0 - (kx[inside] == 0).double()) / side**2

    # ------------------------------------------------------------------------------------------- A and its adjoint

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return _Linear.apply(x, self._project, self._back_project)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return _Linear.apply(y, self._back_project, self._project)

    def A_adjoint_A(self, x: torch.Tensor) -> torch.Tensor:
        return self._normal(x)

    def _project(self, x: torch.Tensor) -> torch.Tensor:
        _, D, _ = self.measurement_shape
        y = x.new_empty((len(x), *self.measurement_shape))
        for part in self._parts:
            points, weights = self._points(part), self._weights(part)
            for volume, images in zip(x[:, 0], y, strict=True):
                values = torch.from_numpy(points.to(volume.double().cpu().numpy())).reshape(weights.shape) * weights
                spectra = values.new_zeros((len(values), D * (D // 2 + 1))).index_copy_(1, self._inside, values)
                spectra = spectra.unflatten(1, (D, -1)).to(x.dtype.to_complex())
                images[part] = irfftn(spectra, (D, D)).to(x.device)
        return y

    def _back_project(self, y: torch.Tensor) -> torch.Tensor:
        x = torch.zeros((len(y), *self.domain_shape), dtype=torch.float64)
        for part in self._parts:
            points, weights = self._points(part), self._weights(part).conj() * self._multiplicity
            for images, volume in zip(y, x[:, 0], strict=True):
                values = rfftn(images[part].cpu()).flatten(1)[:, self._inside] * weights
                volume += torch.from_numpy(points.back(values.resolve_conj().flatten().numpy())).real
        return x.to(y)

    @cached_property
    def _normal(self) -> Toeplitz:
        """A^T A."""
        return Toeplitz(self.kernel(), dtype=self.dtype, device=self.device)

    def kernel(self) -> torch.Tensor:
        N, D, _ = self.measurement_shape
        kernel = torch.zeros((2 * D,) * 3, dtype=torch.float64)
        for part in self._parts:
            values = self._multiplicity.expand(len(range(*part.indices(N))), -1)
            if self._transfer_of is not None:
                values = values * self._transfers(part).square()
            points = self._points(part, double=True)
            kernel += torch.from_numpy(points.back(values.flatten().numpy())).real
        return torch.fft.ifftshift(kernel)

    @property
    def _parts(self) -> list[slice]:
        """The images in batches."""
        N, D, _ = self.measurement_shape
        length = batch_of(D)
        return [slice(start, min(start + length, N)) for start in range(0, N, length)]

    def _points(self, part: slice, *, double: bool = False) -> Points:
        """The points of some of the slices; double: for a cube of twice the sides."""
        side = self.image_shape[0]
        p = self._k @ self._rotations[part, :2] * (2 * torch.pi / side)  # A^T (kx, ky, 0), as rows
        points, eps = p.flatten(0, 1).flip(1).numpy(), self._tolerance
        if not double:
            return Points(points, side, eps)
        return Points(points, 2 * side, eps, small=eps > 1e-9)

    def _weights(self, part: slice) -> torch.Tensor:
        """w of some of the images, complex128 [n, points]."""
        side = self.image_shape[0]
        # slices have their origin at pixel 0, images at pixel n // 2
        phases = shift_phase(side, self._shift[part] + side // 2, torch.complex128)
        weights = phases.flatten(1)[:, self._inside]
        return weights if self._transfer_of is None else weights * self._transfers(part)

    def _transfers(self, part: slice) -> torch.Tensor:
        """The transfer functions of some of the images, float64 [1 or n, points]."""
        assert self._transfer_of is not None
        chosen = self._transfer_of if len(self._transfer_of) == 1 else self._transfer_of[part]
        return chosen.flatten(1)[:, self._inside.to(chosen.device)].double().cpu()

    # ------------------------------------------------------------------------------------------- compositions, parts

    def filtered(self, outer: LinearOperator) -> ProjectionOperator:
        """`outer`, diagonal in Fourier, of one image or of N, applied to each image. Noise is that of `outer`."""
        assert outer.transfer is not None
        own = self._transfer_of
        result = self._with(self._rotations, self._shift, outer.transfer if own is None else outer.transfer * own)
        result._detector, result.noise_in_range = outer, outer.noise_in_range
        result.nominal_compression = self.nominal_compression * outer.nominal_compression
        return result

    def rows(self, part: slice | torch.Tensor) -> ProjectionOperator:
        """The operator of some of the images."""
        images = chosen_rows(self, part).cpu()
        N = self.measurement_shape[0]
        if torch.equal(images, torch.arange(N)):
            return self
        transfer, detector = self._transfer_of, self._detector
        if transfer is not None and len(transfer) > 1:
            transfer = transfer[images.to(transfer.device)]
        result = self._with(self._rotations[images], self._shift[images], transfer)
        result._detector = None if detector is None else detector.select(images.to(self.device))
        result.noise_in_range = self.noise_in_range
        result.nominal_compression = self.nominal_compression * N / len(images)
        return result

    def _with(self, rotations: torch.Tensor, shift: torch.Tensor, transfer: torch.Tensor | None) -> ProjectionOperator:
        return ProjectionOperator(self.image_shape[0], rotations, shift, transfer=transfer, tolerance=self._tolerance,
                                  dtype=self.dtype, device=self.device)  # fmt: skip

    # ------------------------------------------------------------------------------------------- rank and range

    @property
    def rank(self) -> int:
        """An upper bound: voxels, or frequencies of the images that are not multiplied by 0."""
        return min(math.prod(self.image_shape), self._frequencies)

    @cached_property
    def _frequencies(self) -> int:
        """Independent real numbers in the images: frequencies of the whole disc with a transfer other than 0."""
        N, D, _ = self.measurement_shape
        each = (self._multiplicity * D**2).round().long()
        if self._transfer_of is None:
            return N * int(each.sum())
        same = len(self._transfer_of) == 1
        kept = [int((each * (self._transfers(part) != 0)).sum()) for part in (self._parts[:1] if same else self._parts)]
        return N * kept[0] if same else sum(kept)

    @property
    def noise_rank(self) -> int:
        return self.rank if self._detector is None else self.measurement_shape[0] * self._detector.rank

    def on_range(self, y: torch.Tensor) -> torch.Tensor:
        """That of the operator after the projection, image by image: detector noise is added to its output."""
        if self._detector is None:
            return super().on_range(y)
        return torch.stack([self._detector.on_range(images[:, None])[:, 0] for images in y])


def batch_of(side: int) -> int:
    """Images whose slices are computed at once: the transform of the volume, once for each batch, then takes less time
    than the points, of which a slice has half a disc."""
    return max(1, int(max(_LEAST_POINTS, 2 * side**3) // (math.pi / 8 * side**2)))


class _Linear(torch.autograd.Function):
    """A linear map and its transpose, neither of which torch can differentiate."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, apply: Callable[..., torch.Tensor], transpose: Callable[..., torch.Tensor]):
        ctx.maps = apply, transpose
        return apply(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        apply, transpose = ctx.maps
        return _Linear.apply(gradients[0], transpose, apply), None, None
