"""Counter-based random numbers: random access to any number of a sequence, on any device.

Philox4x32-10 turns a key of 64 bits and a counter of 128 bits into 128 random bits (Salmon, Moraes, Dror & Shaw 2011,
"Parallel random numbers: as easy as 1, 2, 3", section 3.3). The counter here is (block, row, purpose, 0): the numbers
of a row depend only on the key, the row and the purpose.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from cryobench.rng import digest

_MASK = 0xFFFFFFFF
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10

Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Four 32-bit random words from four counter words and two key words; words are int64 tensors, 0 to 2^32 - 1."""
    a, b, c, d = counter
    low, high = key
    for _ in range(_ROUNDS):
        # the product of two 32-bit words fills the 64 bits of an int64, including the sign bit
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b = (second >> 32).bitwise_and_(_MASK).bitwise_xor_(b).bitwise_xor_(low), second.bitwise_and_(_MASK)
        c, d = (first >> 32).bitwise_and_(_MASK).bitwise_xor_(d).bitwise_xor_(high), first.bitwise_and_(_MASK)
        low, high = (low + _WEYL[0]) & _MASK, (high + _WEYL[1]) & _MASK
    return a, b, c, d


class RowDraws:
    """Random numbers for rows (such as particles); the key is any tuple of objects with a stable repr.

    Row and purpose are integers from 0 to 2^32 - 1; each pair has its own sequence of 2^34 numbers.
    """

    def __init__(self, *key: object):
        bits = digest(*key)
        self._key = bits & _MASK, bits >> 32

    def uniform(self, rows: torch.Tensor, purpose: int, count: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """Uniform numbers in (0, 1), [B, count], on the device of rows [B]. A longer draw starts with the same ones."""
        return torch.stack(self._fractions(rows, purpose, count, dtype), dim=-1).flatten(1)[:, :count]

    def normal(self, rows: torch.Tensor, purpose: int, count: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """Standard normal numbers, [B, count] (Box & Muller 1958); otherwise as `uniform`."""
        a, b, c, d = self._fractions(rows, purpose, count, dtype)
        numbers = []
        for fraction, angle_fraction in ((a, b), (c, d)):
            radius, angle = fraction.log_().mul_(-2).sqrt_(), angle_fraction.mul_(2 * math.pi)
            numbers += [radius * angle.cos(), radius * angle.sin()]
        return torch.stack(numbers, dim=-1).flatten(1)[:, :count]

    def _fractions(self, rows: torch.Tensor, purpose: int, count: int, dtype: torch.dtype) -> list[torch.Tensor]:
        """The four words of each block needed for `count` numbers, as fractions in (0, 1), [B, blocks] each."""
        blocks = torch.arange(math.ceil(count / 4), device=rows.device)
        counter = (blocks.expand(len(rows), -1), rows.long()[:, None], torch.full_like(blocks, purpose), 0 * blocks)
        words = philox(torch.broadcast_tensors(*counter), self._key)  # type: ignore[arg-type]
        return [word.to(dtype).add_(0.5).mul_(2.0**-32) for word in words]


def pixel_fractions(key: int, row: int, purpose: int, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers uniform in (0, 1) for the pixels of an image, float64 of this shape, at most 1 - 2^-33.

    NumPy's Philox4x64-10, whose bits do not change between versions (NEP 19); on a CPU it is several times as fast as
    `RowDraws`. The numbers depend on the 64-bit key and the counters row and purpose alone.
    """
    words = np.random.Philox(key=key, counter=[0, row, purpose, 0]).random_raw(math.prod(shape))
    return (((words >> np.uint64(32)) + 0.5) * 2.0**-32).reshape(shape)
