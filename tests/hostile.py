"""Names and texts as a hostile file, record or plugin may hold them."""

from __future__ import annotations

TERMINAL = "\x1b]0;owned\x07\x1b[2J\x1b[31mdct\r\x9b31m\x7f\u202e\u2028\ud800\U000e0041"
"""A title of the terminal, clearing, colour in 7-bit and 8-bit form, overwriting, DEL, a bidirectional override, a line
separator, a lone surrogate, an invisible tag."""

FORMULAS = ["=cmd|'/c calc'!A0", "@SUM(1)", "+1+1", "-x", "-1\t", "-", "--", "＝x"]
FORMULAS += ["'=x", "''-x", "' =x", "\t=x", "\r=x", "\n=x"]
TEXTS = ["dct:0.1", "'tis", "it's", "", " x", "x=1", "a,b", 'a"b', "a\nb", "1-2", "é", "'"]
NUMBERS = ["-5", "+0.5", "-1e-3", "-.5", "-inf", "nan"]

HTML = (
    '</script><script>window.harm = 1</script><img src=x onerror="window.harm=1">\'"><svg onload=window.harm=1>'
    "{{script}}"
)
MARKDOWN = (
    "a|b`c``\n# h ![x](http://e.org/x.png)[a](javascript:x) https://e.org www.e.org <http://e.org> <b> &lt;b&gt; "
    "*a* _b_ ~~c~~ $x^2$ \\| [^1] <!-- "
)
LATEX = "\\input{/etc/passwd} $x^2$ % & # _ { } ~ ^ \\write18{id} [2cm] * \\\\ -- ^^41 \" ` ' < > | 中 σ 😀 é Å"

ALL = [TERMINAL, *FORMULAS, HTML, MARKDOWN, LATEX]


def has_terminal_codes(text: str) -> bool:
    """Whether a text has characters that a terminal acts on or that are invisible, other than line feeds."""
    return not text.replace("\n", "").isprintable()
