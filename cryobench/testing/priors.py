"""The contract of priors. Sparsity priors and those with a denoiser, which solvers use, have rules of their own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch

from cryobench.core import Shape
from cryobench.errors import CryobenchError
from cryobench.numerics.linalg import dot, per_item
from cryobench.priors.denoising import DenoisingModel, DenoisingPrior
from cryobench.priors.known import KnownPrior
from cryobench.priors.sparsity import Sparsity
from cryobench.testing.rules import (
    SEED,
    DoesNotApply,
    Rules,
    Subject,
    global_state_unchanged,
    particles,
    require,
    require_equal,
)

RULES = Rules()
_LEVELS = (0.1, 1.0)
_THRESHOLD = 0.2


class PriorSubject(Subject):
    """A prior, on the first shape that it accepts."""

    @cached_property
    def shape(self) -> Shape:
        return self.smallest_shape(self.component.check)

    @property
    def sparsity(self) -> Sparsity:
        if not isinstance(self.component, Sparsity):
            raise DoesNotApply("it is not a sparsity prior")
        return self.component

    @cached_property
    def model(self) -> DenoisingModel:
        if not isinstance(self.component, DenoisingPrior):
            raise DoesNotApply("it has no denoiser of every noise level")
        return self.component.load()

    @cached_property
    def clean(self) -> torch.Tensor:
        """Images that the prior describes: its own draws where their distribution is known, else particles."""
        if isinstance(self.component, KnownPrior):
            return self.component.distribution(self.shape).sample(torch.Generator().manual_seed(SEED), 3).float()
        return particles(self.shape).float()

    def noisy(self, sigma: float) -> torch.Tensor:
        x = self.clean
        return x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(SEED))


@RULES(
    "it accepts a common image size, and refuses others in one line",
    "raise IncompatibleError in check(shape), with a message of one line, where it cannot be used",
    vital=True,
)
def checks(subject: PriorSubject) -> None:
    _ = subject.shape
    try:
        subject.component.check((1,) * subject.dims)
    except CryobenchError as error:
        require("\n" not in str(error), "the message of its error is more than one line")


@RULES("its weights have a digest", "return a fixed text for fixed weights from weights_digest(), '' without weights")
def digest(subject: PriorSubject) -> None:
    first, again = subject.component.weights_digest(), subject.make_another().weights_digest()
    require(isinstance(first, str), f"weights_digest() is a {type(first).__name__}, expected a str")
    require(first == again, f"weights_digest() is {first!r}, and {again!r} for an equal prior")


@RULES(
    "it states its training data",
    "return mappings of str, as Stack.origin, from trained_on(); an empty sequence if it was not trained",
)
def trained_on(subject: PriorSubject) -> None:
    for origin in subject.component.trained_on():
        require(isinstance(origin, Mapping) and all(isinstance(text, str) for pair in origin.items() for text in pair),
                f"trained_on() has {origin!r}, expected a mapping of str")  # fmt: skip


@RULES("prepare does not change global state", "do not set global options in prepare")
def prepares(subject: PriorSubject) -> None:
    with global_state_unchanged():
        subject.component.prepare(torch.device("cpu"))


@RULES("adjoint is the transpose of analysis", "derive adjoint from <K x, u> = <x, K^T u>")
def adjoint(subject: PriorSubject) -> None:
    x = subject.noisy(1.0).double()
    Kx = subject.sparsity.analysis(x)
    u = torch.randn(Kx.shape, generator=torch.Generator().manual_seed(SEED), dtype=Kx.dtype)
    require_equal((x * subject.sparsity.adjoint(u)).sum(), (Kx * u).sum(), 1e-8, "<x, K^T u> against <K x, u>")


@RULES(
    "||K||^2 is at most norm_squared",
    "return a bound of the squared spectral norm of analysis: step sizes depend on it",
)
def norm_bound(subject: PriorSubject) -> None:
    x, prior = subject.noisy(1.0)[:1].double(), subject.sparsity
    for _ in range(50):  # the power method, a lower bound
        x = prior.adjoint(prior.analysis(x / x.norm()))
    bound = prior.norm_squared(subject.dims)
    require(x.norm() <= bound * (1 + 1e-6), f"||K||^2 is at least {x.norm():.6g}, norm_squared returns {bound:g}")


@RULES("prox is the minimiser", "return argmin_x 1/2 ||x - z||^2 + threshold R(x)")
def prox(subject: PriorSubject) -> None:
    prior, z = subject.sparsity, subject.noisy(0.3).double()
    threshold = per_item(z.new_full((len(z),), _THRESHOLD), z)

    def cost(x: torch.Tensor) -> torch.Tensor:
        return (dot(x - z, x - z) / 2 + threshold * prior.value(x)).flatten()

    x = prior.prox(z, threshold)
    least = cost(x)
    g = torch.Generator().manual_seed(SEED)
    others = [prior.prox(z, share * threshold) for share in (0.5, 0.9, 1.1, 2)]
    others += [x + size * torch.randn(x.shape, generator=g, dtype=x.dtype) for size in (1e-3, 1e-2, 1e-1)]
    for other in [z, torch.zeros_like(z), 0.9 * x + 0.1 * z, 0.9 * x, *others]:
        require(
            (least <= cost(other) * (1 + 1e-6) + 1e-9).all(),
            "another image has a lower objective than the result of prox",
        )


@RULES("denoise reduces the error", "estimate x from x + sigma noise, for images in [-1, 1] or drawn from the prior")
def denoises(subject: PriorSubject) -> None:
    clean = subject.clean
    for sigma in _LEVELS:
        noisy = subject.noisy(sigma)
        x = subject.model.denoise(noisy, sigma)
        require(x.shape == noisy.shape and x.dtype == noisy.dtype, f"it gave {x.dtype} {list(x.shape)}")
        left, before = (float((each - clean).square().mean().sqrt()) for each in (x, noisy))
        require(left < before, f"at sigma = {sigma:g} the RMS error rises from {before:.3g} to {left:.3g}")


@RULES("results do not depend on the batch", "normalise per image, and set the network to evaluation mode")
def alone(subject: PriorSubject) -> None:
    for sigma in _LEVELS:
        noisy = subject.noisy(sigma)
        batch = subject.model.denoise(noisy, sigma)
        for i in range(len(noisy)):
            require_equal(subject.model.denoise(noisy[i : i + 1], sigma)[0], batch[i], 1e-4, f"image {i} alone")
