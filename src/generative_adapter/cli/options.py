"""The options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

GeneratorOption = Annotated[
    str | None,
    typer.Option("--generator", metavar="NAME", help="Generator: file, folder or hub id (default: the shipped one)."),
]
BaseModelOption = Annotated[
    str | None,
    typer.Option(
        "--base-model", metavar="NAME", help="Hub id, folder or GGUF file (default: what the generator was trained on)."
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
DtypeOption = Annotated[str, typer.Option("--dtype", help="auto, float32 or bfloat16.")]
MemoryDtypeOption = Annotated[
    str | None,
    typer.Option(
        "--memory-dtype",
        metavar="FORM",
        help="Form of the written memory: float64 keeps every bit; bfloat16 (about a quarter of the size) and int8 (an "
        "eighth) round, and forgetting from them leaves the rounding error (default: that of the memory gone on from, "
        "else float64). A memory that keeps a row for every token: float64 writes these in float32; bfloat16 (a half, "
        "its default) and int8 (a quarter) round, and forgetting is exact from each.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
MaxNewTokensOption = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")]
