"""`genadapter forget`: takes a document out of a memory file again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from generative_adapter.cli import loading
from generative_adapter.cli.console import count, print_json, print_note, print_text, waiting
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


def forget(
    memory: Annotated[Path, typer.Argument(metavar="MEMORY", help="Memory that holds it.", show_default=False)],
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Document to forget, - for standard input.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="MEMORY", help="Where to write the memory (default: in place)."),
    ] = None,
    memory_dtype: MemoryDtypeOption = None,
    generator: GeneratorOption = None,
    base_model: BaseModelOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Takes a document out of a memory, as if it had never been read.

    From a memory of sums that is stored in a rounded form (bfloat16, int8), its rounding error stays behind.
    """
    target = output or memory
    loading.check_output_path(target)
    from generative_adapter.generator.memory_file import stored_dtype

    stored_as = loading.memory_dtype(memory_dtype, memory)
    document = read_document(file)

    stopwatch = loading.Stopwatch()
    with stopwatch.phase("load"):
        held = loading.load_memory(memory)
        rounded = not held.keeps_tokens and stored_dtype(memory) != "float64"
        model = loading.load_model(generator, base_model, device, dtype)
    with stopwatch.phase("forget"), waiting(f"Forgetting {document.name} ..."):
        result = model.forget(held, document.text)
    result.save(target, stored_as)

    if rounded:
        print_note(f"{memory} was stored in a rounded form, so the rounding error of all it held stays behind")
    if as_json:
        print_json(describe_memory(target, result) | {"seconds": stopwatch.seconds})
    else:
        print_text(f"{target}: forgot {document.name}; {count(len(result.documents), 'document')} left")
