"""Pairs of halves as a folder, of which windows are read without the rest.

    FOLDER/movies.json        version, corrections, and the movies in order; written first
    FOLDER/NAME.mrcs          both halves of a micrograph, odd frames first: an MRC stack of two images, mode 6 or 12
    FOLDER/NAME.npz           the replaced pixels of counts, where there are any
    FOLDER/NAME.json          shape, dose, gain, frames and digests of both halves; written last
    FOLDER/gain-DIGEST.mrc    the factors of the gain reference

Mode 6 (uint16) holds the counts as summed: they are multiplied by the gain when a window is read. Mode 12 (float16)
holds (x - offset) / factor, with offset and factor, the mean and the standard deviation of both halves, in NAME.json.
Every file appears complete or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cryobench.core.operator import Window
from cryobench.core.pairs import Pairs
from cryobench.core.source import size_text
from cryobench.errors import DataError, ResultsError, described, reason_of, shortened
from cryobench.files import check_writable_folder, output_file, read_bounded, remove_unfinished
from cryobench.io.movies.settings import MovieSettings
from cryobench.io.movies.summing import Summed
from cryobench.io.movies.windows import checked, corrected, restored
from cryobench.io.mrc_header import HEADER_BYTES
from cryobench.io.paths import stem_of
from cryobench.io.scaling import digest_of
from cryobench.io.writing import stack_header

MANIFEST = "movies.json"
VERSION = 1
LARGEST = 2**27
"""Bytes of the largest JSON file that is read."""
OPEN = 16
"""Micrographs that are kept open: mapped pages count as memory of the process."""
_COUNTS, _FLOAT16, _FLOAT32 = 6, 12, 2
_DTYPES = {_COUNTS: np.dtype("<u2"), _FLOAT16: np.dtype("<f2")}
_LARGEST_FLOAT16 = 60_000.0
_SMALLEST_DEVIATION = 0.1
"""Values of a smaller one would be rounded as numbers below the normal range of float16."""


@dataclass(frozen=True)
class Record:
    """What NAME.json says of a micrograph.

    shape: (h, w). mode: of NAME.mrcs. offset, factor: of float16. gain: the file of the factors, or None. replaced:
    number of pixels in NAME.npz. movie: path of the movie. frames: summed in both halves. dropped: not summed. dose:
    e/Å² of both halves, or None. rounding: root mean square of the rounding to float16, in standard deviations; 0 for
    counts. shifts: (y, x) of each frame, pixels of the movie, or None. sha256: the digest of each half, odd frames
    first (`io.scaling.digest_of`).
    """

    shape: tuple[int, int]
    mode: int
    offset: float
    factor: float
    gain: str | None
    replaced: int
    movie: str
    frames: int
    dropped: int
    dose: float | None
    pixel_size: float | None
    rounding: float
    shifts: tuple[tuple[float, float], ...] | None
    sha256: tuple[str, str]


# ------------------------------------------------------------------------------------------------------- write


class PairWriter:
    """Writes a folder of pairs, one micrograph at a time, in any order and any number of processes."""

    def __init__(self, folder: Path, movies: Sequence[str]):
        """movies: their paths, in order. Raises `DataError` if two have one name."""
        self.folder, self.movies = folder, list(movies)
        self.names = names_of(movies)

    def start(self, settings: MovieSettings, *, force: bool = False) -> None:
        """Begin a folder, or continue one of the same corrections: its pairs, and the movies that are given now.

        force: replace pairs of other corrections. Raises `ResultsError` for those without `force`, and for a folder
        that holds other files.
        """
        made = _fingerprint(settings)
        check_writable_folder(self.folder, "pairs", "--out")
        if force and (self.folder / MANIFEST).exists():
            self.remove()
        elif any(self.folder.glob("[!.]*")):
            found = read_manifest(self.folder)
            if found["corrections"] != made:
                raise ResultsError(f"{self.folder} holds pairs with other corrections, or none; give another --out, or "
                                   "--force to replace them")  # fmt: skip
            earlier, given = found["movies"], set(self.movies)
            left = set(missing(self.folder, names_of(earlier)))
            kept = [movie for number, movie in enumerate(earlier) if number not in left or movie in given]
            known = set(kept)
            self.movies = [*kept, *(movie for movie in self.movies if movie not in known)]
            self.names = names_of(self.movies)
        with output_file(self.folder / MANIFEST) as temporary:
            text = json.dumps({"version": VERSION, "corrections": made, "movies": self.movies}, indent=1) + "\n"
            temporary.write_text(text, encoding="utf-8")

    def missing(self) -> list[int]:
        """The movies without a pair."""
        return missing(self.folder, self.names)

    def remove(self) -> None:
        """Delete the files of a folder of pairs, the manifest first, and nothing else in it."""
        for name in [MANIFEST, *self._gains(), *_files_of(names_of(read_manifest(self.folder)["movies"]))]:
            (self.folder / name).unlink(missing_ok=True)

    def remove_unfinished(self) -> None:
        """Remove what killed processes left; for a complete folder, to which no other process writes."""
        remove_unfinished(self.folder, {MANIFEST, *self._gains(), *_files_of(self.names)})

    def _gains(self) -> list[str]:
        return [path.name for path in self.folder.glob("gain-*.mrc")]

    def write(self, number: int, summed: Summed, dose: float | None) -> None:
        """Write the pair of movie `number`. dose: e/Å² of a frame. Raises `ResultsError` if that is impossible."""
        path = self.folder / self.names[number]
        images = summed.images
        stored = _as_counts(summed)
        counts = stored is not None
        offset, factor, rounding = 0.0, 1.0, 0.0
        if stored is None:
            offset, factor = _normalisation(images)
            stored = ((images - np.float32(offset)) / np.float32(factor)).astype(_DTYPES[_FLOAT16])
            exact, images = images, restored(stored, offset, factor, checked(None, stored.shape[1:]))
            rounding = float(np.sqrt(np.mean(np.square(images - exact, dtype=np.float64))) / (exact.std() or 1.0))
        gain = summed.gain if counts else None
        replaced = len(summed.positions) if counts else 0
        record = Record(
            shape=(stored.shape[1], stored.shape[2]),
            mode=_COUNTS if counts else _FLOAT16,
            offset=offset,
            factor=factor,
            gain=None if gain is None else self._write_gain(gain.digest, gain.factor),
            replaced=replaced,
            movie=self.movies[number],
            frames=summed.frames,
            dropped=summed.dropped,
            dose=None if dose is None else dose * summed.frames,
            pixel_size=summed.pixel_size,
            rounding=rounding,
            shifts=None if summed.shifts is None else tuple((float(y), float(x)) for y, x in summed.shifts),
            sha256=(digest_of(images[0], f"the odd half of {self.movies[number]}"),
                    digest_of(images[1], f"the even half of {self.movies[number]}")),
        )  # fmt: skip
        with output_file(_beside(path, ".mrcs")) as temporary, temporary.open("wb") as file:
            file.write(stack_header(2, record.shape, record.pixel_size, record.mode).tobytes())
            file.write(np.ascontiguousarray(stored).data)
        if replaced:
            with output_file(_beside(path, ".npz")) as temporary, temporary.open("wb") as file:
                np.savez(file, positions=summed.positions, values=summed.values)
        with output_file(_beside(path, ".json")) as temporary:
            temporary.write_text(json.dumps(asdict(record)) + "\n", encoding="utf-8")

    def _write_gain(self, digest: str, factor: np.ndarray) -> str:
        """The file of factors, which is written if it is not there."""
        name = f"gain-{digest[:16]}.mrc"
        if not (self.folder / name).exists():
            with output_file(self.folder / name) as temporary, temporary.open("wb") as file:
                file.write(stack_header(1, factor.shape, None, _FLOAT32).tobytes())
                file.write(np.ascontiguousarray(factor, "<f4").data)
        return name


def _files_of(names: Sequence[str]) -> list[str]:
    """The files of micrographs, those that describe others first."""
    return [f"{name}{suffix}" for name in names for suffix in (".json", ".npz", ".mrcs")]


def names_of(movies: Sequence[str]) -> list[str]:
    """The name of each micrograph. Raises `DataError` if two movies have one name."""
    names = [stem_of(Path(movie)) for movie in movies]
    if len(set(names)) < len(names):
        first: dict[str, str] = {}
        for name, movie in zip(names, movies, strict=True):
            if first.setdefault(name, movie) is not movie:
                raise DataError(f"{first[name]} and {movie} have one name; sum them to folders of their own")
    return names


def _as_counts(summed: Summed) -> np.ndarray | None:
    """The halves as uint16, if they are such integers; pixels that are replaced may be anything."""
    if summed.interpolated:
        return None
    halves, largest = summed.halves.copy(), np.iinfo(_DTYPES[_COUNTS]).max
    flat = halves.reshape(2, -1)
    flat[:, summed.positions] = np.clip(np.rint(flat[:, summed.positions]), 0, largest)
    if halves.min() < 0 or halves.max() > largest:
        return None
    stored = halves.astype(_DTYPES[_COUNTS])
    return stored if np.array_equal(stored, halves) else None


def _normalisation(images: np.ndarray) -> tuple[float, float]:
    """Offset and factor of float16: the mean of both halves, and 1 where float16 has the range, which is fastest."""
    mean, deviation = float(images.mean(dtype=np.float64)), float(images.std(dtype=np.float64))
    farthest = max(float(images.max()) - mean, mean - float(images.min()))
    if deviation >= _SMALLEST_DEVIATION and farthest <= _LARGEST_FLOAT16:
        return mean, 1.0
    return mean, max(deviation, farthest / _LARGEST_FLOAT16) or 1.0


def _fingerprint(settings: MovieSettings) -> dict[str, Any]:
    """The corrections, with the digests of their files."""
    files = {name: _file_digest(Path(path)) for name in ("gain", "defects") if (path := getattr(settings, name))}
    return json.loads(json.dumps({**asdict(settings), "sha256": files}))


def _file_digest(path: Path) -> str:
    try:
        with path.expanduser().open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason_of(error)}; give an existing file") from error


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


# -------------------------------------------------------------------------------------------------------- read


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of pairs. Raises `DataError` if there is none, or one of another version."""
    path = folder / MANIFEST
    try:
        found = json.loads(read_bounded(path, LARGEST))
        if found["version"] != VERSION:
            raise DataError(f"{path} is of version {found['version']!r}, and this version of cryobench reads "
                            f"{VERSION}; sum the movies again")  # fmt: skip
        movies = found["movies"]
        if (
            not movies
            or not all(isinstance(movie, str) for movie in movies)
            or not isinstance(found["corrections"], dict)
        ):
            raise ValueError("it lists no movies")
        return found
    except FileNotFoundError as error:
        raise DataError(f"{folder} has no {MANIFEST}; expected what `cryobench movies sum` writes") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged: {shortened(reason_of(error))}; sum the movies again with --force"
        ) from error


