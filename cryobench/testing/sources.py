"""The contract of data sources."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from cryobench.core import Stack
from cryobench.errors import SelectionError
from cryobench.testing.rules import Broken, DoesNotApply, Rules, Subject, no_trace, require

RULES = Rules()
_MOST = 4
"""Images that are read."""


class SourceSubject(Subject):
    """A source, open."""

    @cached_property
    def stack(self) -> Stack:
        stack = self.component.open()
        require(isinstance(stack, Stack), f"open() returned a {type(stack).__name__}, not a cryobench.core.Stack")
        require(len(stack) > 0, "it has no images")
        return stack

    @property
    def indices(self) -> range:
        return range(min(_MOST, len(self.stack)))


@RULES("it opens", "return a cryobench.core.Stack of one image or more from open()", vital=True)
def opens(subject: SourceSubject) -> None:
    _ = subject.stack


@RULES(
    "it gives images of the shape that it states",
    "return float32 [H, W] from read(index), H and W those of stack.shape",
)
def shape(subject: SourceSubject) -> None:
    for index in subject.indices:
        image = subject.stack.read(index)
        require(isinstance(image, np.ndarray), f"image {index} is a {type(image).__name__}, not an array")
        wanted = tuple(subject.stack.shape)
        require((image.shape, image.dtype) == (wanted, np.float32),
                f"image {index} is {image.dtype} {image.shape}, wanted float32 {wanted}")  # fmt: skip
        require(np.isfinite(image).all(), f"image {index} has values that are NaN or infinite")


@RULES("an image is the same whenever it is read", "make it of (the parameters, index) alone, whatever was read before")
def repeatable(subject: SourceSubject) -> None:
    forwards = [subject.stack.read(index).copy() for index in subject.indices]
    other = subject.made_again().open()
    for index in reversed(subject.indices):
        require(
            np.array_equal(other.read(index), forwards[index]),
            f"image {index} is another one when it is read in another order",
        )


@RULES("it has no image beyond its last", "call self.check(index) in read, which raises SelectionError")
def bounds(subject: SourceSubject) -> None:
    for index in (len(subject.stack), -1):
        try:
            subject.stack.read(index)
        except SelectionError:
            continue
        raise Broken(f"it gives an image {index}, and has {len(subject.stack)}")


@RULES("what it gives may be written to", "return a copy from read: solvers and scalings work in place")
def copies(subject: SourceSubject) -> None:
    before = subject.stack.read(0).copy()
    image = subject.stack.read(0)
    if image.flags.writeable:
        image += 1
    require(np.array_equal(subject.stack.read(0), before), "writing to an image changed what is read the next time")


@RULES("its pixel sizes make sense", "give Å per pixel from pixel_size(index), None where it is not known")
def pixel_size(subject: SourceSubject) -> None:
    for index in subject.indices:
        size = subject.stack.pixel_size(index)
        require(size is None or (0 < size < 1000), f"image {index} has a pixel of {size} Å")


@RULES("its table has a row for each image", "give one row an image, in the order of the images, or None")
def table(subject: SourceSubject) -> None:
    table = subject.stack.table
    if table is None:
        raise DoesNotApply("it has no table")
    require(
        len(table) == len(subject.stack), f"its table has {len(table)} rows, and there are {len(subject.stack)} images"
    )


@RULES("a clean image is like its image", "give clean(index) in the units and the shape of read(index), or None")
def clean(subject: SourceSubject) -> None:
    for index in subject.indices:
        clean = subject.stack.clean(index)
        if clean is None:
            raise DoesNotApply("it does not know its images without noise")
        require((clean.shape, clean.dtype) == (tuple(subject.stack.shape), np.float32),
                f"clean image {index} is {clean.dtype} {clean.shape}")  # fmt: skip


@RULES("it leaves global state as it was", "draw from a generator of its own")
def global_state(subject: SourceSubject) -> None:
    with no_trace():
        subject.made_again().open().read(0)
