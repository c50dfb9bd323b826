"""Resampling in Fourier space: exact within the band of both grids, about the centre; SciPy's convention beyond."""

from __future__ import annotations

import zlib

import mrcfile
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import resample

from cryobench.errors import DataError
from cryobench.io.conversion import convert
from cryobench.io.fourier_crop import fourier_resize, square_crop
from cryobench.sources.stacks import File


def noise(N: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(N, N)).astype(np.float32)


def band_limited(side: int, band: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random real waves of fewer than `band` cycles per image: on `side` pixels, and as a function of the grid."""
    rng = np.random.default_rng(seed)
    frequencies = rng.integers(-band + 1, band, size=(30, 2))
    waves = np.column_stack([frequencies, rng.normal(size=30), rng.uniform(0, 2 * np.pi, size=30)])
    return sample(waves, side), waves


def positions(N: int, n: int) -> np.ndarray:
    """Where n pixels lie on an image of N pixels whose centre, N // 2, is pixel n // 2, as fractions of the image."""
    return N // 2 / N + (np.arange(n) - n // 2) / n


def sample(waves: np.ndarray, N: int, n: int | None = None) -> np.ndarray:
    """The waves on N pixels, or on n pixels about the same centre."""
    y, x = np.meshgrid(*[positions(N, n or N)] * 2, indexing="ij")
    return sum(a * np.cos(2 * np.pi * (ky * y + kx * x) + phase) for ky, kx, a, phase in waves)


def resampled_by_sums(image: np.ndarray, n: int) -> np.ndarray:
    """The result by the definition: the Fourier coefficients of each axis as sums, evaluated at the new positions.

    In the order of `scipy.signal.resample`, n/2 cycles of an even side are shared by the frequencies +n/2 and -n/2.
    """
    N = len(image)
    kept = min(N, n)
    frequencies = np.arange(-(kept // 2), kept // 2 + 1)
    weights = np.where(2 * np.abs(frequencies) == kept, 0.5 if n > N else 1.0, 1.0)
    matrix = np.zeros((n, N), complex)
    for k, weight in zip(frequencies, weights, strict=True):
        waves = np.exp(2j * np.pi * k * positions(N, n)), np.exp(-2j * np.pi * k * np.arange(N) / N)
        matrix += weight * np.outer(*waves) / N
    for axis in range(image.ndim):
        image = np.moveaxis(np.tensordot(matrix, image, (1, axis)), 0, axis)
    return image.real


@pytest.mark.parametrize(("N", "n"), [(32, 16), (33, 16), (32, 15), (33, 15), (40, 12), (16, 16), (20, 19), (9, 1)])
def test_cropping_samples_a_band_limited_image_exactly(N, n):
    image, waves = band_limited(N, max(1, (n + 1) // 2))
    np.testing.assert_allclose(fourier_resize(image, n), sample(waves, N, n), atol=1e-5)


@pytest.mark.parametrize(("N", "n"), [(32, 16), (33, 16), (32, 15), (33, 15), (16, 16)])
def test_cropping_keeps_the_mean_is_linear_and_removes_higher_frequencies(N, n):
    a, b = noise(N, 1).astype(np.float64) + 3, noise(N, 2).astype(np.float64)
    assert fourier_resize(a, n).mean() == pytest.approx(a.mean(), abs=1e-5)
    np.testing.assert_allclose(fourier_resize(a - 2 * b, n), fourier_resize(a, n) - 2 * fourier_resize(b, n), atol=1e-4)
    if n < N:
        wave = sample(np.array([[n // 2 + 1, 1, 1.0, 0.3]]), N)
        np.testing.assert_allclose(fourier_resize(wave, n), 0, atol=1e-6)


@pytest.mark.parametrize(("N", "n"), [(16, 32), (16, 33), (15, 32), (15, 33), (1, 9), (2, 3), (19, 20)])
def test_padding_samples_a_band_limited_image_exactly_and_keeps_the_mean(N, n):
    image, waves = band_limited(N, max(1, (N + 1) // 2))
    np.testing.assert_allclose(fourier_resize(image, n), sample(waves, N, n), atol=1e-5)
    assert fourier_resize(noise(N) + 3, n).mean() == pytest.approx((noise(N) + 3).mean(), abs=1e-5)


@given(st.integers(1, 24), st.integers(1, 40), st.integers(0, 2**31))
def test_resizing_equals_sums_over_frequencies_and_for_even_sides_scipys_resampling(N, n, seed):
    image = noise(N, seed)
    resized = fourier_resize(image, n)
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, resampled_by_sums(image, n) if n != N else image, atol=2e-5)
    if N % 2 == n % 2 == 0:
        expected = resample(resample(image.astype(np.float64), n, axis=0), n, axis=1)
        np.testing.assert_allclose(resized, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("N", "n", "dims", "bits"),
    [(64, 32, 2, 2679985462), (64, 48, 2, 1151238524), (30, 44, 2, 4252997706), (12, 8, 3, 2980998122)],
)
def test_resizing_even_sides_keeps_every_bit_of_published_data(N, n, dims, bits):
    image = np.random.default_rng(0).normal(size=(N,) * dims).astype(np.float32)
    assert zlib.crc32(fourier_resize(image, n).tobytes()) == bits


SIDES = [
    (64, 32),
    (64, 33),
    (65, 32),
    (65, 33),
    (64, 48),
    (100, 75),
    (64, 63),
    (129, 128),
    (130, 129),
    (32, 45),
    (33, 46),
]


def centre(image: np.ndarray) -> np.ndarray:
    """The centre of a symmetric blob, pixels along each axis, from the phase of the first harmonic."""
    spectrum = np.fft.fftn(image)
    first = np.eye(image.ndim, dtype=int)
    turns = np.array([np.angle(spectrum[tuple(index)]) for index in first]) / (2 * np.pi)
    return (-turns * len(image)) % len(image)


def blob(N: int, dims: int = 2) -> np.ndarray:
    """A Gaussian on the centre, pixel N // 2."""
    axes = np.ogrid[tuple(slice(-(N // 2), N - N // 2) for _ in range(dims))]
    return np.exp(-sum(axis**2 for axis in axes) / (2 * (N / 10) ** 2)).astype(np.float32)


@pytest.mark.parametrize(("N", "n"), SIDES)
def test_a_particle_stays_on_the_centre(N, n):
    small = fourier_resize(blob(N), n)
    np.testing.assert_allclose(centre(small), n // 2, atol=1e-3)
    assert small.argmax() == n // 2 * n + n // 2


@pytest.mark.parametrize(("N", "n"), [(16, 9), (17, 8), (15, 9), (16, 21), (15, 20)])
def test_volumes_of_odd_sides_are_resampled_about_the_centre(N, n):
    volume = np.random.default_rng(0).normal(size=(N, N, N))
    np.testing.assert_allclose(fourier_resize(volume, n), resampled_by_sums(volume, n), atol=1e-5)
    delta = np.zeros((N, N, N))
    delta[(N // 2,) * 3] = 1
    assert fourier_resize(delta, n).argmax() == np.ravel_multi_index((n // 2,) * 3, (n, n, n))


@pytest.mark.parametrize(("shape", "n"), [((64, 64), 33), ((65, 70), 32), ((100, 101), 75)])
def test_a_converted_particle_is_on_the_origin_that_its_star_file_states(tmp_path, shape, n):
    """The particle of a table is at N // 2 minus its origin; the origins, in Å, are copied."""
    shift, pixel = np.array([2.0, -1.0]), 1.5  # (y, x) pixels
    axes = [np.arange(side) - side // 2 for side in shape]
    image = np.exp(-((axes[0][:, None] - shift[0]) ** 2 + (axes[1] - shift[1]) ** 2) / 50).astype(np.float32)
    mrcfile.write(tmp_path / "a.mrcs", image[None])
    columns = ["rlnImageName", "rlnOriginXAngst", "rlnOriginYAngst", "rlnImagePixelSize"]
    row = ["1@a.mrcs", *(str(-value * pixel) for value in shift[::-1]), str(pixel)]
    (tmp_path / "a.star").write_text("data_\n\nloop_\n" + "".join(f"_{c}\n" for c in columns) + " ".join(row) + "\n")
    convert(File(str(tmp_path / "a.star"), size=n).open(), tmp_path / "b.mrcs")
    converted = File(str(tmp_path / "b.star")).open()
    assert converted.table is not None
    new_pixel = converted.pixel_size(0)
    assert new_pixel == pytest.approx(pixel * min(shape) / n)
    origin = converted.table[["rlnOriginYAngst", "rlnOriginXAngst"]].to_numpy()[0]
    np.testing.assert_allclose(centre(converted.read(0)), n // 2 - origin / new_pixel, atol=1e-2)


@given(st.integers(1, 24), st.integers(0, 20), st.integers(0, 2**31))
def test_cropping_undoes_padding(N, more, seed):
    image = noise(N, seed)
    np.testing.assert_allclose(fourier_resize(fourier_resize(image, N + more), N), image, atol=2e-6)


def test_padding_to_a_multiple_interpolates_the_pixels():
    image = noise(12)
    np.testing.assert_allclose(fourier_resize(image, 36)[::3, ::3], image, atol=2e-6)


@pytest.mark.parametrize(("shape", "n"), [((4, 5), 3), ((4, 4), 0), ((0, 0), 3)])
def test_invalid_sizes_are_refused(shape, n):
    with pytest.raises(DataError, match="cannot resample"):
        fourier_resize(np.zeros(shape), n)


@pytest.mark.parametrize("n", [4, 8, 12])
def test_volumes_of_even_sides_are_resampled_as_scipy_does_along_every_axis(n):
    volume = np.random.default_rng(0).normal(size=(8, 8, 8))
    wanted = volume
    for axis in range(3):
        wanted = resample(wanted, n, axis=axis)
    np.testing.assert_allclose(fourier_resize(volume, n), wanted, atol=1e-6)


def test_the_middle_cube_is_cut_and_other_shapes_are_refused():
    volume = np.arange(4 * 6 * 5).reshape(4, 6, 5)
    np.testing.assert_array_equal(square_crop(volume), volume[:, 1:5, 0:4])
    for shape in ((6, 5), (5, 6), (7, 4), (4, 7), (5, 9)):
        image = np.zeros(shape)
        image[shape[0] // 2, shape[1] // 2] = 1
        n = min(shape)
        assert square_crop(image)[n // 2, n // 2] == 1
    with pytest.raises(DataError, match="cannot resample 4 x 4 x 5 to 2 pixels a side; expected a square or a cube"):
        fourier_resize(np.zeros((4, 4, 5)), 2)
