"""Maps of particles with known poses, from their images or from measurements of them.

The folder appears whole or not at all:

OUT/map.mrc              of all particles, by the solver
OUT/half1.mrc, half2.mrc of each half, which share nothing but the solver
OUT/mask.mrc             within which the halves are compared
OUT/fsc.csv, fsc.png     their Fourier shell correlations
OUT/reconstruction.json  what was reconstructed, how, and the resolution

Maps are in the units of the images: an image is the sum of the voxels along a line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cryobench import environment
from cryobench.core import LinearOperator, Problem, Scale, Solver, Stack
from cryobench.core.kinds import check_kind
from cryobench.core.meters import CountingOperator
from cryobench.core.source import size_text
from cryobench.errors import DataError, IncompatibleError, ParameterError, Unsupported, reason_of
from cryobench.io.image_files import check_file
from cryobench.io.maps import write_map
from cryobench.io.selection import parse_images
from cryobench.io.star import origins_in_angstrom
from cryobench.io.writing import written_folder
from cryobench.limits import check_memory
from cryobench.maps.fsc import HalfMapFsc, half_map_fsc
from cryobench.maps.half_maps import HalfMaps, halves_of, projection_of
from cryobench.maps.inversion import EDGE, Maps, default_mask, wiener
from cryobench.maps.masks import soft_ball
from cryobench.maps.symmetry import rotations
from cryobench.measuring.fsc_files import resolution_lines, resolutions, write_curves
from cryobench.measuring.map_masks import ball_mask, check_one, read_mask
from cryobench.measuring.measurements import Measurements
from cryobench.measuring.reconstruct import operator_of
from cryobench.measuring.tasks import open_measurements
from cryobench.numerics.linalg import per_item
from cryobench.operators.noise import Gaussian
from cryobench.operators.views import by_view
from cryobench.physics.ctf import COLUMNS, CtfParameters
from cryobench.physics.poses import Poses
from cryobench.plan.dataset import data_options, open_stack
from cryobench.plan.grid import prior_notes, resolve_dtype
from cryobench.plan.presets import choose, presets_folder
from cryobench.registry import Registry, guarded, installed
from cryobench.runner.solving import check_supported, isolated, prepare, solve_parts
from cryobench.solvers.fourier_inversion import FourierInversion

if TYPE_CHECKING:
    import pandas as pd

TABLES = (".star", ".cs")
NAMES = ("map.mrc", "half1.mrc", "half2.mrc", "mask.mrc", "fsc.csv", "fsc.png", "reconstruction.json")
_AT_ONCE = 2**22
"""Pixels that are read at once."""
_BYTES_PER_PIXEL, _BYTES_PER_VOXEL = 40, 720
"""Peak memory for each pixel of the images, where they are in memory, and for each voxel of the map, as measured."""
_SAME = 1e-4
"""Relative difference of pixel sizes that counts as rounding."""


@dataclass(frozen=True)
class MapTask:
    """Reconstruct a map of particles.

    data: a table of particles (.star, .cs) or measurements of them. solver: spec or preset. symmetry: a point group
    (`maps.symmetry`). mask: a file with values in [0, 1]; radius: of a soft ball instead, Å; neither: the largest ball
    in the box. size: pixels to resample the images to. invert: their contrast. images: a selection, None for all.
    data_root: folder of the stacks. ctf: whether to use the CTFs of the table. halves: whether each half is
    reconstructed too.
    """

    data: Path
    solver: str
    symmetry: str = "C1"
    mask: Path | None = None
    radius: float | None = None
    size: int | None = None
    invert: bool = False
    images: str | None = None
    data_root: str | None = None
    ctf: bool = True
    halves: bool = True
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    presets: str | None = None

    def open(self) -> MapReconstruction:
        """Open the particles by their headers. Raises a `CryobenchError` for an invalid request before any work."""
        return MapReconstruction(self)


@dataclass(frozen=True, eq=False)
class _Views:
    """N particles as their table states them. side: of the map, voxels. pixel_size: Å. halves: 0 or 1 each, [N]."""

    label: str
    side: int
    pixel_size: float
    poses: Poses
    ctf: CtfParameters | None
    halves: torch.Tensor

    @staticmethod
    def of(table: pd.DataFrame | None, pixel_sizes: Sequence[float | None], shape: Sequence[int], what: str, *,
           ctf: bool) -> _Views:  # fmt: skip
        """The particles of a table with RELION's columns. Raises `DataError` for one without poses or pixel size."""
        if table is None:
            raise DataError(f"{what} has no table of poses; give the particles of a refinement")
        if len(set(shape)) != 1:
            raise DataError(f"{what} has images of {size_text(shape)} pixels; a map needs squares: give --size PIXELS")
        known = sorted(size for size in pixel_sizes if size is not None)
        if len(known) < len(pixel_sizes):
            raise DataError(f"{what} does not state the pixel size of all images; add rlnImagePixelSize to the table")
        if known[-1] - known[0] > _SAME * known[0]:
            raise DataError(
                f"{what} has pixel sizes from {known[0]:g} to {known[-1]:g} Å; expected one: reconstruct the optics "
                "groups apart, or resample them"
            )
        table = origins_in_angstrom(table, known[0], what)
        poses = Poses.from_table(table, what)
        with_ctf = ctf and bool(set(COLUMNS.values()) & set(table.columns))
        return _Views(what, shape[0], known[0], poses, CtfParameters.from_table(table, what) if with_ctf else None,
                      halves_of(table, len(table), what))  # fmt: skip

    def __len__(self) -> int:
        return len(self.poses)

    def part(self, part: slice) -> tuple[Poses, CtfParameters | None, torch.Tensor]:
        """Poses, CTFs and halves of some of them."""
        return self.poses.select(part), None if self.ctf is None else self.ctf.select(part), self.halves[part]


