"""The contract of measurement operators. Every method is compared with the dense matrix of the operator."""

from __future__ import annotations

import math
from functools import cached_property

import torch

from cryobench.core import Imaging, LinearOperator, Shape, build_operator, check_operator
from cryobench.errors import CryobenchError, IncompatibleError, Unsupported, described
from cryobench.testing.rules import (
    SEED,
    Broken,
    DoesNotApply,
    Rules,
    Subject,
    global_state_unchanged,
    require,
    require_equal,
    unmodified,
)

RULES = Rules()
EXACT, ITERATED = 1e-8, 1e-4
"""Maximum relative errors in float64: of one application, and of a result that may be iterative."""
_SHAPES: dict[int, tuple[Shape, ...]] = {
    2: ((16, 16), (32, 32), (64, 64), (128, 128)),
    3: ((4, 6, 8), (8, 8, 8)),
}
"""Shapes by number of axes. An operator is tested on the first that it accepts."""
ODD_SHAPES: dict[int, tuple[Shape, ...]] = {
    2: ((1, 1), (7, 5), (16, 24)),
    3: ((1, 1, 1), (7, 5, 3), (4, 8, 12)),
}
_IMAGES = 3
_PIXEL_SIZE = 2.0
_OPTICS = {
    "rlnDefocusU": [9000.0, 12000.0, 15000.0],
    "rlnDefocusV": [9500.0, 12000.0, 14000.0],
    "rlnDefocusAngle": [0.0, 30.0, 60.0],
    "rlnVoltage": [300.0] * 3,
    "rlnSphericalAberration": [2.7] * 3,
    "rlnAmplitudeContrast": [0.1] * 3,
}


class OperatorSubject(Subject):
    """A live operator on small images, and its matrix."""

    @cached_property
    def imaging(self) -> Imaging:
        """The first of `_SHAPES` that it measures, with a CTF for each image where it requires one."""
        return self._imaging(self.smallest_shape(self._imaging, _SHAPES[self.dims]))

    def _imaging(self, shape: Shape) -> Imaging:
        """Images of this shape, without CTFs if it accepts these. Raises `IncompatibleError` if it accepts neither."""
        import pandas as pd

        plain = Imaging(shape, (_PIXEL_SIZE,))
        try:
            check_operator(self.component, plain)
        except IncompatibleError:
            plain = Imaging(shape, (_PIXEL_SIZE,) * _IMAGES, pd.DataFrame(_OPTICS))
            check_operator(self.component, plain)
        return plain

    def build(self, dtype: torch.dtype = torch.float64, device: str = "cpu") -> LinearOperator:
        return build_operator(self.component, self.imaging, seed=SEED, dtype=dtype, device=device)

    @cached_property
    def operator(self) -> LinearOperator:
        return self.build()

    @cached_property
    def first(self) -> LinearOperator:
        """The operator for the first image, where it differs from image to image."""
        return self.operator.select(slice(0, 1))

    @cached_property
    def matrix(self) -> torch.Tensor:
        """The matrix of `first`: as many rows as measurements, as many columns as pixels."""
        shape = self.first.domain_shape
        units = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
        return torch.stack([self.first.A(unit[None])[0].flatten() for unit in units], dim=1)

    def images(self, count: int = _IMAGES) -> torch.Tensor:
        g = torch.Generator().manual_seed(SEED)
        return torch.randn((count, *self.operator.domain_shape), generator=g, dtype=torch.float64)

    def measurements(self, count: int = _IMAGES) -> torch.Tensor:
        g = torch.Generator().manual_seed(SEED + 1)
        return torch.randn((count, *self.operator.measurement_shape), generator=g, dtype=torch.float64)


def _flat(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1).T


@RULES(
    "it accepts a common image size",
    "raise IncompatibleError in check only for images that it cannot measure",
    vital=True,
)
def accepts(subject: OperatorSubject) -> None:
    _ = subject.operator


@RULES(
    "measurements have the declared shape",
    "return the shape (M, *s) of the measurements from check, and map [B, C, *S] to [B, M, *s] in A",
)
def shapes(subject: OperatorSubject) -> None:
    A, x = subject.operator, subject.images()
    declared = subject.component.check(subject.imaging)
    require(
        declared in (None, A.measurement_shape), f"check returns {declared}, the operator has {A.measurement_shape}"
    )
    require(A.image_shape == subject.imaging.shape, f"image_shape is {A.image_shape}, expected {subject.imaging.shape}")
    for name, got, expected in (
        ("A", A.A(x), (len(x), *A.measurement_shape)),
        ("A_adjoint", A.A_adjoint(subject.measurements()), tuple(x.shape)),
    ):
        require(tuple(got.shape) == expected, f"{name} gave shape {list(got.shape)}, expected {list(expected)}")


