"""`genadapter train`: trains a generator from a config file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from generative_adapter.cli.console import output_console, print_json, training_progress
from generative_adapter.cli.options import JsonOption
from generative_adapter.errors import ConfigError


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Training config (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=VALUE", help="Setting to use instead of the config's; repeatable."),
    ] = None,
    max_seconds: Annotated[
        float | None,
        typer.Option("--max-seconds", help="Stop after this time, with a checkpoint."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in the output folder.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder to write to (default: the config's)."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Trains a generator; metrics go to the output folder as JSON lines."""
    if not config.is_file():
        raise ConfigError(f"{config}: there is no such config file")
    for override in overrides or []:
        if "=" not in override.strip("="):
            raise ConfigError(f"--set {override!r}: a setting looks like learning_rate=0.002")
    if max_seconds is not None and not max_seconds > 0:
        raise ConfigError(f"--max-seconds {max_seconds}: the time must be more than 0")

    from generative_adapter.training.run import run_training

    with training_progress() as progress:
        result = run_training(
            config_path=config,
            overrides=list(overrides or []),
            max_seconds=max_seconds,
            resume=resume,
            output=output,
            progress=progress,
        )
    if int(os.environ.get("RANK", "0")) > 0:  # one of several processes: the first one reports
        return
    values: dict[str, Any] = result.to_dict()
    if as_json:
        print_json(values)
        return
    table = Table("result", "value", show_header=False)
    for name, value in values.items():
        table.add_row(name.replace("_", " "), f"{value:,.4g}" if isinstance(value, float) else str(value))
    output_console().print(table)
