"""A table as Markdown, as LaTeX that needs only booktabs, and as HTML.

What comes from data is escaped, so that a name can't end a cell or become markup. Leaves out: which tables there are
(`tables`).
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "[": "{[}", "]": "{]}", "*": "{*}", "\N{EN DASH}": "--", "\N{MINUS SIGN}": "$-$",
    "\N{MULTIPLICATION SIGN}": r"$\times$", "\N{PLUS-MINUS SIGN}": r"$\pm$", "\N{HORIZONTAL ELLIPSIS}": r"\ldots{}",
}  # fmt: skip
# What LaTeX sets without a package: ASCII, and Latin-1 letters other than eth and thorn.
_PLAIN = re.compile("[ -~\u00c0-\u00cf\u00d1-\u00d6\u00d8-\u00dd\u00df-\u00ef\u00f1-\u00f6\u00f8-\u00fd\u00ff]")


@dataclass(frozen=True)
class Block:
    """Rows that belong together.

    Attributes:
        rows: cells, as many as the table has columns; the first names the row.
        title: above them; empty for none.
    """

    rows: tuple[tuple[str, ...], ...]
    title: str = ""


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        title: what it shows.
        columns: heads.
        blocks: of rows.
        notes: sentences below it.
        topic: tables of one topic stand together in a page.
    """

    title: str
    columns: tuple[str, ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = ()
    topic: str = ""


def markdown(table: Table) -> str:
    """The table as GitHub's Markdown, below a heading."""
    lines = [f"### {_markdown_text(table.title)}", "", _markdown_row(table.columns)]
    lines.append("|" + "|".join(["---", *["---:"] * (len(table.columns) - 1)]) + "|")
    for block in table.blocks:
        if block.title:
            lines.append(_markdown_row([block.title, *[""] * (len(table.columns) - 1)], emphasis=True))
        lines += [_markdown_row(row) for row in block.rows]
    for note in table.notes:
        lines += ["", _markdown_text(note)]
    return "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    r"""The table as a LaTeX `table` environment; the document needs `\usepackage{booktabs}`."""
    columns = len(table.columns)
    lines = [
        r"\begin{table}[htbp]",
        r"\centering\footnotesize",
        rf"\caption{{{latex_text(' '.join((f'{table.title}.', *table.notes)))}}}",
        rf"\begin{{tabular}}{{l{'r' * (columns - 1)}}}",
        r"\toprule",
        _latex_row(table.columns),
    ]
    for block in table.blocks:
        lines.append(r"\midrule")
        if block.title:
            lines.append(rf"\multicolumn{{{columns}}}{{l}}{{\emph{{{latex_text(block.title)}}}}} \\")
        lines += [_latex_row(row) for row in block.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def html_table(table: Table) -> str:
    """The table as HTML that scrolls where it is wider than the page."""
    heads = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in table.columns)
    lines = [f"<h3>{html.escape(table.title)}</h3>", '<div class="scroll"><table>', f"<thead><tr>{heads}</tr></thead>"]
    for block in table.blocks:
        lines.append("<tbody>")
        if block.title:
            title = html.escape(block.title)
            lines.append(f'<tr><th class="block" colspan="{len(table.columns)}" scope="rowgroup">{title}</th></tr>')
        for first, *others in block.rows:
            cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in others)
            lines.append(f'<tr><th scope="row">{html.escape(first)}</th>{cells}</tr>')
        lines.append("</tbody>")
    notes = [f'<p class="note">{html.escape(note)}</p>' for note in table.notes]
    return "\n".join([*lines, "</table></div>", *notes]) + "\n"


def latex_text(text: str) -> str:
    """A text with LaTeX's special characters escaped; a letter it can't set without a package is given by its code."""
    pieces = []
    for letter in " ".join(text.split()):
        known = _LATEX.get(letter, letter if _PLAIN.fullmatch(letter) else None)
        pieces.append(f"{{[}}U+{ord(letter):04X}{{]}}" if known is None else known)
    return "".join(pieces)


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(latex_text(cell) for cell in cells) + r" \\"


def _markdown_row(cells: Sequence[str], emphasis: bool = False) -> str:
    texts = [_markdown_text(cell) for cell in cells]
    return "| " + " | ".join(f"*{text}*" if emphasis and text else text for text in texts) + " |"


def _markdown_text(text: str) -> str:
    one_line = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\|*_`]|\](?=\())", r"\\\1", one_line)
