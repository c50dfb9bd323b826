"""Where images come from: registered sources, and the stacks that they open."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cryobench.core.operator import Shape
from cryobench.errors import SelectionError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch


class Stack(ABC):
    """An open stack of images that reads only what is asked for."""

    shape: Shape
    label: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """Image `index` (0-based) as float32 [H, W], in the file's own units."""

    def check(self, index: int) -> None:
        """Raise `SelectionError` unless there is an image `index`."""
        if not 0 <= index < len(self):
            raise SelectionError(f"image {index} of {self.label} does not exist; it has {len(self)}, from 0")

    def pixel_size(self, index: int) -> float | None:
        """Ångström per pixel, or None where it is not known."""
        return None

    def particle_radius(self, index: int) -> float | None:
        """Ångström from the middle of image `index` to where its particle ends, or None where nobody states it."""
        return None

    @property
    def table(self) -> pd.DataFrame | None:
        """What is known of the images beside their pixels, in RELION's columns (CTF, pose), a row each, or None."""
        return None

    def rows(self, images: Sequence[int]) -> pd.DataFrame | None:
        """The table's rows of these images, in this order and numbered from 0; None where there is no table."""
        table = self.table
        return None if table is None else table.iloc[list(images)].reset_index(drop=True)

    @property
    def white_noise(self) -> bool | None:
        """Whether the noise in the images is white; so it is where they have none. None where nobody knows."""
        return None

    def clean(self, index: int) -> np.ndarray | None:
        """Image `index` without its noise, in the units of `read`, float32 [H, W]; None where nobody knows it."""
        return None

    @property
    def origin(self) -> Mapping[str, str]:
        """What the images are of and how they were drawn (structure, split, seed), where they were made and not taken.

        A prior trained on images of the same origin has seen what it is scored on.
        """
        return {}


class Source(ABC):
    """A registered data source: a frozen dataclass of its parameters."""

    @abstractmethod
    def open(self) -> Stack:
        """Open without reading the images."""

    def open_on(self, device: torch.device | None) -> Stack:
        """`open`; a source that makes its images makes them on this device, where one is given."""
        return self.open()
