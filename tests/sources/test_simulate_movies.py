"""Simulated movies: their optics against closed formulas, their counts against the expected ones, their draws."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.special import j0, j1
from skimage.registration import phase_cross_correlation

from cryobench.errors import DataError, ParameterError, SelectionError
from cryobench.sources import simulate_movies
from cryobench.sources.simulate_movies import SimulatedMicrographs, SimulateMovies, apart

QUIET = {"gain": 0.0, "drift": 0.0}
"""No gain and no drift, so that counts are Poisson with the same mean in all frames."""
BRIGHT = 2e3
"""A dose per frame at which the noise is far below the contrast."""


def opened(structure: str = "3mht", **parameters: object) -> SimulatedMicrographs:
    return SimulateMovies(structure, **({"size": 96, "count": 4, "frames": 8} | parameters)).open()


@pytest.fixture(scope="module")
def stack() -> SimulatedMicrographs:
    return opened()


def rings(image: np.ndarray) -> np.ndarray:
    """The number of its ring for each frequency of a square image, n/2 rings."""
    k = np.fft.fftfreq(len(image), 1 / len(image))
    return np.minimum(np.round(np.hypot(k[:, None], k)), len(image)).astype(int)


def ring_sums(values: np.ndarray) -> np.ndarray:
    """Sums of [n, n] over rings 0 to n/2 - 1."""
    return np.bincount(rings(values).ravel(), values.ravel())[: len(values) // 2]


# ------------------------------------------------------------------------------------------------------ optics


def test_the_spectrum_vanishes_at_the_zeros_of_the_ctf():
    """Where pi lambda D k^2 - pi/2 Cs lambda^3 k^4 + asin(w) is a multiple of pi, with lambda = 1.96875 pm."""
    n, pixel, defocus, wave, cs, w = 384, 2.4, 20000.0, 0.0196875, 2.7e7, 0.1
    stack = opened(size=n, defocus_low=defocus, defocus_high=defocus, astigmatism=0.0, fill=0.4, drift=0.0, frames=2)
    image = stack.expected(0, "ice")
    window = np.hanning(n)[:, None] * np.hanning(n)
    power = ring_sums(np.abs(np.fft.fft2((image - image.mean()) * window)) ** 2)
    power /= ring_sums(np.ones((n, n)))
    zeros = []
    for m in range(1, 7):
        squares = np.roots([-np.pi / 2 * cs * wave**3, np.pi * wave * defocus, np.arcsin(w) - m * np.pi])
        zeros.append(np.sqrt(squares.real.min()) * n * pixel)
    for place, after in itertools.pairwise(zeros):
        between = power[round(place) : round(after) + 1].max()
        assert power[round(place)] < 0.1 * between
        # the least ring between the maxima on both sides
        nearby = np.arange(round(place) - 3, round(place) + 4)
        assert abs(nearby[power[nearby].argmin()] - place) <= 1


def test_the_contrast_of_a_disc(monkeypatch):
    """-2 sigma int MTF(k) CTF(k) V(k) J0(2 pi k r) 2 pi k dk, with V(k) = V a J1(2 pi a k) / k of a smoothed disc."""
    n, pixel, radius, volts, blur, defocus, wave = 256, 2.4, 12.0, 300.0, 600.0, 15000.0, 0.0196875

    def disc(k):
        return volts * radius * j1(2 * np.pi * radius * k) / k * np.exp(-blur / 4 * k**2)

    def potential(atoms, rotations, positions, shape, pixel_size, b_factor):
        k = np.hypot(np.fft.fftfreq(shape[0], pixel)[:, None], np.fft.rfftfreq(shape[1], pixel))
        k[0, 0] = 1e-9
        centre = (shape[0] - n) // 2 + n // 2
        turns = np.fft.fftfreq(shape[0])[:, None] * centre + np.fft.rfftfreq(shape[1]) * centre
        return torch.from_numpy(disc(k) / pixel**2 * np.exp(-2j * np.pi * turns)).to(torch.complex64)

    monkeypatch.setattr(simulate_movies, "projected_potential", potential)
    stack = opened(size=n, frames=2, drift=0.0, ice=0.0, mtf=0.3, envelope=50.0, astigmatism=0.0, defocus_low=defocus,
                   defocus_high=defocus)  # fmt: skip
    made = stack.clean(0) / (1.25 * pixel**2 * 0.85) - 1
    k = (np.arange(40000) + 0.5) * 5e-6
    chi = np.pi * wave * defocus * k**2 - np.pi / 2 * 2.7e7 * wave**3 * k**4 + np.arcsin(0.1)
    for pixels in (0, 2, 4, 6, 8, 12, 20):
        response = np.sin(chi) * np.exp(-50 / 4 * k**2) * 0.3 ** ((2 * k * pixel) ** 2)
        integrand = response * disc(k) * j0(2 * np.pi * k * pixels * pixel) * 2 * np.pi * k
        assert made[n // 2, n // 2 + pixels] == pytest.approx(-2 * 6.526e-4 * integrand.sum() * 5e-6, abs=3e-4)
    assert made.min() < -0.02


def test_particles_are_dark_where_the_table_says(stack):
    """The mean contrast about each listed centre is negative, and on average zero where x and y are exchanged."""
    stack = opened(size=256, fill=0.2, ice=0.0, drift=0.0, frames=2, defocus_low=22000.0)
    contrast = stack.clean(0) / stack.clean(0).mean() - 1
    table = stack.particles(0)
    y, x = np.mgrid[:256, :256]

    def about(across: float, down: float) -> float:
        return float(contrast[np.hypot(x - across, y - down) <= 5].mean())

    found = [about(*row) for row in table[["rlnCoordinateX", "rlnCoordinateY"]].to_numpy()]
    exchanged = [about(*row) for row in table[["rlnCoordinateY", "rlnCoordinateX"]].to_numpy()]
    assert len(table) > 10
    assert max(found) < 0
    assert np.mean(exchanged) > 0.3 * np.mean(found)
    assert table["rlnMicrographName"].unique().tolist() == ["micrograph_00000"]
    assert table["rlnDefocusU"].unique().tolist() == [stack.table["rlnDefocusU"].iloc[0]]


def test_the_frames_move_by_the_drift():
    """6 Å exp(-t / 5) from rest, by registration of bright frames; t counts frames of groups of two."""
    stack = opened(size=256, frames=12, dose=BRIGHT, gain=0.0, drift=12.0, ice=0.0)
    frames = [frame.astype(float) for frame in stack.frames(0)]
    for t in (2, 6):
        shift, _, _ = phase_cross_correlation(frames[10], frames[t], upsample_factor=20)
        wanted = 12.0 / 2.4 * (np.exp(-t / 5) - np.exp(-10 / 5))
        assert np.hypot(*shift) == pytest.approx(wanted, abs=0.15)
    assert np.abs(frames[0] - frames[1]).std() < 5 * np.sqrt(frames[0].mean())


# ------------------------------------------------------------------------------------------------------ counts


@pytest.mark.parametrize("ratio", [1, 3])
def test_halves_have_the_expected_value_of_the_clean_image(ratio):
    """With so many electrons that drift and contrast stand out of the noise; the variance is that of the counts."""
    stack = opened(ratio=ratio, dose=BRIGHT, gain=0.0)
    a, b, clean = (x.astype(float) for x in (stack.read(0), stack.other(0), stack.clean(0)))
    for half, times in ((a, 1), (b, ratio)):
        deviations = (half - clean) / np.sqrt(times * clean)
        assert np.square(deviations).mean() == pytest.approx(1, abs=5 * np.sqrt(2 / a.size))
        assert abs(deviations.mean()) < 4 / np.sqrt(a.size)
        assert abs(np.corrcoef(deviations.ravel(), clean.ravel())[0, 1]) < 4 / np.sqrt(a.size)
    assert abs(np.corrcoef((a - clean).ravel(), (b - clean).ravel())[0, 1]) < 4 / np.sqrt(a.size)
    # the test would see a clean image without drift, and one of the particles alone
    for other in (
        opened(ratio=ratio, dose=BRIGHT, gain=0.0, drift=0.0),
        opened(ratio=ratio, dose=BRIGHT, truth="particles"),
    ):
        assert np.square((a - other.clean(0)) / np.sqrt(clean)).mean() > 3


@pytest.mark.parametrize("ratio", [1, 3])
def test_the_error_without_truth_is_the_true_one(ratio):
    """<f^2 - 2 f b + a b> of a blurred first half f, with the default drift, for which it must have one truth."""
    stack = opened(size=512, frames=8, ratio=ratio, dose=6.25)
    clean = stack.clean(0).astype(float)
    a, b = stack.read(0) - clean.mean(), stack.other(0) - clean.mean()
    f, truth = gaussian_filter(a, 2.0, mode="wrap"), clean - clean.mean()
    difference = f**2 - 2 * f * b + a * b - (f - truth) ** 2
    blocks = difference.reshape(8, 64, 8, 64).mean(axis=(1, 3))
    error = blocks.std() / 8
    assert error < 0.1 * ((f - truth) ** 2).mean()
    assert abs(difference.mean()) < 3.5 * error


def test_the_gain_reference_undoes_the_sensitivities():
    """Raw frames have the sensitivities, corrected sums have not; an error of the reference stays in them."""
    exact = opened(dose=BRIGHT, gain=0.1)
    raw = sum(frame.astype(float) for frame in exact.frames(0))
    ratio = exact.read(0) / exact.clean(0)
    assert (raw / raw.mean()).std() == pytest.approx(0.1, rel=0.1)
    assert ratio.std() < 0.01
    assert ratio.mean() == pytest.approx(1, abs=1e-3)
    wrong = opened(dose=BRIGHT, gain=0.1, gain_error=0.02)
    assert (wrong.read(0) / wrong.clean(0)).std() == pytest.approx(0.02, rel=0.05)
    np.testing.assert_array_equal(wrong.clean(0), exact.clean(0))


def test_hot_pixels_count_more_in_every_micrograph():
    stack, usual = opened(hot=0.003), opened()
    assert 10 < stack.hot.sum() < 60
    for index in (0, 1):
        excess = (stack.read(index) - usual.read(index))[stack.hot] / usual.clean(index).mean()
        assert excess.mean() == pytest.approx(20, rel=0.1)
        np.testing.assert_array_equal(stack.read(index)[~stack.hot], usual.read(index)[~stack.hot])


def test_only_a_fixed_pattern_correlates_between_micrographs():
    """First half of one, second half of another: with a gain error of 2% or hot pixels, not without."""
    n = 256

    def correlation(**parameters: float) -> float:
        stack = opened(size=n, fill=0.0, ice=0.0, **parameters)
        return float(np.corrcoef(stack.read(0).ravel(), stack.other(1).ravel())[0, 1]) * n

    assert abs(correlation()) < 4
    assert correlation(gain_error=0.05) > 8
    assert correlation(hot=1e-4) > 8


def test_the_noise_is_white():
    """The power of (half - clean) / sqrt(clean), ring by ring."""
    stack = opened(size=192, gain=0.0)
    noise = (stack.read(0) - stack.clean(0)) / np.sqrt(stack.clean(0))
    power = np.abs(np.fft.fft2(noise)) ** 2 / noise.size
    number = ring_sums(np.ones(noise.shape))
    deviations = (ring_sums(power) / number - 1) * np.sqrt(number / 2)
    assert np.abs(deviations[1:]).max() < 4
    assert np.square(deviations[1:]).mean() == pytest.approx(1, abs=0.45)


def test_the_frc_of_the_halves_is_that_of_signal_and_noise():
    """S / (S + N) with S the power of the clean image in the ring and N that of the counts."""
    stack = opened(size=256, frames=16, fill=0.4)
    a, b, clean = (np.fft.fft2(x.astype(float)) for x in (stack.read(0), stack.other(0), stack.clean(0)))
    number = ring_sums(np.ones(a.shape))
    found = ring_sums((a * b.conj()).real) / np.sqrt(ring_sums(np.abs(a) ** 2) * ring_sums(np.abs(b) ** 2))
    signal = ring_sums(np.abs(clean) ** 2)
    wanted = signal / (signal + number * stack.clean(0).sum())
    # the halves of a real image have number / 2 independent frequencies in a ring
    errors = (found - wanted)[2:] / ((1 - wanted**2) * np.sqrt(1 / number))[2:]
    assert wanted[3:].max() > 0.5
    assert wanted[-20:].max() < 0.1
    assert abs(errors.mean()) < 0.5
    assert np.abs(errors).max() < 5


# ------------------------------------------------------------------------------------------- draws and contract


def test_micrograph_2_is_the_same_in_any_order_and_window(stack):
    whole = stack.pairs.read(2)
    again = opened()
    window = (slice(10, 31), slice(5, 96))
    np.testing.assert_array_equal(again.pairs.read(2, window), whole[:, *window])
    np.testing.assert_array_equal(again.clean(2), stack.clean(2))
    np.testing.assert_array_equal(opened(count=3).read(2), whole[0])
    np.testing.assert_array_equal(stack.other(2), whole[1])
    # a longer movie begins with the same frames
    for first, second in zip(opened(**QUIET).frames(2), opened(**QUIET, frames=12).frames(2), strict=False):
        np.testing.assert_array_equal(first, second)


def test_halves_are_the_sums_of_the_frames():
    """Odd and even frames; with ratio=3 each fourth one, times three."""
    for ratio in (1, 3):
        stack = opened(ratio=ratio)
        frames = np.stack(list(stack.frames(1))).astype(np.float64)
        second = np.arange(8) % (ratio + 1) == ratio
        np.testing.assert_allclose(stack.read(1), frames[~second].sum(axis=0) * stack.gain, rtol=1e-6)
        np.testing.assert_allclose(stack.other(1), ratio * frames[second].sum(axis=0) * stack.gain, rtol=1e-6)


@pytest.mark.slow
def test_counts_are_the_same_for_any_number_of_threads():
    program = """