@RULES(
    "it works in the dtype and on the device that it is built for",
    "create its tensors with the dtype and the device passed to build",
)
def dtype(subject: OperatorSubject) -> None:
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        for dtype in (torch.float32, torch.float64):
            A = subject.build(dtype, device)
            require(
                (A.dtype, A.device.type) == (dtype, device),
                f"built for {dtype} on {device}, it states {A.dtype} on {A.device}",
            )
            got = A.A(subject.images().to(device, dtype))
            require(
                (got.dtype, got.device.type) == (dtype, device),
                f"A gave {got.dtype} on {got.device}, expected {dtype} on {device}",
            )


@RULES("it is linear", "leave offsets, clipping and noise out of A")
def linear(subject: OperatorSubject) -> None:
    A, x = subject.operator, subject.images()
    z = x.flip(2)
    require_equal(A.A(2 * x - 3 * z), 2 * A.A(x) - 3 * A.A(z), EXACT, "A(2 x - 3 z) against 2 A(x) - 3 A(z)")


@RULES("A_adjoint is the transpose of A", "derive A_adjoint from <A x, y> = <x, A^T y>")
def adjoint(subject: OperatorSubject) -> None:
    y = subject.measurements(1)
    require_equal(_flat(subject.first.A_adjoint(y)), subject.matrix.T @ _flat(y), EXACT, "A_adjoint against the matrix")


@RULES("A_adjoint_A is A_adjoint after A", "compute both from the same weights, or do not override A_adjoint_A")
def normal(subject: OperatorSubject) -> None:
    x = subject.images(1)
    require_equal(_flat(subject.first.A_adjoint_A(x)), subject.matrix.T @ (subject.matrix @ _flat(x)), EXACT,
                  "A_adjoint_A against the matrix")  # fmt: skip


@RULES("compute_norm is the largest singular value", "return ||A||, not its square, or do not override compute_norm")
def norm(subject: OperatorSubject) -> None:
    expected = torch.linalg.matrix_norm(subject.matrix, 2).item()
    got = subject.first.norms.flatten()[0].item()
    close = abs(got - expected) <= 1e-3 * expected
    require(close, f"the norm for the first image is {got:.6g}, that of the matrix {expected:.6g}")
    largest, stated = subject.operator.norms.max().item(), subject.operator.compute_norm()
    require(abs(stated - largest) <= 1e-3 * largest, f"compute_norm() is {stated:.6g}, the largest norm {largest:.6g}")


@RULES("rank is that of A", "count the non-zero singular values, or do not override rank")
def rank(subject: OperatorSubject) -> None:
    actual = int(torch.linalg.matrix_rank(subject.matrix))
    got, most = subject.operator.rank, min(subject.matrix.shape)
    exact = subject.operator.closed_form and subject.operator.images is None
    if exact:
        require(got == actual, f"rank is {got}, that of the matrix {actual}")
    require(got <= most, f"rank is {got}, with {subject.matrix.shape[0]} measurements of "
                         f"{subject.matrix.shape[1]} pixels")  # fmt: skip
    require(got >= actual, f"rank is {got}, that of the matrix {actual}")


@RULES("A_dagger is the pseudo-inverse", "return the least-norm least-squares solution, or do not override A_dagger")
def dagger(subject: OperatorSubject) -> None:
    y = subject.measurements(1)
    require_equal(_flat(subject.first.A_dagger(y)), torch.linalg.pinv(subject.matrix) @ _flat(y), ITERATED,
                  "A_dagger against the matrix")  # fmt: skip


@RULES("A_dagger_A is (A^T A + I / gamma)^-1 A^T A", "check gamma = inf, where it is A^+ A, or do not override it")
def dagger_A(subject: OperatorSubject) -> None:
    x, D = subject.images(1), subject.matrix
    require_equal(_flat(subject.first.A_dagger_A(x)), torch.linalg.pinv(D) @ (D @ _flat(x)), ITERATED,
                  "A_dagger_A at gamma = inf")  # fmt: skip
    gamma = 0.7
    expected = torch.linalg.solve(D.T @ D + torch.eye(D.shape[1], dtype=D.dtype) / gamma, D.T @ (D @ _flat(x)))
    require_equal(_flat(subject.first.A_dagger_A(x, gamma)), expected, ITERATED, f"A_dagger_A at gamma = {gamma}")


