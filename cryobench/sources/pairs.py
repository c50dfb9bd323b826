"""Sources of micrographs in two halves: a folder that `cryobench movies sum` wrote, and files of other programs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np

from cryobench.core import Source, Stack
from cryobench.core.operator import Window
from cryobench.core.pairs import Pairs
from cryobench.core.source import size_text
from cryobench.errors import DataError
from cryobench.io.image_files import ImageFile, changed, mrc_header, open_mrc, open_npy
from cryobench.io.movies.pair_folder import PairFolder
from cryobench.io.movies.windows import checked
from cryobench.io.paths import matching_files, stem_of, suffix_of
from cryobench.io.scaling import digest_of

SUFFIXES = (".mrc", ".mrcs", ".map", ".npy")
_HALF = re.compile(r"(?<![A-Za-z])(odd|even|evn)(?![A-Za-z])", re.IGNORECASE)
"""What tells the halves of one micrograph apart in the names of MotionCor, CryoSPARC and Warp."""
_OPEN = 16


@dataclass(frozen=True)
class Sums(Source):
    """Micrographs in a folder that `cryobench movies sum` wrote: the odd halves. The even halves are `Stack.other`."""

    folder: Annotated[str, "folder of pairs"]

    def open(self) -> PairStack:
        """Open the folder. Raises `DataError` if it is no folder of pairs, or not complete."""
        return PairStack(PairFolder(Path(self.folder).expanduser()))


@dataclass(frozen=True)
class PairedFiles(Source):
    """Micrographs of which another program wrote the sums of odd and of even frames: MotionCor, CryoSPARC, Warp.

    Files belong together if their names are equal without `odd`, `even` and `evn`. One pair of files may hold many
    images.
    """

    odd: Annotated[str, f"sums of odd frames: a file, folder or pattern ({', '.join(SUFFIXES)})"]
    even: Annotated[str, "sums of even frames"]

    def open(self) -> PairStack:
        """Match the files by name. Raises `DataError` for a file without its other half, and for other shapes."""
        odd, even = (_by_key(text) for text in (self.odd, self.even))
        if len(odd) == len(even) == 1:
            odd = {next(iter(even)): path for path in odd.values()}
        for own, others, half, path in ((odd, even, "even", self.even), (even, odd, "odd", self.odd)):
            lonely = [key for key in own if key not in others]
            if lonely:
                raise DataError(f"{own[lonely[0]]} has no {half} half in {path} ({len(odd)} odd and {len(even)} even "
                                "files); expected names that differ in odd, even or evn")  # fmt: skip
        names = {path.parent.name if _HALF.search(path.parent.name) is None else path.parent.parent.name
                 for path in odd.values()}  # fmt: skip
        label = min(names) if len(odd) > 1 else next(iter(odd.values())).name
        return PairStack(FilePairs(label, [(odd[key], even[key]) for key in sorted(odd)]))


def _by_key(text: str) -> dict[str, Path]:
    """The files of one half by what they have in common with those of the other."""
    found: dict[str, Path] = {}
    for path in matching_files(text, SUFFIXES, "images"):
        key = _key(path)
        if key in found:
            raise DataError(f"{found[key]} and {path} have one name without odd and even; give two patterns that match "
                            "one half each")  # fmt: skip
        found[key] = path
    return found


def _key(path: Path) -> str:
    parts = [part for part in re.split(r"[_.\- ]+", _HALF.sub("", stem_of(path))) if part]
    return "_".join(parts)


class FilePairs(Pairs):
    """Pairs of files of odd and even sums, one image in each, or one pair of files with many.

    Raises `DataError` if the first pair does not fit together; the others are checked when they are first used.
    """

    def __init__(self, label: str, files: Sequence[tuple[Path, Path]]):
        self.label, self._files = label, list(files)
        self._half = lru_cache(maxsize=2 * _OPEN)(_opened)
        self._digests = lru_cache(maxsize=None)(self._digests_of)
        odd, even = self._both(0)
        self._count = odd.count if len(files) == 1 else 1
        if odd.count != even.count:
            raise DataError(f"{odd.path} has {odd.count} images and {even.path} {even.count}; expected the halves of "
                            "the same micrographs")  # fmt: skip
        self.shape(0)

    def __reduce__(self):
        return FilePairs, (self.label, self._files)

    def __len__(self) -> int:
        return self._count if len(self._files) == 1 else len(self._files)

    def name(self, index: int) -> str:
        if len(self._files) > 1:
            return _key(self._files[index][0])
        name = _key(self._files[0][0]) or stem_of(self._files[0][0])
        return name if self._count == 1 else f"{name}-{index}"

    def shape(self, index: int) -> tuple[int, int]:
        odd, even = self._both(index)
        if odd.shape != even.shape:
            raise DataError(f"{odd.path} has {size_text(odd.shape)} pixels and {even.path} {size_text(even.shape)}; "
                            "expected halves of one shape")  # fmt: skip
        for half in (odd, even):
            if len(self._files) > 1 and half.count != 1:
                raise DataError(f"{half.path} has {half.count} images; expected one in each of several files")
        return odd.shape

    def read(self, index: int, window: Window | None = None) -> np.ndarray:
        window = checked(window, self.shape(index))
        page = index if len(self._files) == 1 else 0
        found = np.stack([half.images[page][window] for half in self._both(index)]).astype(np.float32, copy=False)
        if not np.isfinite(found).all():
            raise DataError(f"{self.name(index)} of {self.label} has values that are not finite; leave it out")
        return found

    def pixel_size(self, index: int) -> float | None:
        return self._both(index)[0].pixel_size

    def digests(self, index: int) -> tuple[str, str]:
        return self._digests(index)

    def files(self, index: int) -> list[Path]:
        return [half.path for half in self._both(index)]

    def _digests_of(self, index: int) -> tuple[str, str]:
        odd, even = self.read(index)
        name = f"{self.name(index)} of {self.label}"
        return digest_of(odd, f"the odd half of {name}"), digest_of(even, f"the even half of {name}")

    def _both(self, index: int) -> tuple[_Half, _Half]:
        odd, even = self._files[0 if len(self._files) == 1 else index]
        return self._half(odd), self._half(even)


@dataclass(frozen=True)
class _Half:
    """A file of one half. images: [n, H, W], mapped into memory where its format allows."""

    path: Path
    count: int
    shape: tuple[int, int]
    pixel_size: float | None
    images: np.ndarray


def _opened(path: Path) -> _Half:
    """Open a file of images. Raises `DataError`."""
    suffix = suffix_of(path)
    if suffix not in SUFFIXES:
        raise DataError(f"{path} has the unknown suffix {path.suffix!r}; expected {', '.join(SUFFIXES)}")
    try:
        file, images = _mapped(path)
    except (OSError, ValueError) as error:
        raise changed(path) from error
    height, width = file.shape
    return _Half(path, file.count, (height, width), file.pixel_size, images)


def _mapped(path: Path) -> tuple[ImageFile, np.ndarray]:
    """A file and its images, mapped into memory if they are stored plainly, else read."""
    if path.suffix.lower() == ".npy":
        file = open_npy(path)
        return file, np.load(path, mmap_mode="r").reshape(file.count, *file.shape)
    file = open_mrc(path, as_stack=True)
    if path.suffix.lower() in (".mrc", ".mrcs", ".map"):
        header = mrc_header(path)
        if header.axes == (1, 2, 3):
            return file, np.memmap(path, header.dtype, "r", header.offset, (file.count, *file.shape))
    images = np.empty((file.count, *file.shape), np.float32)
    file.open()(0, images)
    return file, images


class PairStack(Stack):
    """The odd halves of pairs as images, and the even halves as their others. Micrographs of one shape."""

    def __init__(self, pairs: Pairs):
        self._pairs, self.label = pairs, pairs.label
        self.shape = pairs.shape(0)
        self._both = lru_cache(maxsize=1)(self._read_both)  # `read` and `other` follow each other

    def __reduce__(self):
        return PairStack, (self._pairs,)

    def __len__(self) -> int:
        return len(self._pairs)

    def read(self, index: int) -> np.ndarray:
        """The odd half of micrograph `index`. Raises `DataError` if it has another shape than the first."""
        return self._both(index)[0].copy()

    def other(self, index: int) -> np.ndarray:
        """The even half of micrograph `index`."""
        return self._both(index)[1].copy()

    def pixel_size(self, index: int) -> float | None:
        self.check(index)
        return self._pairs.pixel_size(index)

    def files(self, images: Sequence[int]) -> list[Path] | None:
        """The files of these micrographs."""
        found = [self._pairs.files(index) for index in images]
        known = [files for files in found if files is not None]
        return [path for files in known for path in files] if len(known) == len(found) else None

    @property
    def pairs(self) -> Pairs:
        """Both halves, also of micrographs of several shapes."""
        return self._pairs

    def _read_both(self, index: int) -> np.ndarray:
        self.check(index)
        found = self._pairs.shape(index)
        if found != self.shape:
            raise DataError(
                f"{self._pairs.name(index)} of {self.label} has {size_text(found)} pixels, the first micrograph "
                f"{size_text(self.shape)}; choose micrographs of one shape with --images"
            )
        return self._pairs.read(index)
