"""A linear denoiser trained on clean images, as a cryobench training objective."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch

from cryobench.core import Examples, Objective, Samples, Stack
from cryobench.numerics.philox import RowDraws
from cryobench.training.examples import StackExamples
from cryobench.training.export import write_weights


class Images(Samples):
    """Noisy images and the same without noise, drawn with replacement. Sample k depends on the seed and k only."""

    def __init__(self, examples: Examples, seed: int, device: torch.device):
        self.shape = examples.shape(0)[1:]
        self._examples, self._draws, self._device = examples, RowDraws(seed, "example"), device

    def batch(self, step: int, size: int, part: slice = slice(None)) -> torch.Tensor:
        """[n, 2, H, W]. `part` selects among the samples of the step: processes share a batch."""
        numbers = (step * size + torch.arange(size))[part]
        drawn = self._draws.uniform(numbers, 0, 1)[:, 0] * len(self._examples)
        return self._examples.read_block(drawn.long().tolist()).to(self._device)

    @property
    def origins(self) -> list[dict[str, str]]:
        return [dict(self._examples.origin)] if self._examples.origin else []


@dataclass(frozen=True)
class Example(Objective):
    """A convolution with one trained kernel, from noisy images to clean ones."""

    weights = "model.safetensors"
    usage = "the kernel is in {}/model.safetensors"

    side: Annotated[int, "side of the kernel in pixels, odd"] = 5

    def examples(self, stack: Stack) -> Examples:
        return StackExamples(stack, clean=True)

    def samples(
        self, examples: Sequence[Examples], *, seed: int, device: torch.device, held_out: bool = False
    ) -> Samples:
        return Images(examples[0], seed, device)

    def build(self, samples: Samples) -> torch.nn.Module:
        return torch.nn.Conv2d(1, 1, self.side, padding=self.side // 2)

    def losses(self, network: Any, batch: torch.Tensor) -> torch.Tensor:
        """The mean squared error of each image, [n]."""
        return (network(batch[:, :1]) - batch[:, 1:]).square().mean((1, 2, 3))

    def files(self, network: Any) -> Mapping[str, Callable[[Path], object]]:
        return {self.weights: partial(write_weights, network)}

    def introduction(self, card: Mapping[str, Any]) -> str:
        return f"# A linear denoiser\n\nTrained for {card['steps']} steps."
