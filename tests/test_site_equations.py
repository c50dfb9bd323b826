"""Equations of docstrings on the pages of the site."""

from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ET
from types import ModuleType

import pytest
from site_tools import own, site_tool

import cryobench
import cryobench.core
from cryobench.registry import KINDS, installed

EQUATIONS = {
    "operators": set(),
    "priors": {"conditional", "denoiser", "diffusion", "embedded", "folds", "planes"},  # networks
    "noises": set(),
    "solvers": {"abinitio", "cryodeco", "emdiffuse"},  # described in words
}
"""The kinds whose components have an equation of their own, with those that have none."""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return site_tool("site_pages")


@pytest.fixture(scope="module")
def equations() -> ModuleType:
    return site_tool("site_equations")


@pytest.fixture(scope="module")
def prose() -> ModuleType:
    return site_tool("site_prose")


def docstrings() -> dict[str, str]:
    """Of everything that has a place in the reference."""
    found = {f"{kind}/{name}": installed().get(kind, name).__doc__ or "" for kind in KINDS for name in own(kind)}
    for module in (cryobench, cryobench.core):
        found |= {name: getattr(module, name).__doc__ or "" for name in module.__all__}
    return found


def bare(mathml: str) -> str:
    """What a reader sees of HTML, without spaces."""
    return re.sub(r"\s", "", html.unescape(re.sub(r"<[^>]*>", "", mathml)))


def flat(equations: ModuleType, text: str) -> str:
    (math,) = re.findall(r"<math>(.*)</math>", equations.inline(text))
    return math


def shown(equations: ModuleType, line: str) -> ET.Element:
    """The <math> element of a displayed line."""
    return ET.fromstring(equations.display(f"    {line}"))[0][0]


def test_every_equation_of_a_docstring_converts(tool):
    for place, doc in docstrings().items():
        page = tool.documented(doc)  # raises for a line that does not
        blocks = [part for part in tool.paragraphs(doc) if tool.is_equation(part)]
        assert page.count('<div class="equations">') == len(blocks), place
        for math in re.findall(r"<math.*?</math>", page):
            ET.fromstring(math)


@pytest.mark.parametrize("kind", EQUATIONS)
def test_components_with_an_equation_show_it(tool, kind):
    without = {name for name in own(kind) if "<math displaystyle" not in tool.component(kind, name)}
    assert without == EQUATIONS[kind]


def test_nothing_of_a_line_is_lost(tool, equations):
    """Numbers, names and words of each line appear in MathML in their order."""
    names = {"lam": "λ", "eps": "ε", "grad": "∇", "sum": "∑", "sqrt": "", "1e-8": "10−8"} | {
        name: letter for name, letter in equations.GREEK.items() if name not in ("lam", "eps")
    }
    lines = [line for doc in docstrings().values() for part in tool.paragraphs(doc) if tool.is_equation(part)
             for line in part.splitlines()]  # fmt: skip
    assert len(lines) > 80
    for line in lines:
        tokens = re.findall(r"1e-8|\d+(?:\.\d+)?|[A-Za-z]+", line)
        wanted = "".join(names.get(token, token) for token in tokens)
        found = re.sub(r"[^\w∇∑−]", "", bare(equations.display("    " + line.strip())).replace("_", ""))
        assert sorted(found.replace("−", "")) == sorted(wanted.replace("−", "")), line


@pytest.mark.parametrize(
    ("text", "mathml"),
    [
        ("A^T A x", "<msup><mi>A</mi><mrow><mrow><mi>T</mi></mrow></mrow></msup><mi>A</mi><mi>x</mi>"),
        ("x_{k+1}", "<msub><mi>x</mi><mrow><mrow><mi>k</mi><mo>+</mo><mn>1</mn></mrow></mrow></msub>"),
        ("x0 <- -beta", "<msub><mi>x</mi><mrow><mn>0</mn></mrow></msub><mo>←</mo>"
                        '<mo form="prefix">−</mo><mi>β</mi>'),
        ("3e-8", "<mrow><mn>3</mn><mo>×</mo><msup><mn>10</mn><mn>−8</mn></msup></mrow>"),
        ("sqrt(a b)", "<msqrt><mi>a</mi><mi>b</mi></msqrt>"),
        ("T* z", "<msup><mi>T</mi><mrow><mo>∗</mo></mrow></msup><mi>z</mi>"),
    ],
)  # fmt: skip
def test_notation(equations, text, mathml):
    assert flat(equations, text) == mathml


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1/2 ||A x - y||^2", [("1", "2")]),  # tight: of the neighbours
        ("w S / (w^2 S + N)", [("wS", "w2S+N")]),  # spaced: of the products, without the bracket
        ("argmin_x ||x||^2 / s^2 + u", [("‖x‖2", "s2")]),  # an argmin is in no numerator
        ("(1 - a) / b for each image", [("1−a", "b")]),  # nor words in a denominator
        ("dz/ds = (z - E[x | z]) / s", [("dz", "ds"), ("z−E[x|z]", "s")]),
        ("(a) (b) / c", [("(a)(b)", "c")]),
        ("x^(n/2)", []),  # a slash in a script
    ],
)
def test_fractions(equations, text, parts):
    found = [tuple("".join(half.itertext()).replace("\u00a0", "") for half in fraction)
             for fraction in shown(equations, text).iter("mfrac")]  # fmt: skip
    assert found == parts


