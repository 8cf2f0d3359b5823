"""`genadapter eval report`: tables, plots and a page from the answers that evaluations have kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from generative_adapter.cli.console import output_console, print_json, waiting
from generative_adapter.cli.options import JsonOption


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Folders of evaluations.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Where the report goes (default: the folder, if it is one)."
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="METHOD", help="Compare others to this method (default: full-context)."),
    ] = None,
    no_published: Annotated[bool, typer.Option("--no-published", help="Leave published curves out of plots.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Decides which answers are shown.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Writes results.json, tables, plots and report.html, which opens offline. Several folders become one report."""
    from generative_adapter.evaluation.report.writing import write_report

    with waiting("Writing the report"):
        written = write_report(folders, output, reference=reference, with_published=not no_published, seed=seed)
    if as_json:
        print_json(written)
        return
    table = Table("file", "path")
    for name, path in written.items():
        table.add_row(name, str(path))
    output_console().print(table)
