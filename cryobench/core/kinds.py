"""The base class of each kind of component, and the recognition of components written for an older contract."""

from __future__ import annotations

from inspect import CO_VARARGS
from typing import Any

from cryobench.contract import mismatch
from cryobench.core.components import FourierMask, JointMetric, Metric, NoiseModel, PixelMask, Prior, Solver
from cryobench.core.encoder import Encoder
from cryobench.core.objective import Objective
from cryobench.core.operator import OperatorRecipe
from cryobench.core.source import Source
from cryobench.errors import PluginError
from cryobench.spec import fields_of

BASE_CLASSES: dict[str, tuple[type, ...]] = {
    "operators": (OperatorRecipe,),
    "masks": (PixelMask, FourierMask),
    "noises": (NoiseModel,),
    "solvers": (Solver,),
    "priors": (Prior,),
    "metrics": (Metric, JointMetric),
    "sources": (Source,),
    "objectives": (Objective,),
    "encoders": (Encoder,),
}

_REMOVED: dict[str, tuple[str, ...]] = {
    "operators": ("check_for", "build_for", "drawn", "rebuild", "of", "measurement_shape"),
}
"""Methods of contract 1 that contract 2 does not have."""
_PARAMETERS: dict[str, dict[str, int]] = {
    "operators": {"check": 1, "build": 2},
    "noises": {"apply": 4, "unsupported": 2},
}
"""Numbers of positional parameters in contract 2, of methods that had fewer in contract 1."""


def older_method(kind: str, cls: type) -> str | None:
    """The name of a method which shows that a class was written for contract 1, or None."""
    for name in _REMOVED.get(kind, ()):
        if callable(getattr(cls, name, None)):
            return name
    if not callable(getattr(cls, "norm_squared", callable)):  # a number in the sparsity priors of contract 1
        return "norm_squared"
    for name, count in _PARAMETERS.get(kind, {}).items():
        code = getattr(getattr(cls, name, None), "__code__", None)
        variadic = code is not None and code.co_flags & CO_VARARGS
        if code is not None and not variadic and code.co_argcount - 1 < count:
            return name
    return None


def check_kind(kind: str, text: str, component: Any) -> None:
    """Raise `PluginError` unless a component has a base class of its kind and follows this version of the contract, as
    do the components among its parameters."""
    expected = BASE_CLASSES[kind]
    if not isinstance(component, expected):
        names = " or ".join(f"cryobench.core.{base.__name__}" for base in expected)
        raise PluginError(f"{text!r} is registered under {kind}, but its class does not derive from {names}")
    method = older_method(kind, type(component))
    if method is not None:
        raise PluginError(f"{text!r} of {kind} {mismatch('1')} (see its method {method})")
    for field in fields_of(type(component)):
        part = getattr(component, field.name)
        if field.kind is not None and part is not None:
            check_kind(field.kind, f"{type(part).__name__} in {text}", part)
