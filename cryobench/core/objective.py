"""Training objectives: what a network is trained on, with which loss, and what is exported.

`cryobench train` does the rest: steps, averages, checkpoints, several processes, reading ahead, the log. A batch is any
object; only the objective that makes it looks inside. Arrays may be images or volumes, with other images beside them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from cryobench.core.operator import Shape, Window
from cryobench.core.source import Stack
from cryobench.errors import IncompatibleError

Writer = Callable[[Path], object]
"""Writes a file to a path."""


class Examples(ABC):
    """What is read of a stack, numbered from 0: C images of one object, such as noisy and clean, as [C, *S].

    Examples may differ in S. `read` may be called from several threads at once.
    """

    label: str
    """The name of the stack in messages."""
    origin: Mapping[str, str]
    """`Stack.origin`."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def shape(self, index: int) -> Shape:
        """(C, *S) of example `index`, without reading it."""

    @abstractmethod
    def read(self, index: int, window: Window | None = None) -> torch.Tensor:
        """A window of example `index`, all of it by default: float32 [C, *window]. Reads no more than the window."""

    def read_block(self, indices: Sequence[int]) -> torch.Tensor:
        """These examples, of one shape, in this order: float32 [n, C, *S]."""
        return torch.stack([self.read(index) for index in indices])

    def name(self, index: int) -> str:
        """The name of an example in messages."""
        return f"image {index} of {self.label}"

    def digests(self, index: int) -> Sequence[str]:
        """Digests of the C images of an example, where the stack states them."""
        return ()

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the network should know of the data, by default nothing."""
        return {}

    @property
    def nbytes(self) -> int:
        """The memory of all examples in bytes."""
        return sum(4 * math.prod(self.shape(index)) for index in range(len(self)))


class Samples(ABC):
    """An endless sequence of training samples, number 0, 1, ..., each determined by the seed and its number."""

    shape: Shape
    """The shape of a sample; a run continues on samples of the same shape only."""

    @abstractmethod
    def batch(self, step: int, size: int, part: slice = slice(None)) -> Any:
        """The samples step * size to (step + 1) * size - 1, or a part of them, on the device."""

    @property
    @abstractmethod
    def origins(self) -> list[dict[str, str]]:
        """The distinct origins (`Stack.origin`) of the data."""

    def facts(self, drawn: int) -> dict[str, Any]:
        """What the card states of the first `drawn` samples, as numbers, texts and lists."""
        return {}


class Objective(ABC):
    """A registered training objective: a frozen dataclass of its parameters.

    weights: the path of the weights in the exported folder. usage: how the result in a folder {} is used, for the user.
    validated: the number of samples of the validation loss.
    """

    dims: ClassVar[tuple[int, ...]] = (2,)
    weights: ClassVar[str]
    usage: ClassVar[str]
    validated: ClassVar[int] = 256

    @abstractmethod
    def examples(self, stack: Stack) -> Examples:
        """What is read of a stack. Raises `DataError` for one without the images that the objective needs."""

    @abstractmethod
    def samples(
        self, examples: Sequence[Examples], *, seed: int, device: torch.device, held_out: bool = False
    ) -> Samples:
        """The samples of some stacks. held_out: those of the validation. Raises `CryobenchError` for unusable data."""

    @abstractmethod
    def build(self, samples: Samples) -> torch.nn.Module:
        """The network for these samples, with random weights from torch's global generator."""

    @abstractmethod
    def losses(self, network: Any, batch: Any) -> torch.Tensor:
        """The training loss of each sample of a batch, [n] float32."""

    def validation_losses(self, network: Any, batch: Any) -> torch.Tensor:
        """The validation loss of each sample of a batch, [n]; by default the training loss."""
        return self.losses(network, batch)

    def draw(self, network: Any, samples: Samples, path: Path) -> None:
        """Write a figure of what the network does, a PNG; by default none."""
        return

    def initialise(self, network: Any, source: str, samples: Samples) -> Mapping[str, Any]:
        """Load the weights that `--warm-start` names into the network. Returns the card of that model, {} without one.

        By default raises `IncompatibleError`.
        """
        raise IncompatibleError(
            f"{type(self).__name__} starts from random weights only, got --warm-start {source}; leave it out"
        )

    def weights_digest(self) -> str:
        """A digest of the trained networks that it uses, without which a run is not continued; '' without any."""
        return ""

    @abstractmethod
    def files(self, network: Any) -> Mapping[str, Writer]:
        """The files of the exported model by their relative paths, `weights` among them; the card is added to them."""

    @abstractmethod
    def introduction(self, card: Mapping[str, Any]) -> str:
        """What the model is, how it was trained and how it is used: Markdown, with a title."""
