"""The contract of priors. A prior may be of any kind; those of the kinds that our solvers use are held to more."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch

from cryobench.core import Shape
from cryobench.errors import CryobenchError
from cryobench.priors.diffusion import Diffusion, DiffusionModel
from cryobench.priors.sparsity import Sparsity
from cryobench.testing.rules import (
    SEED,
    DoesNotApply,
    Rules,
    Subject,
    no_trace,
    particles,
    require,
    require_equal,
    smallest_shape,
)

RULES = Rules()
_LEVELS = (0.1, 1.0)
_THRESHOLD = 0.2


class PriorSubject(Subject):
    """A prior, on the first images that it takes."""

    @cached_property
    def shape(self) -> Shape:
        return smallest_shape(self.component.check)

    @property
    def sparsity(self) -> Sparsity:
        if not isinstance(self.component, Sparsity):
            raise DoesNotApply("it is no sparsity prior")
        return self.component

    @cached_property
    def model(self) -> DiffusionModel:
        if not isinstance(self.component, Diffusion):
            raise DoesNotApply("it is no diffusion prior")
        return self.component.load()

    def noisy(self, sigma: float) -> torch.Tensor:
        x = particles(self.shape).float()
        return x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(SEED))


@RULES(
    "it says which images it takes",
    "raise IncompatibleError in check(shape), in a line, where it cannot be used",
    vital=True,
)
def checks(subject: PriorSubject) -> None:
    _ = subject.shape
    try:
        subject.component.check((1, 1))
    except CryobenchError as error:
        require("\n" not in str(error), "what it raises is not one line")


@RULES("it tells its weights apart", "give weights_digest() as the same text every time, '' where nothing was trained")
def digest(subject: PriorSubject) -> None:
    first, again = subject.component.weights_digest(), subject.made_again().weights_digest()
    require(isinstance(first, str), f"weights_digest() is a {type(first).__name__}, not a text")
    require(first == again, f"weights_digest() is {first!r}, and {again!r} of the same prior made again")


@RULES(
    "it says what it was trained on",
    "give trained_on() as mappings of texts, like Stack.origin; none where it was not trained",
)
def trained_on(subject: PriorSubject) -> None:
    for origin in subject.component.trained_on():
        require(isinstance(origin, Mapping) and all(isinstance(text, str) for pair in origin.items() for text in pair),
                f"trained_on() names {origin!r}, which is no mapping of texts")  # fmt: skip


@RULES("it is made ready without a trace", "set nothing that belongs to the whole program in prepare")
def prepares(subject: PriorSubject) -> None:
    with no_trace():
        subject.component.prepare(torch.device("cpu"))


@RULES("adjoint is the transpose of analysis", "derive adjoint from <K x, u> = <x, K^T u>")
def adjoint(subject: PriorSubject) -> None:
    x = subject.noisy(1.0).double()
    Kx = subject.sparsity.analysis(x)
    u = torch.randn(Kx.shape, generator=torch.Generator().manual_seed(SEED), dtype=Kx.dtype)
    require_equal((x * subject.sparsity.adjoint(u)).sum(), (Kx * u).sum(), 1e-8, "<x, K^T u> against <K x, u>")


@RULES("||K||^2 is at most norm_squared", "state a bound of the squared spectral norm of analysis: steps depend on it")
def norm_bound(subject: PriorSubject) -> None:
    x, prior = subject.noisy(1.0)[:1].double(), subject.sparsity
    for _ in range(50):  # the power method, which comes from below
        x = prior.adjoint(prior.analysis(x / x.norm()))
    require(
        x.norm() <= prior.norm_squared(2) * (1 + 1e-6),
        f"||K||^2 is {x.norm():.6g} or more, stated are {prior.norm_squared(2):g}",
    )


@RULES("prox minimises", "find argmin_x 1/2 ||x - z||^2 + threshold R(x)")
def prox(subject: PriorSubject) -> None:
    prior, z = subject.sparsity, subject.noisy(0.3).double()
    threshold = torch.full((len(z), 1, 1, 1), _THRESHOLD, dtype=z.dtype)

    def cost(x: torch.Tensor) -> torch.Tensor:
        return ((x - z).square().sum(dim=(1, 2, 3), keepdim=True) / 2 + threshold * prior.value(x)).flatten()

    x = prior.prox(z, threshold)
    least = cost(x)
    g = torch.Generator().manual_seed(SEED)
    others = [prior.prox(z, share * threshold) for share in (0.5, 0.9, 1.1, 2)]
    others += [x + size * torch.randn(x.shape, generator=g, dtype=x.dtype) for size in (1e-3, 1e-2, 1e-1)]
    for other in [z, torch.zeros_like(z), 0.9 * x + 0.1 * z, 0.9 * x, *others]:
        require((least <= cost(other) * (1 + 1e-6) + 1e-9).all(), "another image costs less than what prox gives")


@RULES("denoise takes noise off", "estimate x from x + sigma noise, on the scale of images in [-1, 1]")
def denoises(subject: PriorSubject) -> None:
    clean = particles(subject.shape).float()
    for sigma in _LEVELS:
        noisy = subject.noisy(sigma)
        x = subject.model.denoise(noisy, sigma)
        require(x.shape == noisy.shape and x.dtype == noisy.dtype, f"it gave {x.dtype} {list(x.shape)}")
        left, before = (float((each - clean).square().mean().sqrt()) for each in (x, noisy))
        require(left < before, f"at sigma = {sigma:g} an error of {before:.3g} RMS becomes one of {left:.3g}")


@RULES("an image alone is the image in a batch", "normalise per image, and put the network into its evaluation mode")
def alone(subject: PriorSubject) -> None:
    for sigma in _LEVELS:
        noisy = subject.noisy(sigma)
        batch = subject.model.denoise(noisy, sigma)
        for i in range(len(noisy)):
            require_equal(subject.model.denoise(noisy[i : i + 1], sigma)[0], batch[i], 1e-4, f"image {i} alone")
