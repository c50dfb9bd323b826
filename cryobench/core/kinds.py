"""Which class a registered component must have."""

from __future__ import annotations

from typing import Any

from cryobench.core.components import FourierMask, Metric, NoiseModel, PixelMask, Prior, Solver
from cryobench.core.operator import OperatorRecipe
from cryobench.core.source import Source
from cryobench.errors import PluginError

BASE_CLASSES: dict[str, tuple[type, ...]] = {
    "operators": (OperatorRecipe,),
    "masks": (PixelMask, FourierMask),
    "noises": (NoiseModel,),
    "solvers": (Solver,),
    "priors": (Prior,),
    "metrics": (Metric,),
    "sources": (Source,),
}


CONTRACT = 2
"""The version of the contract: of what the classes in `BASE_CLASSES` require of those that derive from them."""
_REMOVED: dict[str, tuple[str, ...]] = {
    "operators": ("check_for", "build_for", "drawn", "rebuild", "of", "measurement_shape"),
}
"""Methods of contract 1 that a component of contract 2 does not have."""
_PARAMETERS: dict[str, dict[str, tuple[str, ...]]] = {
    "operators": {"check": ("imaging",), "build": ("imaging", "drawn")},
    "noises": {"apply": ("y", "operator", "scale", "rng"), "unsupported": ("operator", "scale")},
}
"""The positional parameters of methods that contract 1 had with others, by kind."""


def older_contract(kind: str, component: Any) -> str | None:
    """Which method shows that a component was written for contract 1; None where none does."""
    cls = type(component)
    for name in _REMOVED.get(kind, ()):
        if callable(getattr(cls, name, None)):
            return name
    for name, wanted in _PARAMETERS.get(kind, {}).items():
        code = getattr(getattr(cls, name, None), "__code__", None)
        if code is not None and code.co_argcount - 1 < len(wanted):
            return name
    return None


def check_kind(kind: str, text: str, component: Any) -> None:
    """Raise `PluginError` unless a component is of a class that its kind asks for."""
    wanted = BASE_CLASSES[kind]
    if not isinstance(component, wanted):
        names = " or ".join(f"cryobench.core.{base.__name__}" for base in wanted)
        raise PluginError(f"{text!r} is registered under {kind} but its class is no {names}")
    method = older_contract(kind, component)
    if method is not None:
        raise PluginError(
            f"{text!r} of {kind} was written for contract 1 (see its method {method}), and this version has contract "
            f"{CONTRACT}; install a newer release of it, or move it over as docs/plugins.md says"
        )
