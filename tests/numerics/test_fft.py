import pytest
import torch

from cryobench.numerics.fft import irfft2, rfft2


@pytest.fixture
def threads():
    """Sets the number of threads, for as long as a test takes."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("norm", ["backward", "ortho"])
@pytest.mark.parametrize("shape", [(8, 8), (9, 12), (50, 31)])
def test_they_are_torchs(shape, norm):
    x = torch.randn((2, 3, *shape), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rfft2(x, norm), torch.fft.rfft2(x, norm=norm))
    torch.testing.assert_close(irfft2(rfft2(x), shape), x)
    torch.testing.assert_close(irfft2(rfft2(x.mT).conj(), shape[::-1]), torch.fft.irfft2(torch.fft.rfft2(x.mT).conj(),
                                                                                         s=shape[::-1]))  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [32, 48, 64, 128])
def test_an_image_has_the_same_bits_in_any_batch_on_any_number_of_threads(n, dtype, threads):
    x = torch.randn((9, 1, n, n), generator=torch.Generator().manual_seed(0), dtype=dtype)
    threads(1)
    spectrum = rfft2(x)
    image = irfft2(spectrum, (n, n))
    for count in (1, 2, 4):
        threads(count)
        for size in (1, 2, 3, 9):
            places = slice(9 - size, 9)
            assert torch.equal(rfft2(x[places]), spectrum[places])
            assert torch.equal(irfft2(spectrum[places], (n, n)), image[places])


def test_a_gradient_goes_through():
    x = torch.randn((1, 1, 8, 8), dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: irfft2(2 * rfft2(x), (8, 8)), (x,))
    with torch.no_grad():
        assert torch.equal(rfft2(x), rfft2(x.detach()))
