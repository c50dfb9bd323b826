"""Operators of windows, and sum pooling in strips."""

from __future__ import annotations

import math

import pytest
import torch

from cryobench.core import Imaging, build_operator
from cryobench.core.meters import CountingOperator, counting
from cryobench.errors import ParameterError, Unsupported
from cryobench.operators import sumpool
from cryobench.operators.composed import Composed
from cryobench.operators.ctf import Ctf
from cryobench.operators.fourier import Fourier
from cryobench.operators.identity import Identity
from cryobench.operators.masks import RandomGaussian, Superres
from cryobench.operators.sumpool import SumPool, SumPoolOperator

DOUBLE = torch.float64
TWICE = Composed(SumPool(3, 4), SumPool(2, 1, RandomGaussian()))


def build(recipe, shape, dtype=DOUBLE):
    return build_operator(recipe, shape, seed=4, dtype=dtype)


def draw(*shape, dtype=DOUBLE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=dtype)


@pytest.mark.parametrize(("recipe", "shape", "window"), [
    (Identity(), (7, 9), (slice(0, 3), slice(4, 9))),
    (Identity(), (5, 6, 7), (slice(1, 5), slice(0, 6), slice(3, 4))),
    (SumPool(4), (16, 24), (slice(4, 16), slice(8, 12))),
    (SumPool(2, 9, RandomGaussian()), (8, 6), (slice(2, 6), slice(0, 6))),
    (TWICE, (24, 36), (slice(6, 24), slice(12, 24))),
])  # fmt: skip
def test_the_operator_of_a_window_measures_as_the_whole_does_there(recipe, shape, window):
    A = build(recipe, shape)
    crop, x, y = A.crop(window), draw(2, 1, *shape), draw(2, *A.measurement_shape)
    W, place = crop.operator, (..., *window)
    assert W.image_shape == tuple(part.stop - part.start for part in window)
    for name, given, expected in (
        ("A", x[place], crop.of(A.A(x))),
        ("A_adjoint", crop.of(y), A.A_adjoint(y)[place]),
        ("A_adjoint_A", x[place], A.A_adjoint_A(x)[place]),
        ("A_dagger", crop.of(y), A.A_dagger(y)[place]),
        ("A_dagger_A", x[place], A.A_dagger_A(x)[place]),
    ):
        torch.testing.assert_close(getattr(W, name)(given), expected, rtol=1e-6, atol=1e-6)
    assert W.closed_form == A.closed_form
    assert W.compute_norm() <= A.compute_norm() * (1 + 1e-6)


def test_a_window_of_sum_pooling_is_that_of_its_masks_with_or_without_known_factors():
    masks = SumPool(4).draw(Imaging((16, 24)), 4)["masks"]
    wanted = SumPoolOperator(masks[:, 4:12, 8:24], 4, dtype=DOUBLE, device="cpu")
    for prepared in (False, True):
        whole = build(SumPool(4), (16, 24))
        if prepared:
            whole.prepare()
        part = whole.crop((slice(4, 12), slice(8, 24))).operator
        assert isinstance(part, SumPoolOperator)
        assert torch.equal(part.matrices, wanted.matrices)
        assert (part.rank, part.nominal_compression, part.nonnegative, part.block) == (
            wanted.rank, wanted.nominal_compression, wanted.nonnegative, wanted.block,
        )  # fmt: skip
        torch.testing.assert_close(part.eigenvalues, wanted.eigenvalues)
        y = draw(1, *part.measurement_shape)
        torch.testing.assert_close(part.A_dagger(y), wanted.A_dagger(y))


def test_rows_of_a_window_are_the_window_of_rows():
    for whole in (build(SumPool(2, 4), (8, 8)), build(TWICE, (24, 24))):
        rows, window = torch.tensor([2, 0]), (slice(0, whole.crop_step), slice(whole.crop_step, 2 * whole.crop_step))
        crop, x = whole.rows(rows).crop(window), draw(1, *whole.domain_shape)
        torch.testing.assert_close(crop.operator.A(x[(..., *window)]), crop.of(whole.A(x)[:, rows]))


def test_applications_of_the_operator_of_a_window_are_counted():
    operator = CountingOperator(build(SumPool(4), (16, 16)))
    crop = operator.crop((slice(0, 8), slice(0, 8)))
    with counting() as tally:
        crop.operator.A(draw(2, 1, 8, 8))
    assert tally.images == {"A": 2}
    assert (operator.crop_step, crop.operator.crop_step) == (4, 4)


