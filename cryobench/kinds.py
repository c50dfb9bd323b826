"""Which class a registered component must have."""

from __future__ import annotations

from typing import Any

from cryobench.core import Metric, NoiseModel, OperatorRecipe, Prior, Solver, Source
from cryobench.errors import PluginError

_BASE_CLASSES = {
    "operators": OperatorRecipe,
    "noises": NoiseModel,
    "solvers": Solver,
    "priors": Prior,
    "metrics": Metric,
    "sources": Source,
}


def check_kind(kind: str, text: str, component: Any) -> None:
    """Raise `PluginError` unless a component is of the class that its kind asks for."""
    wanted = _BASE_CLASSES[kind]
    if not isinstance(component, wanted):
        raise PluginError(
            f"{text!r} is registered under {kind} but its class is no {wanted.__module__}.{wanted.__name__}"
        )
