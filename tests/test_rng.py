"""Draws depend only on (seed, image, purpose)."""

from __future__ import annotations

import pytest
import torch

from cryobench.rng import Rng, generator


def test_draws_of_an_image_do_not_depend_on_the_batch():
    whole = Rng(3, ["a", "b", "c"]).stream("noise").normal((2, 5))
    assert whole.shape == (3, 2, 5)
    assert torch.equal(Rng(3, ["c"]).stream("noise").normal((2, 5)), whole[2:])
    assert torch.equal(Rng(3, ["c", "a"]).stream("noise").normal((2, 5)), whole[[2, 0]])


def test_seed_image_and_purpose_all_matter_and_draws_advance():
    draw = Rng(0, ["a"]).stream("x").normal((4,))
    for other in (Rng(1, ["a"]).stream("x"), Rng(0, ["b"]).stream("x"), Rng(0, ["a"]).stream("y")):
        assert not torch.equal(other.normal((4,)), draw)
    stream = Rng(0, ["a"]).stream("x")
    assert torch.equal(stream.normal((4,)), draw)
    assert not torch.equal(stream.normal((4,)), draw)


def test_draws_have_the_stated_distribution():
    stream = Rng(0, ["a", "b"]).stream("x")
    assert stream.normal((50_000,)).var().item() == pytest.approx(1, abs=0.03)
    uniform = stream.uniform((50_000,), dtype=torch.float64)
    assert uniform.dtype == torch.float64
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.01)
    counts = stream.poisson(torch.full((2, 50_000), 7.0))
    assert counts.mean().item() == pytest.approx(7, abs=0.1)
    assert counts.var().item() == pytest.approx(7, abs=0.2)


def test_keys_of_other_types_do_not_collide():
    assert generator("1", 2).initial_seed() != generator(1, "2").initial_seed()


def test_the_global_state_is_preserved():
    before = torch.random.get_rng_state()
    Rng(0, ["a"]).stream("x").normal((4,))
    assert torch.equal(torch.random.get_rng_state(), before)
