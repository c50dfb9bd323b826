"""Notebooks as pages of the site: the cells of docs/notebooks/*.ipynb and what they print and draw when they are run.

Notebooks are stored without outputs. They are run in an empty folder by the Python that runs this.
"""

from __future__ import annotations

import base64
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbclient
import nbformat

SECONDS = 300
"""Time limit of a cell."""
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def read(path: Path) -> Any:
    """The notebook of a file. Raises `nbformat.ValidationError` for a file that is none."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def run(path: Path) -> Any:
    """The notebook of a file with the outputs of its cells.

    Raises `nbclient.exceptions.CellExecutionError` for the first cell that fails.
    """
    notebook = read(path)
    with tempfile.TemporaryDirectory(prefix="notebook-") as folder:
        resources = {"metadata": {"path": folder}}
        nbclient.NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=resources).execute()
    return notebook


def page(notebook: Any, name: str, linked: Callable[[str], str]) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by their file names, `NAME-CELL.png`. linked: the text of a page with
    the links of the site."""
    lines: list[str] = []
    pictures: dict[str, bytes] = {}
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            lines += [linked(cell.source), ""]
            continue
        lines += ["```python", cell.source, "```", ""]
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                picture = f"{name}-{number}.png"
                pictures[picture] = base64.b64decode(data["image/png"])
                lines += [f"![Output of the cell above]({picture})", ""]
            elif "text/html" in data:
                lines += ['<div class="output">', _one_block(data["text/html"]), "</div>", ""]
            else:
                text = output.get("text", data.get("text/plain", ""))
                lines += ["```text", _ESCAPES.sub("", text).rstrip(), "```", ""]
    return "\n".join(lines), pictures


def _one_block(html: str) -> str:
    """HTML without empty lines, which would end the block in Markdown."""
    return "\n".join(line for line in html.splitlines() if line.strip())
