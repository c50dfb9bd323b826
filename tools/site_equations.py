r"""Equations of docstrings as MathML, which browsers render without a script.

Docstrings keep equations in a form that is readable in a terminal. `x_{k+1}` and `A^T` are scripts, `x0` is x_0 and
`T*` the complex conjugate; `(a + b) / c`, with spaces, is a fraction of the whole products on both sides, and `1/2`,
without, of its neighbours; `|x|`, `||x||`, `<x, y>`, `sqrt(x)`, `sum_k`, `argmin_x`, `grad_x` and the names of Greek
letters have their usual meaning. A bar with spaces is that of a conditional. Other words are text, capitals alone and
words with a script or a bracket are names. Two or more spaces are a gap.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape

TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<number>\d+(?:\.\d+)?(?:e-?\d+)?)|(?P<word>[A-Za-zÅ]+(?:-[A-Za-z]{2,})*\d*)"
    r"|(?P<mark>\|\||<-|->|<=|>=|\.\.\.|[-+*/=~<>()\[\]{}|^_,;:.'])"
)
GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "eps": "ε", "epsilon": "ε", "zeta": "ζ", "eta": "η",
    "theta": "θ", "lam": "λ", "lambda": "λ", "mu": "μ", "nu": "ν", "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ",
    "phi": "φ", "chi": "χ", "psi": "ψ", "omega": "ω",
}  # fmt: skip
_MARKS = {"-": "−", "~": "∼", "<-": "←", "->": "→", "<=": "≤", ">=": "≥", "...": "…", "|": "|"}
FUNCTIONS = {"sqrt", "sin", "cos", "asin", "exp", "log", "mean", "clamp", "Re", "arg", "tr", "round", "prox", "rank"}
LIMITS = {"sum": "∑", "argmin": "argmin", "min": "min", "max": "max"}
_WORDS_TOO = {"mean", "round", "rank"}
"""Functions that are also words of prose, where they are of nothing."""
_OF_NAMES = {"_", "^", "(", "[", "'", "/"}
"""Marks that follow a name of several letters without a space."""
_CLOSING = {"(": ")", "[": "]", "{": "}", "||": "||", "|": "|", "<": ">"}
_FENCES = {"||": "‖", "<": "⟨", ">": "⟩"}
LOWEST = {"+", "-", "=", "~", "<-", "->", "<=", ">=", "<", ">", ",", ";", ":", ".", "...", "|"}
_HTML = str.maketrans({"|": "&#124;", "[": "&#91;", "]": "&#93;"})
"""Marks that have a meaning in Markdown."""
_THIN = '<mspace width="0.17em"/>'


class EquationError(ValueError):
    """A line that is no equation in the notation of the docstrings."""


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    before: int
    """Number of spaces before it."""
    after: int


def display(block: str) -> str:
    """An indented paragraph of a docstring as HTML: a row for each line, and one for a line that goes on more deeply
    indented. Raises `EquationError` for a line that does not convert."""
    indent = min(len(line) - len(line.lstrip()) for line in block.splitlines())
    rows = []
    for line in block.splitlines():
        more = ' class="more"' if line[indent].isspace() else ""
        rows.append(f'<div{more}><math displaystyle="true">{_Parser(line.strip()).equation()}</math></div>')
    return "\n".join(['<div class="equations">', *rows, "</div>"])


def inline(text: str, mark: str = "") -> str:
    """An equation within a sentence as HTML, fractions with a slash. mark: punctuation that stays on its line.

    Raises `EquationError` if it does not convert.
    """
    math = f"<math>{_Parser(text, flat=True).equation()}</math>"
    return f'<span class="equation">{math}{mark}</span>'  # <math> alone would end a paragraph in Markdown


def is_text(word: str) -> bool:
    """Whether a word is prose: it has several letters, is not in capitals and has no meaning in mathematics."""
    letters = re.sub(r"\d+$", "", word)
    return not (len(letters) == 1 or letters.isupper() or letters in {*GREEK, *FUNCTIONS, *LIMITS, "grad"}
                or _differential(letters))  # fmt: skip


def _tokens(text: str) -> list[_Token]:
    found: list[tuple[str, str]] = []
    place = 0
    while place < len(text):
        match = TOKEN.match(text, place)
        if match is None:
            raise EquationError(
                f"{text!r}: the character {text[place]!r} has no meaning in an equation; reword the line"
            )
        found.append((match.lastgroup or "", match[0]))
        place = match.end()
    spaces = [len(own) if kind == "space" else 0 for kind, own in [("", ""), *found, ("", "")]]
    return [
        _Token(kind, own, spaces[number], spaces[number + 2])
        for number, (kind, own) in enumerate(found)
        if kind != "space"
    ]


class _Parser:
    """Recursive descent over the tokens of one line. flat: fractions have a slash, as they always have in scripts."""

    def __init__(self, text: str, *, flat: bool = False):
        self._text, self._tokens, self._next, self._flat = text, _tokens(text), 0, flat

    def equation(self) -> str:
        made = self._row(None)
        if (left := self._peek()) is not None:
            raise self._error(f"{left.text!r} closes nothing")
        return made.translate(_HTML)

    def _error(self, why: str) -> EquationError:
        return EquationError(f"{self._text!r}: {why}; see tools/site_equations.py for the notation")

    def _peek(self, ahead: int = 0) -> _Token | None:
        return self._tokens[self._next + ahead] if self._next + ahead < len(self._tokens) else None

    def _take(self) -> _Token:
        token = self._peek()
        if token is None:
            raise self._error("something is missing at its end")
        self._next += 1
        return token

    def _closes(self, token: _Token, closing: str | None) -> bool:
        """Whether a token ends the row. A bar with spaces on both sides is no fence."""
        return token.text == closing and not (closing in ("|", ">") and token.before and token.after)

    def _row(self, closing: str | None) -> str:
        """Terms and the marks between them up to a closing fence, which is not taken."""
        parts: list[str] = []
        while (token := self._peek()) is not None and not self._closes(token, closing):
            if token.before > 1 and parts:
                parts.append('<mspace width="2em"/>')
            if token.text in LOWEST and not self._opens(token):
                self._take()
                sign = ' form="prefix"' if token.text in "+-" and (not parts or parts[-1].startswith("<mo>")) else ""
                parts.append(f"<mo{sign}>{escape(_MARKS.get(token.text, token.text))}</mo>")
            elif token.text in (")", "]", "}"):
                break
            else:
                parts.append(self._term(closing))
        return "".join(parts)

    def _opens(self, token: _Token) -> bool:
        """Whether a bar or < opens a fence."""
        return token.text in ("|", "<") and not token.after

    def _term(self, closing: str | None) -> str:
        """Factors side by side, as a fraction where a / with spaces is between them."""
        above = self._product(closing)
        while (token := self._peek()) is not None and token.text == "/":
            self._take()
            above = [self._fraction(above, self._product(closing, below=True))]
        return "".join(above)

    def _product(self, closing: str | None, *, below: bool = False) -> list[str]:
        """Factors side by side. below: in a denominator, which words of prose end."""
        factors: list[str] = []
        while (token := self._peek()) is not None and not self._closes(token, closing):
            if (token.text in LOWEST and not self._opens(token)) or token.text in (")", "]", "}", "/"):
                break
            if factors and (token.before > 1 or (below and self._is_prose(0))):
                break
            limits = token.text in LIMITS and token.text != "sum"
            name = _is_long(token) and not self._is_prose(0)
            apart = factors and token.before == 1 and (name or token.kind == "number")
            factors.append((_THIN if apart else "") + self._factor())
            if limits:  # an argmin is of all that follows, and in no numerator
                return factors
        if not factors:
            raise self._error(f"a factor is missing{'' if token is None else f' before {token.text!r}'}")
        return factors

    def _factor(self) -> str:
        """A primary with its scripts, and what a / without spaces divides it by."""
        made = self._scripted()
        token = self._peek()
        if token is not None and token.text == "/" and not (token.before or token.after):
            self._take()
            return self._fraction([made], [self._scripted()])
        return made

    def _fraction(self, above: list[str], below: list[str]) -> str:
        if self._flat:
            return f"{''.join(above)}<mo>/</mo>{''.join(below)}"
        return f"<mfrac><mrow>{_bare(above)}</mrow><mrow>{_bare(below)}</mrow></mfrac>"

    def _scripted(self) -> str:
        token = self._take()
        made, below, above = self._primary(token)
        limits = token.text in LIMITS
        while (mark := self._peek()) is not None and not mark.before:
            if mark.text in ("_", "^"):
                self._take()
                script = self._script()
                below, above = (below + script, above) if mark.text == "_" else (below, above + script)
            elif mark.text == "'":
                self._take()
                above += "<mo>′</mo>"
            elif mark.text == "*" and (mark.after or self._ends(1)):
                self._take()
                above += "<mo>∗</mo>"
            else:
                break
        space = _THIN if _is_long(token) and self._spaced() else ""
        return _with_scripts(made, below, above, limits=limits) + (space if made.startswith(("<mi", "<mo")) else "")

    def _ends(self, ahead: int) -> bool:
        token = self._peek(ahead)
        return token is None or token.text in (")", "]", "}", ">", "|", "||", ",")

    def _spaced(self) -> bool:
        """Whether a space and another factor follow a name of several letters."""
        token = self._peek()
        return token is not None and token.before == 1 and token.text not in LOWEST | {"/"}

    def _script(self) -> str:
        token = self._take()
        if token.text in ("{", "("):
            flat, self._flat = self._flat, True
            inner = self._fenced(token)
            self._flat = flat
            return f"<mrow>{inner}</mrow>"
        if token.text == "+":
            return "<mo>+</mo>"
        sign = ""
        if token.text == "-":
            sign, token = "<mo>−</mo>", self._take()
        if token.kind not in ("word", "number"):
            raise self._error(f"{token.text!r} is no script")
        made, below, _ = _name(token.text) if token.kind == "word" else (_number(token.text), "", "")
        return f"<mrow>{sign}{_with_scripts(made, '', '', limits=False)}{below}</mrow>"

    def _fenced(self, opening: _Token) -> str:
        """What is inside a fence that was taken; the closing one is taken."""
        inner = self._row(_CLOSING[opening.text])
        token = self._peek()
        if token is None or token.text != _CLOSING[opening.text]:
            raise self._error(f"{opening.text!r} is not closed")
        self._take()
        return inner

    def _primary(self, token: _Token) -> tuple[str, str, str]:
        """MathML of a primary, with a script below and above that are part of its name."""
        if token.kind == "number":
            return _number(token.text), "", ""
        if token.text in _CLOSING:
            return _fence(token.text, self._fenced(token)), "", ""
        if token.kind != "word":
            raise self._error(f"{token.text!r} stands where a number, a name or a bracket is wanted")
        following = self._peek()
        if token.text == "sqrt" and following is not None and following.text == "(":
            return f"<msqrt>{self._fenced(self._take())}</msqrt>", "", ""
        if self._is_prose(-1) or (token.text == "a" and self._is_prose(0)):
            return self._words(token), "", ""
        return _name(token.text)

    def _is_prose(self, ahead: int) -> bool:
        """Whether a token is a word of prose: no name with a script or a bracket, and no function of something."""
        token, after = self._peek(ahead), self._peek(ahead + 1)
        if token is None or token.kind != "word":
            return False
        if token.text in _WORDS_TOO:
            return after is None or after.text not in ("_", "(", "|", "||", "<")
        return is_text(token.text) and (after is None or bool(after.before) or after.text not in _OF_NAMES)

    def _words(self, token: _Token) -> str:
        """Words of prose as one text."""
        words, first = [token.text], token
        while (following := self._peek()) is not None and following.before == 1 and self._is_prose(0):
            words.append(self._take().text)
        last = self._tokens[self._next - 1]
        before, after = ("\u00a0" if spaces == 1 else "" for spaces in (first.before, last.after))
        return f"<mtext>{before}{' '.join(words)}{after}</mtext>"


def _is_long(token: _Token) -> bool:
    """Whether a token is a name that is shown with several letters, which needs space around it."""
    return token.kind == "word" and len(token.text) > 1 and token.text not in {*GREEK, "sum"}


def _differential(letters: str) -> bool:
    return re.fullmatch(r"d[stxz]", letters) is not None


def _name(word: str) -> tuple[str, str, str]:
    """MathML of a name and its subscript: the digits at its end."""
    letters = re.sub(r"\d+$", "", word)
    below = f"<mn>{word[len(letters) :]}</mn>" if letters != word else ""
    if letters in LIMITS:
        return f'<mo movablelimits="true">{LIMITS[letters]}</mo>', below, ""
    if letters == "grad":
        return "<mo>∇</mo>", below, ""
    if _differential(letters):
        return f"<mi>d</mi><mi>{letters[1]}</mi>", below, ""
    return f"<mi>{GREEK.get(letters, letters)}</mi>", below, ""


def _number(text: str) -> str:
    digits, _, power = text.partition("e")
    if not power:
        return f"<mn>{digits}</mn>"
    ten = f"<msup><mn>10</mn><mn>{power.replace('-', '−')}</mn></msup>"
    return ten if digits == "1" else f"<mrow><mn>{digits}</mn><mo>×</mo>{ten}</mrow>"


def _with_scripts(made: str, below: str, above: str, *, limits: bool) -> str:
    if not below and not above:
        return made
    scripts = [f"<mrow>{script}</mrow>" for script in (below, above) if script]
    if below and above:
        tag = "munderover" if limits else "msubsup"
    else:
        tag = ("munder" if limits else "msub") if below else ("mover" if limits else "msup")
    lead = "<mi>d</mi>"
    if made.startswith(lead) and made != lead:  # the script of a differential is that of its variable
        return f"{lead}<{tag}>{made.removeprefix(lead)}{''.join(scripts)}</{tag}>"
    return f"<{tag}>{made}{''.join(scripts)}</{tag}>"


def _fence(opening: str, inner: str) -> str:
    """What is inside between its fences. They stretch only as far as symmetric ones must."""
    left, right = (_FENCES.get(mark, mark) for mark in (opening, _CLOSING[opening]))
    stretchy = "true" if re.search("<mfrac|<munder", inner) else "false"
    return f"{_edge('prefix', left, stretchy)}{inner}{_edge('postfix', right, stretchy)}"


def _edge(form: str, mark: str, stretchy: str) -> str:
    row, end = ("<mrow>", "") if form == "prefix" else ("", "</mrow>")
    return f'{row}<mo fence="true" form="{form}" stretchy="{stretchy}">{mark}</mo>{end}'


def _bare(factors: list[str]) -> str:
    """Factors; a bracket alone loses its parentheses, which a fraction bar replaces."""
    for stretchy in ("true", "false"):
        opening, closing = _edge("prefix", "(", stretchy), _edge("postfix", ")", stretchy)
        if len(factors) == 1 and factors[0].startswith(opening) and factors[0].endswith(closing):
            inner = factors[0].removeprefix(opening).removesuffix(closing)
            if inner.count("<mrow>") == inner.count("</mrow>"):
                return inner
    return "".join(factors)
