"""The symmetries of the square."""

from __future__ import annotations

import torch

from cryobench.numerics.symmetry import SYMMETRIES, inverse_transformed, transformed


def test_the_eight_symmetries_are_distinct_and_inverted():
    x = torch.arange(2 * 3 * 5 * 5).reshape(2, 3, 5, 5)
    seen = [transformed(x, kind) for kind in range(SYMMETRIES)]
    assert torch.equal(seen[0], x)
    assert len({tuple(each.flatten().tolist()) for each in seen}) == SYMMETRIES
    for kind, each in enumerate(seen):
        assert torch.equal(inverse_transformed(each, kind), x)


def test_symmetries_of_non_square_images_are_inverted():
    x = torch.arange(6).reshape(1, 1, 2, 3)
    for kind in range(SYMMETRIES):
        assert torch.equal(inverse_transformed(transformed(x, kind), kind), x)
