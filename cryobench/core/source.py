"""Data sources and the stacks of images that they open."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from cryobench.core.operator import Shape, Window
from cryobench.core.pairs import Pairs
from cryobench.errors import DataError, SelectionError

if TYPE_CHECKING:
    import pandas as pd


class Stack(ABC):
    """An open stack of n images, each an array of the same shape; reads only the requested images."""

    shape: Shape
    """The shape of an image: (H, W), or (D, H, W) for volumes."""
    label: str
    """The name of the stack in tables and messages."""
    through_ctf: bool = True
    """Whether the images were taken through the CTFs of the table."""
    reads_windows: bool = False
    """Whether `read_window` reads little more than the window; by default it reads the whole image."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """Image `index` (0-based), float32 of `shape`, in the units of the file."""

    def read_block(self, images: Sequence[int]) -> np.ndarray:
        """These images in this order, float32 [n, *shape]. By default one `read` each; override it if faster.

        Raises `DataError` for an image of another shape.
        """
        return self._stacked(images, [self.read(index) for index in images])

    def tensor_block(self, images: Sequence[int], *, clean: bool = False) -> torch.Tensor | None:
        """`read_block` or `clean_block` as a tensor, float32 [n, *shape].

        On the processor, or on the device where the source makes them, which saves two transfers.
        """
        found = self.clean_block(images) if clean else self.read_block(images)
        return None if found is None else torch.from_numpy(np.require(found, np.float32, ["C", "W"]))

    def read_window(self, index: int, window: Window) -> np.ndarray:
        """A window of image `index`, float32 of its shape, equal to that part of `read`."""
        return self._stacked([index], [self.read(index)])[0][window]

    def check(self, index: int) -> None:
        """Raise `SelectionError` unless there is an image `index`."""
        if not 0 <= index < len(self):
            raise SelectionError(f"image {index} of {self.label} does not exist; it has {len(self)}, from 0")

    def pixel_size(self, index: int) -> float | None:
        """Å per pixel of image `index`, or None if unknown."""
        return None

    def voxel_size(self, index: int) -> tuple[float, ...] | None:
        """Å per pixel of image `index` along each of its axes, that of `pixel_size` by default; None if unknown."""
        size = self.pixel_size(index)
        return None if size is None else (size,) * len(self.shape)

    def particle_radius(self, index: int) -> float | None:
        """Radius of the particle in image `index` about the centre of the image, Å, or None if unknown."""
        return None

    def volume(self, index: int) -> tuple[np.ndarray, float] | None:
        """The volume that image `index` is a projection of, float32 [D, D, D] (z, y, x), and its Å per voxel.

        An image without CTF is its projection, the sum along a line, times the pixel size. None if unknown.
        """
        return None

    @property
    def table(self) -> pd.DataFrame | None:
        """Metadata of the images (CTF, pose) in RELION's columns, a row per image, or None."""
        return None

    def rows(self, images: Sequence[int]) -> pd.DataFrame | None:
        """The rows of the table for these images, in this order and numbered from 0; None without a table."""
        table = self.table
        return None if table is None else table.iloc[list(images)].reset_index(drop=True)

    def files(self, images: Sequence[int]) -> Sequence[Path] | None:
        """The files that these images and their metadata are read from, by which an edit is recognised without reading
        them: none for images that the parameters of the source determine, None (the default) if they are not known."""
        return None

    @property
    def white_noise(self) -> bool | None:
        """Whether the noise in the images is white, which includes no noise; None if unknown."""
        return None

    def clean(self, index: int) -> np.ndarray | None:
        """Image `index` without noise, float32 of `shape`, in the units of `read`; None if unknown."""
        return None

    def clean_block(self, images: Sequence[int]) -> np.ndarray | None:
        """These images without noise, float32 [n, *shape]; None if any is unknown. By default one `clean` each."""
        found = [self.clean(index) for index in images]
        known = [image for image in found if image is not None]
        return self._stacked(images, known) if len(known) == len(found) else None

    def clean_window(self, index: int, window: Window) -> np.ndarray | None:
        """A window of image `index` without noise, that of `clean` by default; None if unknown."""
        image = self.clean(index)
        return None if image is None else self._stacked([index], [image])[0][window]

    def other(self, index: int) -> np.ndarray | None:
        """A second image of the specimen in image `index`, with independent noise; None if there is none.

        float32 of `shape`, in the units of `read`. Only the runner and the metrics have access to it.
        """
        return None

    @property
    def pairs(self) -> Pairs | None:
        """Both halves of every micrograph, for training without truth; None if there is only one image of each."""
        return None

    @property
    def origin(self) -> Mapping[str, str]:
        """Structure, split and seed of simulated images; empty for others.

        A prior trained on images of the same origin may have been trained on the images that it is evaluated on.
        """
        return {}

    def _stacked(self, numbers: Sequence[int], images: Sequence[np.ndarray]) -> np.ndarray:
        for number, image in zip(numbers, images, strict=True):
            if image.shape != tuple(self.shape):
                raise DataError(f"image {number} of {self.label} has shape {image.shape}; expected {tuple(self.shape)}")
        return np.stack(images).astype(np.float32, copy=False) if images else np.empty((0, *self.shape), np.float32)


class Source(ABC):
    """A registered data source: a frozen dataclass of its parameters."""

    @abstractmethod
    def open(self) -> Stack:
        """Open the stack without reading images."""

    def open_on(self, device: torch.device | None) -> Stack:
        """Open the stack; a source that computes its images computes them on this device, if given."""
        return self.open()


def size_text(shape: Sequence[int]) -> str:
    """A shape in messages: `8 x 12`."""
    return " x ".join(map(str, shape))
