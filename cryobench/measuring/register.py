"""Registers pairs of a noisy image and a longer exposure of the same place, each pair into files of its own.

OUT/register.json                what was asked for, and the size that all pairs are cropped to; written first
OUT/CELL/LEVEL/wf_NAME.tif       the noisy image, cropped
OUT/CELL/LEVEL/gt_NAME.tif       the clean one, moved and warped onto it
OUT/CELL/LEVEL/pair_NAME.json    what was found, or why the pair was refused; written with the images
OUT/register.csv                 the same of all pairs, written when all are done
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cryobench.core import Stack
from cryobench.core.source import size_text
from cryobench.errors import DataError, ParameterError, PluginError, ResultsError, described, quoted, reason_of
from cryobench.files import check_writable_folder, output_file, read_bounded, remove_unfinished
from cryobench.io.em_pairs import CLEAN, NOISY, PairFiles, find_pairs
from cryobench.io.tiff import open_tiff_image, read_tiff_image, write_tiff_image
from cryobench.io.writing import written
from cryobench.measuring.tasks import Report, Work
from cryobench.numerics import registration
from cryobench.numerics.registration import (
    Flow,
    Rectangle,
    brightness,
    common,
    correlation,
    details,
    flow_between,
    found_shift,
    similarity,
    warped,
)
from cryobench.plan.dataset import open_stack
from cryobench.registry import guarded, installed
from cryobench.results.tables import csv_line

MANIFEST, REPORT, PAIR = "register.json", "register.csv", "pair_"
LEVEL = "pairs"
"""The level of the pairs of two stacks."""
LEAST, LARGEST, REACH = 0.2, 0.25, 8
FLOWS: dict[str, Flow | None] = {"none": None, "tvl1": registration.tvl1, "ilk": registration.ilk}
_LARGEST_FILE = 2**20


@dataclass(frozen=True)
class RegisterTask:
    """Register pairs into the folder `out`. noisy: a folder of pairs, or with `clean` a file or source of images.

    flow: a name of `FLOWS`, or MODULE:FUNCTION. least: correlation below which a pair is refused. largest: shift above
    which it is, relative to the side. reach: largest displacement of a flow, pixels. match: also match the brightness
    of the clean image.
    """

    noisy: str
    clean: str | None
    out: str
    flow: str = "tvl1"
    least: float = LEAST
    largest: float = LARGEST
    reach: int = REACH
    match: bool = False

    def open(self) -> Registering:
        """Find the pairs. Raises a `CryobenchError` for an invalid request before one is registered."""
        return Registering(self)


@dataclass(frozen=True)
class RawPair:
    """A pair to register. read: the noisy and the clean image [H, W], in any type, and Å per pixel or None."""

    cell: str
    level: str
    name: str
    read: Callable[[], tuple[np.ndarray, np.ndarray, float | None]]

    def __str__(self) -> str:
        return f"{self.cell}/{self.level}/{self.name}"


@dataclass
class Found:
    """What is reported of a pair; None for what was not computed.

    refused: why it was not written, or ''. shift: pixel p of the noisy image shows what p + shift of the clean one
    does. residual: the same of the images that were written. flow: root mean square, 0 without one. correlation:
    `registration.similarity` of the images as given, after the shift, and as written. factor, offset: noisy image =
    offset + factor x clean one.
    """

    cell: str
    level: str
    name: str
    refused: str = ""
    shift_y: float | None = None
    shift_x: float | None = None
    residual_y: float | None = None
    residual_x: float | None = None
    flow: float | None = None
    correlation_given: float | None = None
    correlation_shifted: float | None = None
    correlation: float | None = None
    factor: float | None = None
    offset: float | None = None


class Registering(Work):
    """Registers pairs, one a chunk. A pair is done when its `pair_NAME.json` exists, which appears with its images."""

    def __init__(self, task: RegisterTask):
        if not 0 <= task.least < 1:
            raise ParameterError(f"--least must be at least 0 and below 1, got {task.least:g}")
        if not 0 < task.largest <= 0.5:
            raise ParameterError(f"--largest must be above 0 and at most 0.5 of the side, got {task.largest:g}")
        if task.reach < 1:
            raise ParameterError(f"--reach must be at least 1 pixel, got {task.reach}; give --flow none for no flow")
        self.task, self._out = task, Path(task.out)
        self._flow = _flow_of(task.flow)
        self._reach = task.reach if self._flow is not None else 0
        self._pairs = list(_raw_pairs(task))
        self.parts = [slice(i, i + 1) for i in range(len(self._pairs))]
        self._size: list[int] | None = None
        if task.clean is None and self._out.resolve() == Path(task.noisy).expanduser().resolve():
            raise ParameterError(f"--out {task.out} is the folder of the pairs; give another folder")

    def start(self, *, force: bool = False) -> None:
        """Begin the folder, or continue it with the pairs that are missing.

        The shifts of all pairs are measured first, for the size that is left of each. force: replace what the folder
        holds. Raises `ResultsError` for pairs that were registered otherwise.
        """
        check_writable_folder(self._out, "pairs", "--out")
        path = self._out / MANIFEST
        if force:
            self._remove()
        found = self._manifest()
        job = {name: value for name, value in asdict(self.task).items() if name not in ("noisy", "clean", "out")}
        if found is None:
            taken = next((file for pair in self._pairs for file in self._files(pair) if file.exists()), None)
            if taken is not None:
                raise ResultsError(f"{taken} exists already, and is not of this command; give another --out")
        elif found["job"] != job:
            different = ", ".join(f"--{name}" for name in job if found["job"].get(name) != job[name])
            raise ResultsError(f"{self._out} holds pairs that were registered otherwise (another {different}); give "
                               "another --out, or --force to replace them")  # fmt: skip
        if found is None or found["size"] is None:
            size, by = self._common_size()
            with output_file(path) as temporary:
                text = json.dumps({"job": job, "size": size, "by": by}, indent=1) + "\n"
                temporary.write_text(text, encoding="utf-8")

    def todo(self) -> list[int]:
        return [i for i, pair in enumerate(self._pairs) if not self._files(pair)[-1].exists()]

    def run(self, chunk: int, report: Report) -> None:
        pair = self._pairs[chunk]
        found = Found(pair.cell, pair.level, pair.name)
        noisy, clean, own = self._files(pair)
        try:
            images = self._registered(pair, found)
        except DataError as error:
            images, found.refused = None, reason_of(error)
        check_writable_folder(own.parent, "pairs", "--out")
        text = json.dumps(asdict(found)) + "\n"
        if images is None:
            with output_file(own) as temporary:
                temporary.write_text(text, encoding="utf-8")
        else:
            with written(noisy, clean, own) as (first, second, last):
                write_tiff_image(first, noisy, images[0], images[2])
                write_tiff_image(second, clean, images[1], images[2])
                last.write_text(text, encoding="utf-8")
        report(1.0)

    def finish(self) -> list[Path]:
        """Write the report. Removes what killed processes have left."""
        lines = [csv_line(field.name for field in fields(Found))]
        lines += [csv_line(asdict(found).values()) for found in self.found()]
        with output_file(self._out / REPORT) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")
        for folder in {self._files(pair)[0].parent for pair in self._pairs}:
            remove_unfinished(folder, {path.name for pair in self._pairs for path in self._files(pair)})
        return [self._out]

    def found(self) -> list[Found]:
        """What was found of the pairs that are done. Raises `ResultsError` for a damaged file."""
        found = []
        for pair in self._pairs:
            path = self._files(pair)[-1]
            if path.exists():
                try:
                    found.append(Found(**json.loads(read_bounded(path, _LARGEST_FILE))))
                except (OSError, ValueError, TypeError) as error:
                    raise ResultsError(f"{path} is damaged: {described(error)}; delete it, and register the pair "
                                       "again") from error  # fmt: skip
        return found

    @property
    def summary(self) -> str:
        """The size that pairs are cropped to, and the pairs that determine it."""
        found = self._manifest()
        if found is None or found["size"] is None:
            return "none of them matches"
        by = list(dict.fromkeys(found["by"]))
        return f"{size_text(found['size'])} pixels each, which {' and '.join(by)} leave{'s' * (len(by) == 1)}"

    # ------------------------------------------------------------------------------------------------- one pair

    def _registered(self, pair: RawPair, found: Found) -> tuple[np.ndarray, np.ndarray, float | None]:
        """The images that are written, and their pixel size. Raises `DataError` for a pair that is refused."""
        noisy, clean, pixel_size = pair.read()
        where, shift = self._place(noisy, clean, found)
        wanted, left = self._wanted(), [each.stop - each.start for each in where]
        if any(n < m for n, m in zip(left, wanted, strict=True)):
            raise DataError(f"its shift leaves {size_text(left)} pixels, and those of the others {size_text(wanted)}; "
                            "register it into another --out")  # fmt: skip
        inner = _middle(where, wanted)
        moved, found.flow = self._moved(noisy, clean, shift, inner)
        first = noisy[inner]
        found.correlation = similarity(first, moved)
        found.residual_y, found.residual_x = found_shift(first, moved).tolist()
        found.offset, found.factor = brightness(first, moved)
        if self.task.match:
            second = (found.offset + found.factor * moved).astype(np.float32)
        else:
            second = _in_type(moved, clean.dtype)
        return first, second, pixel_size

    def _place(self, noisy: np.ndarray, clean: np.ndarray, found: Found) -> tuple[Rectangle, np.ndarray]:
        """The pixels of the noisy image that the clean one has too, and the shift. Raises `DataError` for a pair that
        does not match: a flow would make any two images more alike."""
        h, w = (min(sides) for sides in zip(noisy.shape, clean.shape, strict=True))
        found.correlation_given = similarity(noisy[:h, :w], clean[:h, :w])
        shift = found_shift(noisy, clean)
        found.shift_y, found.shift_x = shift.tolist()
        limits = [self.task.largest * n for n in (h, w)]
        where = common(noisy.shape, clean.shape, shift, self._reach)
        if min(h, w) <= 2 * self._reach:
            raise DataError(f"it has {size_text((h, w))} pixels, of which a --reach of {self._reach} leaves none")
        if where is None or any(abs(d) > limit for d, limit in zip(shift, limits, strict=True)):
            raise DataError(f"its shift of {shift[0]:.1f} and {shift[1]:.1f} pixels along y and x is more than "
                            f"--largest {self.task.largest:g} of the sides")  # fmt: skip
        found.correlation_shifted = similarity(noisy[where], warped(clean, where, shift))
        if found.correlation_shifted < self.task.least:
            raise DataError(f"its correlation after the shift is {found.correlation_shifted:.2g}, below --least "
                            f"{self.task.least:g}")  # fmt: skip
        return where, shift

    def _moved(
        self, noisy: np.ndarray, clean: np.ndarray, shift: np.ndarray, inner: Rectangle
    ) -> tuple[np.ndarray, float]:
        """The clean image at the pixels `inner` of the noisy one, float64, and the root mean square of the flow.

        The clean image is warped, because interpolation would smooth the noise of the other. A flow is kept if it
        improves the correlation, and that of the details that it was computed without: it would follow noise otherwise.
        """
        moved = warped(clean, inner, shift)
        if self._flow is None:
            return moved, 0.0
        everything = common(noisy.shape, clean.shape, shift)
        assert everything is not None  # `inner` is part of it
        flow = partial(_checked_flow, self._flow, self.task.flow)
        found = flow_between(noisy[everything], warped(clean, everything, shift), flow, self._reach)
        part = tuple(slice(here.start - all_.start, here.stop - all_.start)
                     for here, all_ in zip(inner, everything, strict=True))  # fmt: skip
        own = found[:, part[0], part[1]]
        bent = warped(clean, inner, shift[:, None, None] + own)
        first, fine = noisy[inner], details(noisy[inner])
        better = similarity(first, bent) > similarity(first, moved)
        finer = correlation(fine, details(bent)) > correlation(fine, details(moved))
        return (bent, float(np.sqrt(np.mean(np.square(own).sum(axis=0))))) if better and finer else (moved, 0.0)

    def _common_size(self) -> tuple[list[int] | None, list[str]]:
        """The largest size that all pairs which match have, and the pair that determines its height and its width."""
        left: list[tuple[list[int], str]] = []
        for pair in self._pairs:
            try:
                noisy, clean, _ = pair.read()
                where, _ = self._place(noisy, clean, Found(pair.cell, pair.level, pair.name))
            except DataError:  # the pair is refused with the reason later
                continue
            left.append(([each.stop - each.start for each in where], str(pair)))
        if not left:
            return None, []
        least = [min(left, key=lambda each: each[0][axis]) for axis in range(2)]
        return [sizes[axis] for axis, (sizes, _) in enumerate(least)], [pair for _, pair in least]

    # ---------------------------------------------------------------------------------------------------- files

    def _files(self, pair: RawPair) -> tuple[Path, Path, Path]:
        """The files of a pair: noisy and clean image, and what was found."""
        folder = self._out / pair.cell / pair.level
        return (folder / f"{NOISY}{pair.name}.tif", folder / f"{CLEAN}{pair.name}.tif",
                folder / f"{PAIR}{pair.name}.json")  # fmt: skip

    def _wanted(self) -> list[int]:
        """The size of the images that are written."""
        if self._size is None:
            found = self._manifest()
            if found is None or found["size"] is None:
                raise ResultsError(f"{self._out} has no {MANIFEST} that states a size; start the command again")
            self._size = list(found["size"])
        return self._size

    def _manifest(self) -> dict[str, Any] | None:
        """The manifest of the folder; None if there is none. Raises `ResultsError` for a damaged one."""
        path = self._out / MANIFEST
        try:
            found = json.loads(read_bounded(path, _LARGEST_FILE))
            size = found["size"]
            if not isinstance(found["job"], dict) or not (size is None or [type(n) for n in size] == [int, int]):
                raise ValueError("it states no size")
            return found
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ResultsError(f"{path} is damaged: {described(error)}; give another --out, or --force") from error

    def _remove(self) -> None:
        """Delete what this command wrote to the folder, the manifest first."""
        known = (self._out / MANIFEST).exists()
        (self._out / MANIFEST).unlink(missing_ok=True)
        (self._out / REPORT).unlink(missing_ok=True)
        for path in self._out.glob(f"*/*/{PAIR}*.json") if known else ():
            name = path.stem.removeprefix(PAIR)
            for prefix in (NOISY, CLEAN):
                (path.parent / f"{prefix}{name}.tif").unlink(missing_ok=True)
            path.unlink()


def _middle(where: Rectangle, size: Sequence[int]) -> Rectangle:
    """The middle of a rectangle, of this size."""
    starts = [each.start + (each.stop - each.start - n) // 2 for each, n in zip(where, size, strict=True)]
    return slice(starts[0], starts[0] + size[0]), slice(starts[1], starts[1] + size[1])


def _in_type(image: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """An image in a type, rounded and clipped to integers."""
    if dtype.kind == "f":
        return image.astype(dtype)
    kind = np.dtype(np.uint8) if dtype.kind == "b" else dtype
    limits = np.iinfo(kind)
    return np.clip(np.rint(image), limits.min, limits.max).astype(kind)


# ----------------------------------------------------------------------------------------------------- the pairs


def _raw_pairs(task: RegisterTask) -> Iterator[RawPair]:
    """The pairs of a folder, or of two stacks."""
    if task.clean is None:
        for files in find_pairs(Path(task.noisy).expanduser()):
            yield RawPair(files.cell, files.level, files.name, partial(_read_files, files))
        return
    noisy, clean = (open_stack(text, {}, installed()) for text in (task.noisy, task.clean))
    if len(noisy) != len(clean):
        raise DataError(f"{noisy.label} has {len(noisy)} images and {clean.label} {len(clean)}; expected one clean "
                        "image for each noisy one")  # fmt: skip
    for stack in (noisy, clean):
        if len(stack.shape) != 2:
            raise DataError(f"{stack.label} holds volumes; give their sections, as volume:FILE,view=sections")
    cell = Path(noisy.label).name.partition(".")[0] or LEVEL
    for i in range(len(noisy)):
        yield RawPair(cell, LEVEL, str(i), partial(_read_stacks, noisy, clean, i))


def _read_files(files: PairFiles) -> tuple[np.ndarray, np.ndarray, float | None]:
    """Both images of a pair in the types of their files. Raises `DataError` for one that is not finite or constant."""
    pixel_size = open_tiff_image(files.noisy).pixel_size
    open_tiff_image(files.clean)
    images = [_checked(read_tiff_image(path), str(path)) for path in (files.noisy, files.clean)]
    return images[0], images[1], pixel_size


def _read_stacks(noisy: Stack, clean: Stack, index: int) -> tuple[np.ndarray, np.ndarray, float | None]:
    images = [_checked(stack.read(index), f"image {index} of {stack.label}") for stack in (noisy, clean)]
    return images[0], images[1], noisy.pixel_size(index)


def _checked(image: np.ndarray, name: str) -> np.ndarray:
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise DataError(f"{name} has values that are not finite (NaN or infinite)")
    if image.min() == image.max():
        raise DataError(f"{name} is constant")
    return image


# ------------------------------------------------------------------------------------------------------ the flow


def _flow_of(name: str) -> Flow | None:
    """The flow of a name of `FLOWS`, or MODULE:FUNCTION. Raises `ParameterError`."""
    if name in FLOWS:
        return FLOWS[name]
    module, _, function = name.partition(":")
    if not (module and function):
        raise ParameterError(f"--flow {quoted(name)} is unknown; there are {', '.join(FLOWS)}, and MODULE:FUNCTION for "
                             "one of your own")  # fmt: skip
    try:
        found: Flow = getattr(importlib.import_module(module), function)
    except Exception as error:  # a module may raise anything when it is imported
        raise ParameterError(f"--flow {quoted(name)} cannot be imported: {described(error)}; PYTHONPATH lists the "
                             "folders of modules") from error  # fmt: skip
    if not callable(found):
        raise ParameterError(f"--flow {quoted(name)} is no function")
    return found


def _checked_flow(flow: Flow, name: str, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The flow between two images. Raises `PluginError` unless it is finite, of the shape [2, H, W]."""
    found = guarded(f"--flow {name} failed", lambda: np.asarray(flow(first, second), np.float64))
    if found.shape != (2, *first.shape) or not np.isfinite(found).all():
        raise PluginError(f"--flow {name} returned an array of shape {found.shape}; expected finite numbers of shape "
                          f"{(2, *first.shape)}")  # fmt: skip
    return found