def test_bars_and_angles_are_fences_or_relations(equations):
    tags = [(mo.text, mo.get("form")) for mo in shown(equations, "E[x | |z|] < <a, b> / ||c||").iter("mo")]
    assert tags == [
        ("[", "prefix"), ("|", None), ("|", "prefix"), ("|", "postfix"), ("]", "postfix"), ("<", None),
        ("⟨", "prefix"), (",", None), ("⟩", "postfix"), ("‖", "prefix"), ("‖", "postfix"),
    ]  # fmt: skip


def test_words_are_text_and_a_gap_stays(equations):
    math = shown(equations, "x = a draw given y    and its mean is mean(z^2)")
    assert [text.text.replace("\u00a0", " ") for text in math.iter("mtext")] == [" a draw given ", "and its mean is "]
    assert "2em" in [space.get("width") for space in math.iter("mspace")]
    assert [name.text for name in math.iter("mi")] == ["x", "y", "mean", "z"]


def test_a_line_that_goes_on_is_marked(equations):
    rows = ET.fromstring(equations.display("    y = A x\n        + n"))
    assert [row.get("class") for row in rows] == [None, "more"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("y = (A x", "'(' is not closed"),
        ("y = A x)", "')' closes nothing"),
        ("y = |A x", "'|' is not closed"),
        ("y = A^", "something is missing at its end"),
        ("y = a / + b", "a factor is missing before '+'"),
        ("y = A # x", "the character '#' has no meaning"),
    ],
)
def test_a_line_that_is_no_equation_is_refused(tool, equations, line, why):
    with pytest.raises(equations.EquationError, match=re.escape(why)):
        tool.documented(f"Text.\n\n    {line}\n\nText.")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("the solution x = c + A^+ (y - c A 1).", ["x=c+A+(y−cA1)"]),
        ("where y is exact, A x = y: a projection on {x : A x = y}", ["y", "Ax=y", "{x:Ax=y}"]),
        ("the prior's C, with C_k = 1", ["C", "Ck=1"]),
        ("A sector and a CTF of A, with A x = y in J. Microsc. 127:127", ["A", "Ax=y"]),
        ("where A^T A is no convolution. A range of A is all", ["ATA", "A"]),
        ("(sigma = 0) and (C: covariance, x_0)", ["(σ=0)", "x0"]),
        ("32 x 32 pixels, [B, C, H, W], $CRYOBENCH_CACHE, snr=2, range_error^2 and 4 of 5", []),
        ("an interval (0, x_1] is half open", []),
    ],
)
def test_equations_within_sentences(tool, prose, text, found):
    marked = prose.with_equations(text, html.escape, tool.variables_of(text))
    assert [bare(math) for math in re.findall(r"<math>.*?</math>", marked)] == found
    words = re.findall(r"[a-z]{4,}", text)
    assert re.findall(r"[a-z]{4,}", html.unescape(re.sub(r"<[^>]*>", " ", marked).replace("σ", "sigma"))) == words


def test_punctuation_stays_on_the_line_of_an_equation_and_a_cross_between_codes_is_none(prose):
    marked = prose.with_equations("where A x = y, and (s = 1).", str.upper)
    assert re.findall(r"</math>(.*?)</span>", marked) == [",", "."]
    assert html.unescape(re.sub(r"<[^>]*>", "", marked)).startswith("WHERE Ax=y, AND (")
    assert prose.with_equations(" x ", str, {"x"}) == " x "
