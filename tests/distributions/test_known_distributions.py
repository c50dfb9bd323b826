"""The known distributions against scipy, dense linear algebra and quadrature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm

from cryobench.distributions.blocks import BlocksParameters
from cryobench.distributions.field import FieldParameters
from cryobench.distributions.mixture import MixtureDistribution, MixtureParameters, fitted
from cryobench.errors import DataError, IncompatibleError, ParameterError
from cryobench.numerics.shells import radial_frequency
from cryobench.rng import generator
from cryobench.sources.demo import Demo
from cryobench.sources.stacks import File

SHAPE = (8, 8)
N = math.prod(SHAPE)
ALL = [FieldParameters(), MixtureParameters(3, 4), BlocksParameters(block=4)]
NAMES = ["field", "mixture", "blocks"]


def dense(covariance_of, shape=SHAPE) -> torch.Tensor:
    n = math.prod(shape)
    return covariance_of(torch.eye(n, dtype=torch.float64).reshape(n, 1, *shape)).reshape(n, n)


@pytest.mark.parametrize("parameters", ALL, ids=NAMES)
def test_the_score_is_the_gradient_of_the_log_density(parameters):
    known = parameters.distribution(SHAPE)
    x = known.sample(generator("score"), 3).requires_grad_()
    (gradient,) = torch.autograd.grad(known.log_density(x).sum(), x)
    assert torch.allclose(known.score(x.detach()), gradient, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("parameters", ALL, ids=NAMES)
def test_the_denoiser_is_tweedies_formula_and_differentiable(parameters):
    """D(z) = z + sigma^2 grad log p_sigma(z), whose Jacobian is symmetric; and at sigma -> 0 its score is that of p."""
    known = parameters.distribution(SHAPE)
    z = known.sample(generator("tweedie"), 2).requires_grad_()
    sigma = 1e-4
    score = ((known.denoise(z, sigma) - z) / sigma**2).detach()
    assert torch.allclose(score, known.score(z.detach()), rtol=1e-3, atol=1e-2 * float(score.abs().max()))
    u, v = torch.randn(2, *z.shape, generator=generator("uv"), dtype=z.dtype)
    x = known.denoise(z, 0.3)
    Ju, Jv = (torch.autograd.grad((x * w).sum(), z, retain_graph=True)[0] for w in (u, v))
    assert float((Ju * v).sum()) == pytest.approx(float((Jv * u).sum()), rel=1e-8)
    each = torch.full((2, 1, 1, 1), 0.3, dtype=z.dtype)
    assert torch.equal(known.denoise(z, each), x)
    assert torch.equal(known.denoise(z.detach(), 0.0), z.detach()) or torch.allclose(known.denoise(z, 0.0), z)


@pytest.mark.parametrize("parameters", ALL, ids=NAMES)
def test_the_deviation_of_a_pixel_is_the_stated_one(parameters):
    known = parameters.distribution((16, 16))
    x = known.sample(generator("deviation"), 2000)
    assert float((x - x.mean(0)).square().mean().sqrt()) == pytest.approx(0.2, rel=0.05)
    assert torch.allclose(x.mean(0), known.mean[0], atol=6 * 0.25 / 2000**0.5)


def test_a_field_is_a_gaussian_with_the_circulant_covariance():
    known = FieldParameters(corner=0.1, exponent=2.5, deviation=0.3).distribution(SHAPE)
    C = dense(known.covariance)
    assert C.diagonal().numpy() == pytest.approx(0.09)
    x = known.sample(generator("field"), 4)
    flat = x.reshape(4, N)
    assert known.log_density(x).numpy() == pytest.approx(multivariate_normal(np.zeros(N), C.numpy()).logpdf(flat))
    wiener = torch.linalg.solve(C + 0.04 * torch.eye(N, dtype=C.dtype), flat.mT)
    assert torch.allclose(known.denoise(x, 0.2).reshape(4, N), (C @ wiener).mT, atol=1e-12)
    many = known.sample(generator("many"), 20000).reshape(-1, N)
    assert torch.allclose(many.mT @ many / len(many), C, atol=6 * 0.09 * 2**0.5 / 20000**0.5)


def test_a_measured_spectrum_is_that_of_the_images():
    drawn = FieldParameters(corner=0.1).distribution((16, 16))

    measured = FieldParameters(images=Fields(drawn), count=400).distribution((16, 16))
    assert torch.allclose(measured.power, drawn.power, rtol=0.35)
    assert float((measured.power / drawn.power).log().mean().exp()) == pytest.approx(1, abs=0.05)


def test_a_spectrum_of_a_file_is_that_of_the_field(tmp_path):
    path, shape = tmp_path / "power.txt", (16, 16)
    drawn = FieldParameters(corner=0.1, deviation=0.3).distribution(shape)
    frequency = radial_frequency(shape)
    table = np.unique(torch.stack([frequency.flatten(), 7 * drawn.power.flatten()], dim=1).numpy().round(12), axis=0)
    np.savetxt(path, table, header="cycles per pixel, power")
    field = FieldParameters(spectrum=str(path), deviation=0.3)
    assert torch.allclose(field.distribution(shape).power, drawn.power, rtol=1e-9)
    digest = field.parameters_digest()
    np.savetxt(path, [[0.0, 1.0], [0.5, 1e-4]])
    power = field.distribution(shape).power
    assert field.parameters_digest() != digest
    assert float(power[0, 4] / power[0, 0]) == pytest.approx(1e-2)  # linear in the logarithm
    assert float(power[8, 8] / power[0, 0]) == pytest.approx(1e-4)  # constant from 0.5 on
    assert float(dense(field.distribution(shape).covariance, shape)[0, 0]) == pytest.approx(0.09)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ("0 one", "is no table of numbers; expected rows of a frequency"),
        ("0 1 2\n1 2 3", "has 2 x 3 numbers"),
        ("0 1", "has 1 x 2 numbers"),
        ("0.2 1\n0.1 1", "needs increasing frequencies"),
        ("0 1\n0.1 0", "finite, positive powers"),
    ],
)
def test_files_that_are_no_spectrum_are_refused(tmp_path, text, message):
    path = tmp_path / "power.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message):
        FieldParameters(spectrum=str(path)).distribution((8, 8))


def test_a_mixture_of_a_file_is_the_one_that_was_written(tmp_path):
    path = tmp_path / "mixture.npz"
    known = MixtureParameters(3, 2).distribution(SHAPE)
    known.write(path)
    given = MixtureParameters(file=str(path))
    again = given.distribution(SHAPE)
    x = known.sample(generator("file"), 5)
    assert torch.allclose(again.log_density(x), known.log_density(x), rtol=1e-10)
    assert torch.allclose(again.covariance(1), known.covariance(1), atol=1e-12)
    digest = given.parameters_digest()
    MixtureParameters(3, 2, pattern=1).distribution(SHAPE).write(path)
    assert given.parameters_digest() != digest
    assert not torch.allclose(given.distribution(SHAPE).means, known.means)
    with pytest.raises(DataError, match="is of images of 8 x 8, the problem has 4 x 6"):
        given.distribution((4, 6))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (None, "cannot be read: No such file"),
        ({"means": None}, "cannot be read; expected an .npz file with weights"),
        ({"means": np.zeros((2, 4, 5))}, r"has weights \[2\], means \[2, 4, 5\], factors \[2, 3, 4, 4\], rest \[2\]"),
        ({"weights": np.array([0.4, 0.4])}, "have the sum 0.8; give weights of sum 1"),
        ({"rest": np.array([0.1, 0.0])}, "positive weights and rest"),
        ({"factors": np.full((2, 3, 4, 4), np.nan)}, "needs finite numbers"),
        ({"factors": np.zeros((2, 0, 4, 4))}, "has 0 factors; give 1 to 15"),
        ({"means": np.zeros((2, 4, 4), complex)}, "has means of type complex128; give real numbers"),
        ({"rest": np.array(["0.1", "0.2"])}, "has rest of type <U3; give real numbers"),
    ],
)
def test_files_that_are_no_mixture_are_refused(tmp_path, changes, message):
    path = tmp_path / "mixture.npz"
    if changes is not None:
        arrays = {"weights": np.array([0.5, 0.5]), "means": np.zeros((2, 4, 4)), "factors": np.ones((2, 3, 4, 4)),
                  "rest": np.array([0.1, 0.2])} | changes  # fmt: skip
        np.savez(path, **{name: values for name, values in arrays.items() if values is not None})
    with pytest.raises(DataError, match=message):
        MixtureParameters(file=str(path)).distribution((4, 4))


def test_damaged_mixtures_are_refused_in_one_line(tmp_path):
    """Every truncation and changed byte gives `DataError`, or a file that is still a mixture."""
    path, draw, messages = tmp_path / "mixture.npz", np.random.default_rng(0), []
    arrays = {"weights": np.array([0.5, 0.5]), "means": np.zeros((2, 4, 4)), "factors": np.ones((2, 3, 4, 4)),
              "rest": np.array([0.1, 0.2])}  # fmt: skip
    np.savez_compressed(path, **arrays)
    whole = path.read_bytes()
    for place in range(0, len(whole), 4):
        other = bytearray(whole)
        other[place] ^= int(draw.integers(1, 256))
        for damaged, end in ((whole[:place], "cut"), (bytes(other), "changed")):
            path = tmp_path / f"{place}_{end}.npz"
            path.write_bytes(damaged)
            try:
                MixtureParameters(file=str(path)).distribution((4, 4))
            except DataError as error:
                messages.append(str(error))
    assert sum("_cut.npz" in message for message in messages) == len(range(0, len(whole), 4))
    assert sum("_changed.npz" in message for message in messages) > 50
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize("path", ["a\0b", "~nobody-of-this-name/file", "a/b"])
def test_paths_of_no_file_are_refused(path):
    for parameters, what in ((FieldParameters(spectrum=path), "spectrum"), (MixtureParameters(file=path), "mixture")):
        with pytest.raises(DataError, match=f"the {what} .*cannot be read: .*; give an existing file"):
            parameters.distribution(SHAPE)


def test_a_damaged_compressed_spectrum_is_refused(tmp_path):
    path = tmp_path / "power.txt.gz"
    np.savetxt(path, [[k / 100, 1 / (1 + k)] for k in range(50)])
    assert FieldParameters(spectrum=str(path)).distribution(SHAPE).power.isfinite().all()
    whole = path.read_bytes()
    for damaged in (whole[:-20], whole[:40] + bytes(100) + whole[140:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="is no table of numbers"):
            FieldParameters(spectrum=str(path)).distribution(SHAPE)


class Fields:
    """A source of draws of a distribution."""

    def __init__(self, distribution):
        from cryobench.sources.known import KnownStack

        self._stack = KnownStack("fields", distribution, 400, 0)

    def open(self):
        return self._stack


def test_a_mixture_against_dense_linear_algebra():
    known = MixtureParameters(3, 4).distribution(SHAPE)
    x = known.sample(generator("mixture"), 5)
    flat = x.reshape(5, N)
    densities = np.stack([multivariate_normal(known.means[k].numpy(), known.covariance(k).numpy()).logpdf(flat)
                          for k in range(3)], axis=1)  # fmt: skip
    logs = known.weights.log().numpy() + densities
    assert known.log_density(x).numpy() == pytest.approx(np.logaddexp.reduce(logs, axis=1))
    z = x + 0.3 * torch.randn(x.shape, generator=generator("z"), dtype=x.dtype)
    weights, means = [], []
    for k in range(3):
        total = known.covariance(k) + 0.09 * torch.eye(N, dtype=x.dtype)
        density = multivariate_normal(known.means[k].numpy(), total.numpy()).logpdf(z.reshape(5, N))
        weights.append(math.log(known.weights[k]) + torch.as_tensor(density))
        apart = z.reshape(5, N) - known.means[k]
        means.append(known.means[k] + apart @ torch.linalg.solve(total, known.covariance(k)))
    shares = torch.stack(weights, 1).softmax(1)
    expected = (shares[:, :, None] * torch.stack(means, 1)).sum(1)
    assert torch.allclose(known.denoise(z, 0.3).reshape(5, N), expected, atol=1e-10)


def test_mixture_weights_against_quadrature_in_one_and_two_dimensions():
    for shape in ((1, 1), (1, 2)):
        n = math.prod(shape)
        draw = generator("quadrature", n)
        means = torch.randn((2, n), generator=draw, dtype=torch.float64)
        directions = torch.linalg.qr(torch.randn((2, n, 1), generator=draw, dtype=torch.float64))[0]
        known = MixtureDistribution(torch.tensor([0.3, 0.7]), means, directions, torch.tensor([[0.5], [0.2]]),
                                    torch.tensor([0.1, 0.3]), shape)  # fmt: skip
        line = np.linspace(-8, 8, 801)
        grid = np.stack(np.meshgrid(*[line] * n, indexing="ij"), -1).reshape(-1, n)
        x = torch.as_tensor(grid).reshape(-1, 1, *shape)
        z = torch.full((1, 1, *shape), 0.4, dtype=torch.float64)
        density = known.log_density(x).exp() * (-(x - z).square().flatten(1).sum(1) / (2 * 0.49)).exp()
        expected = (density[:, None] * x.flatten(1)).sum(0) / density.sum()
        assert torch.allclose(known.denoise(z, 0.7).flatten(), expected, atol=1e-6)
        assert float(known.log_density(x).exp().sum()) * (line[1] - line[0]) ** n == pytest.approx(1, abs=1e-6)


def test_expectation_maximisation_finds_the_mixture_that_drew_the_images():
    drawn = MixtureParameters(3, 2).distribution(SHAPE)
    x = drawn.sample(generator("em"), 1500)
    found = fitted(x[:1000].flatten(1), 3, 2, SHAPE)
    held_out = x[1000:]
    gap = float((drawn.log_density(held_out) - found.log_density(held_out)).mean())
    assert -0.5 < gap < 0.03 * N  # nats of one image: the cost of estimating about 3 * 64 * 4 parameters
    assert torch.allclose(found.weights.sort().values, drawn.weights.sort().values, atol=0.06)


def test_blocks_against_the_scalar_mixture():
    known = BlocksParameters(block=4, large=0.2, small=0.1).distribution(SHAPE)
    x = known.sample(generator("blocks"), 3)
    c = known.analysis(x)
    assert torch.allclose(known.synthesis(c), x)
    assert torch.allclose(c.square().sum(), x.square().sum())
    large, small = (known.deviations[i].numpy() for i in (0, 1))
    densities = np.log(0.2 * norm.pdf(c.numpy(), scale=large) + 0.8 * norm.pdf(c.numpy(), scale=small))
    assert known.log_density(x).numpy() == pytest.approx(densities.reshape(3, -1).sum(1))
    # the denoiser of one coefficient by quadrature
    line = torch.linspace(-3, 3, 20001, dtype=torch.float64)
    z = known.analysis(x + 0.1 * torch.randn(x.shape, generator=generator("n"), dtype=x.dtype))
    scale = known.deviations[:, 1, 2]
    prior = 0.2 * torch.exp(-line.square() / (2 * scale[0] ** 2)) / scale[0]
    prior = prior + 0.8 * torch.exp(-line.square() / (2 * scale[1] ** 2)) / scale[1]
    weights = prior * torch.exp(-(line - z[0, 0, 0, 1, 2]).square() / (2 * 0.01))
    expected = (weights * line).sum() / weights.sum()
    assert float(known.analysis(known.denoise(known.synthesis(z), 0.1))[0, 0, 0, 1, 2]) == pytest.approx(
        float(expected)
    )


def test_what_is_wrong_is_said_in_one_line():
    for make, match in (
        (lambda: FieldParameters(corner=0), "corner must be positive, got 0"),
        (lambda: FieldParameters(images=Demo(), spectrum="power.txt"), "images and spectrum both state the power"),
        (lambda: MixtureParameters(images=Demo(), file="m.npz"), "images and file both state the mixture"),
        (lambda: MixtureParameters(0), "components must be at least 1"),
        (lambda: BlocksParameters(large=1.5), "large must lie between 0 and 1"),
    ):
        with pytest.raises(ParameterError, match=match):
            make()
    with pytest.raises(IncompatibleError, match="multiples of 8, got 12 x 16"):
        BlocksParameters().distribution((12, 16))


def test_a_mixture_needs_different_images(tmp_path):
    images = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    np.save(tmp_path / "repeated.npy", images[[0, 1, 0, 1, 0, 1, 0, 1]])
    with pytest.raises(DataError, match="2 different images are too few for 4 components; give 8 or more"):
        MixtureParameters(4, images=File(str(tmp_path / "repeated.npy"))).distribution(SHAPE)


@pytest.mark.slow
def test_distributions_are_measured_on_the_clean_images_of_a_source():
    field = FieldParameters(images=Demo(), count=8).distribution((16, 16))
    mixture = MixtureParameters(2, 3, images=Demo(), count=8).distribution((16, 16))
    for known in (field, mixture):
        assert float(known.sample(generator("demo"), 200).std()) == pytest.approx(0.2, rel=0.15)
    assert (
        FieldParameters(images=Demo()).parameters_digest()
        != FieldParameters(images=Demo(), count=8).parameters_digest()
    )
