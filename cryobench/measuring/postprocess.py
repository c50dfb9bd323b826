"""Postprocesses two half maps in files into a folder that appears whole or not at all.

OUT/fsc.csv         shell correlations by frequency
OUT/fsc.png         the same as a figure
OUT/mask.mrc        the mask
OUT/map.mrc         the mean of the halves, sharpened, weighted and cut at its resolution
OUT/map_masked.mrc  the same times the mask
OUT/local.mrc       the resolution from place to place, where it was asked for
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cryobench.core.source import size_text
from cryobench.errors import DataError, ParameterError, ResultsError, reason_of
from cryobench.io.maps import Map, read_map, write_map
from cryobench.io.writing import written_folder
from cryobench.limits import check_memory
from cryobench.maps.fsc import HALF_MAPS, REFERENCE, HalfMapFsc, half_map_fsc, resolution_of, shell_correlation
from cryobench.maps.local import DIAMETER, local_resolution
from cryobench.maps.masks import mask_of
from cryobench.maps.postprocess import Postprocessed, postprocess
from cryobench.measuring.fsc_files import resolution_lines, write_curves
from cryobench.measuring.map_masks import ball_mask, check_one, differ, read_mask, read_matching

NAMES = ("fsc.csv", "fsc.png", "mask.mrc", "map.mrc", "map_masked.mrc", "local.mrc")
MASK_LOW_PASS = 15.0
"""Å, or 5 pixels without a pixel size: the map is low-passed to this resolution before its mask is made."""
_MASK_LOW_PASS_PIXELS = 5.0
_EXTEND, _EDGE = 1 / 32, 1 / 16
"""Widths of the mask of a map beyond its threshold and of its edge, relative to the side, at most those of RELION."""
_OTHERS, _REMEDY = "half maps", "resample the {}, or give --pixel-size if a header is wrong"
_BYTES_PER_VOXEL = 100
"""Peak memory for each voxel, as measured."""


@dataclass(frozen=True)
class PostprocessTask:
    """Two half maps and how to postprocess them.

    mask: a file with values in [0, 1]; radius: of a soft ball instead, Å; neither: a mask of the map itself.
    pixel_size: Å, that of the files if None. b_factor: Å^2, None to fit it. reference: a map that is the truth. local:
    also the resolution from place to place. seed: of random phases.
    """

    half1: Path
    half2: Path
    mask: Path | None = None
    radius: float | None = None
    pixel_size: float | None = None
    b_factor: float | None = None
    reference: Path | None = None
    local: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_one(self.mask, self.radius)
        for name, value in (("--radius", self.radius), ("--pixel-size", self.pixel_size)):
            if value is not None and not 0 < value < math.inf:
                raise ParameterError(f"{name} must be positive, got {value:g}")
        if self.b_factor is not None and not math.isfinite(self.b_factor):
            raise ParameterError(f"--b-factor: expected auto or a finite number, got {self.b_factor:g}")

    def run(self, out: Path) -> Finished:
        """Postprocess the maps into the folder `out`, which it replaces. Raises `DataError` for files that are no half
        maps of each other."""
        first, second = _halves(self.half1, self.half2)
        pixel_size = self.pixel_size or _pixel_size(first, second)
        check_memory(f"postprocessing maps of {size_text(first.volume.shape)} voxels",
                     _BYTES_PER_VOXEL * first.volume.size, "crop them, or bin them", DataError)  # fmt: skip
        a, b = (torch.from_numpy(half.volume) for half in (first, second))
        truth = self._truth(first, pixel_size)
        mask = self._mask(first, pixel_size, (a + b) / 2)
        fsc = half_map_fsc(a, b, mask=mask, pixel_size=pixel_size, seed=self.seed)
        made = postprocess(a, b, fsc, mask=mask, b_factor=self.b_factor)
        if not made.map.isfinite().all():
            raise ParameterError(
                f"--b-factor {made.b_factor:g} sharpens beyond the numbers of a map; give one nearer to 0"
            )
        reference = None if truth is None else shell_correlation((a + b) / 2, truth, mask)
        local = None
        if self.local:
            radius = DIAMETER / 2 * fsc.resolution() / (pixel_size or 1.0)
            local = local_resolution(a, b, mask, radius_pixels=radius, pixel_size=pixel_size)
        finished = Finished(fsc, made, mask, reference, local)
        finished.write(out, first)
        return finished

    def _mask(self, half: Map, pixel_size: float | None, mean: torch.Tensor) -> torch.Tensor:
        side = len(half.volume)
        if self.mask is not None:
            return read_mask(self.mask, side, self._stated(pixel_size), others=_OTHERS, remedy=_REMEDY.format("mask"))
        if self.radius is not None:
            return ball_mask(self.radius, side, pixel_size)
        low_pass = MASK_LOW_PASS / pixel_size if pixel_size else _MASK_LOW_PASS_PIXELS
        extend, edge = min(3.0, max(1.0, _EXTEND * side)), min(6.0, max(3.0, _EDGE * side))
        return mask_of(mean, low_pass_pixels=low_pass, extend_pixels=extend, edge_pixels=edge)

    def _truth(self, half: Map, pixel_size: float | None) -> torch.Tensor | None:
        """The reference."""
        if self.reference is None:
            return None
        side, stated = len(half.volume), self._stated(pixel_size)
        found = read_matching(self.reference, "reference", side, stated, others=_OTHERS,
                              remedy=_REMEDY.format("reference"))  # fmt: skip
        _check_varies(found, "reference")
        return torch.from_numpy(found.volume)

    def _stated(self, pixel_size: float | None) -> float | None:
        """The pixel size that headers must have: any, where it is given."""
        return pixel_size if self.pixel_size is None else None


@dataclass(frozen=True, eq=False)
class Finished:
    """What was found. reference: the correlation of the mean map with the reference under the mask, [D // 2]; local:
    the resolution from place to place, [D, D, D]; None where not asked for."""

    fsc: HalfMapFsc
    made: Postprocessed
    mask: torch.Tensor
    reference: torch.Tensor | None
    local: torch.Tensor | None

    def write(self, out: Path, half: Map) -> None:
        """Write the folder; maps have the place of the half map."""
        maps = {"mask": self.mask, "map": self.made.map, "map_masked": self.made.map * self.mask}
        if self.local is not None:
            maps["local"] = self.local
        with written_folder(out) as folder:
            for name, volume in maps.items():
                file = f"{name}.mrc"
                write_map(folder / file, out / file, volume.numpy(), self.fsc.pixel_size, half)
            write_curves(folder, self.fsc, self.reference)

    def lines(self) -> list[tuple[str, str]]:
        """What was found, in words: names and values."""
        fsc, unit = self.fsc, "Å" if self.fsc.pixel_size else "pixels"
        lines = resolution_lines(fsc)
        if self.reference is not None:
            found = resolution_of(self.reference, REFERENCE, fsc.side, fsc.pixel_size)
            lines.append((f"with the reference, FSC = {REFERENCE}", f"{found:.2f} {unit}"))
        start = fsc.side * (fsc.pixel_size or 1.0) / fsc.first_random
        randomised = f"beyond {start:.2f} {unit}" if fsc.first_random <= fsc.side // 2 else "none: FSC never below 0.8"
        lines.append(("phases randomised", randomised))
        if self.local is not None:
            inside = self.local[self.mask > 0.5].numpy()
            low, middle, high = np.percentile(inside, (5, 50, 95))
            lines.append((f"local, FSC = {HALF_MAPS}", f"{middle:.2f} {unit} (5 to 95%: {low:.2f} to {high:.2f})"))
        lines.append(("B-factor", f"{self.made.b_factor:.1f} Å²" if self.made.b_factor else "none"))
        return lines


def check_folder(out: Path, *, force: bool, names: Collection[str] = NAMES) -> None:
    """Raise `ResultsError` unless `out` does not exist, is empty, or has files of these names only and `force`."""
    try:
        found = {path.name for path in out.iterdir()} if out.is_dir() else set()
        exists = out.exists() and not out.is_dir()
        parent = out.absolute().parent.is_dir()
    except OSError as error:
        raise ResultsError(f"cannot read {out}: {reason_of(error)}; give another --out") from error
    if exists:
        raise ResultsError(f"{out} is a file; give the path of a folder as --out")
    if not parent:
        raise ResultsError(f"cannot write {out}: the folder {out.parent} does not exist; create it first")
    other = sorted(found - set(names))
    if other:
        raise ResultsError(f"{out} has other files, such as {other[0]}; give a new folder as --out")
    if found and not force:
        raise ResultsError(f"{out} exists already; give another --out, or --force to replace it")


def _halves(first: Path, second: Path) -> tuple[Map, Map]:
    """Two half maps of the same size that are not the same."""
    a, b = (read_map(path, "half map") for path in (first, second))
    for half in (a, b):
        _check_varies(half, "half map")
    if a.volume.shape != b.volume.shape:
        raise DataError(
            f"{first} has {size_text(a.volume.shape)} voxels and {second} {size_text(b.volume.shape)}; expected half "
            "maps of the same size"
        )
    if np.array_equal(a.volume, b.volume):
        raise DataError(
            f"{first} and {second} are the same map; expected the two half maps of a refinement, of different particles"
        )
    return a, b


def _check_varies(found: Map, what: str) -> None:
    if found.volume.min() == found.volume.max():
        raise DataError(f"{found.path} is constant, {found.volume.flat[0]:g} everywhere; expected a {what}")


def _pixel_size(a: Map, b: Map) -> float | None:
    """That of both maps."""
    if differ(a.pixel_size, b.pixel_size):
        raise DataError(
            f"{a.path} has {a.pixel_size:.5g} Å per voxel and {b.path} {b.pixel_size:.5g}; expected the same: give "
            "--pixel-size if a header is wrong"
        )
    return a.pixel_size or b.pixel_size
