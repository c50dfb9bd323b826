"""Initial weights from an existing prior."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cryobench.core import Shape
from cryobench.core.source import size_text
from cryobench.errors import IncompatibleError
from cryobench.priors import schedule
from cryobench.priors.diffusion import Diffusion
from cryobench.priors.network import read_network

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

_KIND = ("in_channels", "block_out_channels", "layers_per_block", "down_block_types", "up_block_types",
         "norm_num_groups")  # fmt: skip
"""The configuration that two networks must share to exchange weights."""


def load_weights(network: UNet2DModel, source: str, shape: Shape, prediction: str) -> Mapping[str, Any]:
    """Load the weights of a prior into a network for images of this shape. Returns the prior's card, empty without one.

    source: embedded, a folder, or hf:OWNER/NAME. prediction: what the network is trained to predict. Raises
    `IncompatibleError` if the prior has another network, and `DataError` if there is no such prior.
    """
    prior = Diffusion(source)
    prior.check(shape)
    trained = prior.trained_shape
    if trained not in (None, shape):
        raise IncompatibleError(f"--warm-start {source} was trained on images of {size_text(trained)}, got "
                                f"{size_text(shape)}; resample them, or give another prior")  # fmt: skip
    folder = prior.find()
    theirs, ours = folder.unet_config, network.config
    different = [f"{name} is {theirs.get(name)}, expected {_plain(ours[name])}" for name in _KIND
                 if theirs.get(name) != _plain(ours[name])]  # fmt: skip
    predicts = schedule.prediction(folder.scheduler_config)
    if predicts != prediction:
        different.append(f"it predicts {predicts}, expected {prediction}")
    if different:
        raise IncompatibleError(f"--warm-start {source} has a different network "
                                f"({'; '.join(different)}); give the --network it was trained with")  # fmt: skip
    network.load_state_dict(read_network(folder).state_dict())
    return folder.card


def _plain(value: Any) -> Any:
    """Tuples as lists, as in JSON."""
    return list(value) if isinstance(value, tuple) else value
