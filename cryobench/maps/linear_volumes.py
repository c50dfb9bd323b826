"""Maps that are linear in the latent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch

from cryobench.core import VolumeModel, saved_arrays
from cryobench.errors import DataError


@dataclass(frozen=True, eq=False)
class LinearVolumes(VolumeModel):
    """v = mean + sum_k z_k component_k, in the units of the file. mean: float32 [D, D, D]. components: [d, D, D, D]."""

    mean: torch.Tensor
    components: torch.Tensor

    def __post_init__(self) -> None:
        if self.mean.ndim != 3 or self.components.shape[1:] != self.mean.shape:
            raise DataError(f"the mean has shape {list(self.mean.shape)} and the components "
                            f"{list(self.components.shape)}; give [D, D, D] and [d, D, D, D]")  # fmt: skip

    @classmethod
    def of(cls, arrays: Mapping[str, torch.Tensor]) -> Self:
        """The model of saved arrays. Raises `DataError` where they lack one."""
        return cls(*saved_arrays(arrays, "mean", "components"))

    @property
    def side(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.mean)

    @property
    def dimensions(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.components)

    def weights(self, latents: torch.Tensor) -> torch.Tensor:
        """What the components of latents [n, d] are multiplied by, float32 [n, components]."""
        return latents.cpu().float()

    def volumes(self, latents: torch.Tensor) -> torch.Tensor:
        added = torch.tensordot(self.weights(latents), self.components.cpu().float(), dims=1)
        return self.mean.cpu().float() + added

    def arrays(self) -> dict[str, torch.Tensor]:
        return {"mean": self.mean.float().cpu(), "components": self.components.float().cpu()}
