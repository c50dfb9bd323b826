import numpy as np
import pytest
import torch

from cryobench.numerics.fft import half_frequencies, irfftn, rfftn, whole_spectrum


@pytest.fixture
def threads():
    """Sets the number of threads during a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("norm", ["backward", "ortho"])
@pytest.mark.parametrize("shape", [(8, 8), (9, 12), (50, 31), (6, 9, 8), (8, 4, 7)])
def test_transforms_equal_those_of_torch(shape, norm):
    x = torch.randn((2, 3, *shape), generator=torch.Generator().manual_seed(0))
    axes = tuple(range(2, x.ndim))
    spectrum = rfftn(x, len(shape))
    torch.testing.assert_close(rfftn(x, len(shape), norm=norm), torch.fft.rfftn(x, dim=axes, norm=norm))
    torch.testing.assert_close(irfftn(spectrum, shape), x)
    torch.testing.assert_close(irfftn(spectrum.conj(), shape), torch.fft.irfftn(spectrum.conj(), s=shape, dim=axes))


@pytest.mark.parametrize("shape", [(8, 8), (9, 12), (6, 9, 8), (5, 7, 9)])
def test_the_whole_spectrum_and_its_frequencies_are_those_of_numpy(shape):
    x = torch.randn((2, 1, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = torch.fft.fftn(x, dim=tuple(range(2, x.ndim))).abs()
    torch.testing.assert_close(whole_spectrum(rfftn(x, len(shape)).abs(), shape), whole)
    grids = np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")
    for k, grid in zip(half_frequencies(shape), grids, strict=True):
        half = k.expand(*shape[:-1], shape[-1] // 2 + 1).abs()
        np.testing.assert_allclose(whole_spectrum(half, shape), np.abs(grid), atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [32, 48, 64, 128])
def test_an_image_has_the_same_bits_in_any_batch_on_any_number_of_threads(n, dtype, threads):
    x = torch.randn((9, 1, n, n), generator=torch.Generator().manual_seed(0), dtype=dtype)
    threads(1)
    spectrum = rfftn(x)
    image = irfftn(spectrum, (n, n))
    for count in (1, 2, 4):
        threads(count)
        for size in (1, 2, 3, 9):
            places = slice(9 - size, 9)
            assert torch.equal(rfftn(x[places]), spectrum[places])
            assert torch.equal(irfftn(spectrum[places], (n, n)), image[places])


def test_a_volume_has_the_same_bits_in_any_batch_on_any_number_of_threads(threads):
    x = torch.randn((3, 1, 16, 24, 32), generator=torch.Generator().manual_seed(0))
    threads(1)
    spectrum = rfftn(x, 3)
    volume = irfftn(spectrum, x.shape[2:])
    for count in (1, 2):
        threads(count)
        assert torch.equal(rfftn(x[2:], 3), spectrum[2:])
        assert torch.equal(irfftn(spectrum[2:], x.shape[2:]), volume[2:])


def test_transforms_are_differentiable():
    x = torch.randn((1, 1, 8, 8), dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: irfftn(2 * rfftn(x), (8, 8)), (x,))
    with torch.no_grad():
        assert torch.equal(rfftn(x), rfftn(x.detach()))