@RULES("prox_l2 is the minimiser", "solve (A^T A + I / gamma) x = A^T y + z / gamma, or do not override prox_l2")
def prox(subject: OperatorSubject) -> None:
    z, y, D, gamma = subject.images(1), subject.measurements(1), subject.matrix, 0.7
    expected = torch.linalg.solve(
        D.T @ D + torch.eye(D.shape[1], dtype=D.dtype) / gamma, D.T @ _flat(y) + _flat(z) / gamma
    )
    require_equal(_flat(subject.first.prox_l2(z, y, gamma)), expected, ITERATED, f"prox_l2 at gamma = {gamma}")


@RULES("A is differentiable", "write A in differentiable torch operations: no numpy, no detach")
def gradient(subject: OperatorSubject) -> None:
    x = subject.images(1).requires_grad_()
    y = subject.first.A(x)
    require(y.requires_grad, "the result of A does not require a gradient")
    y.square().sum().div(2).backward()
    if x.grad is None:
        raise Broken("no gradient is propagated through A")
    require_equal(_flat(x.grad), subject.matrix.T @ (subject.matrix @ _flat(x.detach())), EXACT,
                  "the gradient of 1/2 ||A x||^2 against A^T A x")  # fmt: skip


@RULES("mean_response is A of a constant image", "do not override mean_response, or compute it from the same weights")
def mean_response(subject: OperatorSubject) -> None:
    expected, largest = subject.matrix.sum(dim=1, keepdim=True), subject.matrix.abs().sum(dim=1).max().item()
    require_equal(_flat(subject.first.mean_response[:1]), expected, EXACT, "mean_response against the row sums of the "
                  "matrix", scale=largest)  # fmt: skip


@RULES("it is non-negative if it states so", "leave nonnegative False if a weight may be negative")
def nonnegative(subject: OperatorSubject) -> None:
    if not subject.operator.nonnegative:
        raise DoesNotApply("it does not state so")
    least = subject.matrix.min().item()
    require(least >= -EXACT, f"it states so, but has a weight of {least:.3g}")


@RULES("results do not depend on the batch", "measure every image on its own; override select if images differ")
def alone(subject: OperatorSubject) -> None:
    A, x, y = subject.operator, subject.images(), subject.measurements()
    for i in range(len(x)):
        one = A.select(slice(i, i + 1))
        for name in ("A", "A_adjoint", "A_dagger"):
            given = x if name == "A" else y
            tolerance = ITERATED if name == "A_dagger" else EXACT
            require_equal(getattr(one, name)(given[i : i + 1]), getattr(A, name)(given)[i : i + 1], tolerance,
                          f"{name} of image {i} alone")  # fmt: skip


