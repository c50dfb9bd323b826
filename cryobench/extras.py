"""Packages of extras, which may not be installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cryobench.errors import DependencyError


@contextmanager
def of_extra(extra: str) -> Iterator[None]:
    """A block that imports packages of an extra. Raises `DependencyError` where one is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).partition(".")[0]
        raise absent(package, extra) from error


def absent(package: str, extra: str) -> DependencyError:
    """The error for a package of an extra that is not installed."""
    return DependencyError(f"this needs the package {package}; run pip install 'cryobench[{extra}]'")
