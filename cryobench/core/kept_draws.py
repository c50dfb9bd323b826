"""Whether the draws of a sampler are kept beside their mean: only where a metric asks, as they take memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_wanted: ContextVar[bool] = ContextVar("cryobench_draws", default=False)


@contextmanager
def keeping(draws: bool = True) -> Iterator[None]:
    """Samplers inside the block return their draws, if `draws`."""
    token = _wanted.set(draws)
    try:
        yield
    finally:
        _wanted.reset(token)


def wanted() -> bool:
    """Whether samplers are to return their draws (`Reconstruction.draws`)."""
    return _wanted.get()
