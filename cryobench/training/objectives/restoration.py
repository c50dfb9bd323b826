"""`noise2noise` and `supervised`: a network that removes noise, trained on another noisy image or on the clean one.

With a = s + n and b = s + m two images of the same specimen, E[m | a] = 0, and f the network,

    E (f(a) - b)^2 = E (f(a) - s)^2 + E m^2,

so that both losses have the same minimiser, E[s | a] (Lehtinen et al. 2018, section 2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch

from cryobench import figures
from cryobench.core import Examples, Objective, Samples, Stack
from cryobench.core.objective import Writer
from cryobench.errors import IncompatibleError, ParameterError
from cryobench.networks.files import CONFIG, WEIGHTS, config_values
from cryobench.networks.unet import UNet, preset
from cryobench.priors.denoiser import Denoiser
from cryobench.priors.network_folder import NetworkFolder
from cryobench.training.examples import PairExamples, noisy_and_clean
from cryobench.training.export import initial_weights, write_json, write_weights
from cryobench.training.patches import Pair, Patches

SHOWN = 4
"""Patches in a figure: each as input, output and target."""


@dataclass(frozen=True)
class Restoration(Objective):
    """A network that makes one patch of an image from another of the same place."""

    weights = WEIGHTS
    usage = "use it as n2n:model={}"
    validated = 64
    _model: ClassVar[type[NetworkFolder]] = Denoiser

    network: Annotated[str, "tiny, small or published"] = "tiny"
    patch: Annotated[int, "side of the patches in pixels"] = 256
    turns: Annotated[bool, "rotate by multiples of 90 degrees and flip patches at random"] = True

    def __post_init__(self) -> None:
        stride = self._config.stride
        if self.patch < stride or self.patch % stride:
            raise ParameterError(f"patch must be a multiple of {stride} pixels for the network {self.network}, got "
                                 f"{self.patch}; give {max(1, round(self.patch / stride)) * stride}")  # fmt: skip

    def _patches(
        self, examples: Sequence[Examples], seed: int, device: torch.device, held_out: bool, swap: bool
    ) -> Patches:
        turns = self.turns and not held_out
        seed, of = (0, "validation") if held_out else (seed, "train")
        return Patches(examples, side=self.patch, seed=seed, turns=turns, swap=swap, device=device, of=of)

    @property
    def _config(self) -> Any:
        """The architecture. Raises `ParameterError` if it is unknown."""
        return preset(self.network)

    def build(self, samples: Samples) -> torch.nn.Module:
        return UNet(self._config)

    def losses(self, network: Any, batch: Any) -> torch.Tensor:
        """<(f(a) - b)^2> of each pair of patches, [n]."""
        return (network(batch.input).float() - batch.target).square().mean((1, 2, 3))

    def draw(self, network: Any, samples: Samples, path: Path) -> None:
        """Write a sheet of patches: input, output and target of each."""
        batch: Pair = samples.batch(0, SHOWN)
        rows = torch.stack([batch.input, network(batch.input), batch.target], dim=1)
        images = list(rows.flatten(0, 2).float().cpu().numpy())
        titles = ["input", "output", "target"] * SHOWN
        figures.sheet(images, titles=titles, pixel_size=[None] * len(images), path=path, columns=3)

    def initialise(self, network: Any, source: str, samples: Samples) -> Mapping[str, Any]:
        model = self._model(source)
        theirs, ours = model.config, network.config
        if theirs != ours:
            raise IncompatibleError(f"--warm-start {source} has a different network ({theirs}, expected {ours}); give "
                                    "the --network it was trained with")  # fmt: skip
        network.load_state_dict(model.load().state_dict())
        return model.card

    def files(self, network: Any) -> Mapping[str, Writer]:
        return {WEIGHTS: partial(write_weights, network), CONFIG: partial(write_json, config_values(network.config))}

    def introduction(self, card: Mapping[str, Any]) -> str:
        settings = card["settings"]
        return (
            "# A denoising network for micrographs\n\n"
            f"A U-Net (`{settings['network']}`) without normalisation over space, trained with `cryobench train` on "
            f"{self._target}: {card['steps']} steps of {settings['batch']} patches of {settings['patch']} x "
            f"{settings['patch']} pixels, averaged weights. {initial_weights(card)}Patches are on the scale on which "
            "the whole input image has mean 0 and standard deviation 1.\n\n"
            "Use it as `cryobench denoise MICROGRAPHS --solver n2n:model=./FOLDER --out DIR`, or as a solver on the "
            "operator `identity`. `config.json` states the receptive field and the stride."
        )

    _target = "pairs of images"


@dataclass(frozen=True)
class Noise2Noise(Restoration):
    """A denoising network from two noisy images of each specimen, such as the sums of odd and of even frames.

    The loss is <(f(a) - b)^2>, the halves exchanged at random. Both are on the scale on which the whole of a has mean 0
    and deviation 1; nothing is clipped. The validation loss is <f^2 - 2 f b + a b>, which has the expectation of
    <(f - s)^2>, the error to the clean image s, whatever the noise of b. (Lehtinen et al. 2018.)
    """

    _target = "pairs of noisy images of the same specimen (Noise2Noise, Lehtinen et al. 2018)"

    def examples(self, stack: Stack) -> Examples:
        return PairExamples(stack)

    def samples(
        self, examples: Sequence[Examples], *, seed: int, device: torch.device, held_out: bool = False
    ) -> Patches:
        return self._patches(examples, seed, device, held_out, swap=True)

    def validation_losses(self, network: Any, batch: Pair) -> torch.Tensor:
        """<f^2 - 2 f b + a b> of each pair of patches, [n]: unbiased for <(f - s)^2>, and may be negative."""
        f, a, b = network(batch.input).double(), batch.input.double(), batch.target.double()
        return (f.square() - 2 * f * b + a * b).mean((1, 2, 3))


@dataclass(frozen=True)
class Supervised(Restoration):
    """A denoising network from noisy images and the same without noise, for sources that have both.

    The loss is <(f(a) - s)^2>, on the scale on which the whole noisy image a has mean 0 and deviation 1.
    """

    _target = "noisy images and the same without noise"

    def examples(self, stack: Stack) -> Examples:
        return noisy_and_clean(stack, "train with --objective noise2noise, or on a source that has them")

    def samples(
        self, examples: Sequence[Examples], *, seed: int, device: torch.device, held_out: bool = False
    ) -> Patches:
        return self._patches(examples, seed, device, held_out, swap=False)
