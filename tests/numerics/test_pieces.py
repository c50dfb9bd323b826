"""Sums over large items, piece by piece."""

from __future__ import annotations

import math

import pytest
import torch

from cryobench.numerics import linalg
from cryobench.numerics.linalg import dot, total
from cryobench.priors.dct import DctSparsity


@pytest.mark.parametrize("shape", [(3, 1, 40, 24), (2, 2, 7, 30), (2, 1, 11, 10, 12)])
def test_sums_of_pieces_are_those_of_the_items(monkeypatch, shape):
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=draw) for _ in range(2))
    first = b[:1].transpose(-1, -2).contiguous().transpose(-1, -2)  # not contiguous, and the same for all items
    expected = [math.fsum(item.flatten().tolist()) for item in a]
    products = [math.fsum((item.double() * first[0].double()).flatten().tolist()) for item in a]
    monkeypatch.setattr(linalg, "PIECE", 50)
    assert total(a).flatten().tolist() == pytest.approx(expected, rel=1e-5)
    assert total(a).shape == (shape[0], *[1] * (len(shape) - 1))
    assert dot(a, first).flatten().tolist() == pytest.approx(products, rel=1e-5)
    assert torch.equal(dot(a, first)[1:2], dot(a[1:2], first))
    assert dot(a.double(), first).dtype == torch.float64


def test_no_piece_is_larger_than_the_limit(monkeypatch):
    sizes = []
    monkeypatch.setattr(linalg, "PIECE", 50)
    linalg.sum_pieces(lambda a: sizes.append(a[0].numel()) or a, torch.ones(2, 1, 40, 24))
    assert max(sizes) <= 50
    assert sum(sizes) == 40 * 24


def test_a_sparsity_prior_is_the_same_in_pieces(monkeypatch):
    x = torch.randn((2, 1, 24, 20), generator=torch.Generator().manual_seed(0))
    prior, threshold = DctSparsity(2.0), torch.full((2, 1, 1, 1), 0.3)
    value, image = prior.value(x), prior.prox(x, threshold)
    monkeypatch.setattr(linalg, "PIECE", 50)
    torch.testing.assert_close(prior.value(x), value)
    torch.testing.assert_close(prior.prox(x, threshold), image)
