"""What the commands show: results on standard output; errors, logs and progress on standard error."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

INPUT_ERROR = 2
_WIDTH_WITHOUT_TERMINAL = 120


def output_console() -> Console:
    """The console of results; wide enough for a table when it is no terminal."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _WIDTH_WITHOUT_TERMINAL
    return console


def message_console() -> Console:
    """The console of progress and messages, on standard error."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def print_json(result: Any) -> None:
    """Writes a result to standard output as one JSON document."""
    sys.stdout.write(json.dumps(result, indent=2, ensure_ascii=False, default=_json_value) + "\n")


def print_text(text: str) -> None:
    """Writes a text to standard output as it is."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_error(error: Exception | str) -> int:
    """Writes an error to standard error in one line; gives the exit status."""
    line = " ".join(str(error).split()) or type(error).__name__
    sys.stderr.write(f"error: {line}\n")
    return INPUT_ERROR


def print_note(text: str) -> None:
    """Writes a side remark to standard error, when that is a terminal."""
    console = message_console()
    if console.is_terminal:
        console.print(text, style="dim")


def count(number: int, noun: str) -> str:
    """A number with its noun: "1 document", "2 documents"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def configure_logging(verbose: bool) -> None:
    """Sends the package's log to standard error: warnings, or everything when `verbose`."""
    logger = logging.getLogger("generative_adapter")
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
    handler = RichHandler(console=message_console(), show_path=verbose)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.WARNING)
    if not verbose:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@contextmanager
def waiting(description: str) -> Iterator[None]:
    """A spinner on standard error while the block runs; nothing when that is no terminal."""
    console = message_console()
    if console.is_terminal:
        with console.status(description):
            yield
    else:
        yield


@contextmanager
def bar_progress(description: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error; gives the callback `(done, in all)`."""
    console = message_console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def run_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar of samples on standard error; gives the callback `(what is done now, samples done, samples in all)`."""
    console = message_console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("Evaluating", total=None)
        yield lambda now, done, total: progress.update(task, description=now, completed=done, total=total)


@contextmanager
def tokens_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Counts of tokenised data on standard error; gives the callback `(source, records, tokens)`."""
    console = message_console()
    columns = (SpinnerColumn(), TextColumn("Tokenising {task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}

        def show(source: str, num_records: int, num_tokens: int) -> None:
            if source not in tasks:
                tasks[source] = progress.add_task("", total=None)
            progress.update(tasks[source], description=f"{source}: {num_records:,} records, {num_tokens:,} tokens")

        yield show


@contextmanager
def training_progress() -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A bar of steps on standard error; gives the callback that takes lines of training metrics."""
    console = message_console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}, {task.fields[tokens_per_second]:,.0f} tokens/s,"),
        TextColumn("{task.fields[time_left]} left"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("Training", total=None, loss=float("nan"), tokens_per_second=0.0, time_left="?")

        def show(line: Mapping[str, Any]) -> None:
            if line.get("kind") == "preparing":
                told = f"{line['num_records']:,} records, {line['num_tokens']:,} tokens"
                progress.update(task, description=f"Tokenising {line['source']}: {told}")
            if line.get("kind") != "training":
                return
            time_left = str(timedelta(seconds=round(line["seconds_left"])))
            progress.update(
                task,
                description="Training",
                completed=line["step"],
                total=line["num_steps"],
                loss=line["loss"],
                tokens_per_second=line["tokens_per_second"],
                time_left=time_left,
            )

        yield show


def _json_value(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"a result holds a {type(value).__name__}, which JSON can't express")
