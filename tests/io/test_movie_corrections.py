"""Gain, defects, hot pixels, binning, alignment and exposure weights, against closed formulas and other libraries."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from movie_files import counts, write_eer, write_mrc, write_tiff
from scipy.signal import resample
from skimage.registration import phase_cross_correlation

from cryobench.errors import DataError, DataWarning, ParameterError
from cryobench.io.fourier_crop import crop_half_spectrum, fourier_resize
from cryobench.io.movies.align import rigid_shifts, shift_phase
from cryobench.io.movies.defects import read_defects
from cryobench.io.movies.exposure import critical_exposure, weights
from cryobench.io.movies.gain import read_gain
from cryobench.io.movies.hot import hot_pixels
from cryobench.io.movies.images import read_image
from cryobench.io.movies.replacement import Replacement
from cryobench.io.movies.settings import MovieSettings
from cryobench.io.movies.summing import Summer, open_movie

SHAPE = (40, 50)


def summed(path, **settings):
    return Summer(MovieSettings(**settings)).sum(open_movie(path))


def gain_of(shape=SHAPE, deviation=0.1, seed=5):
    return np.random.default_rng(seed).normal(1, deviation, shape).astype(np.float32)


def test_halves_are_the_sums_of_odd_and_even_frames(tmp_path):
    frames = counts((6, *SHAPE), 20)
    found = summed(write_tiff(tmp_path / "a.tif", frames), hot=0)
    np.testing.assert_array_equal(found.images, [frames[0::2].sum(axis=0), frames[1::2].sum(axis=0)])
    assert (found.frames, found.dropped, found.images.dtype) == (6, 0, np.float32)


def test_the_last_of_an_odd_number_of_frames_is_dropped_and_said(tmp_path):
    frames = counts((5, *SHAPE), 20)
    with pytest.warns(DataWarning, match=r"a.tif has 5 frames; the last is dropped, so that both halves have 2"):
        found = summed(write_tiff(tmp_path / "a.tif", frames), hot=0)
    np.testing.assert_array_equal(found.images, [frames[0:4:2].sum(axis=0), frames[1:4:2].sum(axis=0)])
    assert (found.frames, found.dropped) == (4, 1)


def test_one_frame_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a.mrc has 1 frame; two halves need at least 2"):
        summed(write_mrc(tmp_path / "a.mrc", counts((1, *SHAPE)).astype(np.int16)))
    with pytest.raises(DataError, match=r"has 3 frames, 1 after group=2"):
        summed(write_mrc(tmp_path / "b.mrc", counts((3, *SHAPE)).astype(np.int16)), group=2)


# ------------------------------------------------------------------------------------------------------------- gain


@pytest.mark.parametrize("suffix", ["mrc", "tif"])
def test_frames_are_multiplied_by_the_gain(tmp_path, suffix):
    frames, gain = counts((4, *SHAPE), 50), gain_of()
    write = write_mrc if suffix == "mrc" else write_tiff
    write(tmp_path / f"gain.{suffix}", gain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        found = summed(write_tiff(tmp_path / "a.tif", frames), gain=str(tmp_path / f"gain.{suffix}"), hot=0)
    np.testing.assert_allclose(found.images[1], frames[1::2].sum(axis=0) * gain, rtol=1e-6)


@pytest.mark.parametrize(("turn", "flip"), [(0, "ud"), (90, "none"), (180, "lr"), (270, "ud")])
def test_turns_and_flips(tmp_path, turn, flip):
    gain = gain_of((3, 4))
    write_mrc(tmp_path / "g.mrc", gain)
    expected = gain
    for _ in range(turn // 90):  # anticlockwise: the last column becomes the first row
        expected = np.array([expected[:, column] for column in reversed(range(expected.shape[1]))])
    expected = {"none": expected, "ud": expected[::-1], "lr": expected[:, ::-1]}[flip]
    np.testing.assert_array_equal(read_gain(tmp_path / "g.mrc", "auto", turn, flip, divided=False).factor, expected)


def test_falcon_gains_divide_and_zeros_are_bad(tmp_path):
    gain = gain_of((6, 8)) + 1
    gain[2, 3], gain[0, 0] = 0, np.nan
    (tmp_path / "g.gain").write_bytes(write_tiff(tmp_path / "g.tif", gain).read_bytes())
    for path, divided in (("g.gain", False), ("g.tif", True)):  # by its name, or because the movie is EER
        found = read_gain(tmp_path / path, "auto", 0, "none", divided=divided)
        assert found.divided
        np.testing.assert_array_equal(np.argwhere(found.bad), [[0, 0], [2, 3]])
        np.testing.assert_allclose(found.factor[~found.bad], 1 / gain[~found.bad], rtol=1e-6)
        assert (found.factor[found.bad] == 0).all()
    assert not read_gain(tmp_path / "g.gain", "multiply", 0, "none", divided=True).divided


def test_the_other_mode_is_suggested_where_it_flattens_better(tmp_path):
    gain = gain_of((200, 200), 0.05)
    write_mrc(tmp_path / "g.mrc", gain)
    rng = np.random.default_rng(0)
    multiplied, divided = (rng.poisson(20 * mean, (4, 200, 200)).astype(np.uint16) for mean in (1 / gain, gain))
    with pytest.warns(DataWarning, match=r"multiplied by .*, and the other way flattens their sum better .*divide"):
        summed(write_mrc(tmp_path / "a.mrc", divided), gain=str(tmp_path / "g.mrc"))
    (tmp_path / "other").mkdir()  # a warning is shown once for a folder
    with pytest.warns(DataWarning, match=r"divided by .*, and the other way flattens .*gain_mode=multiply"):
        summed(write_mrc(tmp_path / "other" / "a.mrc", multiplied), gain=str(tmp_path / "g.mrc"), gain_mode="divide")
    (tmp_path / "turned").mkdir()
    with pytest.warns(DataWarning, match=r"does not flatten the sum of the frames .*rotate= or flip="):
        summed(write_mrc(tmp_path / "turned" / "a.mrc", multiplied), gain=str(tmp_path / "g.mrc"), rotate=90)
    (tmp_path / "right").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        summed(write_mrc(tmp_path / "right" / "a.mrc", multiplied), gain=str(tmp_path / "g.mrc"))


def test_a_gain_of_another_shape(tmp_path):
    write_mrc(tmp_path / "g.mrc", gain_of((50, 40)))
    write_mrc(tmp_path / "h.mrc", gain_of((20, 25)))
    movie = write_mrc(tmp_path / "a.mrc", counts((2, *SHAPE)).astype(np.int16))
    with pytest.raises(DataError, match=r"g.mrc has 50 x 40 pixels after turns .*a.mrc 40 x 50; give rotate=90"):
        summed(movie, gain=str(tmp_path / "g.mrc"))
    with pytest.raises(DataError, match=r"20 x 25 pixels .* give the reference of this detector"):
        summed(movie, gain=str(tmp_path / "h.mrc"))


@pytest.mark.parametrize(
    ("name", "advice"), [("g.dm4", "dm2mrc"), ("g.raw", "convert it to MRC"), ("g", "MRC or TIFF")]
)
def test_other_formats_of_gains_are_refused_by_name(tmp_path, name, advice):
    (tmp_path / name).write_bytes(b"x" * 100)
    with pytest.raises(DataError, match=rf"{name}: the format .* is not read; .*{advice}"):
        read_image(tmp_path / name)


def test_an_eer_movie_is_divided(tmp_path):
    frames = np.ones((2, 16, 16), np.uint8)
    write_tiff(tmp_path / "g.tif", np.full((16, 16), 4, np.float32))
    found = summed(write_eer(tmp_path / "a.eer", frames), gain=str(tmp_path / "g.tif"))
    np.testing.assert_allclose(found.images, 0.25)


# ---------------------------------------------------------------------------------------------------------- defects


def test_defects_as_text_and_as_images(tmp_path):
    expected = np.zeros(SHAPE, bool)
    expected[3:5, 10:13] = expected[39, 49] = True
    (tmp_path / "d.txt").write_text("# x y width height\n10 3 3 2\n\n49 39 1 1\n")
    write_tiff(tmp_path / "d.tif", expected.astype(np.uint8))
    write_mrc(tmp_path / "d.mrc", expected.astype(np.int8))
    for name in ("d.txt", "d.tif", "d.mrc"):
        np.testing.assert_array_equal(read_defects(tmp_path / name, SHAPE), expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [("1 2 3\n", "line 1: expected x y width height"), ("0 0 1 1\n45 3 6 1\n", "line 2: .* ends at column 51"),
     ("CameraSizeX 50\n", "of SerialEM, which is not read"), ("1 2 -3 4", "four integers")],
)  # fmt: skip
def test_text_that_lists_no_defects_of_this_detector(tmp_path, text, message):
    (tmp_path / "d.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_defects(tmp_path / "d.txt", SHAPE)


def test_bad_pixels_become_the_mean_of_the_nearest_good_ones():
    image = np.random.default_rng(0).normal(size=(12, 14)).astype(np.float32)
    bad = np.zeros(image.shape, bool)
    bad[0, 0] = bad[5, 6] = True
    bad[:, 10] = True
    expected = image.copy()
    for y, x in np.argwhere(bad):
        around = [(i, j) for i in range(max(0, y - 1), min(12, y + 2)) for j in range(max(0, x - 1), min(14, x + 2))]
        expected[y, x] = np.mean([image[place] for place in around if not bad[place]])
    Replacement(bad).apply(image)
    np.testing.assert_allclose(image, expected, rtol=1e-5)


def test_a_wide_defect_is_filled_from_farther_away_and_nothing_good_is_an_error():
    bad = np.zeros((20, 20), bool)
    bad[5:14, 5:14] = True
    image = np.full((20, 20), 3, np.float32)
    image[bad] = 1000
    Replacement(bad).apply(image)
    np.testing.assert_allclose(image, 3, rtol=1e-4)
    with pytest.raises(DataError, match="400 of 400 pixels are bad"):
        Replacement(np.ones((20, 20), bool))


# ------------------------------------------------------------------------------------------------------- hot pixels


@pytest.mark.parametrize("mean", [0.5, 4.0, 60.0, 3000.0])
def test_hot_pixels_are_found_and_poisson_counts_are_none(mean):
    rng = np.random.default_rng(3)
    ramp = np.linspace(0.7, 1.3, 512)  # ice that becomes thinner
    total = rng.poisson(mean * ramp, (512, 512)).astype(np.float32)
    assert not hot_pixels(total, 6.0).any()
    hot = [(0, 0), (100, 200), (100, 201), (511, 300)]
    for place in hot:
        total[place] = 3 * mean + 12 * np.sqrt(mean) + 30
    dead = [(50, 60)] if mean > 10 else []  # zero is a likely count otherwise
    for place in dead:
        total[place] = 0
    np.testing.assert_array_equal(np.argwhere(hot_pixels(total, 6.0)), sorted([*hot, *dead]))


def test_units_other_than_counts_find_the_same_pixels():
    total = np.random.default_rng(3).poisson(40, (256, 256)).astype(np.float32)
    total[10, 20] = 200
    for image in (total, 37.5 * total, total - total.mean()):
        np.testing.assert_array_equal(np.argwhere(hot_pixels(image, 6.0)), [[10, 20]])


def test_a_dark_bar_is_not_hot():
    image = np.random.default_rng(3).poisson(40, (256, 256)).astype(np.float32)
    image[100:160] = np.random.default_rng(4).poisson(4, (60, 256))
    assert hot_pixels(image, 6.0).sum() <= 2


def test_hot_pixels_are_replaced_in_each_half_by_itself(tmp_path):
    frames = counts((6, *SHAPE), 20)
    frames[:, 7, 9] = 200
    found = summed(write_tiff(tmp_path / "a.tif", frames))
    for half, image in zip((frames[0::2], frames[1::2]), found.images, strict=True):
        total = half.sum(axis=0, dtype=np.float64)
        expected = total.copy()
        expected[7, 9] = (total[6:9, 8:11].sum() - total[7, 9]) / 8
        np.testing.assert_allclose(image, expected, rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------- binning


@pytest.mark.parametrize(("shape", "cropped"), [((16, 24), (8, 12)), ((20, 12), (10, 6)), ((16, 24), (16, 8))])
def test_a_cropped_half_spectrum_is_scipys_resample(shape, cropped):
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = np.fft.irfft2(crop_half_spectrum(np.fft.rfft2(image), shape, cropped), s=cropped)
    expected = resample(resample(image.astype(np.float64), cropped[0], axis=0), cropped[1], axis=1)
    np.testing.assert_allclose(found, expected * np.prod(shape) / np.prod(cropped), atol=1e-4)


@pytest.mark.parametrize(("N", "n"), [(64, 33), (65, 32), (65, 33), (63, 21), (64, 64)])
def test_odd_sides_keep_the_centre_as_fourier_resize_does(N, n):
    image = np.random.default_rng(0).normal(size=(N, N)).astype(np.float32)
    found = np.fft.irfft2(crop_half_spectrum(np.fft.rfft2(image), (N, N), (n, n)), s=(n, n))
    np.testing.assert_allclose(found * (n / N) ** 2, fourier_resize(image, n), atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"align": True}, {"weight": True, "dose": 1.0}])
def test_binning_keeps_the_counts_and_states_the_pixel_size(tmp_path, settings):
    frames = counts((4, 48, 64), 5).astype(np.int16)
    found = summed(write_mrc(tmp_path / "a.mrc", frames, 0.6), bin=2, **settings)
    assert found.images.shape == (2, 24, 32)
    assert found.pixel_size == pytest.approx(1.2)
    np.testing.assert_allclose(found.images.sum(axis=(1, 2)), [frames[0::2].sum(), frames[1::2].sum()], rtol=1e-5)


# -------------------------------------------------------------------------------------------------------- alignment


def drifting(shifts, shape=(192, 224), mean=2.0, seed=0):
    """Frames of Poisson counts of a specimen that drifts by `shifts`, (y, x) in pixels."""
    rng = np.random.default_rng(seed)
    k = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1]))
    spectrum = np.fft.rfft2(rng.normal(size=shape)) * np.exp(-((k / 0.06) ** 2))
    specimen = np.fft.irfft2(spectrum, s=shape)
    specimen *= 0.2 / specimen.std()
    moved = [np.fft.irfft2(np.fft.rfft2(specimen) * shift_phase(shape, shift), s=shape) for shift in shifts]
    return specimen, np.stack([rng.poisson(mean * np.clip(1 + image, 0, None)) for image in moved])


def test_the_shift_of_a_frame_is_that_of_its_pixels():
    image = np.random.default_rng(0).normal(size=(9, 12)).astype(np.float32)
    moved = np.fft.irfft2(np.fft.rfft2(image) * shift_phase((9, 12), (2, -3)), s=(9, 12))
    np.testing.assert_allclose(moved, np.roll(image, (2, -3), (0, 1)), atol=1e-5)


def test_a_known_drift_is_found_and_skimage_agrees():
    drift = np.stack([np.linspace(-3, 3, 8), 2 * np.cos(np.linspace(0, 2, 8))], axis=1)
    drift -= drift.mean(axis=0)
    specimen, frames = drifting(drift, mean=8.0)
    found = rigid_shifts([np.fft.rfft2(frame.astype(np.float32)) for frame in frames], frames.shape[1:], 1.0)
    np.testing.assert_allclose(found, -drift, atol=0.15)
    low = np.exp(-250 * (np.fft.fftfreq(192)[:, None] ** 2 + np.fft.fftfreq(224) ** 2))
    for frame, shift in zip(frames, found, strict=True):
        theirs, _, _ = phase_cross_correlation(np.fft.fft2(specimen) * low, np.fft.fft2(frame - frame.mean()) * low,
                                               space="fourier", upsample_factor=20, normalization=None)  # fmt: skip
        np.testing.assert_allclose(shift, theirs, atol=0.15)


def test_alignment_restores_the_specimen(tmp_path):
    drift = np.stack([np.linspace(-6, 6, 8), np.linspace(4, -4, 8)], axis=1)
    specimen, frames = drifting(drift, mean=4.0)
    path = write_mrc(tmp_path / "a.mrc", frames.astype(np.int16))
    plain, aligned = summed(path), summed(path, align=True)
    inner = slice(16, -16), slice(16, -16)

    def likeness(found):
        return np.corrcoef(found.images.sum(axis=0)[inner].ravel(), specimen[inner].ravel())[0, 1]

    assert likeness(aligned) > likeness(plain) + 0.1
    np.testing.assert_allclose(aligned.shifts, -drift, atol=0.2)
    binned = summed(path, align=True, bin=2)
    np.testing.assert_allclose(binned.shifts, aligned.shifts, atol=1e-6)  # in pixels of the movie


# --------------------------------------------------------------------------------------------------------- exposure


def test_critical_exposures_of_the_paper():
    # Grant & Grigorieff 2015: 0.245 k^-1.665 + 2.81 at 300 kV, 0.8 of it at 200 kV
    np.testing.assert_allclose(critical_exposure(np.array([1 / 3, 0.1]), 300), [0.245 * 3**1.665 + 2.81,
                                                                                0.245 * 10**1.665 + 2.81])  # fmt: skip
    np.testing.assert_allclose(critical_exposure(np.array([0.1]), 200), 0.8 * critical_exposure(np.array([0.1]), 300))


def test_weights_keep_the_power_of_white_noise_and_the_mean(tmp_path):
    q = weights(np.array([1.0, 3.0, 20.0]), np.array([0.0, 0.1, 0.4]), 300)
    np.testing.assert_allclose(np.square(q).mean(axis=0), 1, rtol=1e-6)
    np.testing.assert_allclose(q[:, 0], 1)
    ratio = np.exp(-(20.0 - 1.0) / (2 * (0.245 * 0.4**-1.665 + 2.81)))
    assert q[2, 2] / q[0, 2] == pytest.approx(ratio, rel=1e-5)
    frames = counts((8, 128, 160), 8).astype(np.int16)
    path = write_mrc(tmp_path / "a.mrc", frames, 1.0)
    plain, weighted = summed(path), summed(path, weight=True, dose=4.0)
    power = np.square(np.abs(np.fft.rfft2(np.stack([plain.images, weighted.images]))))
    k = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.rfftfreq(160))
    for low, high in ((0.02, 0.15), (0.15, 0.3), (0.3, 0.5)):
        ring = (k >= low) & (k < high)
        assert power[1][:, ring].mean() / power[0][:, ring].mean() == pytest.approx(1, abs=0.06)
    np.testing.assert_allclose(weighted.images.mean(), plain.images.mean(), rtol=1e-5)


def test_both_frames_of_a_pair_have_one_weight(tmp_path):
    """Then both halves are filtered alike: equal frames give equal halves."""
    frames = counts((4, 32, 40), 8).astype(np.int16)
    found = summed(write_mrc(tmp_path / "a.mrc", np.repeat(frames, 2, axis=0), 1.0), weight=True, dose=5.0)
    np.testing.assert_array_equal(found.images[0], found.images[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"weight": True}, "needs dose"), ({"weight": True, "dose": 1.0, "voltage": 120}, "300 and 200 kV"),
     ({"bin": 0.5}, "bin must be at least 1"), ({"group": 0}, "group"), ({"dose": -1.0}, "dose must be positive"),
     ({"rotate": 45}, "one of 0, 90, 180, 270"), ({"flip": "x"}, "flip must be one of none, ud, lr")],
)  # fmt: skip
def test_settings_outside_their_range(settings, message):
    with pytest.raises(ParameterError, match=message):
        MovieSettings(**settings)


def test_weights_need_a_pixel_size(tmp_path):
    path = write_tiff(tmp_path / "a.tif", counts((2, *SHAPE)))
    with pytest.raises(DataError, match=r"a.tif does not say the pixel size, which weight=true needs"):
        summed(path, weight=True, dose=1.0)
    assert summed(path, weight=True, dose=1.0, pixel_size=0.8).pixel_size == 0.8
