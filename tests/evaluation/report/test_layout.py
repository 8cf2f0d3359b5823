"""Tables as Markdown, LaTeX and HTML: shapes, and nothing that data can break out of."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from generative_adapter.evaluation.report.layout import Block, Table, html_table, latex, latex_text, markdown

NASTY = r"a_b & 50% $x$ #1 {c} ~ ^ \input{x} <script>alert(1)</script> | [2pt] *"
TABLE = Table(
    title=f"F1 of {NASTY}",
    columns=("method", "512", NASTY),
    blocks=(
        Block((("closed-book", "1.0", "2.0 [1.0, 3.0]"), (NASTY, "x\ny", "44.9 ± 1.2")), title=NASTY),
        Block((("z", "–", "−1"),)),
    ),
    notes=(NASTY,),
)


def test_markdown_cells() -> None:
    lines = markdown(TABLE).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert rows[1] == "|---|---:|---:|"
    assert len(rows) == 2 + 1 + 2 + 1
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row)) == 4, row
    assert "| closed-book | 1.0 | 2.0 [1.0, 3.0] |" in rows
    assert "<script>" not in markdown(TABLE)
    assert "x y" in markdown(TABLE)
    assert markdown(Table("[a](b)", ("c",), ())).startswith(r"### [a\](b)")


def test_latex_cells_and_braces() -> None:
    text = latex(TABLE)
    lines = text.splitlines()
    rows = lines[lines.index(r"\toprule") + 1 : lines.index(r"\bottomrule")]
    cells = [row for row in rows if row.endswith(r" \\") and not row.startswith(r"\multicolumn")]
    assert len(cells) == 4
    for row in cells:
        assert len(re.findall(r"(?<!\\)&", row)) == 2, row
    without_escapes = re.sub(r"\\[{}$&#%_]", "", text)
    assert without_escapes.count("{") == without_escapes.count("}")
    assert without_escapes.count("$") % 2 == 0
    assert not re.search(r"(?<!\\)[#%]", text)
    assert r"\input" not in text
    assert r"\begin{tabular}{lrr}" in text
    assert [line for line in lines if line.startswith(r"\multicolumn{3}{l}")]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a_b & 50%", r"a\_b \& 50\%"),
        (r"\x{y}", r"\textbackslash{}x\{y\}"),
        ("[2pt] *", "{[}2pt{]} {*}"),
        ("1.0 ± 0.2 – −3 × 2", r"1.0 $\pm$ 0.2 -- $-$3 $\times$ 2"),
        ("a\nb^2~<c>|", r"a b\textasciicircum{}2\textasciitilde{}\textless{}c\textgreater{}\textbar{}"),
        ("José 中", "José {[}U+4E2D{]}"),
        ("$5 #1", r"\$5 \#1"),
    ],
)
def test_latex_text(given: str, expected: str) -> None:
    assert latex_text(given) == expected


class Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag in ("td", "th"):
            self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self.texts:
            self.texts[-1] += data.strip("\n")


def test_html_keeps_texts_and_makes_no_tags_of_them() -> None:
    parser = Cells()
    parser.feed(html_table(TABLE))
    assert set(parser.tags) == {"h3", "div", "table", "thead", "tbody", "tr", "th", "td", "p"}
    assert parser.texts[:6] == ["method", "512", NASTY, NASTY, "closed-book", "1.0"]
    assert parser.tags.count("td") == 3 * 2
