"""The images of a run: which source --data names, what is read of it, and a digest of all that can change a result."""

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
from cryobench.errors import DataError, PluginError, SpecError
from cryobench.io.scaling import MINMAX, Scaling, minmax, scale_of, scaling_of
from cryobench.io.selection import parse_images
from cryobench.physics.ctf import COLUMNS
from cryobench.plan.presets import image_digest
from cryobench.registry import Registry, did_you_mean, guarded
from cryobench.spec import Spec, fields_of, parse

if TYPE_CHECKING:
    import pandas as pd

_NAME_OF_A_SOURCE = re.compile(r"\w+")
"""A bare word is a registered source even where a folder has its name."""


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
    """What the source knows of the images beside their pixels, a row each, or None."""
    clean: torch.Tensor | None = None
    """The images without their noise, on the scale of `images`; None unless the source knows it for all of them."""
    origin: Mapping[str, str] = field(default_factory=dict)
    """What the images are of and how they were made, where they were."""
    white_noise: bool | None = None
    """Whether the noise of the images is white; None where the source does not tell."""
    particle_radius: tuple[float | None, ...] = ()
    """Å from the middle of each image to where its particle ends, None where the source does not state it."""
    image_digests: tuple[str, ...] = ()
    """Of each image, the same for every scaling (`presets.image_digest`)."""

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
        return Spec("file", text, given)
    try:
        spec = parse(text)
    except SpecError:
        spec = None
    if spec is None or spec.name not in registry.names("sources"):
        known = did_you_mean(text, registry.names("sources"))
        raise DataError(f"--data {text!r} is neither a file here nor a registered source; {known}")
    known_fields = {f.name for f in fields_of(registry.get("sources", spec.name))}
    for key, _ in given:
        if key not in known_fields:
            raise SpecError(f"--{key.replace('_', '-')} does not apply to the data source {spec.name!r}")
    return dataclasses.replace(spec, params=(*spec.params, *given))


def _exists(text: str) -> bool:
    try:
        return Path(text).exists() and (Path(text).is_file() or not _NAME_OF_A_SOURCE.fullmatch(text))
    except OSError:  # no path of this machine: too long, say
        return False


def data_options(
    *, size: int | None = None, as_stack: bool = False, data_root: str | None = None, invert: bool = False
) -> dict[str, str]:
    """Further parameters of data sources, as the command line gives them: those that were asked for."""
    given = {"size": size, "as_stack": as_stack or None, "data_root": data_root, "invert": invert or None}
    return {key: str(value).lower() if value is True else str(value) for key, value in given.items()
            if value is not None}  # fmt: skip


def open_stack(text: str, options: dict[str, str], registry: Registry, device: torch.device | None = None) -> Stack:
    """The stack that --data names: an existing path if there is one, else a registered spec.

    device: where a source that makes its images is to make them.
    """
    return _opened(source_spec(text, options, registry), registry, device)


def _opened(spec: Spec, registry: Registry, device: torch.device | None = None) -> Stack:
    source = registry.make("sources", spec)
    check_kind("sources", str(spec), source)
    stack = guarded(f"data source {str(spec)!r} cannot be opened", lambda: source.open_on(device))
    if not isinstance(stack, Stack):
        raise PluginError(f"data source {str(spec)!r} must open a cryobench.core.Stack, got {type(stack).__name__}")
    return stack


def load(spec: Spec, images: str | None, registry: Registry, scaling: str = MINMAX) -> Dataset:
    """Read the images of a selection such as "0:8", and all that the source knows of them, on a scale of that name."""
    stack = _opened(spec, registry)
    indices = parse_images(images, len(stack), label=stack.label)
    pixel_size = tuple(stack.pixel_size(index) for index in indices)
    scaled, limits, maps, digests = [], [], [], []
    for index in indices:
        where = f"image {index} of {stack.label}"
        image = guarded(f"{where} cannot be read", lambda i=index: stack.read(i))
        between_its_limits, low, high = minmax(image, where)
        if scaled and image.shape != scaled[0].shape:
            raise DataError(
                f"{where} has shape {image.shape}, the ones before it {scaled[0].shape}; use one size a run"
            )
        radius = particle_radius_pixels(stack, index) if scaling == "relion" else None
        maps.append(scaling_of(scaling, image, where, radius=radius))
        scaled.append(between_its_limits if scaling == MINMAX else maps[-1].apply(image))
        limits.append((low, high))
        digests.append(image_digest(between_its_limits))
    pixels = torch.from_numpy(np.stack(scaled)).unsqueeze(1)
    ids = tuple(str(index) for index in indices)
    table, clean = _table(stack, indices), _clean(stack, indices, maps)
    of_scaling = () if scaling == MINMAX else (scaling, [(each.offset, each.factor) for each in maps])
    digest = hashlib.sha256(repr((ids, limits, pixel_size, tuple(pixels.shape), *of_scaling)).encode())
    digest.update(pixels.numpy().tobytes())
    digest.update(_ctf_bytes(table))
    if clean is not None:
        digest.update(clean.numpy().tobytes())
    origin = dict(guarded(f"the origin of {stack.label} cannot be read", lambda: stack.origin))
    label = stack.label if scaling == MINMAX else f"{stack.label}, scaling {scaling}"
    return Dataset(
        label, spec, pixels, ids, scale_of(scaling, maps), pixel_size, digest.hexdigest(), table, clean, origin,
        stack.white_noise, tuple(_particle_radius(stack, index) for index in indices), tuple(digests),
    )  # fmt: skip


def particle_radius_pixels(stack: Stack, index: int) -> float | None:
    """Pixels from the middle of an image to where its particle ends; None where the source does not state them."""
    radius, size = _particle_radius(stack, index), stack.pixel_size(index)
    return None if radius is None or size is None else radius / size


def _particle_radius(stack: Stack, index: int) -> float | None:
    where = f"the particle radius of image {index} of {stack.label}"
    radius = guarded(f"{where} cannot be read", lambda: stack.particle_radius(index))
    if radius is not None and not 0 < radius < math.inf:
        raise PluginError(f"{where} must be a positive number of Å or none, got {radius!r}")
    return radius


def _table(stack: Stack, indices: Sequence[int]) -> pd.DataFrame | None:
    """The rows of these images in the stack's table."""
    table = guarded(f"the table of {stack.label} cannot be read", lambda: stack.table)
    if table is None:
        return None
    if len(table) != len(stack):
        raise DataError(f"the table of {stack.label} has {len(table)} rows for {len(stack)} images; give one each")
    return stack.rows(indices)


def _clean(stack: Stack, indices: Sequence[int], maps: Sequence[Scaling]) -> torch.Tensor | None:
    """These images without their noise, by the maps of those with it, float32 [n, 1, *S]; None unless all are known."""
    images = []
    for index, scaling in zip(indices, maps, strict=True):
        where = f"the clean image {index} of {stack.label}"
        image = guarded(f"{where} cannot be read", lambda i=index: stack.clean(i))
        if image is None:
            return None
        if image.shape != stack.shape or not np.isfinite(image).all():
            raise DataError(f"{where} has shape {image.shape}, wanted finite numbers of shape {stack.shape}")
        images.append(scaling.apply(image))
    return torch.from_numpy(np.stack(images)).unsqueeze(1)


def _ctf_bytes(table: pd.DataFrame | None) -> bytes:
    """The CTF columns of a table, which can change what an operator does; b"" where it has none."""
    known = [] if table is None else [column for column in COLUMNS.values() if column in table.columns]
    if table is None or not known:
        return b""
    return repr((known, table[known].to_numpy().tolist())).encode()
