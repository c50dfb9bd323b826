"""A leaderboard in Markdown (as GitHub reads it), in LaTeX (booktabs) and as a fragment of HTML (for a notebook)."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import pandas as pd

from cryobench.leaderboard.render.columns import DIFFERENCE, TextColumn, text_columns
from cryobench.leaderboard.render.overall import TableBlock, blocks, sections
from cryobench.leaderboard.render.text import one_line

MARKDOWN = str.maketrans({char: f"\\{char}" for char in "\\`*_[]<>|#~&$"})
_LINKS = {"://": r":/\/", "www.": r"www\."}
"""GitHub makes links of bare addresses."""


class _Latex(dict[int, str]):
    """A table for `str.translate`. Characters that pdfLaTeX does not have are written as `[U+4E2D]`."""

    def __missing__(self, code: int) -> str:
        return chr(code) if code < 128 or chr(code) in LATIN else f"{{[}}U+{code:04X}]"


LATIN = frozenset("¡¿ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝßàáâãäåæçèéêëìíîïñòóôõöøùúûüýÿŁłŒœŠšŽž")
"""Letters that LaTeX has without further packages."""
LATEX = _Latex(
    str.maketrans(
        {
            **{char: f"\\{char}" for char in "&%$#_{}"},
            "\\": r"\textbackslash{}",
            "~": r"\textasciitilde{}",
            "^": r"\textasciicircum{}",
            "<": r"\textless{}",
            ">": r"\textgreater{}",
            "[": "{[}",  # after \\ it would be read as a length
            "*": "{*}",  # after \\ it would be read as a variant of it
            "·": r"\textperiodcentered{}",
            "–": r"\textendash{}",
            "…": r"\dots{}",
            "↑": r"$\uparrow$",
            "↓": r"$\downarrow$",
            "°": r"$^\circ$",
            "²": "$^2$",
            "³": "$^3$",
            "×": r"$\times$",
            "µ": r"$\mu$",
            "σ": r"$\sigma$",
            "Å": r"\AA{}",
            "†": r"\textdagger{}",
            "‡": r"\textdaggerdbl{}",
            "◆": r"$\diamond$",
        }
    )
)


LATEX_SPECIAL = frozenset(map(chr, LATEX))
_LIGATURE = re.compile(r"([-'`])(?=\1)|([?!])(?=`)")
"""Characters that LaTeX would join to a dash, a quotation mark or an inverted mark."""


def escape_markdown(text: str) -> str:
    """One line of text as Markdown that shows it: no HTML, links, code, formulas or table cells are read from it."""
    text = one_line(text).translate(MARKDOWN)
    for begin, escaped in _LINKS.items():
        text = text.replace(begin, escaped)
    return text


def _in_full(frame: pd.DataFrame) -> list[str]:
    """The columns with an interval where there is little room: a proportion of a few images says nothing without."""
    proportions = [column["name"] for column in frame.attrs["columns"] if column.get("interval") == "binomial"]
    return [frame.attrs["by"], DIFFERENCE, *proportions]


def _blocks(frame: pd.DataFrame, in_full: Sequence[str]) -> Iterator[str | TableBlock]:
    """Headings and tables. in_full: the columns that have intervals."""
    return blocks(sections(frame), lambda board: text_columns(board, in_full))


def _rows(block: TableBlock, escaped: Callable[[TextColumn], Iterable[str]]) -> Iterator[tuple[str, ...]]:
    return zip(*map(escaped, block.columns), strict=True)


def to_markdown(frame: pd.DataFrame) -> str:
    """All columns; intervals of the ranking metric, of the difference in it and of proportions."""
    lines: list[str] = []
    for part in _blocks(frame, _in_full(frame)):
        if isinstance(part, str):
            lines += [f"## {escape_markdown(part)}", ""]
            continue
        lines += [f"### {escape_markdown(part.title)}", ""]
        if part.columns:
            titles = [escape_markdown(column.title) for column in part.columns]
            sides = [":--" if column.name == "solver" else "--:" for column in part.columns]
            lines += [f"| {' | '.join(titles)} |", f"|{'|'.join(sides)}|"]
            lines += [f"| {' | '.join(row)} |" for row in _rows(part, _markdown_cells)] + [""]
        if part.lines:
            lines += [*(f"- {escape_markdown(line)}" for line in part.lines), ""]
    return "\n".join(lines or ["no results", ""])


def _markdown_cells(column: TextColumn) -> Iterator[str]:
    """Only solver names contain characters that must be escaped."""
    return (escape_markdown(cell) if column.name == "solver" else cell.strip() for cell in column.cells)


def to_latex(frame: pd.DataFrame) -> str:
    """A `table` for each comparison, all columns; intervals as in `to_markdown`."""
    lines: list[str] = []
    for part in _blocks(frame, _in_full(frame)):
        if isinstance(part, str):
            lines.append(f"\\subsection*{{{_latex(part)}}}")
            continue
        lines += [r"\begin{table}", f"\\caption{{{_latex(part.title)}}}"]
        if part.columns:
            sides = "".join("l" if column.name == "solver" else "r" for column in part.columns)
            titles = " & ".join(_latex(column.title) for column in part.columns)
            lines += [f"\\begin{{tabular}}{{{sides}}}", r"\toprule", titles + r" \\", r"\midrule"]
            lines += [" & ".join(row) + r" \\" for row in _rows(part, _latex_cells)]
            lines += [r"\bottomrule", r"\end{tabular}"]
        lines += [*(f"\\par\\footnotesize {_latex(line)}" for line in part.lines), r"\end{table}"]
    return "\n".join([r"% in the preamble: \usepackage{booktabs}", *(lines or ["no results"])]) + "\n"


def _latex_cells(column: TextColumn) -> Iterator[str]:
    """Most columns contain only numbers, which need no escaping."""
    text = "".join(column.cells)
    numbers = column.name != "solver" and text.isascii() and LATEX_SPECIAL.isdisjoint(text)
    return map(str.strip if numbers else _latex, column.cells)


def _latex(text: str) -> str:
    return _LIGATURE.sub(r"\g<0>{}", text.strip().translate(LATEX))


def to_html(frame: pd.DataFrame) -> str:
    """All columns with all intervals, without a style sheet."""
    lines: list[str] = []
    for part in _blocks(frame, [DIFFERENCE, *(column["name"] for column in frame.attrs["columns"])]):
        if isinstance(part, str):
            lines.append(f"<h3>{html.escape(part)}</h3>")
            continue
        lines.append(f"<h4>{html.escape(part.title)}</h4>")
        if part.columns:
            heads = "".join(f"<th>{html.escape(column.title)}</th>" for column in part.columns)
            rows = _rows(part, lambda column: (f"<td>{html.escape(cell.strip())}</td>" for cell in column.cells))
            lines += ["<table>", f"<thead><tr>{heads}</tr></thead>", "<tbody>"]
            lines += [*(f"<tr>{''.join(row)}</tr>" for row in rows), "</tbody>", "</table>"]
        lines += [f"<p>{html.escape(line)}</p>" for line in part.lines]
    return "\n".join(['<div class="cryobench-leaderboard">', *(lines or ["<p>no results</p>"]), "</div>"]) + "\n"