import hashlib
from cryobench.sources.simulate_movies import SimulateMovies
stack = SimulateMovies("3mht", count=1, size=500, frames=2).open()
print(hashlib.sha256(stack.pairs.read(0).tobytes() + stack.clean(0).tobytes()).hexdigest())
"""
    digests = {
        subprocess.run([sys.executable, "-c", program], env=os.environ | {"OMP_NUM_THREADS": threads},
                       capture_output=True, text=True, check=True).stdout
        for threads in ("1", "3")
    }  # fmt: skip
    assert len(digests) == 1


def test_a_stack_can_be_sent_to_another_process(stack):
    again = pickle.loads(pickle.dumps(stack))
    np.testing.assert_array_equal(again.read(3), stack.read(3))


def test_what_is_read_may_be_changed(stack):
    before = stack.pairs.read(0)
    for read in (stack.read, stack.other, stack.clean, stack.pairs.read):
        made = read(0)
        made += 1
    np.testing.assert_array_equal(stack.pairs.read(0), before)


def test_micrographs_frames_seeds_and_splits_differ(stack):
    read = stack.read(0)
    for other in (stack.other(0), stack.read(1), opened(seed=1).read(0), opened(split="train").read(0)):
        noise = np.corrcoef((read - stack.clean(0)).ravel(), (other - other.mean()).ravel())[0, 1]
        assert abs(noise) < 4 / 96
    assert opened(split="train").table["rlnDefocusU"].iloc[0] != stack.table["rlnDefocusU"].iloc[0]
    assert stack.origin == {"structure": "3mht", "split": "test", "seed": "0"}


def test_structures_take_turns():
    stack = opened("train", count=5, defocus_low=12000.0, defocus_high=14000.0)
    names = stack.origin["structure"].split(",")
    assert len(names) == 3
    assert stack.table["rlnClassNumber"].tolist() == [1, 2, 3, 1, 2]
    mean = (stack.table["rlnDefocusU"] + stack.table["rlnDefocusV"]) / 2
    assert mean.between(12000, 14000).all()
    assert mean.nunique() == 5
    alone = opened(names[1], count=5, defocus_low=12000.0, defocus_high=14000.0)
    np.testing.assert_array_equal(stack.read(1), alone.read(1))


def test_the_label_has_the_defocus_if_it_is_not_the_usual_one(stack):
    assert stack.label == "simulated movies of 3mht"
    assert opened(defocus_low=22000.0, defocus_high=30000.0).label == "simulated movies of 3mht at 2.2 to 3 µm"


def test_digests_name_what_determines_the_counts(stack):
    own = stack.pairs.digests(1)
    assert own == opened(count=9, truth="particles").pairs.digests(1)
    assert (
        len({*own, *stack.pairs.digests(0), *opened(dose=1.0).pairs.digests(1), *opened(seed=2).pairs.digests(1)}) == 8
    )


def test_the_truths(stack):
    """They differ by the ice alone, whose noise is not white."""
    alone = opened(truth="particles")
    np.testing.assert_array_equal(alone.read(0), stack.read(0))
    np.testing.assert_allclose(opened(ice=0.0).clean(0), alone.clean(0), rtol=1e-5)
    assert (stack.clean(0) - alone.clean(0)).std() > 0.01 * stack.clean(0).mean()
    assert (stack.white_noise, alone.white_noise, opened(truth="particles", ice=0.0).white_noise) == (True, False, True)


def test_particles_do_not_overlap_and_fill_the_area():
    stack = opened(size=400, fill=0.4, frames=2)
    positions = stack.specimen(0).positions.numpy()
    radius, side = 41.25 / 2.4, stack.specimen(0).particles.shape[0]
    between = positions[:, None] - positions
    between -= side * np.round(between / side)
    distance = np.hypot(*between.T) + 1e9 * np.eye(len(positions))
    assert distance.min() >= 2 * radius - 0.01
    assert len(positions) * np.pi * radius**2 / side**2 == pytest.approx(0.4, abs=0.005)
    overlapping = opened(size=400, fill=0.6, overlap=True, frames=2).specimen(0)
    assert len(overlapping.positions) == pytest.approx(1.5 * len(positions), abs=2)


def test_positions_are_kept_in_order():
    """A periodic square of side 10: the third candidate is near the first across the border."""
    candidates = np.array([[0.5, 5.0], [5.0, 5.0], [9.8, 5.0], [5.0, 0.0]])
    np.testing.assert_array_equal(apart(candidates, 2.0, 10.0, 3), candidates[[0, 1, 3]])
    assert len(apart(candidates, 2.0, 10.0, 4)) == 3


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"size": 8}, "size must be at least 16, got 8"),
        ({"dose": 0.0}, "dose must be positive, got 0"),
        ({"mtf": 1.2}, "mtf must be at most 1 and not negative, got 1.2"),
        ({"frames": 7}, r"frames must be a multiple of ratio \+ 1 = 2, got 7"),
        ({"fill": 0.5}, "fill must be at most 0.45 where particles do not overlap, got 0.5; give less"),
        ({"defocus_low": 3e4}, "defocus_low 30000 is above defocus_high 22000; swap them"),
        ({"defocus_high": float("inf")}, "defocus_high must be finite, got inf"),
        ({"dose": 1e4}, "48960 counts of a pixel in a frame may not fit in 16 bits; give less dose a frame"),
        ({"size": 10**7}, r"simulate_movies with 10000000\^2 pixels needs .* of memory"),
    ],
)
def test_invalid_parameters_are_refused(parameters, says):
    with pytest.raises(ParameterError, match=says) as caught:
        opened(**parameters)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_simulated_is_refused(stack):
    with pytest.raises(SelectionError, match="image 4 of simulated movies of 3mht does not exist; it has 4, from 0"):
        stack.pairs.read(4)
    with pytest.raises(DataError, match=r"falls to .*, below -1; the specimen is too thick") as caught:
        opened(fill=60.0, overlap=True).read(0)
    assert "\n" not in str(caught.value)


def test_every_parameter_changes_the_digest(stack):
    """Except those that select micrographs or truths."""
    changed = {"astigmatism": 5.0, "split": "val", "ratio": 3, "overlap": True}
    for field in dataclasses.fields(SimulateMovies):
        if field.name not in {"structure", "chains", "assembly", "count", "truth"}:
            value = changed.get(field.name, getattr(stack.recipe, field.name))
            value = value * 0.5 if isinstance(value, float) and value else (value + 4 if type(value) is int else value)
            value = 0.01 if value == 0.0 and field.name in ("gain_error", "hot", "phase_shift") else value
            other = opened(**{field.name: value})
            assert other.pairs.digests(0) != stack.pairs.digests(0), field.name
