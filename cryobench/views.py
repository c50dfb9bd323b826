"""Live operators as matrix-free linear operators of other packages, [M*h*w, H*W], on flat NumPy arrays.

    from cryobench.views import as_scipy

    A = cb.operator("sumpool:16", shape=(128, 128))
    x = scipy.sparse.linalg.lsqr(as_scipy(A), y[0].numpy().ravel())[0].reshape(128, 128)

Images and measurements are flattened in row-major order. Several columns form one batch. Each call copies its input to
the device of the operator and the result back; gradients are not recorded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cryobench.errors import DependencyError, ParameterError, described

if TYPE_CHECKING:
    import pylops
    import scipy.sparse.linalg

    from cryobench.core.operator import LinearOperator


def as_scipy(operator: LinearOperator, image: int = 0) -> scipy.sparse.linalg.LinearOperator:
    """The matrix of `operator` for SciPy, [M*h*w, H*W], real, of the operator's dtype.

    image: index of the image, for an operator that differs between images; otherwise ignored.
    Raises `ParameterError` if the operator was not built for that image.
    """
    from scipy.sparse.linalg import LinearOperator as Matrix

    forward, backward = _on_columns(operator, image)
    shape = (math.prod(operator.measurement_shape), math.prod(operator.image_shape))
    products: Any = {"matvec": forward, "matmat": forward, "rmatvec": backward, "rmatmat": backward}
    return Matrix(shape=shape, dtype=_numpy(operator.dtype), **products)


def as_pylops(operator: LinearOperator, image: int = 0) -> pylops.LinearOperator:
    """The matrix of `operator` for PyLops, from arrays [H, W] or [H*W] to [M, h, w] or [M*h*w].

    image: as in `as_scipy`. Raises `DependencyError` without PyLops, `ParameterError` as `as_scipy` does.
    """
    try:
        import pylops
    except ImportError as error:
        raise DependencyError(f"as_pylops needs the package pylops ({described(error)}): pip install pylops") from error

    class Matrix(pylops.LinearOperator):
        """Applies the operator to all columns as one batch; PyLops's default is one column at a time."""

        def _matmat(self, X: np.ndarray) -> np.ndarray:
            return self.Op.matmat(X)

        def _rmatmat(self, X: np.ndarray) -> np.ndarray:
            return self.Op.rmatmat(X)

    return Matrix(as_scipy(operator, image), dims=operator.image_shape, dimsd=operator.measurement_shape)


Columns = Callable[[np.ndarray], np.ndarray]


def _on_columns(operator: LinearOperator, image: int) -> tuple[Columns, Columns]:
    """A and its transpose on columns, [H*W, n] <-> [M*h*w, n]; a vector is one column."""
    from scipy.sparse import issparse

    if operator.images is not None and not 0 <= image < operator.images:
        raise ParameterError(f"the operator was built for images 0 to {operator.images - 1}, got image={image}")

    def applied(name: str, shape: tuple[int, ...]) -> Columns:
        def product(columns: Any) -> np.ndarray:
            if issparse(columns):  # PyLops passes unit vectors as sparse columns
                columns = columns.toarray()
            if np.iscomplexobj(columns):
                return product(columns.real) + 1j * product(columns.imag)
            rows = np.array(columns.reshape(math.prod(shape), -1).T, dtype=_numpy(operator.dtype), order="C")
            own = operator.select(torch.full((len(rows),), image))  # the same image for every column
            with torch.no_grad():
                out = getattr(own, name)(torch.from_numpy(rows).to(operator.device).reshape(len(rows), *shape))
            return out.cpu().reshape(len(rows), -1).numpy().T

        return product

    return applied("A", (1, *operator.image_shape)), applied("A_adjoint", operator.measurement_shape)


def _numpy(dtype: torch.dtype) -> np.dtype:
    return torch.empty(0, dtype=dtype).numpy().dtype