def is_pair_folder(folder: Path) -> bool:
    """Whether a path is a folder of pairs."""
    try:
        return (folder / MANIFEST).is_file()
    except OSError:  # not a valid path on this machine, for example too long
        return False


def missing(folder: Path, names: Sequence[str]) -> list[int]:
    """The micrographs of a folder that are not written."""
    written = {path.name for path in folder.glob("*.json")}
    return [number for number, name in enumerate(names) if f"{name}.json" not in written]


@dataclass(frozen=True)
class _Opened:
    """A micrograph whose files are mapped into memory."""

    record: Record
    stored: np.ndarray
    factor: np.ndarray | None
    positions: np.ndarray
    values: np.ndarray


class PairFolder(Pairs):
    """The pairs in a folder that `cryobench movies sum` wrote. Raises `DataError` if some are missing."""

    def __init__(self, folder: Path):
        self.folder, self.label = folder, folder.resolve().name
        self._names = names_of(read_manifest(folder)["movies"])
        left = missing(folder, self._names)
        if left:
            raise DataError(
                f"{folder} is incomplete: {len(left)} of {len(self._names)} pairs are missing, the first of "
                f"{self._names[left[0]]}; run the `cryobench movies sum` command that wrote it again"
            )
        self._record = lru_cache(maxsize=None)(self._read_record)
        self._opened = lru_cache(maxsize=OPEN)(self._open)
        self._mapped = lru_cache(maxsize=OPEN)(_mapped)  # one gain reference serves many micrographs

    def __reduce__(self):
        return PairFolder, (self.folder,)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def shape(self, index: int) -> tuple[int, int]:
        return self._record(index).shape

    def pixel_size(self, index: int) -> float | None:
        return self._record(index).pixel_size

    def digests(self, index: int) -> tuple[str, str]:
        return self._record(index).sha256

    def files(self, index: int) -> list[Path]:
        record = self._record(index)
        gain = [] if record.gain is None else [self.folder / record.gain]
        replaced = [self._path(index, ".npz")] if record.replaced else []
        return [self._path(index, ".mrcs"), self._path(index, ".json"), *replaced, *gain]

    def record(self, index: int) -> Record:
        """Everything that is known of micrograph `index`."""
        return self._record(index)

    def read(self, index: int, window: Window | None = None) -> np.ndarray:
        opened = self._opened(index)
        window = checked(window, opened.record.shape)
        if opened.record.mode == _COUNTS:
            return corrected(opened.stored, opened.factor, opened.positions, opened.values, window)
        return restored(opened.stored, opened.record.offset, opened.record.factor, window)

    def _path(self, index: int, suffix: str) -> Path:
        return _beside(self.folder / self._names[index], suffix)

    def _read_record(self, index: int) -> Record:
        path = self._path(index, ".json")
        try:
            return _checked_record(Record(**json.loads(read_bounded(path, LARGEST))))
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise self._damaged(path, index, error) from error

    def _open(self, index: int) -> _Opened:
        record, path = self._record(index), self._path(index, ".mrcs")
        h, w = record.shape
        stored = self._mapped(path, _DTYPES[record.mode], (2, h, w))
        factor = None if record.gain is None else self._mapped(self.folder / record.gain, np.dtype("<f4"), (h, w))
        positions, values = np.empty(0, np.int64), np.empty((2, 0), np.float32)
        if record.replaced:
            path = self._path(index, ".npz")
            try:
                with np.load(path) as file:
                    positions, values = file["positions"], file["values"]
                k = record.replaced
                if (positions.shape, values.shape, positions.dtype.kind, values.dtype) != (
                    (k,),
                    (2, k),
                    "i",
                    np.float32,
                ):
                    raise ValueError(f"expected {k} pixels")
                if positions.min() < 0 or positions.max() >= h * w or (np.diff(positions) <= 0).any():
                    raise ValueError("its positions are not in order")
            except Exception as error:  # numpy and zipfile raise many kinds
                raise self._damaged(path, index, error) from error
        return _Opened(record, stored, factor, positions, values)

    def _damaged(self, path: Path, index: int, error: Exception) -> DataError:
        json_file = self._path(index, ".json")
        return DataError(f"{path} is damaged: {shortened(described(error))}; delete {json_file} and run `cryobench "
                         "movies sum` again")  # fmt: skip


