"""cryobench: compares solvers of inverse problems on cryo-EM images, with costs and statistical significance.

>>> import cryobench as cb
>>> records = cb.run(solvers="dct", operators="sumpool:16")      # doctest: +SKIP

Importing the package is fast: torch and pandas are loaded by the first call that needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryobench.api import Records, operator, run, solve, solver

__all__ = ["Records", "operator", "run", "solve", "solver"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from cryobench.environment import version

        return version()
    if name in __all__:
        from cryobench import api

        return getattr(api, name)
    raise AttributeError(f"module 'cryobench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
