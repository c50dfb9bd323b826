"""Weights to begin with: those of a prior that was trained before, here or elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cryobench.core import Shape
from cryobench.errors import IncompatibleError
from cryobench.priors.diffusion import Diffusion
from cryobench.priors.network import read_network

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

_KIND = ("in_channels", "block_out_channels", "layers_per_block", "down_block_types", "up_block_types",
         "norm_num_groups")  # fmt: skip
"""What two networks must have in common for the weights of one to be weights of the other."""


def begin(network: UNet2DModel, source: str, shape: Shape, prediction: str) -> Mapping[str, Any]:
    """Give a network, for images of this shape, the weights of a prior; the prior's card, empty where it has none.

    source: embedded, a folder, or hf:OWNER/NAME. prediction: what the network is trained to predict. Raises
    `IncompatibleError` where the prior's network is of another kind, and `DataError` where there is none.
    """
    prior = Diffusion(source)
    prior.check(shape)
    folder = prior.find()
    theirs, ours = folder.unet_config, network.config
    different = [f"{name} is {theirs.get(name)}, wanted {_plain(ours[name])}" for name in _KIND
                 if theirs.get(name) != _plain(ours[name])]  # fmt: skip
    predicts = folder.scheduler_config.get("prediction_type", "epsilon")
    if predicts != prediction:
        different.append(f"it predicts {predicts}, wanted {prediction}")
    if different:
        raise IncompatibleError(f"--warm-start {source} is another network than the one to train "
                                f"({'; '.join(different)}); give the --network it was trained with")  # fmt: skip
    network.load_state_dict(read_network(folder).state_dict())
    return folder.card


def _plain(value: Any) -> Any:
    """As JSON has it."""
    return list(value) if isinstance(value, tuple) else value
