"""One map for all particles, or one for each of K classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from cryobench.core import VolumeModel, saved_arrays
from cryobench.errors import DataError


@dataclass(frozen=True, eq=False)
class FixedVolume(VolumeModel):
    """The same map for every particle. map: float32 [D, D, D] in the units of the file."""

    map: torch.Tensor
    dimensions = 0

    def __post_init__(self) -> None:
        if self.map.ndim != 3 or len(set(self.map.shape)) > 1:
            raise DataError(f"the map has shape {list(self.map.shape)}; give a cube [D, D, D]")

    @staticmethod
    def of(arrays: Mapping[str, torch.Tensor]) -> FixedVolume:
        """The model of saved arrays. Raises `DataError` where they lack `map`."""
        return FixedVolume(*saved_arrays(arrays, "map"))

    @property
    def side(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.map)

    def volumes(self, latents: torch.Tensor) -> torch.Tensor:
        return self.map.float().cpu().expand(len(latents), -1, -1, -1).clone()

    def arrays(self) -> dict[str, torch.Tensor]:
        return {"map": self.map.float().cpu()}


@dataclass(frozen=True, eq=False)
class ClassVolumes(VolumeModel):
    """A map for each of K classes. A latent is the probability of each class, [m, K]; its map is that of the most
    probable one. maps: float32 [K, D, D, D] in the units of the file."""

    maps: torch.Tensor

    def __post_init__(self) -> None:
        if self.maps.ndim != 4 or len(set(self.maps.shape[1:])) > 1:
            raise DataError(f"the maps have shape {list(self.maps.shape)}; give cubes [K, D, D, D]")

    @staticmethod
    def of(arrays: Mapping[str, torch.Tensor]) -> ClassVolumes:
        """The model of saved arrays. Raises `DataError` where they lack `maps`."""
        return ClassVolumes(*saved_arrays(arrays, "maps"))

    @property
    def side(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.maps.shape[-1]

    @property
    def dimensions(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.maps)

    def volumes(self, latents: torch.Tensor) -> torch.Tensor:
        return self.maps.float().cpu()[latents.cpu().argmax(dim=1)]

    def arrays(self) -> dict[str, torch.Tensor]:
        return {"maps": self.maps.float().cpu()}
