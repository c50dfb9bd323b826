"""`ddpm`: an unconditional diffusion model (Ho, Jain & Abbeel 2020, algorithm 1).

x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps;    a step on || f(x_t, t) - target ||^2;    target = eps, or v
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from cryobench import figures
from cryobench.core import Examples, Objective, Samples, Stack
from cryobench.core.objective import Writer
from cryobench.errors import ParameterError
from cryobench.priors.diffusion import DiffusionModel
from cryobench.training.examples import StackExamples
from cryobench.training.images import Batch, Images
from cryobench.training.objectives.architectures import ARCHITECTURES, Architecture
from cryobench.training.objectives.pipeline import BETAS, WEIGHTS, T, introduction, pipeline_files
from cryobench.training.objectives.warm_start import load_weights

MIXED = (0.02, 20.0)
"""The range of noise levels sigma_t of half the images with "mixed" levels."""
SHOWN = 16
"""Samples in a figure."""
ALPHAS = (1 - torch.linspace(*BETAS, T, dtype=torch.float64)).cumprod(0)
"""a_t, [T]."""


@dataclass(frozen=True)
class Ddpm(Objective):
    """An unconditional diffusion model of particle images, which solvers use as `prior=./FOLDER`.

    Images are scaled to [-1, 1] between their own extremes. The result is a diffusers pipeline. (Ho, Jain & Abbeel
    2020, Denoising Diffusion Probabilistic Models.)
    """

    weights = WEIGHTS
    usage = "use it as prior={}"

    network: Annotated[str, "tiny, small, medium, cryosense-128 or cryosense-256"] = "small"
    turns: Annotated[bool, "rotate by multiples of 90 degrees and flip images at random"] = True
    target: Annotated[Literal["images", "clean"], "noisy images, or clean ones on the scale of the noisy ones"] = (
        "images"
    )
    levels: Annotated[
        Literal["uniform", "mixed"],
        "noise levels: uniform in t, or half of them uniform in log sigma_t between 0.02 and 20",
    ] = "uniform"

    def __post_init__(self) -> None:
        if self.network not in ARCHITECTURES:
            raise ParameterError(f"unknown network {self.network!r}; expected one of {', '.join(ARCHITECTURES)}")

    @property
    def architecture(self) -> Architecture:
        """That of the network."""
        return ARCHITECTURES[self.network]

    def examples(self, stack: Stack) -> Examples:
        return StackExamples(stack, clean=self.target == "clean")

    def samples(
        self, examples: Sequence[Examples], *, seed: int, device: torch.device, held_out: bool = False
    ) -> Images:
        if held_out:
            return Images(examples, seed=0, turns=False, device=device, of="validation")
        images = Images(examples, seed=seed, turns=self.turns, device=device, of="train")
        self.architecture.check(images.shape)
        return images

    def build(self, samples: Samples) -> torch.nn.Module:
        return self.architecture.build(samples.shape)

    def losses(self, network: Any, batch: Batch) -> torch.Tensor:
        """|| f(x_t, t) - target ||^2 / N of each image, [n] float32."""
        t = timesteps(batch.level, ALPHAS, self.levels)
        a = ALPHAS.to(batch.x0.device)[t].float()[:, None, None, None]
        x = a.sqrt() * batch.x0 + (1 - a).sqrt() * batch.noise
        target = batch.noise
        if self.architecture.prediction == "v_prediction":
            target = a.sqrt() * batch.noise - (1 - a).sqrt() * batch.x0
        unshuffled = torch.nn.functional.pixel_unshuffle
        r = self.architecture.unshuffle
        output = network(unshuffled(x, r), t, return_dict=False)[0]
        return (output.float() - unshuffled(target, r)).square().mean((1, 2, 3))

    def draw(self, network: Any, samples: Samples, path: Path) -> None:
        """Write a sheet of samples, from the same noise every time."""
        device = next(network.parameters()).device
        noise = torch.randn((SHOWN, 1, *samples.shape), generator=torch.Generator().manual_seed(0)).to(device)
        model = DiffusionModel(network, ALPHAS, self.architecture.prediction, device=device)
        images = model.generate(noise)[:, 0].cpu().numpy()
        figures.sheet(list(images), titles=[""] * SHOWN, pixel_size=[None] * SHOWN, path=path)

    def initialise(self, network: Any, source: str, samples: Samples) -> Mapping[str, Any]:
        return load_weights(network, source, samples.shape, self.architecture.prediction)

    def files(self, network: Any) -> Mapping[str, Writer]:
        return pipeline_files(network, self.architecture.prediction)

    def introduction(self, card: Mapping[str, Any]) -> str:
        return introduction(card)


def timesteps(position: torch.Tensor, alphas: torch.Tensor, levels: str) -> torch.Tensor:
    """The levels t [n] for positions in (0, 1), distributed as `Ddpm.levels`. alphas: a_t, [T]."""
    t = (position * len(alphas)).long()
    if levels == "mixed":
        low, high = MIXED
        sigmas = ((1 - alphas) / alphas).sqrt().to(position.device)
        sigma = low * (high / low) ** (2 * position.double() - 1)
        t = torch.where(position < 0.5, (2 * position * len(alphas)).long(), torch.searchsorted(sigmas, sigma))
    return t.clamp_max(len(alphas) - 1)
