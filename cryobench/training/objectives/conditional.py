"""`conditional` and `regression`: one network, trained as diffusion conditioned on an image, or to predict the mean.

EMDiffuse (Lu et al. 2024, Nat. Commun. 15) trains the first; the second, of the same size, data and number of updates,
shows what diffusion adds. With c the noisy image, x the target and (gamma, eps) a noise level and noise,

    conditional:  || f(sqrt(gamma) x + sqrt(1 - gamma) eps, c, gamma) - eps ||^2
    regression:   || c + f(0, c, 1) - x ||^2
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch

from cryobench import figures
from cryobench.core import Examples, Samples, Stack
from cryobench.core.objective import Writer
from cryobench.errors import ParameterError
from cryobench.networks.files import CONFIG, WEIGHTS, config_values
from cryobench.networks.film import FilmUNet, preset
from cryobench.networks.refinement import SAMPLING, TRAINING, drawn_level, noisy, respaced, sample
from cryobench.networks.restoring import Restorer
from cryobench.numerics.philox import RowDraws
from cryobench.priors.conditional import IMAGE, NOISE, PATCH, PREDICTS, SPREAD
from cryobench.priors.conditional import Conditional as ConditionalNetwork
from cryobench.priors.network_folder import NetworkFolder
from cryobench.training.examples import CleanExamples, PairExamples, noisy_and_clean
from cryobench.training.export import initial_weights, write_json, write_weights
from cryobench.training.objectives.restoration import Restoration
from cryobench.training.patches import Patches

_NOISE, _STEP, _BETWEEN, _ADDED = range(4)
SHOWN, SHOWN_STEPS = 4, 20
"""Patches in a figure, and the sampling steps of each."""


@dataclass(frozen=True)
class NoisyPatches:
    """Patches [n, 1, h, w] with deviation 1 / SPREAD: the condition, what to make of it, noise and its level [n]."""

    condition: torch.Tensor
    target: torch.Tensor
    noise: torch.Tensor
    level: torch.Tensor


class _Noisy(Samples):
    """Patches, each with noise and a noise level that depend on the seed and its number only."""

    def __init__(self, patches: Patches, seed: int, of: str, device: torch.device, added: float):
        self.shape = patches.shape
        self._patches, self._device, self._added = patches, device, added
        self._draws = RowDraws(seed, "conditional", of)
        self._gammas = TRAINING.gammas()

    @property
    def origins(self) -> list[dict[str, str]]:
        return self._patches.origins

    def facts(self, drawn: int) -> dict[str, Any]:
        return self._patches.facts(drawn)

    def batch(self, step: int, size: int, part: slice = slice(None)) -> NoisyPatches:
        pair = self._patches.batch(step, size, part)
        numbers = step * size + torch.arange(size)[part]
        noise = self._normal(numbers, _NOISE)
        condition = pair.input + self._added * self._normal(numbers, _ADDED) if self._added else pair.input
        spread = SPREAD * (1 + self._added**2) ** 0.5  # the deviation of the whole image with the added noise
        step_of, between = (self._draws.uniform(numbers, purpose, 1)[:, 0] for purpose in (_STEP, _BETWEEN))
        level = drawn_level(step_of, between, self._gammas).to(self._device)
        return NoisyPatches(condition / spread, pair.target / spread, noise, level)

    def _normal(self, numbers: torch.Tensor, purpose: int) -> torch.Tensor:
        """Standard normal numbers for patches, [n, 1, h, w]."""
        shape = (1, *self.shape)
        drawn = self._draws.normal(numbers.to(self._device), purpose, math.prod(shape), torch.float32)
        return drawn.reshape(-1, *shape)


@dataclass(frozen=True)
class _OfCondition(Restoration):
    """Common parameters: the network and its data."""

    _model: ClassVar[type[NetworkFolder]] = ConditionalNetwork
    _predicts: ClassVar[str]

    network: Annotated[str, "tiny or published"] = "tiny"
    target: Annotated[Literal["clean", "other"], "the image without noise, or another of the same specimen"] = "clean"
    noise: Annotated[
        float | None, "add Gaussian noise of this deviation, relative to that of the image; none: the images are noisy"
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise is not None and not 0 < self.noise < math.inf:
            raise ParameterError(f"noise must be positive, got {self.noise:g}; leave it out for noisy images")
        if self.noise is not None and self.target != "clean":
            raise ParameterError("noise is added to images without noise; leave out target=other")

    @property
    def _config(self) -> Any:
        return preset(self.network)

    def examples(self, stack: Stack) -> Examples:
        if self.noise is not None:
            return CleanExamples(stack)
        if self.target == "other":
            return PairExamples(stack)
        return noisy_and_clean(stack, "give target=other for data with a second image of each specimen, or noise= to "
                               "add noise to clean images")  # fmt: skip

    def samples(
        self, examples: Sequence[Examples], *, seed: int, device: torch.device, held_out: bool = False
    ) -> Samples:
        own, of = (0, "validation") if held_out else (seed, "train")
        return _Noisy(self._patches(examples, seed, device, held_out, swap=False), own, of, device, self.noise or 0.0)

    def build(self, samples: Samples) -> torch.nn.Module:
        return FilmUNet(self._config)

    def draw(self, network: Any, samples: Samples, path: Path) -> None:
        """Write a sheet of patches: condition, output and target of each."""
        batch: NoisyPatches = samples.batch(0, SHOWN)
        rows = torch.stack([batch.condition, self._shown(network, batch), batch.target], dim=1)
        images = list(rows.flatten(0, 2).float().cpu().numpy())
        figures.sheet(images, titles=["input", "output", "target"] * SHOWN, pixel_size=[None] * len(images), path=path)

    @abstractmethod
    def _shown(self, network: Any, batch: NoisyPatches) -> torch.Tensor:
        """The output for a figure."""

    def files(self, network: Any) -> Mapping[str, Writer]:
        values = config_values(network.config, **{PREDICTS: self._predicts, PATCH: self.patch})
        return {WEIGHTS: partial(write_weights, network), CONFIG: partial(write_json, values)}

    def introduction(self, card: Mapping[str, Any]) -> str:
        settings = card["settings"]
        return (
            f"# {self._title}\n\n"
            f"A U-Net (`{settings['network']}`) trained with `cryobench train`: {card['steps']} steps of "
            f"{settings['batch']} patches of {settings['patch']} x {settings['patch']} pixels, averaged weights. "
            f"{initial_weights(card)}Patches are on the scale on which the whole input image has mean 0 and standard "
            f"deviation 1 / {SPREAD:g}.\n\nUse it on the operator `identity`: {self.usage.format('./FOLDER')}."
        )

    _title: ClassVar[str]


@dataclass(frozen=True)
class ConditionalDiffusion(_OfCondition):
    """Diffusion conditioned on a noisy image, for samples of the image without noise.

    The network predicts the noise of a noised target from it, its noise level and the condition. Levels are drawn
    uniformly between neighbouring ones of 2000 linear steps. The loss is || f - eps ||^2. (Lu et al. 2024, EMDiffuse;
    Saharia et al. 2022, Palette.)
    """

    usage = "use it as emdiffuse:model={}"
    _predicts = NOISE
    _title = "A conditional diffusion model for micrographs"

    def losses(self, network: Any, batch: NoisyPatches) -> torch.Tensor:
        """|| f - eps ||^2 / N of each patch, [n]."""
        y = noisy(batch.target, batch.noise, batch.level)
        return (network(y, batch.condition, batch.level).float() - batch.noise).square().mean((1, 2, 3))

    def _shown(self, network: Any, batch: NoisyPatches) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return sample(partial(Restorer(network, self.patch).noise, batch.condition),
                      lambda: torch.randn(batch.target.shape, generator=generator).to(batch.target),
                      respaced(SAMPLING.gammas(), SHOWN_STEPS))  # fmt: skip


@dataclass(frozen=True)
class Regression(_OfCondition):
    """The mean of the image without noise given the noisy one, by the network of `conditional`: its control.

    The loss is the squared error, whose minimiser is the conditional mean.
    """

    usage = "use it as regression:model={}"
    _predicts = IMAGE
    _title = "A regression network for micrographs"

    def losses(self, network: Any, batch: NoisyPatches) -> torch.Tensor:
        """<(f(c) - x)^2> of each patch, [n]."""
        return (Restorer(network, self.patch).image(batch.condition).float() - batch.target).square().mean((1, 2, 3))

    def _shown(self, network: Any, batch: NoisyPatches) -> torch.Tensor:
        return Restorer(network, self.patch).image(batch.condition)
