"""Names and reasons of any content are text in every rendering."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from board_records import absent, record
from hostile import ALL, HTML, LATEX, MARKDOWN, has_terminal_codes
from markdown_it import MarkdownIt
from rich.console import Console

from cryobench.leaderboard.compare import render as changes_render
from cryobench.leaderboard.compare.changes import changes
from cryobench.leaderboard.page import to_page
from cryobench.leaderboard.render import rich_tables, to_csv, to_html, to_json, to_latex, to_markdown
from cryobench.leaderboard.render.markup import LATEX as LATEX_TABLE
from cryobench.leaderboard.render.markup import LATIN
from cryobench.leaderboard.render.text import one_line
from cryobench.leaderboard.table import leaderboard
from cryobench.plan.suite import UnavailableGrid
from cryobench.plan.suite_file import SuiteFile
from cryobench.sweep.published import PublishedNumber, report, with_published

TEXTS = [text.replace("\ud800", "") for text in ALL]  # a record with invalid Unicode is not read


def board(names: list[str]):
    """Cells whose solver, operator, noise, data, reason and device are these names."""
    cells = []
    for place, name in enumerate(names):
        own = {"operator": name, "noise": name, "data": name, "hash": str(place)}
        cells += [
            record(name, (20.0 + place, 22.0, 21.0), environment={"device": name, "version": "1"}, **own),
            record("dct@" + name, (19.0, 21.5, 20.5), **own | {"hash": f"{place}b"}),
            absent("failed", name, reason=name, **own | {"hash": f"{place}c"}),
        ]
    return leaderboard(cells)


@pytest.fixture(scope="module")
def hostile():
    return board(TEXTS)


@pytest.mark.parametrize("width", [60, 200])
def test_the_terminal_gets_no_codes(hostile, width):
    text = io.StringIO()
    Console(file=text, width=width).print(rich_tables(hostile))
    assert not has_terminal_codes(text.getvalue())
    assert r"\x1b]0;owned\x07" in text.getvalue().replace("\n", "")


@pytest.mark.parametrize("render", [to_csv, to_json, to_markdown, to_html, to_latex])
def test_files_have_no_codes(hostile, render):
    assert not has_terminal_codes(render(hostile))
    assert "owned" in render(hostile)


def test_changes_have_no_codes_and_no_markup():
    names = [*TEXTS, "[bold]x[/bold]"]
    values = tuple(20 + 0.1 * k for k in range(12))
    old, new = (
        [record(name, tuple(value - less for value in values), operator=name, noise=name) for name in names]
        for less in (0, 5)
    )
    found = changes(old, new)
    text = io.StringIO()
    Console(file=text, width=250).print(changes_render.rich_changes(found))
    assert "owned" in text.getvalue()
    for shown in (text.getvalue(), changes_render.to_csv(found), changes_render.to_json(found)):
        assert not has_terminal_codes(shown)
        assert "[bold]x[/bold]" in shown


# --- Markdown, read by a parser ---------------------------------------------------------------------------------------


def elements(markdown: str) -> set[str]:
    """The elements of Markdown as GitHub reads it: HTML, links, code, tables ..."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = parser.parse(markdown)
    inline = [child for token in tokens for child in token.children or ()]
    return {token.type.removesuffix("_open").removesuffix("_close") for token in [*tokens, *inline]}


STRUCTURE = {"heading", "inline", "text", "text_special", "table", "thead", "tbody", "tr", "th", "td", "bullet_list",
             "list_item", "paragraph"}  # fmt: skip


