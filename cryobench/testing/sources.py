"""The contract of data sources."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from cryobench.core import Stack
from cryobench.errors import SelectionError
from cryobench.testing.rules import Broken, DoesNotApply, Rules, Subject, global_state_unchanged, require

RULES = Rules()
_MAX_IMAGES = 4
"""Maximum number of images that are read."""


class SourceSubject(Subject):
    """An open source."""

    @cached_property
    def stack(self) -> Stack:
        stack = self.component.open()
        require(isinstance(stack, Stack), f"open() returned a {type(stack).__name__}, expected a cryobench.core.Stack")
        require(len(stack) > 0, "it has no images")
        return stack

    @property
    def indices(self) -> range:
        return range(min(_MAX_IMAGES, len(self.stack)))


@RULES("it opens", "return a cryobench.core.Stack of at least one image from open()", vital=True)
def opens(subject: SourceSubject) -> None:
    _ = subject.stack


@RULES(
    "images have the stated shape",
    "return float32 of shape stack.shape from read(index)",
)
def shape(subject: SourceSubject) -> None:
    for index in subject.indices:
        image = subject.stack.read(index)
        require(isinstance(image, np.ndarray), f"image {index} is a {type(image).__name__}, expected an array")
        expected = tuple(subject.stack.shape)
        require((image.shape, image.dtype) == (expected, np.float32),
                f"image {index} is {image.dtype} {image.shape}, expected float32 {expected}")  # fmt: skip
        require(np.isfinite(image).all(), f"image {index} has values that are NaN or infinite")


@RULES("images do not depend on the order of reading", "compute an image from the parameters and its index alone")
def repeatable(subject: SourceSubject) -> None:
    forwards = [subject.stack.read(index).copy() for index in subject.indices]
    other = subject.make_another().open()
    for index in reversed(subject.indices):
        require(
            np.array_equal(other.read(index), forwards[index]),
            f"image {index} is different when images are read in another order",
        )


@RULES("an index out of range is an error", "call self.check(index) in read, which raises SelectionError")
def bounds(subject: SourceSubject) -> None:
    for index in (len(subject.stack), -1):
        try:
            subject.stack.read(index)
        except SelectionError:
            continue
        raise Broken(f"read({index}) returns an image, but there are only {len(subject.stack)}")


@RULES("images may be modified", "return a copy from read: scalings work in place")
def copies(subject: SourceSubject) -> None:
    before = subject.stack.read(0).copy()
    image = subject.stack.read(0)
    if image.flags.writeable:
        image += 1
    require(np.array_equal(subject.stack.read(0), before), "modifying an image changed what is read next")


@RULES("pixel sizes are plausible", "return Å per pixel from pixel_size(index), None where it is not known")
def pixel_size(subject: SourceSubject) -> None:
    for index in subject.indices:
        size = subject.stack.pixel_size(index)
        require(size is None or (0 < size < 1000), f"the pixel size of image {index} is {size} Å")


@RULES("a volume is a cube with a pixel size", "return a float32 cube and its Å per voxel from volume(index), or None")
def volume(subject: SourceSubject) -> None:
    for index in subject.indices:
        found = subject.stack.volume(index)
        if found is None:
            raise DoesNotApply("it has no volumes")
        array, size = found
        require(isinstance(array, np.ndarray) and array.dtype == np.float32 and array.ndim == 3
                and len(set(array.shape)) == 1, f"the volume of image {index} is no float32 cube")  # fmt: skip
        require(0 < size < 1000, f"the pixel size of the volume of image {index} is {size} Å")


@RULES("its table has a row for each image", "return one row per image, in the order of the images, or None")
def table(subject: SourceSubject) -> None:
    table = subject.stack.table
    if table is None:
        raise DoesNotApply("it has no table")
    require(len(table) == len(subject.stack), f"its table has {len(table)} rows for {len(subject.stack)} images")


@RULES("a clean image has the shape of its image", "return clean(index) in the units and shape of read(index), or None")
def clean(subject: SourceSubject) -> None:
    for index in subject.indices:
        clean = subject.stack.clean(index)
        if clean is None:
            raise DoesNotApply("it has no clean images")
        require((clean.shape, clean.dtype) == (tuple(subject.stack.shape), np.float32),
                f"clean image {index} is {clean.dtype} {clean.shape}")  # fmt: skip


@RULES("it does not change global state", "draw from its own generator")
def global_state(subject: SourceSubject) -> None:
    with global_state_unchanged():
        subject.make_another().open().read(0)
