"""The exact posterior of the images that a metric evaluates, computed once for all solvers."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import torch

from cryobench.core import Case, Problem, random_images
from cryobench.posteriors.exact import exact_posterior
from cryobench.posteriors.posterior import Posterior
from cryobench.priors.known import KnownPrior
from cryobench.rng import Rng

_MOST = 8
_cache: OrderedDict[tuple[object, ...], Posterior] = OrderedDict()


def metric_rng(case: Case) -> Rng:
    """Random numbers of a metric: other ones than those of any solver."""
    return Rng(0, [f"metric: {name}" for name in case.image_ids])


def posterior_of(case: Case, prior: KnownPrior) -> Posterior:
    """p(x | y) of the images of a case, kept for the next solver on the same measurements."""
    key = (prior, prior.weights_digest(), tuple(case.image_ids), *_fingerprint(case.problem))
    if key not in _cache:
        with torch.no_grad():
            _cache[key] = exact_posterior(case.problem, prior, metric_rng(case))
        while len(_cache) > _MOST:
            _cache.popitem(last=False)
    _cache.move_to_end(key)
    return _cache[key]


def _fingerprint(problem: Problem) -> tuple[str, ...]:
    """Digests of measurements, noise and what the operator does with one random image."""
    tensors = problem.y, problem.sigma, problem.operator.A(random_images(problem.operator))
    return tuple(hashlib.sha256(each.detach().cpu().contiguous().numpy().tobytes()).hexdigest() for each in tensors)
