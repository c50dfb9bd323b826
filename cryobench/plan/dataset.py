"""The images of a run: the source that --data names, what is read of it, and its digest."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from cryobench.core import TRUTH, Imaging, Scale, Shape, Stack, Structure
from cryobench.core.kinds import check_kind
from cryobench.environment import version
from cryobench.errors import CryobenchError, DataError, PluginError, SpecError, quoted
from cryobench.file_state import FileState
from cryobench.io.movies.pair_folder import is_pair_folder
from cryobench.io.scaling import MINMAX, Scaling, image_digest, minmax, minmax_each, scale_of, scaling_of
from cryobench.io.selection import parse_images
from cryobench.numerics.fixed_pattern import fixed_pattern
from cryobench.physics.ctf import COLUMNS
from cryobench.physics.poses import ANGLES, CLASS, SHIFTS, SUBSET
from cryobench.plan.known_digests import DIGEST_BYTES, Entry, Known
from cryobench.record import plain
from cryobench.registry import Registry, did_you_mean, guarded
from cryobench.source_code import code_digest
from cryobench.spec import Spec, fields_of, parse

if TYPE_CHECKING:
    import pandas as pd

KEPT_BYTES = 2**26
"""Largest size of all images of a data set in memory, float32: 1,024 images of 128 x 128 pixels."""
_BLOCK_BYTES = 2**24
"""Size of the images that are read at once where a batch does not state it."""
_BYTES_PER_PIXEL = 4
FIRST, AVERAGE = "first", "average"
HALVES = (FIRST, AVERAGE)
"""What solvers are given of two halves of each image: the first, or each, and their results are averaged."""
_COMPARED, _COMPARED_SIDE = 4, 2048
"""Number of micrographs that are tested for a common pattern, and the side of the window in their middle."""
CLEAN, OTHER = "clean image", "other half of image"
_READ_TOGETHER = 16
"""Images that are read with their partners before the next; simulated images are computed in blocks of as many."""
_PARTNERS: dict[str, Callable[[Stack, int], np.ndarray | None]] = {
    CLEAN: lambda stack, index: stack.clean(index),
    OTHER: lambda stack, index: stack.other(index),
}
"""Images that a source may have beside each image: what they are in messages, and how they are read."""
_OF_POSES = (
    *ANGLES,
    *SHIFTS,
    *("rlnOriginX", "rlnOriginY", "rlnDetectorPixelSize", "rlnMagnification", "rlnPixelSize", "rlnImagePixelSize"),
    *(SUBSET, CLASS),
)
"""The columns that a map depends on besides the images and their CTFs."""
_NAME_OF_A_SOURCE = re.compile(r"\w+")
"""A bare word is a registered source even if a folder has the same name."""


@dataclass(frozen=True, eq=False)
class Images:
    """Some images of a data set as operators see them.

    pixels: float32 [n, 1, *S] on the CPU. clean, other: the clean images and the other halves on the same scale; None
    unless the source has all of them. scale: undoes the scaling.
    """

    pixels: torch.Tensor
    clean: torch.Tensor | None
    other: torch.Tensor | None
    scale: Scale


class Dataset:
    """The images of a run: which they are, and their scaled pixels when they are asked for.

    Images of up to `KEPT_BYTES` are read once, at the beginning, and stay in memory. Others are read again at each use,
    a few at a time, so that memory does not grow with their number; their digest is then known only from an earlier run
    (`plan.known_digests`), or after all of them have been read.

    label: the name in tables. ids: of the images. pixel_size: Å per pixel of each, None if unknown. particle_radius: Å
    around the centre of each, None if unknown. table: metadata of the images, one row each; None if the source has
    none. has_clean, has_other: whether the source has all clean images, and all other halves. origin: what simulated
    images show and how they were made; empty for other images. white_noise: whether the noise of the images is white;
    None if unknown. scaling: a name of `io.scaling.NORMALISATIONS`. halves: one of `HALVES`. kept: whether the images
    are in memory.
    """

    def __init__(
        self,
        spec: Spec,
        stack: Stack,
        indices: Sequence[int],
        scaling: str,
        made_by: Callable[[], object],
        halves: str = FIRST,
    ):
        self.spec, self.scaling, self._stack, self._indices = spec, scaling, stack, indices
        self.halves = halves
        named = [stack.label, *([] if scaling == MINMAX else [f"scaling {scaling}"])]
        self.label = ", ".join([*named, *(["halves averaged"] if halves == AVERAGE else [])])
        self.ids = tuple(str(index) for index in indices)
        self.available = len(stack)
        self.shape: Shape = tuple(stack.shape)
        self.pixel_size = tuple(stack.pixel_size(index) for index in indices)
        n = len(indices)
        self._limits, self._maps = np.full((n, 2), np.nan), np.full((n, 2), np.nan)
        self._image_digests = np.zeros((n, DIGEST_BYTES), np.uint8)
        self._images: Images | None = None
        self._digest: str | None = None
        self._recalled: Known | None = None
        self._entry: Entry | None = None
        self._failure: CryobenchError | None = None
        self._files: list[FileState] = []
        self.kept = _BYTES_PER_PIXEL * n * math.prod(self.shape) <= KEPT_BYTES
        pixels, clean, other = self._read_all() if self.kept else (None, *self._read_partners(slice(1)))
        self.table = _table(stack, indices)
        self.has_clean, self.has_other = clean is not None, other is not None
        if halves == AVERAGE and other is None:
            raise DataError(f"--halves {AVERAGE}: {stack.label} has no second half of each image; leave it out, or "
                            "use a source of movies or halves")  # fmt: skip
        self.origin: Mapping[str, str] = plain(
            guarded(f"the origin of {stack.label} cannot be read", lambda: dict(stack.origin))
        )
        self.white_noise = stack.white_noise
        self.particle_radius = tuple(_particle_radius(stack, index) for index in indices)
        if pixels is not None:
            self._images = Images(pixels, clean, other, self._scale(slice(None)))
            self._digest = self._computed()
            return
        what = f"the files of {stack.label} are not known"
        files = guarded(what, lambda: stack.files(indices))
        if files is not None:
            self._files = [FileState.of(file, "image file") for file in files]
            self._entry = Entry.of(self._named, self._files, made_by())
            self.recall()

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def half_digests(self) -> tuple[tuple[str, str], ...]:
        """The digests of both halves of each image, by which a network trained on them is found; empty if unknown."""
        pairs = self._stack.pairs
        if pairs is None:
            return ()
        what = f"the digests of the halves of {self._stack.label} cannot be read"
        return guarded(what, lambda: tuple(pairs.digests(index) for index in self._indices))

    @property
    def imaging(self) -> Imaging:
        return Imaging(self.shape, self.pixel_size, self.table, self._stack.through_ctf)

    def structure(self) -> Structure:
        """What is known of the structure that the images are projections of."""
        radii = [radius for radius in self.particle_radius if radius is not None]
        radius = max(radii) if len(radii) == len(self) else None
        several = self.table is not None and any(
            len(self.table[name].unique()) > 1 for name in self.table.columns if name == CLASS or name.startswith(TRUTH)
        )
        return Structure(None if several else self._volume(0), radius, self._volume)

    def _volume(self, place: int) -> torch.Tensor | None:
        """The volume that an image is a projection of, float32 [D, D, D]; None if unknown."""
        what = f"the structure of {self._stack.label} cannot be made"
        found = guarded(what, lambda: self._stack.volume(self._indices[place]))
        return None if found is None else torch.from_numpy(found[0])

    @cached_property
    def poses_digest(self) -> str:
        """SHA-256 of what the table states of poses, halves, structures and the truth; '' without."""
        names = [] if self.table is None else [str(name) for name in self.table.columns]
        truth = sorted(name for name in names if name.startswith(TRUTH))
        known = [*(name for name in _OF_POSES if name in names), *truth]
        if self.table is None or not known:
            return ""
        return hashlib.sha256(repr((known, self.table[known].to_numpy().tolist())).encode()).hexdigest()

    # --- pixels

    def read(self, part: slice) -> Images:
        """Some of the images. Raises a `CryobenchError` for an image that cannot be read or scaled, and for one that is
        not the same as before; from then on always."""
        with self._usable():
            pixels = self._pixels(part)  # first: the maps of the others are found with them
            clean = self._partner(part, CLEAN) if self.has_clean else None
            other = self._partner(part, OTHER) if self.has_other else None
            return Images(pixels, clean, other, self._scale(part))

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """A block that reads images. After one that failed, others fail at once."""
        if self._failure is not None:
            raise self._failure
        try:
            yield
        except CryobenchError as error:
            self._failure = error
            raise

    def _pixels(self, part: slice) -> torch.Tensor:
        return self._read(part) if self._images is None else self._images.pixels[part]

    def _partner(self, part: slice, what: str) -> torch.Tensor:
        """The clean images or the other halves of some of the images, which the source has."""
        if self._images is not None:
            known = self._images.clean if what == CLEAN else self._images.other
            assert known is not None
            return known[part]
        read = self._read_partner(part, what)
        if read is None:
            raise DataError(
                f"some of the {what}s of {self._stack.label} are unknown, unlike that of image {self.ids[0]}; run "
                "these images separately"
            )
        return read

    def _read_all(self) -> list[torch.Tensor | None]:
        """The scaled images, clean images and other halves; None where not all are known. Those of an image are read
        one after the other, because simulated ones are computed together."""
        starts = range(0, len(self), _READ_TOGETHER)
        parts = [slice(start, start + _READ_TOGETHER) for start in starts]
        read = [(self._read(part), *self._read_partners(part)) for part in parts]
        return [_joined(column) for column in zip(*read, strict=True)]

    def _read_partners(self, part: slice) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        clean, other = (self._read_partner(part, what) for what in _PARTNERS)
        return clean, other

    def _read(self, part: slice | np.ndarray) -> torch.Tensor:
        """The scaled pixels of images, float32 [n, 1, *S]; part: a slice of their places, or the places."""
        return torch.from_numpy(np.stack([self._read_one(place) for place in self._places(part)])).unsqueeze(1)

    def _read_one(self, place: int) -> np.ndarray:
        """A scaled image. What is known of it is noted when it is first read, and compared later."""
        index = self._indices[place]
        where = f"image {index} of {self._stack.label}"
        image = guarded(f"{where} cannot be read", lambda: self._stack.read(index))
        if image.shape != self.shape:
            raise DataError(f"{where} has shape {image.shape}, others have {self.shape}; use one size per run")
        limits = float(image.min()), float(image.max())
        if not np.isnan(self._limits[place, 0]):
            if limits != tuple(self._limits[place].tolist()):
                raise DataError(f"{where} changed while it was used; run again when nothing writes to it")
            return self._map(place).apply(image)
        between_limits = minmax(image, where)  # raises for a constant image, whatever the scaling
        made = between_limits
        if self.scaling != MINMAX:
            made = image_scaling(self.scaling, image, self._stack, index)
        scaled = made.apply(image)
        digest = image_digest(scaled if made is between_limits else between_limits.apply(image))
        self._image_digests[place] = np.frombuffer(bytes.fromhex(digest), np.uint8)
        if self._recalled is not None and (self._image_digests[place] != self._recalled.images[place]).any():
            self._recalled = self._digest = None  # the files were edited in a way that their state does not show
        self._maps[place], self._limits[place] = (made.offset, made.factor), limits
        return scaled

    def _read_partner(self, part: slice, what: str) -> torch.Tensor | None:
        """The clean images or the other halves, scaled by the maps of the noisy ones, float32 [n, 1, *S]; None unless
        all are known."""
        images = []
        for place in self._places(part):
            index = self._indices[place]
            where = f"the {what} {index} of {self._stack.label}"
            image = guarded(f"{where} cannot be read", lambda i=index: _PARTNERS[what](self._stack, i))
            if image is None:
                return None
            if image.shape != self.shape or not np.isfinite(image).all():
                raise DataError(f"{where} has shape {image.shape}, expected finite numbers of shape {self.shape}")
            images.append(self._map(place).apply(image))
        return torch.from_numpy(np.stack(images)).unsqueeze(1)

    def _places(self, part: slice | np.ndarray) -> list[int]:
        return np.arange(len(self))[part].tolist()

    def _map(self, place: int) -> Scaling:
        offset, factor = self._maps[place].tolist()
        return Scaling(offset, factor)

    def _scale(self, part: slice) -> Scale:
        return scale_of(self.scaling, [self._map(place) for place in self._places(part)])

    @property
    def scale_without_images(self) -> Scale:
        """The name and the range of the scale, which are known before an image is read."""
        return scale_of(self.scaling, [])

    @cached_property
    def halves_note(self) -> str | None:
        """A warning if the halves have a pattern of the detector in common, or that this was not tested; None for
        images without halves and for independent ones. Compares the first micrographs with each other."""
        if not self.has_other:
            return None
        what = f"{self.label}: that the noise of the halves is independent"
        if len(self) == 1:
            return f"{what} was not tested, which needs two micrographs"
        images = self.read(slice(0, _COMPARED))
        assert images.other is not None
        window = tuple(slice((n - min(n, _COMPARED_SIDE)) // 2, (n + min(n, _COMPARED_SIDE)) // 2) for n in self.shape)
        found = fixed_pattern(*([image[0][window] for image in half] for half in (images.pixels, images.other)))
        if not found.found:
            return None
        return (
            f"{what} does not hold: half a of one micrograph and half b of another correlate by "
            f"{found.correlation:.2g} ± {found.error:.1g}, {found.share:.0%} of the correlation within a micrograph; "
            "the errors against the other half are too low: correct the gain reference and hot pixels"
        )

    # --- what is known of all images; those that were not read yet are read

    @property
    def scale(self) -> Scale:
        """The scale of all images."""
        self._complete()
        return self._scale(slice(None))

    @property
    def extremes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The minimum and the maximum of every image after scaling, float32 [n] each."""
        self._complete()
        low, high = ((self._limits - self._maps[:, :1]) / self._maps[:, 1:]).astype(np.float32).T
        return torch.from_numpy(low.copy()), torch.from_numpy(high.copy())

    @property
    def image_digests(self) -> tuple[str, ...]:
        """The digest of each image, the same for every scaling (`io.scaling.image_digest`)."""
        if self._recalled is not None:
            return _as_hex(self._recalled.images)
        self._complete()
        return _as_hex(self._image_digests)

    def read_digests(self, part: slice) -> tuple[str, ...]:
        """The digests of some images, which have been read."""
        return _as_hex(self._image_digests[part])

    def _complete(self) -> None:
        with self._usable():
            new = np.flatnonzero(np.isnan(self._limits[:, 0]))
            for part in self._blocks(len(new)):
                self._read(new[part])

    # --- identity

    @property
    def digest(self) -> str:
        """SHA-256 of everything about the images that can change results.

        Where it is not known, the images that were not read yet are read, and then all of them once more, because the
        limits of all images precede their pixels. Raises a `CryobenchError` if an image cannot be read, or if a file
        has changed since the data set was opened.
        """
        if self._digest is None:
            with self._usable():
                digest = self._computed()
            self.check_files()
            self._digest = digest
            if self._entry is not None:
                self._entry.remember(Known(digest, self._image_digests))
        return self._digest

    def recall(self) -> bool:
        """Whether `digest` is known without reading images, from this run or from what another process has found."""
        if self._digest is None and self._entry is not None:
            known, read = self._entry.recall(len(self)), ~np.isnan(self._limits[:, 0])
            if known is not None and np.array_equal(known.images[read], self._image_digests[read]):
                self._recalled, self._digest = known, known.digest
        return self._digest is not None

    @property
    def key(self) -> str:
        """Identifies the images within a plan: their digest if they are in memory, else a digest of how they are
        given."""
        return self.digest if self.kept else self._named

    @cached_property
    def _named(self) -> str:
        """A digest of source, selection and scaling."""
        of_halves = () if self.halves == FIRST else (self.halves,)
        named = (str(self.spec), self.ids, self.scaling, self.shape, self.pixel_size, *of_halves)
        return hashlib.sha256(repr(named).encode()).hexdigest()

    def _computed(self) -> str:
        self._complete()
        limits, maps = ([tuple(row) for row in values.tolist()] for values in (self._limits, self._maps))
        of_scaling = () if self.scaling == MINMAX else (self.scaling, maps)
        shape = (len(self), 1, *self.shape)
        digest = hashlib.sha256(repr((self.ids, limits, self.pixel_size, shape, *of_scaling)).encode())
        for part in self._blocks(len(self)):
            digest.update(self._pixels(part).numpy().tobytes())
        digest.update(_ctf_bytes(self.table))
        for part in self._blocks(len(self)) if self.has_clean else ():
            digest.update(self._partner(part, CLEAN).numpy().tobytes())
        for part in self._blocks(len(self)) if self.has_other else ():
            digest.update(self._partner(part, OTHER).numpy().tobytes())
        if self.halves != FIRST:
            digest.update(self.halves.encode())
        return digest.hexdigest()

    def _blocks(self, n: int) -> Iterator[slice]:
        """0 to n - 1 in slices of about `_BLOCK_BYTES`."""
        size = max(1, _BLOCK_BYTES // (_BYTES_PER_PIXEL * math.prod(self.shape)))
        return (slice(start, min(start + size, n)) for start in range(0, n, size))

    def check_files(self) -> None:
        """Raise `DataError` if a file of images that are not in memory has changed since the data set was opened."""
        with self._usable():
            for before in self._files:
                if FileState.of(before.path, "image file") != before:
                    raise DataError(f"{before.path} changed while it was used; run again when nothing writes to it")


def source_spec(text: str, options: dict[str, str], registry: Registry) -> Spec:
    """The source that --data names: an existing path if there is one, else a registered spec."""
    given = tuple(options.items())
    if _exists(text):
        return Spec("sums" if is_pair_folder(Path(text)) else "file", text, given)
    try:
        spec = parse(text)
    except SpecError:
        spec = None
    if spec is None or spec.name not in registry.names("sources"):
        if is_pair_folder(Path(text)):
            return Spec("sums", text, given)
        known = did_you_mean(text, registry.names("sources"))
        raise DataError(f"--data {quoted(text)} is neither a file here nor a registered source; {known}")
    known_fields = {f.name for f in fields_of(registry.get("sources", spec.name))}
    for key, _ in given:
        if key not in known_fields:
            raise SpecError(f"--{key.replace('_', '-')} does not apply to the data source {spec.name!r}")
    return dataclasses.replace(spec, params=(*spec.params, *given))


def _exists(text: str) -> bool:
    try:
        return Path(text).exists() and (Path(text).is_file() or not _NAME_OF_A_SOURCE.fullmatch(text))
    except OSError:  # not a valid path on this machine, for example too long
        return False


def data_options(
    *, size: int | None = None, as_stack: bool = False, data_root: str | None = None, invert: bool = False
) -> dict[str, str]:
    """Parameters of data sources given on the command line, without those that were not given."""
    given = {"size": size, "as_stack": as_stack or None, "data_root": data_root, "invert": invert or None}
    return {key: str(value).lower() if value is True else str(value) for key, value in given.items()
            if value is not None}  # fmt: skip


def open_stack(text: str, options: dict[str, str], registry: Registry, device: torch.device | None = None) -> Stack:
    """The stack that --data names: an existing path if there is one, else a registered spec.

    device: on which a source computes its images, if it does.
    """
    return _opened(source_spec(text, options, registry), registry, device)


def _opened(spec: Spec, registry: Registry, device: torch.device | None = None) -> Stack:
    source = registry.make("sources", spec)
    check_kind("sources", str(spec), source)
    stack = guarded(f"data source {quoted(str(spec))} cannot be opened", lambda: source.open_on(device))
    if not isinstance(stack, Stack):
        raise PluginError(
            f"data source {quoted(str(spec))} must open a cryobench.core.Stack, got {type(stack).__name__}"
        )
    return stack


def load(spec: Spec, images: str | None, registry: Registry, scaling: str = MINMAX, halves: str = FIRST) -> Dataset:
    """A selection of images such as "0:8" with their metadata.

    scaling: a name of `io.scaling.NORMALISATIONS`. halves: one of `HALVES`.
    """
    source = registry.make("sources", spec)
    stack = _opened(spec, registry)
    indices = parse_images(images, len(stack), label=stack.label)

    def made_by() -> object:
        """What the pixels depend on besides the files: the parameters of the source, and the code."""
        origin = registry.origin_of(type(source))
        code = code_digest(type(source).__module__, origin.distribution), code_digest(__name__, "cryobench")
        return str(registry.spec_of(source, full=True)), origin.distribution, origin.version, version(), code

    return Dataset(spec, stack, indices, scaling, made_by, halves)


def image_scaling(name: str, image: np.ndarray, stack: Stack, index: int, *, radius: float | None = None) -> Scaling:
    """The scaling `name` of image `index` of a stack.

    radius: of the particle in pixels, for `relion`. The default is the radius that the source states, or else the
    default of `io.scaling.relion`.
    """
    if radius is None and name == "relion":
        stated, size = _particle_radius(stack, index), stack.pixel_size(index)
        radius = None if stated is None or size is None else stated / size
    return scaling_of(name, image, f"image {index} of {stack.label}", radius=radius)


def image_scalings(
    name: str, images: np.ndarray, stack: Stack, indices: Sequence[int], *, radius: float | None = None
) -> list[Scaling]:
    """The scalings `name` of images [n, *S] of a stack; see `image_scaling`."""
    if name == MINMAX and radius is None:
        return minmax_each(images, lambda place: f"image {indices[place]} of {stack.label}")
    pairs = zip(images, indices, strict=True)
    return [image_scaling(name, image, stack, index, radius=radius) for image, index in pairs]


def _particle_radius(stack: Stack, index: int) -> float | None:
    where = f"the particle radius of image {index} of {stack.label}"
    radius = guarded(f"{where} cannot be read", lambda: stack.particle_radius(index))
    if radius is not None and not 0 < radius < math.inf:
        raise PluginError(f"{where} must be a positive number of Å or None, got {radius!r}")
    return radius


def _joined(parts: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """The parts after each other; None unless all are known."""
    known = [part for part in parts if part is not None]
    return torch.cat(known) if len(known) == len(parts) else None


def _table(stack: Stack, indices: Sequence[int]) -> pd.DataFrame | None:
    """The rows of these images in the stack's table."""
    table = guarded(f"the table of {stack.label} cannot be read", lambda: stack.table)
    if table is None:
        return None
    if len(table) != len(stack):
        raise DataError(
            f"the table of {stack.label} has {len(table)} rows for {len(stack)} images; give one row per image"
        )
    return stack.rows(indices)


def _as_hex(digests: np.ndarray) -> tuple[str, ...]:
    """Digests, uint8 [n, 32], as hex digits."""
    return tuple(row.tobytes().hex() for row in digests)


def _ctf_bytes(table: pd.DataFrame | None) -> bytes:
    """The CTF columns of a table, which can change what an operator does; b"" if it has none."""
    known = [] if table is None else [column for column in COLUMNS.values() if column in table.columns]
    if table is None or not known:
        return b""
    return repr((known, table[known].to_numpy().tolist())).encode()
