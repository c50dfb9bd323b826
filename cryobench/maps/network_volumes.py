"""Maps of a hypervolume, on a map for all latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from cryobench.core import VolumeModel, saved_arrays
from cryobench.errors import DataError
from cryobench.networks.hypervolume import Hypervolume, HypervolumeShape

_NETWORK = "network."


@dataclass(frozen=True, eq=False)
class NetworkVolumes(VolumeModel):
    """v = mean + the map of the network, in the units of the file. mean: float32 [D, D, D], 0 without one."""

    mean: torch.Tensor
    network: Hypervolume

    @staticmethod
    def of(arrays: Mapping[str, torch.Tensor]) -> NetworkVolumes:
        """The model of saved arrays. Raises `DataError` for arrays of another model."""
        needed = ("mean", f"{_NETWORK}places", f"{_NETWORK}first.weight")
        mean, *_ = saved_arrays(arrays, *needed, wanted="mean and a network")
        weights = {name.removeprefix(_NETWORK): value for name, value in arrays.items() if name.startswith(_NETWORK)}
        width, inputs = weights["first.weight"].shape
        frequencies = len(weights["places"]) // 3
        depth = sum(name.startswith("hidden.") and name.endswith(".weight") for name in weights)
        shape = HypervolumeShape(width, depth, frequencies)
        network = Hypervolume(len(mean), inputs - 6 * frequencies, shape, envelope=weights["envelope"])
        try:
            network.load_state_dict({name: value.float() for name, value in weights.items()})
        except RuntimeError as error:
            raise DataError(f"the saved network does not fit: {str(error).splitlines()[-1].strip()}") from error
        return NetworkVolumes(mean, network)

    @property
    def side(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.mean)

    @property
    def dimensions(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.network.dimensions

    def volumes(self, latents: torch.Tensor) -> torch.Tensor:
        if not len(latents):
            return torch.zeros((0, *self.mean.shape))
        return torch.stack([self.mean.float().cpu() + self.network.volume(latent) for latent in latents])

    def arrays(self) -> dict[str, torch.Tensor]:
        weights = {_NETWORK + name: value.detach().cpu() for name, value in self.network.state_dict().items()}
        return {"mean": self.mean.float().cpu(), **weights}
