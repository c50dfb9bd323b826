"""Star files as the package writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryobench.io.writing import star_text, written


def write_star(path: Path, *arguments: Any, **options: Any) -> None:
    """Write the text of `star_text` to a file."""
    text = star_text(path, *arguments, **options)
    with written(path) as (temporary,):
        temporary.write_bytes(text.encode())
