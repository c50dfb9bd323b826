"""Fills the gaps between the sections of an anisotropic volume, gap by gap, into a volume file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryobench import environment
from cryobench.core import Filled, Gap, GapSolver, Intensities, Window
from cryobench.core.kinds import check_kind
from cryobench.core.source import size_text
from cryobench.errors import CryobenchError, DataError, IncompatibleError, ParameterError, PluginError
from cryobench.files import acquire_lock, discard, remove_leftovers, remove_unfinished
from cryobench.io.formats import FORMATS
from cryobench.io.image_files import ISOTROPIC, open_mrc
from cryobench.io.stack_parts import DEVIATION, IMAGES, StackParts
from cryobench.io.writing import written, written_folder
from cryobench.measuring.tasks import Report, Work, deviation_path
from cryobench.plan.grid import implementation, prior_notes, resolve_dtype, with_nested
from cryobench.plan.presets import choose, presets_folder
from cryobench.registry import Registry, guarded, installed
from cryobench.rng import Rng
from cryobench.runner.solving import isolated, prepare
from cryobench.sources.volume import Volume, VolumeStack

MRC = ".mrc"
SUFFIXES = (MRC, ".tif", ".tiff", ".zarr")
"""Of the files that are written; .ome.tif too."""
MEASURED = 2**24
"""Voxels from which the intensities of a volume are measured; larger volumes in sections at equal distances."""
_AT_ONCE = 2**22
"""Voxels that are copied at once into the finished file."""


@dataclass(frozen=True)
class IsotropicTask:
    """Fill the gaps of a volume with `factor` - 1 sections each, and write it to `out`.

    volume: a file of the source `volume`, or its spec. solver: spec or preset of a `GapSolver`.
    """

    volume: str
    factor: int
    solver: str
    out: str
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    presets: str | None = None

    def open(self) -> Filling:
        """Open the volume by its header. Raises a `CryobenchError` for an invalid request before a gap is filled."""
        return Filling(self)


class Filling(Work):
    """Fills gaps, one a chunk. A chunk has the section before its gap, and the last one the last section too."""

    what = "sections"

    def __init__(self, task: IsotropicTask):
        if task.factor < 2:
            raise ParameterError(f"--factor must be at least 2, got {task.factor}: between sections come factor - 1")
        self._out = Path(task.out)
        if self._out.suffix.lower() not in SUFFIXES:
            raise ParameterError(f"--out {task.out}: give a name that ends in {', '.join(SUFFIXES)} or .ome.tif")
        registry = installed()
        times = [k / task.factor for k in range(1, task.factor)]
        self.solver = _gap_solver(task, times, registry)
        self._times, self._factor, self._seed = times, task.factor, task.seed
        self._dtype, self._device = resolve_dtype(task.dtype), environment.resolve_device(task.device)
        self._stack = _volume(task.volume, registry)
        depth, height, width = self._stack.shape
        self._sides = slice(0, height), slice(0, width)
        self.shape = self._factor * (depth - 1) + 1, height, width
        edges = [self._factor * k for k in range(depth - 1)]
        self.parts = [*(slice(start, start + self._factor) for start in edges[:-1]), slice(edges[-1], self.shape[0])]
        self._measured = measured_sections(depth, height * width)
        self._intensities = Intensities.of(torch.from_numpy(self._read(z, z + 1)[0]) for z in self._measured)
        if self._intensities.deviation == 0:
            raise DataError(f"{self._stack.label} is constant in the sections that were read; give another volume")
        self.folder = FORMATS[self._out.suffix.lower()].folder
        self.voxel, self._assumed = _voxel(self._stack, self._factor)
        with isolated(task.seed):
            guarded("the solver cannot be prepared", lambda: prepare(self.solver, self._device))
        made_by = implementation(registry, list(with_nested(self.solver)))
        self._stack_parts = StackParts(self._out, (height, width))
        self._job: dict[str, Any] = {
            "volume": _fingerprint(self._stack),
            "intensities": asdict(self._intensities),
            "factor": task.factor,
            "solver": str(registry.spec_of(self.solver, full=True)),
            "seed": task.seed,
            "device": self._device.type,
            "dtype": task.dtype,
            **json.loads(json.dumps(made_by._asdict())),
        }

    def notes(self) -> Sequence[str]:
        """What was assumed of priors, voxels and intensities, for the user."""
        depth, used = self._stack.shape[0], len(self._measured)
        sampled = [f"intensities are those of {used} of {depth} sections, at equal distances"] if used < depth else []
        return [*prior_notes([self.solver]), self._assumed, *sampled]

    def start(self, *, force: bool = False) -> None:
        """Begin the volume, or continue it; see `StackParts.start`."""
        self._stack_parts.start(self._job, force=force)

    def todo(self) -> list[int]:
        if self._out.exists() and not self._stack_parts.folder.exists():  # another process was faster
            return []
        return sorted(set(range(len(self.parts))) - self._stack_parts.done())

    def run(self, chunk: int, report: Report) -> None:
        pair = self._read(chunk, chunk + 2)
        gap = Gap(torch.from_numpy(pair).to(self._device, self._dtype), self._times, chunk, self._intensities)
        with isolated(self._seed):
            rng = Rng(self._seed, ["0"])  # the only volume
            filled = guarded("the solver failed", lambda: self.solver.fill(
                gap, rng=rng, progress=lambda done, total: report(done / max(total, 1))))  # fmt: skip
            sections, deviation = _checked(filled, gap)
        last = pair[1:] if chunk == len(self.parts) - 1 else pair[:0]
        blocks = np.concatenate([pair[:1], sections, last]), None
        if deviation is not None:
            blocks = blocks[0], np.concatenate([0 * pair[:1], deviation, 0 * last])
        self._stack_parts.write(chunk, self.parts[chunk].start, [blocks])

    def finish(self) -> list[Path]:
        """Put the volume and, where there is one, that of the deviations in their places. Returns the files.

        They are already there if another process was faster.
        """
        deviation = deviation_path(self._out)
        lock = self._out.with_name(f".{self._out.name}.lock")
        with acquire_lock(lock):
            if self._stack_parts.folder.exists():
                self._put_in_place(deviation)
            remove_unfinished(self._out.parent, [path.name for path in (self._out, deviation)])
            if self.folder:
                remove_leftovers(self._out.parent)
            lock.unlink(missing_ok=True)
        return [path for path in (self._out, deviation) if path.exists()]

    def _put_in_place(self, deviation: Path) -> None:
        finished = self._stack_parts.complete(
            len(self.parts), lambda totals: totals.volume_header(self.voxel, self._out)
        )
        self._stack_parts.begin_giving()
        found = {self._out: finished[IMAGES]}
        if DEVIATION in finished:
            found[deviation] = finished[DEVIATION]
        elif self.folder:
            discard(deviation)
        else:
            deviation.unlink(missing_ok=True)
        if self.folder:
            for path, file in reversed(found.items()):  # the volume last
                with written_folder(path) as folder:
                    self._copy(file, folder, path)
        else:
            with written(*found) as temporary:
                for place, (path, file) in zip(temporary, found.items(), strict=True):
                    if path.suffix.lower() == MRC:
                        self._stack_parts.give(file, place)
                    else:
                        self._copy(file, place, path)
        self._stack_parts.remove()

    def _copy(self, file: Path, place: Path, path: Path) -> None:
        """Write a finished MRC volume to `place`, which will be moved to `path`, in the format of that."""
        volume = open_mrc(file, as_stack=True, axes=3)
        if self.voxel is not None:
            volume = replace(volume, pixel_size=self.voxel[2], voxel=self.voxel)  # the header is in single precision
        stack = VolumeStack(path.name, [volume])
        write = FORMATS[path.suffix.lower()].write
        assert write is not None
        write([place], path, _sections(stack), stack, [0])

    def _read(self, start: int, stop: int) -> np.ndarray:
        """Some sections, float32 [n, H, W]."""
        window: Window = slice(start, stop), *self._sides
        return guarded(f"{self._stack.label} cannot be read", lambda: self._stack.read_window(0, window))


def unfinished(out: Path) -> bool:
    """Whether a process was killed while it put a volume in its place: the same command finishes it."""
    return StackParts(out, ()).giving


def measured_sections(depth: int, pixels: int) -> list[int]:
    """The sections of a volume whose intensities are measured: all, or as many at equal distances as have `MEASURED`
    voxels, the first and the last among them."""
    count = min(depth, max(2, MEASURED // pixels))
    return [i * (depth - 1) // (count - 1) for i in range(count)]


def _gap_solver(task: IsotropicTask, times: Sequence[float], registry: Registry) -> GapSolver:
    """The solver. Raises `IncompatibleError` for one that does not fill such gaps."""
    solver = choose(task.solver, registry, presets_folder(task.presets)).solver
    check_kind("solvers", task.solver, solver)
    reason = "it takes all sections of a volume"
    if isinstance(solver, GapSolver):
        reason = solver.unfillable(times)
        if reason is None:
            return solver
    known = ", ".join(_gap_solvers(registry))
    raise IncompatibleError(f"the solver {task.solver} cannot fill gaps one by one: {reason}; give one of {known}")


def _gap_solvers(registry: Registry) -> Iterator[str]:
    """The names of the installed solvers that fill gaps."""
    for name in registry.names("solvers"):
        try:
            found = registry.get("solvers", name)
        except CryobenchError:  # a plugin that cannot be imported
            continue
        if issubclass(found, GapSolver):
            yield name


def _volume(text: str, registry: Registry) -> VolumeStack:
    """The volume that a path or a spec of the source `volume` names. Raises `DataError` unless it is one."""
    source = registry.make("sources", text) if text.startswith("volume:") else Volume((text,))
    assert isinstance(source, Volume)
    stack = source.open_anisotropic()
    if len(stack) != 1:
        raise DataError(f"{stack.label} has {len(stack)} volumes; give a file of one, or volume:FOLDER,sections=true "
                        "for a folder of sections")  # fmt: skip
    if stack.shape[0] < 2:
        raise DataError(f"{stack.label} has one section; expected two or more, with a gap between them")
    return stack


def _voxel(stack: VolumeStack, factor: int) -> tuple[tuple[float, float, float] | None, str]:
    """Å per voxel of the result along z, y and x, None if unknown; and what was assumed."""
    z, y, x = stack.voxel(0)
    if x is None:
        return None, f"the pixel size of {stack.label} is unknown; none is written"
    y = x if y is None else y
    if z is None or abs(z - x) <= ISOTROPIC * x:
        stated = "does not state their distance" if z is None else f"states cubes of {x:.4g} Å"
        return (x, y, x), (
            f"sections are taken to be {factor * x:.4g} Å apart, {factor} times the pixel size: {stack.label} {stated}"
        )
    shape = f"voxels of the result have {z / factor:.4g} x {y:.4g} x {x:.4g} Å (z, y, x)"
    return (z / factor, y, x), f"{shape}: by {stack.label}, sections are {z:.4g} Å apart"


def _fingerprint(stack: VolumeStack) -> str:
    """Identifies the voxels by the shape and, where they are known, the state of the files."""
    states = [(path.stat().st_size, path.stat().st_mtime_ns) for path in stack.files([0]) or ()]
    return hashlib.sha256(repr((tuple(stack.shape), states)).encode()).hexdigest()


def _checked(filled: Any, gap: Gap) -> tuple[np.ndarray, np.ndarray | None]:
    """The filled sections and their deviation, float32 on the CPU. Raises `PluginError` if they break the contract."""
    if not isinstance(filled, Filled):
        raise PluginError(f"the solver returned a {type(filled).__name__}, not a cryobench.core.Filled")
    shape = (len(gap.times), *gap.pair.shape[1:])
    for name, found in (("sections", filled.sections), ("deviation", filled.deviation)):
        if found is None and name == "deviation":
            continue
        if not isinstance(found, torch.Tensor) or tuple(found.shape) != shape:
            got = size_text(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise PluginError(f"the solver returned {name} of {got}, expected {size_text(shape)}")
        if not found.isfinite().all():
            raise PluginError(f"the solver returned {name} with values that are not finite (NaN or infinity)")
        if name == "deviation" and (found < 0).any():
            raise PluginError("the solver returned a deviation with negative values")
    sections = filled.sections.detach().float().cpu().numpy()
    return sections, None if filled.deviation is None else filled.deviation.detach().float().cpu().numpy()


def _sections(stack: VolumeStack) -> Iterator[np.ndarray]:
    """The sections of a volume in order, a few at a time."""
    depth, height, width = stack.shape
    step = max(1, _AT_ONCE // (height * width))
    for start in range(0, depth, step):
        yield stack.read_window(0, (slice(start, min(start + step, depth)), slice(0, height), slice(0, width)))
