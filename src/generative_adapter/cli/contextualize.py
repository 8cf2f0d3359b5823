"""`genadapter contextualize`: documents become a memory file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from generative_adapter.cli import loading
from generative_adapter.cli.console import count, print_json, print_text
from generative_adapter.cli.memory_report import describe_memory
from generative_adapter.cli.options import (
    BaseModelOption,
    DeviceOption,
    DtypeOption,
    GeneratorOption,
    JsonOption,
    MemoryDtypeOption,
)
from generative_adapter.documents import read_document
from generative_adapter.errors import ConfigError


def contextualize(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Documents to read; - is standard input.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="MEMORY", help="Where to write the memory.")],
    memory: Annotated[
        Path | None,
        typer.Option("--memory", "-m", metavar="PREVIOUS", help="Memory to add to."),
    ] = None,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream", help="Read as the continuation of what came before; can't be forgotten on its own then."
        ),
    ] = False,
    memory_dtype: MemoryDtypeOption = None,
    generator: GeneratorOption = None,
    base_model: BaseModelOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Reads documents into a memory.

    Each document is read on its own and added, so that any of them can be forgotten later, unless --stream is given.
    """
    if files.count("-") > 1:
        raise ConfigError("standard input can be read only once; give - once")
    loading.check_output_path(output)
    stored_as = loading.memory_dtype(memory_dtype, memory)
    documents = [read_document(path) for path in files]

    stopwatch = loading.Stopwatch()
    with stopwatch.phase("load"):
        previous = loading.load_memory(memory) if memory else None
        model = loading.load_model(generator, base_model, device, dtype)
    with stopwatch.phase("contextualize"):
        result = loading.read_into_memory(model, documents, previous, stream=stream)
    result.save(output, stored_as)

    if as_json:
        print_json(describe_memory(output, result) | {"seconds": stopwatch.seconds})
    else:
        print_text(
            f"{output}: {count(len(result.documents), 'document')}, {count(result.num_tokens, 'token')} "
            f"in {count(result.num_chunks, 'chunk')}, read in {stopwatch.seconds['contextualize']:.1f} s; "
            f"{output.stat().st_size / 1e6:.1f} MB, {stored_as or result.default_dtype}"
        )
