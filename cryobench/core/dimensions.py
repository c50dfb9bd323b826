"""How many axes the images of a component have: 2 for images, 3 for volumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cryobench.errors import IncompatibleError

_NAMES = {2: "images (2-D)", 3: "volumes (3-D)"}


def unsupported_dims(component: Any, shape: Sequence[int], subject: str = "it", data: str = "these are") -> str | None:
    """Why a component cannot take images of this shape, by their number of axes; None where it can.

    subject, data: how the sentence calls the component, and the images with their verb.
    """
    if len(shape) in component.dims:
        return None
    stated = " and ".join(_NAMES[dims] for dims in component.dims)
    size = " x ".join(map(str, shape))
    return f"{subject} takes {stated}, and {data} {_NAMES.get(len(shape), f'{len(shape)}-D')} of {size}"


def check_dims(kind: str, component: Any, shape: Sequence[int]) -> None:
    """Raise `IncompatibleError` unless a component states that it takes images with as many axes as `shape`."""
    reason = unsupported_dims(component, shape, f"{kind} {type(component).__name__.lower()}")
    if reason is not None:
        raise IncompatibleError(f"{reason}; choose another {kind}")
