"""Random draws keyed by (seed, image id, purpose).

A draw does not depend on the batch, on the order of the images or on the number of workers.
Draws are made on the CPU and copied to the device, so that CPU and CUDA runs use the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch


def digest(*key: object) -> int:
    """A 64-bit hash of the key, 0 to 2^64 - 1: BLAKE2b of its repr."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")


def generator(*key: object) -> torch.Generator:
    """A CPU generator seeded by the key."""
    bits = digest(*key)
    return torch.Generator().manual_seed(bits - 2**64 if bits >= 2**63 else bits)


class Stream:
    """Successive draws for one purpose, one independent sequence per image."""

    def __init__(self, generators: Sequence[torch.Generator]):
        self._generators = generators

    def normal(
        self, shape: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """Standard normal draws [B, *shape]."""
        return self._draw(torch.randn, shape, dtype, device)

    def uniform(
        self, shape: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """Uniform draws in [0, 1), [B, *shape]."""
        return self._draw(torch.rand, shape, dtype, device)

    def poisson(self, rate: torch.Tensor) -> torch.Tensor:
        """Poisson counts [B, ...] of the given mean counts, image by image."""
        rates = rate.detach().cpu()
        draws = [torch.poisson(r, generator=g) for r, g in zip(rates, self._generators, strict=True)]
        return torch.stack(draws).to(rate.device)

    def _draw(self, sampler, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
        draws = [sampler(tuple(shape), generator=g, dtype=dtype) for g in self._generators]
        return torch.stack(draws).to(device)


class Rng:
    """The random numbers of a batch: `rng.stream("x_T").normal((1, 128, 128))` is [B, 1, 128, 128].

    seed: the run's seed. image_ids: one id per image of the batch, stable in its source.
    """

    def __init__(self, seed: int, image_ids: Sequence[str]):
        self.seed = seed
        self.image_ids = tuple(image_ids)

    def stream(self, purpose: str) -> Stream:
        """A new stream for a purpose. Two streams for the same purpose give the same draws."""
        return Stream([generator(self.seed, image, purpose) for image in self.image_ids])