def _mapped(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """An array after the header of an MRC file, mapped into memory.

    A plain array, because a slice of a `numpy.memmap` takes four times as long.
    """
    try:
        size, expected = path.stat().st_size, HEADER_BYTES + int(np.prod(shape)) * dtype.itemsize
        if size != expected:
            raise DataError(f"{path} has {size} bytes, expected {expected} for {size_text(shape)} pixels; delete it "
                            "and its .json, and run `cryobench movies sum` again")  # fmt: skip
        return np.asarray(np.memmap(path, dtype, "r", HEADER_BYTES, shape))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {reason_of(error)}; sum its movie again") from error


def _checked_record(record: Record) -> Record:
    """The record with tuples for lists. Raises `ValueError` for values that do not make sense."""
    shape, sha256 = tuple(record.shape), tuple(record.sha256)
    if len(shape) != 2 or not all(type(side) is int and side > 0 for side in shape) or record.mode not in _DTYPES:
        raise ValueError("shape or mode is wrong")
    if len(sha256) != 2 or not all(isinstance(digest, str) for digest in sha256):
        raise ValueError("sha256 is wrong")
    if record.gain is not None and Path(record.gain).name != record.gain:
        raise ValueError("gain is not a file of this folder")
    if type(record.replaced) is not int or not 0 <= record.replaced <= shape[0] * shape[1]:
        raise ValueError("replaced is wrong")
    if not np.isfinite([record.offset, record.factor]).all():
        raise ValueError("offset or factor is not finite")
    if record.pixel_size is not None and not 0 < record.pixel_size < float("inf"):
        raise ValueError("pixel_size is wrong")
    shifts = None if record.shifts is None else tuple((float(y), float(x)) for y, x in record.shifts)
    return Record(**{**asdict(record), "shape": shape, "sha256": sha256, "shifts": shifts})
