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


def check_kind(kind: str, text: str, component: Any) -> None:
    """Raise `PluginError` unless a component is of a class that its kind asks for."""
    wanted = BASE_CLASSES[kind]
    if not isinstance(component, wanted):
        names = " or ".join(f"cryobench.core.{base.__name__}" for base in wanted)
        raise PluginError(f"{text!r} is registered under {kind} but its class is no {names}")
