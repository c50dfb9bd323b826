"""Measuring and reconstructing whole stacks chunk by chunk.

A task (`MeasureTask`, `ReconstructTask`) is plain values, which any worker can be sent. Each process that works on it
opens it once. Chunks are independent: their results do not depend on who computes them in which order.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cryobench.core.kinds import check_kind
from cryobench.errors import ResultsError
from cryobench.files import acquire_lock, remove_unfinished
from cryobench.io.scaling import scale_of
from cryobench.io.selection import parse_images
from cryobench.io.stack_parts import DEVIATION, IMAGES, StackParts
from cryobench.io.writing import star_text, written
from cryobench.measuring.container import (
    CHUNKS,
    DRAWN,
    MANIFEST,
    TABLE,
    Container,
    Manifest,
    create,
    default_chunk,
    image_table,
    open_container,
)
from cryobench.measuring.measure import Acquisition, Detector
from cryobench.measuring.measurements import Measurements, load
from cryobench.measuring.reconstruct import Reconstructor, default_batch
from cryobench.plan.dataset import open_stack
from cryobench.plan.grid import implementation, prior_notes, size_notes, with_nested
from cryobench.plan.presets import choose, presets_folder
from cryobench.registry import installed
from cryobench.runner.checks import batches

Report = Callable[[float], None]
"""Called with the fraction of a chunk that is done."""


class Work(ABC):
    """An open task: the chunks of a stack, numbered from 0. what: its images, in messages."""

    what: ClassVar[str] = "images"
    parts: Sequence[slice]
    """The images of each chunk."""

    @property
    def images(self) -> int:
        """The number of images of all chunks."""
        return self.parts[-1].stop

    def size(self, chunk: int) -> int:
        """The number of images of a chunk."""
        part = self.parts[chunk]
        return part.stop - part.start

    @property
    def finished(self) -> int:
        """The number of images of the chunks that are done."""
        return self.images - sum(map(self.size, self.todo()))

    @abstractmethod
    def todo(self) -> list[int]:
        """The chunks that are not done."""

    @abstractmethod
    def run(self, chunk: int, report: Report) -> None:
        """Do a chunk."""

    @abstractmethod
    def finish(self) -> list[Path]:
        """Put the output in its place when all chunks are done. Returns what was written."""


# ----------------------------------------------------------------------------------------------------- measure


@dataclass(frozen=True)
class MeasureTask:
    """Measure images into a container at `out`. data, options: the source. images: a selection, or None for all.

    chunk: images of a chunk, or None for about 32 MiB.
    """

    acquisition: Acquisition
    data: str
    options: tuple[tuple[str, str], ...]
    images: str | None
    out: str
    chunk: int | None = None

    def open(self) -> Measuring:
        """Open the source. Raises a `CryobenchError` for an invalid request before an image is measured."""
        return Measuring(self)


class Measuring(Work):
    """Measures images into a container."""

    def __init__(self, task: MeasureTask):
        stack = open_stack(task.data, dict(task.options), installed())
        indices = parse_images(task.images, len(stack), len(stack), label=stack.label)
        self._folder = Path(task.out)
        self._detector = detector = Detector(task.acquisition, stack, indices, installed())
        self._manifest = Manifest(
            operator=detector.operator_spec,
            noise=detector.noise_spec,
            seed=task.acquisition.seed,
            scaling=task.acquisition.scaling,
            range=scale_of(task.acquisition.scaling, []).range,
            image_shape=stack.shape,
            measurement_shape=detector.measurement_shape,
            images=len(indices),
            chunk=task.chunk or default_chunk(stack.shape),
            fingerprint=_fingerprint(detector),
            about=detector.about,
        )
        self.container = Container(self._folder, self._manifest)
        self.parts = self.container.parts

    @property
    def summary(self) -> str:
        """The shape of the measurements and their compression."""
        shape = " x ".join(map(str, self._manifest.measurement_shape))
        return f"y is {shape} for each, C = {self._manifest.about['compression']:.3g}"

    def start(self, *, force: bool = False) -> None:
        """Create the container, or continue one of the same measurements.

        force: replace other measurements. Raises `ResultsError` for other measurements without `force`, and for a
        folder that is not a container.
        """
        if force and (self._folder / MANIFEST).exists():
            self.container.remove()
        names = {path.name for path in self._folder.glob("[!.]*")}
        if not names <= {TABLE, DRAWN, CHUNKS}:  # a process may have been killed before it wrote the manifest
            found = open_container(self._folder)
            if found.digest != self.container.digest:
                its = found.manifest
                raise ResultsError(f"{self._folder} holds other measurements ({its.operator}, noise {its.noise}, "
                                   f"{its.images} images); give another --out, or --force to replace them")  # fmt: skip
            return
        detector = self._detector
        imaging = detector.imaging(slice(None))
        create(self._folder, self._manifest, detector.drawn,
               image_table(detector.ids(), imaging.pixel_size, imaging.table))  # fmt: skip

    def todo(self) -> list[int]:
        return self.container.missing()

    def run(self, chunk: int, report: Report) -> None:
        self.container.write(chunk, self._detector.measure(self.parts[chunk]))
        report(1.0)

    def finish(self) -> list[Path]:
        """Remove what killed processes left; the container is already in its place."""
        self.container.remove_unfinished()
        return [self._folder]


def _fingerprint(detector: Detector) -> str:
    """Identifies the images by their selection and the pixels of the first and the last one."""
    digest = hashlib.sha256(repr((detector.stack.label, list(detector.indices), detector.acquisition)).encode())
    for index in {detector.indices[0], detector.indices[-1]}:
        digest.update(np.ascontiguousarray(detector.stack.read(index)).tobytes())
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------- reconstruct


@dataclass(frozen=True)
class ReconstructTask:
    """Reconstruct the images of measurements, a container or an .npz, into the stack `out`. solver: spec or preset.

    batch: images solved at once, None for `default_batch`.
    """

    measurements: str
    solver: str
    out: str
    seed: int = 0
    batch: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    presets: str | None = None

    def open(self) -> Reconstructing:
        """Open the measurements. Raises a `CryobenchError` for an invalid request before an image is reconstructed."""
        return Reconstructing(self)


class Reconstructing(Work):
    """Reconstructs a stack from measurements."""

    def __init__(self, task: ReconstructTask):
        registry = installed()
        method = choose(task.solver, registry, presets_folder(task.presets)).solver
        check_kind("solvers", task.solver, method)
        self._method = method
        self._source = open_measurements(Path(task.measurements))
        batch = default_batch(self._source.image_shape) if task.batch is None else task.batch
        self._reconstructor = Reconstructor(method, registry, seed=task.seed, dtype=task.dtype, device=task.device,
                                            batch=batch)  # fmt: skip
        self._out = Path(task.out)
        self.stack = StackParts(self._out, self._source.image_shape)
        self.parts = self._source.parts
        made_by = implementation(registry, list(with_nested(method)))
        self._job: dict[str, Any] = {
            "measurements": self._source.digest,
            "solver": str(registry.spec_of(method, full=True)),
            "seed": task.seed,
            "batch": batch,
            "device": task.device.partition(":")[0],
            "dtype": task.dtype,
            **made_by._asdict(),
        }

    def notes(self) -> Sequence[str]:
        """What was assumed of the priors of the solver, for the user."""
        return [*prior_notes([self._method]), *size_notes(self._method, self._source.image_shape)]

    def start(self, *, force: bool = False) -> None:
        """Begin the stack, or continue it; see `StackParts.start`. Raises `DataError` for incomplete measurements."""
        self._source.check_complete()
        self.stack.start(self._job, force=force)

    def todo(self) -> list[int]:
        return sorted(set(range(len(self.parts))) - self.stack.done())

    def run(self, chunk: int, report: Report) -> None:
        found = self._reconstructor.solve(self._source.read(chunk), report)
        self.stack.write(chunk, self.parts[chunk].start, ((each.images, each.deviation) for each in found))

    def finish(self) -> list[Path]:
        """Put the stack, its star file and, where there is one, the stack of deviations in their places.

        Returns the files. They are already there if another process was faster.
        """
        star, deviation = self._out.with_suffix(".star"), deviation_path(self._out)
        lock = self._out.with_name(f".{self._out.name}.lock")
        with acquire_lock(lock):
            if self.stack.folder.exists():
                self._put_in_place(deviation, star)
            remove_unfinished(self._out.parent, [path.name for path in (self._out, deviation, star)])
            lock.unlink(missing_ok=True)
        return [path for path in (self._out, deviation, star) if path.exists()]

    def _put_in_place(self, deviation: Path, star: Path) -> None:
        sizes = self._source.pixel_sizes()
        known = None if None in sizes else [size for size in sizes if size is not None]
        size = known[0] if known else None
        finished = self.stack.complete(len(self.parts), lambda totals: totals.header(size, self._out))
        targets = [self._out, *([deviation] if DEVIATION in finished else []), star]
        deviation.unlink(missing_ok=True)
        text = star_text(star, self._source.table(), self._out.name, known, self._source.image_shape[1],
                         count=self.images)  # fmt: skip
        with written(*targets) as temporary:
            temporary[-1].write_bytes(text.encode())
            for name, place in zip((IMAGES, DEVIATION), temporary[:-1], strict=False):
                self.stack.give(finished[name], place)
        self.stack.remove()


def unfinished(out: Path) -> bool:
    """Whether a process was killed while it put a stack in its place: the same command finishes it."""
    return StackParts(out, ()).gave(out)


def deviation_path(out: Path) -> Path:
    """The stack or volume of standard deviations beside one: NAME_deviation.mrc, NAME_deviation.ome.tif."""
    ending = "".join(out.suffixes[-2:]) if out.name.lower().endswith((".ome.tif", ".ome.tiff")) else out.suffix
    return out.with_name(f"{out.name.removesuffix(ending)}_deviation{ending}")


def open_measurements(path: Path) -> Container | InMemory:
    """The measurements in a container or an .npz file."""
    return open_container(path) if path.is_dir() else InMemory(path)


class InMemory:
    """Measurements of a single file, with the interface of a `Container`."""

    def __init__(self, path: Path):
        self._measured = load(path)
        self.image_shape = self._measured.image_shape
        self.parts = batches(len(self._measured.y), default_chunk(self.image_shape))
        status = path.stat()
        identity = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
        self.digest = hashlib.sha256(identity.encode()).hexdigest()

    def check_complete(self) -> None:
        """Nothing: a file is complete."""

    def read(self, chunk: int) -> Measurements:
        """The measurements of a chunk."""
        return self._measured.select(self.parts[chunk])

    def pixel_sizes(self) -> Sequence[float | None]:
        """Å per pixel of each image."""
        return self._measured.pixel_size

    def table(self) -> Any:
        """The metadata of all images."""
        return self._measured.table
