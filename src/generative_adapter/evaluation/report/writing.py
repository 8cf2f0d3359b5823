"""Writes a report: `results.json`, tables, plots and a page, from the lines of one or several evaluations.

Each file is written to a temporary name and renamed, so it is complete or as it was. Leaves out: running
(`evaluation.runner`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from generative_adapter.errors import ConfigError
from generative_adapter.evaluation.report.answers import shown_answers
from generative_adapter.evaluation.report.html import html_page
from generative_adapter.evaluation.report.layout import Table, latex, markdown
from generative_adapter.evaluation.report.plots import all_plots
from generative_adapter.evaluation.report.tables import all_tables
from generative_adapter.evaluation.run_folder import merged_results, read_folder
from generative_adapter.evaluation.summary import RESULTS_FILE, summarize

TABLES_MARKDOWN, TABLES_LATEX, PAGE, PLOTS = "tables.md", "tables.tex", "report.html", "plots"


def write_report(
    folders: Path | Sequence[Path],
    output: Path | None = None,
    *,
    reference: str | None = None,
    with_published: bool = True,
    seed: int = 0,
) -> dict[str, Path]:
    """Writes everything that a report is made of; gives the files by name, such as `report.html`, `plots/msc.svg`.

    Args:
        folders: of one or several evaluations; several are shown as one.
        output: where the files go, made where it is missing; None: the folder itself, where there is but one.
        reference: method that others are compared to; see `summary.summarize`.
        with_published: whether plots show published curves too.
        seed: decides which answers are shown.

    Raises:
        ConfigError: several folders and no output, or no line of the reference.
        DataError: a folder has no lines, or its lines can't be used.
        MissingDependencyError: matplotlib is not installed; results.json and the tables are written all the same.
    """
    given = [Path(folders)] if isinstance(folders, str | Path) else [Path(folder) for folder in folders]
    if output is None and len(given) != 1:
        raise ConfigError(f"a report of {len(given)} folders needs a folder of its own; name the output folder")
    output = given[0] if output is None else Path(output)
    runs = [read_folder(folder) for folder in given]
    summary = summarize(runs, reference)
    tables = all_tables(summary)
    results = json.dumps(summary.to_dict(), indent=1, ensure_ascii=False) + "\n"
    files = {
        RESULTS_FILE: _encoded(results),
        TABLES_MARKDOWN: _encoded("\n".join(_markdown_parts(tables))),
        TABLES_LATEX: _encoded("% Needs \\usepackage{booktabs}.\n\n" + "\n".join(latex(table) for table in tables)),
    }
    written = {name: _write(output / name, content) for name, content in files.items()}
    plots = all_plots(summary, with_published=with_published)
    for plot in plots:
        for ending, content in (("png", plot.png), ("svg", plot.svg)):
            name = f"{PLOTS}/{plot.name}.{ending}"
            written[name] = _write(output / name, content)
    answers = shown_answers(merged_results(runs), seed=seed)
    written[PAGE] = _write(output / PAGE, _encoded(html_page(runs, tables, plots, answers)))
    return written


def _markdown_parts(tables: Sequence[Table]) -> list[str]:
    """The tables, a heading before each topic."""
    parts = ["# Evaluation\n"]
    topic = None
    for table in tables:
        if table.topic != topic:
            topic = table.topic
            parts.append(f"## {topic}\n")
        parts.append(markdown(table))
    return parts


def _encoded(text: str) -> bytes:
    """UTF-8; half of a surrogate pair, which JSON may hold and UTF-8 can't, is written as its escape."""
    return text.encode("utf-8", "backslashreplace")


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
