"""Puts the tables and plots of finished evaluations into docs/results.md.

    python scripts/results_page.py FOLDER [FOLDER ...] [--page docs/results.md] [--images docs/images/results]
        [--rows generative-adapter]

The page's own text stays; what stands between its two markers is replaced. With `--rows` only that method's rows,
columns, tables and plots are, where the folders hold that method alone, measured again. `scripts/evaluate_shipped.sh`
fills the folders.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path

from generative_adapter.errors import GenerativeAdapterError
from generative_adapter.evaluation.report.writing import write_report

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
Table = list[list[str]]


def tables_of(text: str) -> dict[tuple[str, int], Table]:
    """The tables of a Markdown text as rows of cells, by the heading of the third level above and number below it."""
    found: dict[tuple[str, int], Table] = {}
    heading, number, inside = "", 0, False
    for line in text.splitlines():
        if line.startswith("### "):
            heading, number = line, 0
        if line.startswith("|"):
            found.setdefault((heading, number), []).append(_cells(line))
        elif inside:
            number += 1
        inside = line.startswith("|")
    return found


def with_rows(text: str, new: str, method: str) -> str:
    """A text with its tables' numbers of one method replaced by those of another text.

    Replaced are rows that `method` heads, within their group (a row of one italic cell), where it heads a column that
    column, and whole tables under headings that name it.

    Raises:
        ValueError: the other text has a table, row or column of the method that the first lacks, or none at all.
    """
    old, measured, replaced = tables_of(text), tables_of(new), 0
    for where, table in measured.items():
        if where not in old:
            raise ValueError(f"no table of the page under {where[0]!r}")
        known = old[where]
        columns = {name: known[0].index(name) for name in table[0] if name in known[0]}
        if f", {method}:" in where[0]:
            old[where] = table
            replaced += 1
        elif method in table[0]:
            rows = {row[0]: row for row in known}
            for row in table[2:]:
                if (label := row[0]) not in rows:
                    raise ValueError(f"no row {label!r} under {where[0]!r}")
                rows[label][columns[method]] = row[table[0].index(method)]
                replaced += 1
        else:
            places = {label: at for at, label in enumerate(_labels(known))}
            for label, row in zip(_labels(table), table, strict=True):
                if label[1].split(",")[0] != method:
                    continue
                if label not in places or len(columns) < len(table[0]):
                    raise ValueError(f"no row {label} with {table[0]} under {where[0]!r}")
                for name, cell in zip(table[0], row, strict=True):
                    known[places[label]][columns[name]] = cell
                replaced += 1
    if not replaced:
        raise ValueError(f"nothing was measured with {method!r}")
    lines, heading, number, inside = [], "", 0, False
    for line in text.splitlines():
        if line.startswith("### "):
            heading, number = line, 0
        if line.startswith("|") and not inside:
            lines += [_line(row) for row in old[heading, number]]
        elif not line.startswith("|"):
            number += inside
            lines.append(line)
        inside = line.startswith("|")
    return "\n".join(lines) + "\n" * text.endswith("\n")


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def _line(cells: list[str]) -> str:
    rule = not set(cells[0]) - set("-:")  # also the empty cell, which no row begins with
    return "|" + "|".join(cells) + "|" if rule else "| " + " | ".join(cells) + " |"


def _labels(table: Table) -> list[tuple[str, str]]:
    """Group and label of every row."""
    group, labels = "", []
    for row in table:
        if row[0].startswith("*") and not any(row[1:]):
            group = row[0]
        labels.append((group, row[0]))
    return labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--page", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--images", type=Path, default=Path("docs/images/results"))
    parser.add_argument("--rows", metavar="METHOD", help="replace the numbers of this method alone")
    options = parser.parse_args()
    page = options.page.read_text(encoding="utf-8")
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        sys.exit(f"error: {options.page} doesn't hold {BEGIN} and {END} once each")
    with tempfile.TemporaryDirectory() as folder:
        try:
            written = write_report(options.folders, Path(folder))
        except GenerativeAdapterError as error:
            sys.exit(f"error: {error}")
        tables = written["tables.md"].read_text(encoding="utf-8")
        if options.rows is not None:
            before, rest = page.split(BEGIN)
            shown, after = rest.split(END)
            try:
                shown = with_rows(shown, tables, options.rows)
            except ValueError as error:
                sys.exit(f"error: {error}")
            options.page.write_text(f"{before}{BEGIN}{shown}{END}{after}", encoding="utf-8")
            for name, path in written.items():
                shown_there = (options.images / path.name).is_file()
                if name.endswith(f"-{options.rows}.png") and shown_there:
                    shutil.copy(path, options.images / path.name)
            return
        shutil.rmtree(options.images, ignore_errors=True)
        options.images.mkdir(parents=True)
        shown = []
        for name, path in written.items():
            if name.endswith(".png"):
                shutil.copy(path, options.images / path.name)
                link = (options.images / path.name).relative_to(options.page.parent)
                shown.append(f"![{path.stem.replace('-', ' ')}]({link.as_posix()})")
    body = re.sub(r"\A# .*\n+", "", tables)
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    content = "\n\n".join([BEGIN, "## Plots", *shown, body.strip(), END])
    options.page.write_text(before + content + after, encoding="utf-8")


if __name__ == "__main__":
    main()
