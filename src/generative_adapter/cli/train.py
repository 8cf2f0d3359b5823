"""`genadapter train`: trains a generator from a config file."""

from __future__ import annotations

import os
from datetime import timedelta
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count what the run would cost; nothing is loaded or written.")
    ] = False,
    processes: Annotated[int, typer.Option("--processes", metavar="N", min=1, help="Processes of a dry run.")] = 1,
    tokens_per_second: Annotated[
        float | None,
        typer.Option("--tokens-per-second", metavar="X", help="Computed tokens a second, to tell a dry run's time."),
    ] = None,
    teraflops: Annotated[
        float | None,
        typer.Option("--teraflops", metavar="X", help="Sustained TFLOP/s of a process, to tell a dry run's time."),
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
    if dry_run:
        _show_plan(config, overrides or [], processes, tokens_per_second, teraflops, as_json)
        return
    if processes != 1 or tokens_per_second is not None or teraflops is not None:
        raise ConfigError(
            "--processes, --tokens-per-second and --teraflops belong to --dry-run; a run's processes are "
            "started by torchrun"
        )

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


def _show_plan(
    config: Path,
    overrides: list[str],
    processes: int,
    tokens_per_second: float | None,
    teraflops: float | None,
    as_json: bool,
) -> None:
    from generative_adapter.training.plan import plan_training
    from generative_adapter.training.recipe import load_recipe

    plan = plan_training(
        load_recipe(config, overrides),
        num_processes=processes,
        tokens_per_second=tokens_per_second,
        teraflops=teraflops,
    )
    values = plan.to_dict()
    if as_json:
        print_json(values)
        return
    table = Table("what", "value", show_header=False)
    for name, value in values.items():
        if name == "notes":
            for note in value:
                table.add_row("note", note)
        elif isinstance(value, dict):
            for part, amount in value.items():
                table.add_row(f"{_words(name)}, {_words(part)}", _amount(name, amount))
        else:
            table.add_row(_words(name), _amount(name, value))
    output_console().print(table)


def _words(name: str) -> str:
    return name.replace("_bytes", "").replace("_", " ")


def _amount(name: str, value: Any) -> str:
    """A number in the unit that its name tells."""
    if value is None:
        return "not known"
    if isinstance(value, str):
        return value
    if name == "seconds":
        return str(timedelta(seconds=value))
    for ending, unit in (("bytes", "B"), ("flops", "FLOP"), ("flops_per_step", "FLOP")):
        if name.endswith(ending):
            return _with_prefix(value, unit)
    return f"{value:,} ({_with_prefix(value, '').strip()})" if value >= 1e6 else f"{value:,}"


def _with_prefix(value: float, unit: str) -> str:
    names = ("", "k", "M", "G" if unit else "B", "T", "P", "E")
    power = 0
    while value >= 1000 and power < len(names) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {names[power]}{unit}"
