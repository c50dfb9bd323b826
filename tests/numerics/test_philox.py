"""Philox against published outputs, and its numbers against their distributions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from cryobench.numerics.philox import RowDraws, philox, pixel_fractions

ROWS = torch.arange(64)


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [  # the known answers that come with the authors' library, Random123
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_the_published_answers(counter, key, answer):
    words = tuple(torch.tensor([int(word, 16)]) for word in counter.split())
    found = philox(words, tuple(int(word, 16) for word in key.split()))
    assert " ".join(f"{int(word):08x}" for word in found) == answer


def test_numbers_are_uniform_and_normal_and_independent():
    draws = RowDraws("test", 0)
    uniform, normal = draws.uniform(ROWS, 0, 1001), draws.normal(ROWS, 1, 1001)
    assert uniform.shape == normal.shape == (64, 1001)
    assert 0 < uniform.min() < 1e-4 < 1 - 1e-4 < uniform.max() < 1
    assert kstest(uniform.flatten().numpy(), "uniform").pvalue > 1e-3
    assert kstest(normal.flatten().numpy(), "norm").pvalue > 1e-3
    correlation = torch.corrcoef(normal)
    assert (correlation - torch.eye(64)).abs().max() < 0.15
    # neither are the two halves of a pair of Box and Muller's
    assert abs(float((normal[:, :500] * normal[:, 501:]).mean())) < 0.02


def test_a_number_depends_on_key_row_and_purpose_alone():
    draws = RowDraws("test", 0)
    whole = draws.normal(ROWS, 0, 30, torch.float32)
    assert torch.equal(draws.normal(ROWS[[7, 3]], 0, 30, torch.float32), whole[[7, 3]])
    assert torch.equal(RowDraws("test", 0).uniform(ROWS, 0, 30), draws.uniform(ROWS, 0, 30))
    assert torch.equal(draws.uniform(ROWS, 0, 7), draws.uniform(ROWS, 0, 30)[:, :7])
    for other in (draws.uniform(ROWS, 1, 30), RowDraws("test", 1).uniform(ROWS, 0, 30)):
        assert not torch.isclose(other, draws.uniform(ROWS, 0, 30)).any(dim=1).any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_draws_the_same():
    draws = RowDraws("test", 0)
    torch.testing.assert_close(draws.uniform(ROWS.cuda(), 0, 100).cpu(), draws.uniform(ROWS, 0, 100), rtol=0, atol=0)
    torch.testing.assert_close(draws.normal(ROWS.cuda(), 0, 100).cpu(), draws.normal(ROWS, 0, 100))


def test_fractions_of_pixels():
    """Uniform; each of key, row and purpose gives others; a larger image starts with the same."""
    made = pixel_fractions(7, 1, 2, (300, 400))
    assert kstest(made.ravel(), "uniform").pvalue > 1e-3
    assert 0 < made.min() < 1e-4 < 1 - 1e-4 < made.max() < 1
    assert abs(np.corrcoef(made[:, :-1].ravel(), made[:, 1:].ravel())[0, 1]) < 0.015
    np.testing.assert_array_equal(pixel_fractions(7, 1, 2, (100, 400)), made[:100])
    for other in ((8, 1, 2), (7, 2, 2), (7, 1, 3)):
        assert abs(np.corrcoef(pixel_fractions(*other, (300, 400)).ravel(), made.ravel())[0, 1]) < 0.015
