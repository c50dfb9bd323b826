"""The images of a run: the source that --data names, the images read from it, and their digest."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from cryobench.core import Imaging, Scale, Shape, Stack
from cryobench.core.kinds import check_kind
from cryobench.core.source import size_text
from cryobench.errors import DataError, PluginError, SpecError, quoted
from cryobench.io.movies.pair_folder import is_pair_folder
from cryobench.io.scaling import MINMAX, Scaling, minmax, scale_of, scaling_of
from cryobench.io.selection import parse_images
from cryobench.limits import check_memory
from cryobench.physics.ctf import COLUMNS
from cryobench.plan.presets import image_digest
from cryobench.record import plain
from cryobench.registry import Registry, did_you_mean, guarded
from cryobench.spec import Spec, fields_of, parse

if TYPE_CHECKING:
    import pandas as pd

_BYTES_PER_PIXEL = 8
"""Memory in bytes for each pixel of the images of a run: float32, and a copy."""
_NAME_OF_A_SOURCE = re.compile(r"\w+")
"""A bare word is a registered source even if a folder has the same name."""


@dataclass(frozen=True)
class Dataset:
    """The images of a run, read and scaled, with the scale that undoes it."""

    label: str
    spec: Spec
    images: torch.Tensor
    """[n, 1, *S] float32 on the CPU."""
    ids: tuple[str, ...]
    scale: Scale
    pixel_size: tuple[float | None, ...]
    digest: str
    table: pd.DataFrame | None = None
    """Metadata of the images, one row each; None if the source has none."""
    clean: torch.Tensor | None = None
    """The clean images, on the scale of `images`; None unless the source has all of them."""
    origin: Mapping[str, str] = field(default_factory=dict)
    """What simulated images show and how they were made; empty for other images."""
    white_noise: bool | None = None
    """Whether the noise of the images is white; None if unknown."""
    particle_radius: tuple[float | None, ...] = ()
    """Radius of each particle around the centre of its image in Å; None if the source does not state it."""
    image_digests: tuple[str, ...] = ()
    """Digest of each image, the same for every scaling (`presets.image_digest`)."""

    @property
    def shape(self) -> Shape:
        return tuple(self.images.shape[2:])

    @property
    def imaging(self) -> Imaging:
        return Imaging(self.shape, self.pixel_size, self.table)


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


def load(spec: Spec, images: str | None, registry: Registry, scaling: str = MINMAX) -> Dataset:
    """Read a selection of images such as "0:8" with their metadata. scaling: a name of `io.scaling.NORMALISATIONS`."""
    stack = _opened(spec, registry)
    indices = parse_images(images, len(stack), label=stack.label)
    what = f"reading {len(indices)} images of {size_text(stack.shape)} pixels"
    check_memory(what, _BYTES_PER_PIXEL * len(indices) * math.prod(stack.shape), "give fewer --images", DataError)
    pixel_size = tuple(stack.pixel_size(index) for index in indices)
    scaled, limits, maps, digests = [], [], [], []
    for index in indices:
        where = f"image {index} of {stack.label}"
        image = guarded(f"{where} cannot be read", lambda i=index: stack.read(i))
        between_limits = minmax(image, where).apply(image)  # raises for a constant image, whatever the scaling
        if scaled and image.shape != scaled[0].shape:
            raise DataError(
                f"{where} has shape {image.shape}, the images before it {scaled[0].shape}; use one size per run"
            )
        maps.append(image_scaling(scaling, image, stack, index))
        scaled.append(between_limits if scaling == MINMAX else maps[-1].apply(image))
        limits.append((float(image.min()), float(image.max())))
        digests.append(image_digest(between_limits))
    pixels = torch.from_numpy(np.stack(scaled)).unsqueeze(1)
    ids = tuple(str(index) for index in indices)
    table, clean = _table(stack, indices), _clean(stack, indices, maps)
    of_scaling = () if scaling == MINMAX else (scaling, [(each.offset, each.factor) for each in maps])
    digest = hashlib.sha256(repr((ids, limits, pixel_size, tuple(pixels.shape), *of_scaling)).encode())
    digest.update(pixels.numpy().tobytes())
    digest.update(_ctf_bytes(table))
    if clean is not None:
        digest.update(clean.numpy().tobytes())
    origin = plain(guarded(f"the origin of {stack.label} cannot be read", lambda: dict(stack.origin)))
    label = stack.label if scaling == MINMAX else f"{stack.label}, scaling {scaling}"
    return Dataset(
        label, spec, pixels, ids, scale_of(scaling, maps), pixel_size, digest.hexdigest(), table, clean, origin,
        stack.white_noise, tuple(_particle_radius(stack, index) for index in indices), tuple(digests),
    )  # fmt: skip


def image_scaling(name: str, image: np.ndarray, stack: Stack, index: int, *, radius: float | None = None) -> Scaling:
    """The scaling `name` of image `index` of a stack.

    radius: of the particle in pixels, for `relion`. The default is the radius that the source states, or else the
    default of `io.scaling.relion`.
    """
    if radius is None and name == "relion":
        stated, size = _particle_radius(stack, index), stack.pixel_size(index)
        radius = None if stated is None or size is None else stated / size
    return scaling_of(name, image, f"image {index} of {stack.label}", radius=radius)


def _particle_radius(stack: Stack, index: int) -> float | None:
    where = f"the particle radius of image {index} of {stack.label}"
    radius = guarded(f"{where} cannot be read", lambda: stack.particle_radius(index))
    if radius is not None and not 0 < radius < math.inf:
        raise PluginError(f"{where} must be a positive number of Å or None, got {radius!r}")
    return radius


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


def _clean(stack: Stack, indices: Sequence[int], maps: Sequence[Scaling]) -> torch.Tensor | None:
    """The clean images, scaled by the maps of the noisy ones, float32 [n, 1, *S]; None unless all are known."""
    images = []
    for index, scaling in zip(indices, maps, strict=True):
        where = f"the clean image {index} of {stack.label}"
        image = guarded(f"{where} cannot be read", lambda i=index: stack.clean(i))
        if image is None:
            return None
        if image.shape != stack.shape or not np.isfinite(image).all():
            raise DataError(f"{where} has shape {image.shape}, expected finite numbers of shape {stack.shape}")
        images.append(scaling.apply(image))
    return torch.from_numpy(np.stack(images)).unsqueeze(1)


def _ctf_bytes(table: pd.DataFrame | None) -> bytes:
    """The CTF columns of a table, which can change what an operator does; b"" if it has none."""
    known = [] if table is None else [column for column in COLUMNS.values() if column in table.columns]
    if table is None or not known:
        return b""
    return repr((known, table[known].to_numpy().tolist())).encode()