class MapReconstruction:
    """Reconstructs a map of particles."""

    def __init__(self, task: MapTask):
        check_one(task.mask, task.radius)
        self._task, self._registry = task, installed()
        self._solver: Solver = choose(task.solver, self._registry, presets_folder(task.presets)).solver
        check_kind("solvers", task.solver, self._solver)
        self._dtype, self._device = resolve_dtype(task.dtype), environment.resolve_device(task.device)
        self._group = rotations(task.symmetry)
        self._images: _Stack | _Measured
        if task.data.suffix.lower() in TABLES:
            self._images = _Stack(task)
        else:
            self._images = _Measured(task, self._registry)
        self._views = self._images.views
        if isinstance(self._solver, FourierInversion):
            reason = self._solver.unsupported_side(self._views.side)
            if reason is not None:
                raise IncompatibleError(f"the solver does not support these particles: {reason}")
        self._mask = self._made_mask()

    def notes(self) -> Sequence[str]:
        """What was assumed, for the user."""
        ctf = (
            [] if self._views.ctf is not None or not self._task.ctf else [f"{self._views.label} has no CTFs: none used"]
        )
        return [*prior_notes([self._solver]), *ctf]

    def run(self) -> FinishedMap:
        """Reconstruct."""
        if isinstance(self._solver, FourierInversion):
            found = self._inverted(self._solver)
            volumes = [found.full, found.half1, found.half2]
        else:
            volumes = self._solved(self._solver)
        maps = [volume.float().cpu() for volume in volumes]
        fsc = None
        if self._task.halves:
            fsc = half_map_fsc(
                maps[1], maps[2], mask=self._mask, pixel_size=self._views.pixel_size, seed=self._task.seed
            )
        return FinishedMap(
            maps[: 3 if self._task.halves else 1], self._mask, fsc, self._views.pixel_size, self._about()
        )

    def _about(self) -> dict[str, Any]:
        task, views = self._task, self._views
        counts = torch.bincount(views.halves, minlength=2).tolist()
        return {
            "data": str(task.data),
            "solver": str(self._registry.spec_of(self._solver, full=True)),
            "operator": self._images.operator_name,
            "symmetry": task.symmetry.upper(),
            "particles": len(views),
            "halves": counts,
            "side": views.side,
            "pixel_size_angstrom": views.pixel_size,
            "images": task.images,
            "invert": task.invert,
            "mask": str(task.mask) if task.mask else None,
            "radius_angstrom": task.radius,
            "seed": task.seed,
            "dtype": task.dtype,
            "cryobench": environment.version(),
        }

    def _made_mask(self) -> torch.Tensor:
        task, side, pixel_size = self._task, self._views.side, self._views.pixel_size
        if task.mask is not None:
            remedy = "resample the mask, or correct its header"
            return read_mask(task.mask, side, pixel_size, others="particles", remedy=remedy)
        if task.radius is not None:
            return ball_mask(task.radius, side, pixel_size)
        radius = self._solver.radius if isinstance(self._solver, FourierInversion) else None
        return default_mask(side).float() if radius is None else soft_ball(side, radius, EDGE)

    def _inverted(self, solver: FourierInversion) -> Maps:
        """By sums over the halves, which images stream into; measurements are in memory."""
        views = self._views
        if isinstance(self._images, _Stack):
            needed = _BYTES_PER_VOXEL * views.side**3
            check_memory(f"a map of {views.side} voxels a side", needed, "give a smaller --size", DataError)
            sums = HalfMaps(views.side, views.pixel_size, symmetry=self._group, dtype=self._dtype)
            for part, images in self._images.blocks():
                poses, ctf, halves = views.part(part)
                sums.add(images, poses, ctf, halves)
            b, kernels = sums.sums, sums.kernels
        else:
            problem = self._problem()
            reason = solver.unsupported(problem)
            if reason is not None:
                raise IncompatibleError(f"the solver does not support these measurements: {reason}")
            parts = [self._halved(problem, half) for half in (0, 1)]
            b = torch.stack([part.operator.A_adjoint(part.y)[0, 0].cpu() for part in parts])
            kernels = torch.stack([part.operator.kernel().cpu() for part in parts])
        return wiener(b, kernels, mask=self._mask, steps=solver.steps, dtype=self._dtype, device=self._device)

    def _solved(self, solver: Solver) -> list[torch.Tensor]:
        """By a solver for all particles and for each half, apart from each other."""
        problem, seed = self._problem(), self._task.seed
        try:
            with isolated(seed):
                guarded("the solver failed", lambda: check_supported(solver, problem))
        except Unsupported as reason:
            raise IncompatibleError(f"the solver does not support these measurements: {reason_of(reason)}") from reason
        with isolated(seed):
            guarded("the solver cannot be prepared", lambda: prepare(solver, self._device))
        problems = [problem, *((self._halved(problem, half) for half in (0, 1)) if self._task.halves else ())]
        answers = []
        for part in problems:
            found = guarded(
                "the solver failed", lambda part=part: list(solve_parts(solver, part, ["map"], seed=seed, batch=1))
            )
            answers.append(found[0].x[0, 0])
        return answers

    def _problem(self) -> Problem:
        """All particles as one problem, once for each rotation of the point group."""
        views, G = self._views, len(self._group)
        pixels = G * len(views) * views.side**2
        check_memory(f"a map of {len(views)} particles of {views.side} pixels" + (f", {G} times each" if G > 1 else ""),
                     _BYTES_PER_PIXEL * pixels + _BYTES_PER_VOXEL * views.side**3,
                     "give fewer --images, a smaller --size, or -s fourier_inversion", DataError)  # fmt: skip
        inner = projection_of(views.side, views.pixel_size, views.poses, views.ctf, symmetry=self._group,
                              dtype=self._dtype, device=self._device)  # fmt: skip
        operator, y, sigma = self._images.measured(inner, G)
        noise = Gaussian(sigma)
        scale = Scale(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
        y = y.flatten(0, 1)[None].to(self._device, self._dtype).repeat(1, G, *[1] * (y.ndim - 2))
        return Problem(CountingOperator(operator), y, noise, per_item(y.new_full((1,), sigma), y), scale)

    def _halved(self, problem: Problem, half: int) -> Problem:
        """The problem of one half."""
        copies = len(self._group)
        M = problem.y.shape[1] // (copies * len(self._views))
        chosen = (self._views.halves.repeat(copies) == half).nonzero()[:, 0]
        rows = (chosen[:, None] * M + torch.arange(M)).flatten().to(problem.y.device)
        return replace(problem, operator=problem.operator.rows(rows), y=problem.y[:, rows])


class _Stack:
    """The images of particles in stacks that a table names."""

    def __init__(self, task: MapTask):
        check_file(task.data, "table of particles (.star, .cs)")
        options = data_options(size=task.size, data_root=task.data_root, invert=task.invert)
        self._stack: Stack = open_stack(str(task.data), options, installed())
        self._indices = parse_images(task.images, len(self._stack), len(self._stack), label=self._stack.label)
        sizes = [self._stack.pixel_size(index) for index in self._indices]
        table = self._stack.rows(self._indices)
        self.views = _Views.of(table, sizes, self._stack.shape, self._stack.label, ctf=task.ctf)

    @property
    def operator_name(self) -> str:
        return "project" if self.views.ctf is None else "ctf@project"

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """The images, some at a time: their numbers, and the images [n, D, D]."""
        length = max(1, _AT_ONCE // self.views.side**2)
        for start in range(0, len(self._indices), length):
            part = slice(start, min(start + length, len(self._indices)))
            yield part, torch.from_numpy(self._stack.read_block(self._indices[part]))

    def measured(self, inner: LinearOperator, copies: int) -> tuple[LinearOperator, torch.Tensor, float]:
        """The operator, the images [N, 1, D, D], and the deviation of their noise: that outside the largest circle."""
        images = torch.cat([block for _, block in self.blocks()])[:, None]
        k = torch.arange(self.views.side) - self.views.side // 2
        corners = images[..., k[:, None] ** 2 + k**2 > (self.views.side / 2) ** 2]
        return inner, images, float((corners - corners.mean(-1, keepdim=True)).double().square().mean().sqrt())


class _Measured:
    """Measurements of particles, in a folder or a file, with the operator that measured each image."""

    def __init__(self, task: MapTask, registry: Registry):
        given = {"--size": task.size, "--invert": task.invert, "--images": task.images, "--data-root": task.data_root}
        used = [name for name, value in given.items() if value]
        if used:
            raise ParameterError(f"{used[0]} does not apply to measurements; measure again with {used[0]}")
        self._source = source = open_measurements(task.data)
        source.check_complete()
        self._registry, self._dtype, self._device = registry, resolve_dtype(task.dtype), task.device
        self.views = _Views.of(source.table(), source.pixel_sizes(), source.image_shape, str(task.data), ctf=task.ctf)

    @property
    def operator_name(self) -> str:
        return f"{self._whole.operator}@{'project' if self.views.ctf is None else 'ctf@project'}"

    @cached_property
    def _whole(self) -> Measurements:
        """All measurements."""
        parts = [self._source.read(chunk) for chunk in range(len(self._source.parts))]
        first = parts[0]
        scale = replace(first.scale, offset=torch.cat([part.scale.offset for part in parts]),
                        factor=torch.cat([part.scale.factor for part in parts]))  # fmt: skip
        return replace(
            first,
            y=torch.cat([part.y for part in parts]),
            sigma=torch.cat([part.sigma for part in parts]),
            scale=scale,
            pixel_size=tuple(size for part in parts for size in part.pixel_size),
            image_ids=tuple(name for part in parts for name in part.image_ids),
            table=self._source.table(),
        )

    def measured(self, inner: LinearOperator, copies: int) -> tuple[LinearOperator, torch.Tensor, float]:
        """The operator of the map; the measurements in the units of the images, [N, M, *s]; and the deviation of their
        noise: that between particles, which contains their signal, a tenth of it at a signal-to-noise ratio of 0.1."""
        whole, device = self._whole, environment.resolve_device(self._device)
        outer = operator_of(whole, self._registry, dtype=self._dtype, device=device)
        response = outer.mean_response.cpu()
        factor, offset = (per_item(values, whole.y).to(whole.y.dtype)
                          for values in (whole.scale.factor, whole.scale.offset))  # fmt: skip
        y = factor * whole.y + offset * response
        if outer.images is not None and copies > 1:
            outer = outer.select(torch.arange(len(y)).repeat(copies))
        deviation = y.double().std(dim=0, correction=0).square().mean().sqrt()
        return by_view(outer, inner), y, float(deviation)


@dataclass(frozen=True, eq=False)
class FinishedMap:
    """The maps [D, D, D] of all particles and, where they were asked for, of the halves, with their correlations."""

    maps: Sequence[torch.Tensor]
    mask: torch.Tensor
    fsc: HalfMapFsc | None
    pixel_size: float
    about: dict[str, Any]

    def write(self, out: Path) -> None:
        """Write the folder."""
        volumes = dict(zip(("map", "half1", "half2"), self.maps, strict=False)) | {"mask": self.mask}
        about = dict(self.about)
        with written_folder(out) as folder:
            for name, volume in volumes.items():
                file = f"{name}.mrc"
                write_map(folder / file, out / file, volume.numpy(), self.pixel_size)
            if self.fsc is not None:
                write_curves(folder, self.fsc)
                found = resolutions(self.fsc)
                about["resolution_angstrom"] = {name: round(value, 4) for name, value in found.items()}
            (folder / "reconstruction.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    def lines(self) -> list[tuple[str, str]]:
        """What was found, in words: names and values."""
        return [] if self.fsc is None else resolution_lines(self.fsc)
