"""Text that is safe to print: no terminal codes, no invisible characters; numbers of things. Imports only the standard
library."""

from __future__ import annotations

import json
from typing import Any


def printable(text: str) -> str:
    """The text with every character that is not printable, such as ESC, bidirectional overrides and lone surrogates, as
    an escape: `\\x1b`. Line feeds are kept."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else _escaped(char) for char in text)


def counted(number: int, thing: str) -> str:
    """`1 image`, `2 images`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def not_finite(number: int) -> str:
    """`1 value that is not finite (NaN or infinite)`, `2 values that are not finite (NaN or infinite)`."""
    return f"{counted(number, 'value')} that {'is' if number == 1 else 'are'} not finite (NaN or infinite)"


def json_text(data: Any, **options: Any) -> str:
    """`json.dumps` in which non-ASCII text is readable and characters that are not printable are escaped."""
    return printable_json(json.dumps(data, ensure_ascii=False, **options))


def printable_json(text: str) -> str:
    """JSON with every character that is not printable, except line feeds, as an escape of JSON."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else _json_escape(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def _json_escape(char: str) -> str:
    """`\\u` and four hex digits for each UTF-16 code unit."""
    units = char.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))
