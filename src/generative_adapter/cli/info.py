"""`genadapter info`: what a memory or generator file is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from generative_adapter.cli import loading
from generative_adapter.cli.console import count, output_console, print_json
from generative_adapter.cli.memory_report import describe_memory
from generative_adapter.cli.options import JsonOption
from generative_adapter.errors import CheckpointError, DataError

_MEMORY_FORMAT = "generative-adapter-memory"
_GENERATOR_FORMAT = "generative-adapter-generator"


def info(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="[MEMORY|GENERATOR]", help="What to describe (default: the shipped generator)."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tells what a memory or a generator holds and what it belongs to."""
    if path is None:
        from generative_adapter.checkpoint import shipped_generator

        path = shipped_generator()
    if not path.exists():
        raise DataError(f"{path}: there is no such file")
    if path.is_dir() or _read_format(path) == _GENERATOR_FORMAT:
        from generative_adapter.checkpoint import read_generator_info

        description: dict[str, Any] = {"kind": "generator", "path": str(path)} | dict(read_generator_info(path))
    else:
        description = describe_memory(path, loading.load_memory(path))
    if as_json:
        print_json(description)
        return
    table = Table("setting", "value", show_header=False)
    for name, value in description.items():
        for label, text in _rows(name, value):
            table.add_row(label, text)
    output_console().print(table)


def _read_format(path: Path) -> str:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            kind = (file.metadata() or {}).get("format", "")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a memory or generator (no safetensors file): {error}") from error
    if kind not in (_MEMORY_FORMAT, _GENERATOR_FORMAT):
        raise CheckpointError(f"{path}: a safetensors file, but no memory or generator of generative-adapter")
    return kind


def _rows(name: str, value: Any) -> list[tuple[str, str]]:
    label = name.replace("_", " ")
    if name == "documents":
        return [(f"document {number}", _document_line(entry)) for number, entry in enumerate(value, start=1)]
    if isinstance(value, dict):
        return [(f"{label}: {row}", text) for key, entry in value.items() for row, text in _rows(str(key), entry)]
    if isinstance(value, (list, tuple)):
        plain = all(isinstance(entry, (str, int)) for entry in value)
        return [(label, ", ".join(map(str, value)) if plain else json.dumps(value))]
    if isinstance(value, int) and not isinstance(value, bool):
        return [(label, f"{value:,}")]
    return [(label, str(value))]


def _document_line(entry: dict[str, Any]) -> str:
    streamed = ", streamed" if entry["streamed"] else ""
    return f"{entry['name']}: {count(entry['tokens'], 'token')}, {count(entry['chunks'], 'chunk')}{streamed}"