@RULES("rows(part) is the operator for some measurements", "do not override rows, or give it closed forms of the part")
def rows(subject: OperatorSubject) -> None:
    A, x, gamma = subject.first, subject.images(1), 0.7
    numbers = torch.arange(len(subject.matrix)).reshape(A.measurement_shape)
    count = A.measurement_shape[0]
    for part in (slice(0, (count + 1) // 2), torch.tensor([count - 1, 0][:count])):
        B, D, y = A.rows(part), subject.matrix[numbers[part].flatten()], subject.measurements(1)[:, part]
        shape = tuple(y.shape[1:])
        require(tuple(B.measurement_shape) == shape, f"its measurements are {tuple(B.measurement_shape)}, not {shape}")
        shifted, Dx, Dy = D.T @ D + torch.eye(D.shape[1], dtype=D.dtype) / gamma, D @ _flat(x), D.T @ _flat(y)
        for name, got, expected, tolerance in (
            ("A", B.A(x), Dx, EXACT),
            ("A_adjoint", B.A_adjoint(y), Dy, EXACT),
            ("A_adjoint_A", B.A_adjoint_A(x), D.T @ Dx, EXACT),
            ("A_dagger", B.A_dagger(y), torch.linalg.pinv(D) @ _flat(y), ITERATED),
            ("A_dagger_A", B.A_dagger_A(x, gamma), torch.linalg.solve(shifted, D.T @ Dx), ITERATED),
            ("prox_l2", B.prox_l2(x, y, gamma), torch.linalg.solve(shifted, Dy + _flat(x) / gamma), ITERATED),
        ):
            require_equal(_flat(got), expected, tolerance, f"{name} of rows({part})")
        largest, actual = torch.linalg.matrix_norm(D, 2).item(), int(torch.linalg.matrix_rank(D))
        got = B.norms.flatten()[0].item()
        require(abs(got - largest) <= 1e-3 * largest, f"the norm of rows({part}) is {got:.6g}, not {largest:.6g}")
        require(actual <= B.rank <= min(D.shape), f"rank of rows({part}) is {B.rank}, that of the matrix {actual}")


@RULES(
    "crop(window) is the operator of a window",
    "return the operator and the measurements of a window that A treats separately, or do not override crop",
)
def crop(subject: OperatorSubject) -> None:
    A, x, y = subject.first, subject.images(1), subject.measurements(1)
    windows = _windows(A)
    if not windows:
        raise DoesNotApply(f"the image of {A.image_shape} has one block")
    try:
        crops = [A.crop(window) for window in windows]
    except Unsupported as reason:
        text = str(reason)
        require(text.strip() and "\n" not in text, f"crop refuses with {text!r}, expected the reason in one line")
        raise DoesNotApply(text) from reason
    for window, crop in zip(windows, crops, strict=True):
        W, place = crop.operator, (..., *window)
        name = f"crop({', '.join(f'{part.start}:{part.stop}' for part in window)})"
        shape = tuple(part.stop - part.start for part in window)
        require(W.image_shape == shape, f"{name} has image_shape {W.image_shape}, expected {shape}")
        mine = crop.of(y)
        require(tuple(mine.shape[1:]) == W.measurement_shape,
                f"{name} has {W.measurement_shape} measurements, and states {tuple(mine.shape[1:])}")  # fmt: skip
        inside = x[place].contiguous()
        for method, got, expected, tolerance in (
            ("A", W.A(inside), crop.of(A.A(x)), EXACT),
            ("A_adjoint", W.A_adjoint(mine), A.A_adjoint(y)[place], EXACT),
            ("A_adjoint_A", W.A_adjoint_A(inside), A.A_adjoint_A(x)[place], EXACT),
            ("A_dagger", W.A_dagger(mine), A.A_dagger(y)[place], ITERATED),
            ("A_dagger_A", W.A_dagger_A(inside, 0.7), A.A_dagger_A(x, 0.7)[place], ITERATED),
            ("prox_l2", W.prox_l2(inside, mine, 0.7), A.prox_l2(x, y, 0.7)[place], ITERATED),
        ):
            require_equal(got, expected, tolerance, f"{method} of {name} against that of the whole image")


def _windows(A: LinearOperator) -> list[tuple[slice, ...]]:
    """The first half of every axis, and a part that starts inside the image, both at multiples of `crop_step`."""
    step = A.crop_step
    halves = tuple(slice(0, n // step // 2 * step) for n in A.image_shape)
    inner = tuple(slice(n // step // 4 * step + step, n // step * step) for n in A.image_shape)
    return [window for window in (halves, inner) if all(part.start < part.stop for part in window)]


@RULES(
    "the same seed makes the same operator",
    "draw all random numbers from cryobench.rng.generator(seed, self, shape)",
)
def seeded(subject: OperatorSubject) -> None:
    x = subject.images()
    expected = subject.operator.A(x)
    torch.rand(1)  # advances the global generator
    require_equal(subject.build().A(x), expected, 0.0, "A of a second operator of the same seed")


@RULES(
    "it does not change global state", "draw from cryobench.rng.generator(seed, self, shape), and set no global options"
)
def global_state(subject: OperatorSubject) -> None:
    x, y = subject.images(), subject.measurements()
    with global_state_unchanged():
        A = subject.build()
        _ = A.A(x), A.A_adjoint(y), A.A_dagger(y), A.compute_norm()


@RULES("it does not modify its input", "write `x = x * w`, not `x *= w`")
def inputs(subject: OperatorSubject) -> None:
    A, x, y = subject.operator, subject.images(), subject.measurements()
    with unmodified(x, y):
        _ = A.A(x), A.A_adjoint(y), A.A_dagger(y), A.prox_l2(x, y, 0.7)


@RULES("it measures every shape that it accepts", "raise IncompatibleError in check for shapes that it cannot measure")
def check(subject: OperatorSubject) -> None:
    for shape in ODD_SHAPES[subject.dims]:
        imaging = Imaging(shape, subject.imaging.pixel_size, subject.imaging.table)
        try:
            check_operator(subject.component, imaging)
        except CryobenchError:
            continue
        try:
            _measure(subject, shape, imaging)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise Broken(f"it accepts images of {shape}, but fails on them: {described(error)}") from error


def _measure(subject: OperatorSubject, shape: Shape, imaging: Imaging) -> None:
    A = build_operator(subject.component, imaging, seed=SEED, dtype=torch.float64)
    require(A.A(torch.ones((A.images or 1, *A.domain_shape), dtype=torch.float64)).isfinite().all(), "not finite")
