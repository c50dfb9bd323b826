"""Selection of images of a stack: ``0:8``, ``3,7,9``, ``2:``, ``0:10:2``, ``0:2,7``."""

from __future__ import annotations

import re

from cryobench.errors import SelectionError, quoted, shortened

_ITEM = re.compile(r"(?P<one>[0-9]{1,18})|(?P<start>[0-9]{0,18}):(?P<stop>[0-9]{0,18})(?::(?P<step>[0-9]{0,18}))?")
_FORMS = "give 0-based numbers and Python ranges such as 5, 3,7,9, 0:8, 2: or 0:10:2"


def parse_images(text: str | None, n: int, default: int = 4, *, label: str = "the data") -> list[int]:
    """The 0-based numbers of the images that `text` selects among `n`, in the given order.

    None selects the first `default` images, or all if there are fewer. label: the name of the data in messages. Raises
    `SelectionError` for text that does not parse, and for numbers that are negative, repeated or beyond the end (ranges
    are not clipped).
    """
    if n < 1:
        raise SelectionError(f"{label} has no images to choose from")
    if text is None:
        return list(range(min(default, n)))
    chosen: dict[int, None] = {}  # keeps the order
    for item in text.split(","):
        numbers = _range(item.strip(), text, n)
        if numbers[-1] >= n:
            beyond = next(number for number in numbers[max(0, _steps_below(numbers, n)) :] if number >= n)
            raise SelectionError(f"--images {shortened(text)} selects image {beyond}, but {label} has {_count(n)}")
        for number in numbers:
            if number in chosen:
                raise SelectionError(f"--images {shortened(text)} selects image {number} twice; select each once")
            chosen[number] = None
    return list(chosen)


def _range(item: str, text: str, n: int) -> range:
    """The numbers of one comma-separated item; never empty."""
    match = _ITEM.fullmatch(item)
    if match is None:
        fault = "counts from the end" if re.search(r"-\s*[0-9]", item) else "is not a selection of images"
        raise SelectionError(f"--images {quoted(text)}: {quoted(item)} {fault}; {_FORMS}")
    if match["one"]:
        return range(int(match["one"]), int(match["one"]) + 1)
    step = int(match["step"] or 1)
    if step == 0:
        raise SelectionError(f"--images {shortened(text)}: the step of {quoted(item)} is 0; {_FORMS}")
    numbers = range(int(match["start"] or 0), int(match["stop"] or n), step)
    if not numbers:
        raise SelectionError(f"--images {shortened(text)}: {quoted(item)} selects no image; {_FORMS}")
    return numbers


def _steps_below(numbers: range, n: int) -> int:
    """How many of the numbers are below n, without iterating over a range that may be huge."""
    return (n - numbers.start + numbers.step - 1) // numbers.step


def _count(n: int) -> str:
    return "1 image, number 0" if n == 1 else f"{n} images, 0 to {n - 1}"
