"""The numbers of image axes that a component supports: 2 for images, 3 for volumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cryobench.errors import IncompatibleError

_NAMES = {2: "images (2-D)", 3: "volumes (3-D)"}


def unsupported_dims(component: Any, shape: Sequence[int], subject: str = "it", data: str = "got") -> str | None:
    """The reason why a component does not support images with this number of axes, or None.

    subject: the name of the component in the message. data: the words before the shape of the images.
    """
    if len(shape) in component.dims:
        return None
    stated = " and ".join(_NAMES[dims] for dims in component.dims)
    size = " x ".join(map(str, shape))
    return f"{subject} supports {stated}, {data} {_NAMES.get(len(shape), f'{len(shape)}-D')} of {size}"


def check_dims(kind: str, component: Any, shape: Sequence[int]) -> None:
    """Raise `IncompatibleError` unless a component supports images with as many axes as `shape`."""
    reason = unsupported_dims(component, shape, f"{kind} {type(component).__name__.lower()}")
    if reason is not None:
        raise IncompatibleError(f"{reason}; choose another {kind}")
