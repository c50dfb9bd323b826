"""Measurements on disk: the output of a simulated detector, with everything needed to reconstruct images from it.

One .npz: `y` [B, M, h, w], `sigma` [B], `offset` and `factor` [B] (image = offset + factor * x), `drawn/NAME` for each
random array that the operator was made with (masks), and `about`, JSON text with the specs, the name and the range of
the scale, the image shape, the pixel sizes, the images' ids and their table. Format 1 has no range; it follows from the
name. A file with only `y` and `masks` [M, H, W] is sum pooling of images in the units of y.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cryobench.core import Imaging, Scale, Shape
from cryobench.errors import DataError, ResultsError, reason_of
from cryobench.files import whole_file
from cryobench.io.scaling import MINMAX

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 2
_DRAWN = "drawn/"


@dataclass(frozen=True, eq=False)
class Measurements:
    """Measurements and everything they were made with.

    y: [B, M, h, w]. sigma: standard deviation of the noise in an entry of y, [B]. operator, noise: full specs; operator
    is '' if only masks are known. drawn: the operator's random arrays. scale: of the images, one number each [B].
    pixel_size: Å per pixel or None. table: RELION's columns, a row per image, or None.
    """

    y: torch.Tensor
    sigma: torch.Tensor
    image_shape: Shape
    operator: str
    noise: str
    seed: int
    drawn: dict[str, torch.Tensor]
    scale: Scale
    pixel_size: tuple[float | None, ...]
    image_ids: tuple[str, ...]
    table: pd.DataFrame | None = None
    about: dict[str, Any] = field(default_factory=dict)
    """Further provenance: data, radius of the particle, versions."""

    @property
    def imaging(self) -> Imaging:
        return Imaging(self.image_shape, self.pixel_size, self.table)

    def select(self, part: slice) -> Measurements:
        """The measurements of some of the images."""
        table = None if self.table is None else self.table.iloc[part].reset_index(drop=True)
        return replace(self, y=self.y[part], sigma=self.sigma[part], scale=self.scale.select(part), table=table,
                       pixel_size=self.pixel_size[part], image_ids=self.image_ids[part])  # fmt: skip

    def save(self, path: Path) -> None:
        """Write the file atomically. Raises `ResultsError`."""
        about = {
            "format": FORMAT,
            "operator": self.operator,
            "noise": self.noise,
            "seed": self.seed,
            "scaling": self.scale.name,
            "range": self.scale.range,
            "image_shape": list(self.image_shape),
            "scale": self.scale.name,
            "pixel_size_angstrom": list(self.pixel_size),
            "image_ids": list(self.image_ids),
            "table": None if self.table is None else self.table.to_json(orient="split", double_precision=15),
            "about": self.about,
        }
        arrays: dict[str, Any] = {
            "y": self.y.cpu().numpy(),
            "sigma": self.sigma.cpu().numpy(),
            "offset": self.scale.offset.numpy(),
            "factor": self.scale.factor.numpy(),
            "about": np.array(json.dumps(about)),
        } | {_DRAWN + name: array.cpu().numpy() for name, array in self.drawn.items()}
        try:
            with whole_file(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **arrays)
        except OSError as error:
            raise ResultsError(f"cannot write {path}: {error.strerror}; choose another path") from error


def load(path: Path) -> Measurements:
    """Read measurements. Raises `DataError` for a file without measurements."""
    from cryobench.io.image_files import check_file

    check_file(path, "file of measurements (.npz)")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # numpy raises many kinds of errors for other files
        raise DataError(
            f"{path} is not a readable .npz file: {reason_of(error)}; expected what `cryobench measure` writes, or "
            "arrays y and masks"
        ) from error
    if "y" not in arrays:
        raise DataError(
            f"{path} holds {', '.join(arrays) or 'nothing'}, but no y; expected measurements y [B, M, h, w]"
        )
    y = arrays["y"]
    if y.ndim != 4 or y.dtype.kind not in "fiu" or not np.isfinite(y).all() or 0 in y.shape:
        raise DataError(f"{path}: y is {y.dtype} {list(y.shape)}; expected finite real numbers [B, M, h, w]")
    try:
        return _recorded(arrays) if "about" in arrays else _plain(arrays, path)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged or from another version: {reason_of(error)}; measure again") from error


def _recorded(arrays: dict[str, np.ndarray]) -> Measurements:
    import pandas as pd

    about = json.loads(str(arrays["about"]))
    if about["format"] == 1:
        about["scaling"] = about["about"]["normalize"]
        about["range"] = (-1.0, 1.0) if about["scaling"] == MINMAX else None
    elif about["format"] != FORMAT:
        raise ValueError(f"format {about['format']}, this version reads 1 and {FORMAT}")
    table, limits = about["table"], about["range"]
    offset, factor = (torch.from_numpy(arrays[name]).double() for name in ("offset", "factor"))
    return Measurements(
        y=torch.from_numpy(arrays["y"]),
        sigma=torch.from_numpy(arrays["sigma"]),
        image_shape=(int(about["image_shape"][0]), int(about["image_shape"][1])),
        operator=about["operator"],
        noise=about["noise"],
        seed=about["seed"],
        drawn={n.removeprefix(_DRAWN): torch.from_numpy(a) for n, a in arrays.items() if n.startswith(_DRAWN)},
        scale=Scale(offset, factor, None if limits is None else (float(limits[0]), float(limits[1])), about["scaling"]),
        pixel_size=tuple(about["pixel_size_angstrom"]),
        image_ids=tuple(about["image_ids"]),
        table=None if table is None else pd.read_json(io.StringIO(table), orient="split", precise_float=True),
        about=about["about"],
    )


def _plain(arrays: dict[str, np.ndarray], path: Path) -> Measurements:
    """Sum pooling in the units of y, from only y [B, M, h, w] and masks [M, H, W]."""
    y, masks = arrays["y"], arrays.get("masks")
    if masks is None:
        raise DataError(f"{path} has y but no masks; give masks [M, H, W], or measure with `cryobench measure`")
    B, M, h, w = y.shape
    fits = masks.ndim == 3 and masks.dtype.kind in "bfiu" and len(masks) == M and np.isfinite(masks).all()
    if not fits or masks.shape[1] % h or masks.shape[2] % w or masks.shape[1] // h != masks.shape[2] // w:
        raise DataError(
            f"{path}: masks are {masks.dtype} {list(masks.shape)} and y {list(y.shape)}; expected masks [{M}, H, W], "
            f"finite, with H = {h} K and W = {w} K for a block size K"
        )
    return Measurements(
        y=torch.from_numpy(y.astype(np.float32)),
        sigma=torch.zeros(B),
        image_shape=(masks.shape[1], masks.shape[2]),
        operator="",
        noise="none",
        seed=0,
        drawn={"masks": torch.from_numpy(masks.astype(np.float32))},
        scale=Scale(torch.zeros(B, dtype=torch.float64), torch.ones(B, dtype=torch.float64)),
        pixel_size=(None,) * B,
        image_ids=tuple(map(str, range(B))),
    )
