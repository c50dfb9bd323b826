"""The examples of a stack: its images, with the same without noise if they are wanted or as an operator measures them,
or the halves of micrographs."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from cryobench.core import (
    Examples,
    Imaging,
    LinearOperator,
    OperatorRecipe,
    Pairs,
    Problem,
    Shape,
    Stack,
    Window,
    build_operator,
)
from cryobench.errors import DataError
from cryobench.numerics.linalg import standardised
from cryobench.operators.noise import Gaussian, NoNoise
from cryobench.rng import Rng
from cryobench.solvers.conditional import initial_image

_Images = TypeVar("_Images", np.ndarray, torch.Tensor)


class StackExamples(Examples):
    """The images of a stack, [1, *S]; clean: each with the image without noise, [2, *S].

    A stack is read by one thread at a time. Raises `DataError` when an image without noise is unknown.
    """

    def __init__(self, stack: Stack, *, clean: bool = False):
        self.label, self.origin = stack.label, stack.origin
        self._stack, self._clean, self._lock = stack, clean, threading.Lock()

    def __len__(self) -> int:
        return len(self._stack)

    def shape(self, index: int) -> Shape:
        return (1 + self._clean, *self._stack.shape)

    def read(self, index: int, window: Window | None = None) -> torch.Tensor:
        if window is None:
            return self.read_block([index])[0]
        with self._lock:
            images = [self._stack.read_window(index, window)]
            if self._clean:
                images.append(self._known(self._stack.clean_window(index, window)))
        return torch.from_numpy(np.stack(images, dtype=np.float32))

    def read_block(self, indices: Sequence[int]) -> torch.Tensor:
        with self._lock:
            images = [self._stack.tensor_block(indices)]
            if self._clean:
                images.append(self._stack.tensor_block(indices, clean=True))
        return torch.stack([self._known(each) for each in images], dim=1)

    def _known(self, images: _Images | None) -> _Images:
        if images is None:
            raise DataError(f"the clean images of {self.label} are not known; train on the images as they are")
        return images

    @property
    def nbytes(self) -> int:
        return len(self) * 4 * int(np.prod(self.shape(0), dtype=object))


def noisy_and_clean(stack: Stack, otherwise: str) -> StackExamples:
    """The images of a stack with those without noise. Raises `DataError` with the advice `otherwise` if it has none."""
    if len(stack) and stack.clean(0) is None:
        raise DataError(f"the clean images of {stack.label} are not known; {otherwise}")
    return StackExamples(stack, clean=True)


class CleanExamples(Examples):
    """The images of a stack without noise, each twice, [2, *S]: noise is added to the first later."""

    def __init__(self, stack: Stack):
        self.label, self.origin = stack.label, stack.origin
        self._images = StackExamples(stack)

    def __len__(self) -> int:
        return len(self._images)

    def shape(self, index: int) -> Shape:
        return (2, *self._images.shape(index)[1:])

    def read(self, index: int, window: Window | None = None) -> torch.Tensor:
        image = self._images.read(index, window)
        return torch.cat([image, image])


class MeasuredExamples(Examples):
    """What `initial_image` makes of the measurements of each image of a stack, and the image: [2, H, W], on the scale
    on which the image has mean 0 and deviation 1.

    operator: a recipe; it is built for each image, with masks of seed 0. noise: standard deviation of Gaussian noise in
    the measurements, relative to that of the image. It is drawn once for each image, from the pixels. The last image is
    kept, because a window needs all of it. Raises `CryobenchError` for images that the operator does not take.
    """

    def __init__(self, stack: Stack, operator: OperatorRecipe, *, noise: float):
        self.label, self.origin = stack.label, stack.origin
        self._stack, self._images = stack, StackExamples(stack)
        self._recipe, self._noise = operator, noise
        self._last: tuple[int, torch.Tensor] | None = None
        self._lock = threading.Lock()
        self._compression = self._operator(0).nominal_compression

    def __len__(self) -> int:
        return len(self._images)

    def shape(self, index: int) -> Shape:
        return (2, *self._images.shape(index)[1:])

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"compression": self._compression}

    def read(self, index: int, window: Window | None = None) -> torch.Tensor:
        with self._lock:
            if self._last is None or self._last[0] != index:
                self._last = index, self._measured(index)
            both = self._last[1]
        return both if window is None else both[(slice(None), *window)]

    def _operator(self, index: int) -> LinearOperator:
        imaging = Imaging(self._stack.shape, (self._stack.pixel_size(index),), self._stack.rows([index]))
        return build_operator(self._recipe, imaging, seed=0)

    def _measured(self, index: int) -> torch.Tensor:
        image = self._images.read(index)[None]
        x, _, deviation = standardised(image)
        if not 0 < float(deviation) < math.inf:
            raise DataError(f"{self.name(index)} is constant or not finite; train on images without it")
        operator = self._operator(index)
        y = operator.A(x)
        sigma = y.new_full((1, *[1] * (y.ndim - 1)), self._noise)
        noise = Gaussian(sigma=self._noise) if self._noise else NoNoise()
        if self._noise:
            pixels = hashlib.sha256(image.numpy().tobytes()).hexdigest()
            y = y + sigma * Rng(0, [pixels]).stream("measured").normal(y.shape[1:])
        return torch.cat([initial_image(Problem(operator, y, noise, sigma))[0], x[0]])


class PairExamples(Examples):
    """Both halves of micrographs, [2, H, W]. Raises `DataError` for a stack without pairs."""

    def __init__(self, stack: Stack):
        pairs = stack.pairs
        if pairs is None:
            raise DataError(
                f"{stack.label} has one image of each specimen; training without truth needs two with independent "
                "noise: give micrographs in two halves"
            )
        self.label, self.origin = pairs.label, stack.origin
        self._pairs: Pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def shape(self, index: int) -> Shape:
        return (2, *self._pairs.shape(index))

    def read(self, index: int, window: Window | None = None) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(self._pairs.read(index, window), dtype=np.float32))

    def name(self, index: int) -> str:
        return f"micrograph {self._pairs.name(index)} of {self.label}"

    def digests(self, index: int) -> Sequence[str]:
        return self._pairs.digests(index)