def cells_of(markdown: str) -> list[str]:
    """The text of the first column of names of each row."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    starts = [place for place, token in enumerate(tokens) if token.type == "tr_open"]
    found = [[token for token in tokens[start:] if token.type == "inline"][1] for start in starts]
    return ["".join(child.content for child in token.children or ()) for token in found]


def test_markdown_shows_names_as_they_are(hostile):
    text = to_markdown(hostile)
    assert elements(text) <= STRUCTURE
    assert {one_line(name) for name in TEXTS if one_line(name)} <= set(cells_of(text))
    assert not re.search(r"https?://|www\.", text)  # GitHub would make links of them


def hostile_report() -> str:
    suite = SuiteFile(Path("s.yaml"), HTML + MARKDOWN, f"{HTML}\n\n{TEXTS[0]}", (), (), ())
    frame = board([HTML])
    numbers = [PublishedNumber(name, name, name, name, name, None, None, "skipped", name) for name in TEXTS]
    grids = [UnavailableGrid((name,), (name,), name, name) for name in TEXTS]
    return report(suite, frame, numbers, grids, MARKDOWN, MARKDOWN)


def test_a_published_page_shows_names_as_they_are():
    text = hostile_report()
    assert not has_terminal_codes(text)
    assert elements(text) <= STRUCTURE | {"code_inline", "code_block", "softbreak", "entity"}
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows[: len(TEXTS) + 1]}) == 1


def test_a_published_row_in_csv_has_no_codes(hostile):
    numbers = [PublishedNumber(name, name, "psnr", "1", name, None, None, "not run", name) for name in TEXTS]
    text = to_csv(with_published(hostile, numbers))
    assert not has_terminal_codes(text)
    assert not re.search(r"(?:^|,)\"?[=@]", text)


# --- HTML -------------------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """The names of the elements and attributes of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.found: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found |= {tag, *(f"{tag}.{name}" for name, _ in attrs)}


def test_the_html_fragment_has_only_its_own_elements(hostile):
    plain = Elements(to_html(board(["a"]))).found
    assert Elements(to_html(hostile)).found == plain


def test_the_page_has_only_its_own_elements(hostile):
    pages = (to_page(frame, [], lambda _: None) for frame in (hostile, board(["a"])))
    first, second = (Elements(page).found for page in pages)
    assert first == second


# --- LaTeX ------------------------------------------------------------------------------------------------------------

MEANING = {
    **{text: chr(code) for code, text in LATEX_TABLE.items() if len(text) > 1 and chr(code) not in "&%$#_{}"},
    **{"\\" + char: char for char in "&%$#_{}"},
    **{char + "{}": char for char in "-'`?!"},
}
TOKEN = re.compile(
    r"\{\[\}U\+[0-9A-F]{4,}\]|" + "|".join(map(re.escape, sorted(MEANING, key=len, reverse=True))) + "|."
)


def decoded(latex: str) -> str:
    """The text that LaTeX shows. Fails for a character that LaTeX would interpret."""

    def shown(token: str) -> str:
        if token.startswith("{[}U+"):
            return chr(int(token[5:-1], 16))
        assert token in MEANING or token not in "\\{}$&%#_^~[*", (token, latex)
        assert token in MEANING or token.isascii() or token in LATIN, (token, latex)
        return MEANING.get(token, token)

    assert not re.search(r"--|''|``|[?!]`", latex)
    return "".join(map(shown, TOKEN.findall(latex)))


def names_in(latex: str) -> set[str]:
    rows = [line for line in latex.splitlines() if line.endswith(r" \\")]
    return {decoded(re.split(r"(?<!\\) & ", row)[1]) for row in rows}


def test_latex_shows_names_as_they_are(hostile):
    text = to_latex(hostile)
    assert {one_line(name) for name in TEXTS if one_line(name)} <= names_in(text)
    columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1])
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {columns}


@pytest.mark.slow
def test_latex_compiles(hostile, tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed; .ci/nightly installs it")
    body = to_latex(hostile) + to_latex(board([LATEX, "".join(sorted(LATIN)), "".join(map(chr, LATEX_TABLE))]))
    tables = body.replace(r"\end{table}", r"\end{table}\clearpage")
    (tmp_path / "a.tex").write_text(
        "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n" + tables + "\\end{document}\n"
    )
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "-no-shell-escape", "a.tex"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert ended.returncode == 0, ended.stdout[-2000:]
    assert "Missing character" not in (tmp_path / "a.log").read_text(errors="replace")