@pytest.mark.parametrize("recipe", [
    Fourier(0.5), Ctf(9000.0, pixel_size=2.0), Composed(SumPool(4), Ctf(9000.0, pixel_size=2.0)),
])  # fmt: skip
def test_an_operator_that_mixes_all_pixels_has_none(recipe):
    with pytest.raises(Unsupported, match="mixes all pixels"):
        build(recipe, (16, 16)).crop((slice(0, 8), slice(0, 8)))


@pytest.mark.parametrize("window", [
    (slice(0, 8),), (slice(0, 8), slice(8, 8)), (slice(-8, 8), slice(0, 8)), (slice(0, 20), slice(0, 8)),
    (slice(0, 8, 2), slice(0, 8)), (slice(None), slice(0, 8)),
])  # fmt: skip
def test_a_window_outside_the_image_is_refused(window):
    for recipe in (Identity(), SumPool(4), Fourier(0.5)):
        with pytest.raises(ValueError, match=r"is no window of an image of \(16, 16\)"):
            build(recipe, (16, 16)).crop(window)


def test_the_edges_of_windows_are_those_of_the_blocks_of_both_parts():
    A = build(TWICE, (24, 24))
    assert A.crop_step == 6
    with pytest.raises(Unsupported, match="multiples of 6 pixels, got 2"):
        A.crop((slice(0, 6), slice(2, 8)))


STRIPPED = [SumPool(4), SumPool(4, 6, RandomGaussian()), SumPool(2, 9), SumPool(4, 3, Superres())]


@pytest.mark.parametrize("recipe", STRIPPED, ids=repr)
@pytest.mark.parametrize("vectors", [0, 10**9])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_strips_give_the_same_bits_as_the_whole_image(recipe, vectors, dtype, monkeypatch):
    shape = (24, 16)
    whole = build(recipe, shape, dtype)
    whole.prepare()
    monkeypatch.setattr(sumpool, "_STRIP_BYTES", 2 * 8 * 16 * shape[1] * recipe.block)
    monkeypatch.setattr(sumpool, "_VECTOR_BYTES", vectors)
    strips = build(recipe, shape, dtype)
    assert len(strips._strips) > 1
    strips.prepare()
    x, y = draw(3, 1, *shape, dtype=dtype), draw(3, *whole.measurement_shape, dtype=dtype)
    gamma = torch.tensor([0.1, 2.0, math.inf], dtype=dtype)
    for call in (
        lambda A: A.A(x), lambda A: A.A_adjoint(y), lambda A: A.A_dagger(y), lambda A: A.A_dagger_A(x),
        lambda A: A.A_dagger_A(x, gamma), lambda A: A.prox_l2(x, y, 0.7), lambda A: A.on_range(y),
    ):  # fmt: skip
        assert torch.equal(call(strips), call(whole))
    torch.testing.assert_close(strips.A_adjoint_A(x), whole.A_adjoint_A(x))
    assert (strips.rank, strips.compute_norm()) == (whole.rank, whole.compute_norm())
    assert (strips._factors[1] is None) == (vectors == 0)
    assert strips._casts == {}  # nothing of the size of the matrices is kept
    crop = strips.crop((slice(0, 16), slice(8, 16)))
    torch.testing.assert_close(crop.operator.A_dagger(crop.of(y)), whole.A_dagger(y)[:, :, :16, 8:])
    torch.testing.assert_close(strips.rows(slice(0, 2)).A_dagger(y[:, :2]), whole.rows(slice(0, 2)).A_dagger(y[:, :2]))


def test_binary_masks_of_a_large_image_are_kept_as_bytes(monkeypatch):
    monkeypatch.setattr(sumpool, "_STRIP_BYTES", 1)
    assert build(SumPool(4), (16, 16)).matrices.dtype == torch.uint8
    assert build(SumPool(4, mask=RandomGaussian()), (16, 16)).matrices.dtype == DOUBLE
    inside = build(SumPool(4), (16, 16)).crop((slice(0, 4), slice(0, 4))).operator
    assert isinstance(inside, SumPoolOperator)
    assert inside.matrices.dtype == DOUBLE


def test_gradients_go_through_strips(monkeypatch):
    monkeypatch.setattr(sumpool, "_STRIP_BYTES", 1)
    A, x = build(SumPool(4), (16, 16)), draw(1, 1, 16, 16).requires_grad_()
    A.A(x).square().sum().div(2).backward()
    torch.testing.assert_close(x.grad, A.A_adjoint_A(x.detach()))


def test_masks_that_do_not_fit_are_refused_with_their_number_of_bytes():
    with pytest.raises(ParameterError, match=r"needs 3[\d.]+ TB of memory, .*; give a smaller count or block") as no:
        SumPool(16).check(Imaging((2**20, 2**20)))
    assert "\n" not in str(no.value)
