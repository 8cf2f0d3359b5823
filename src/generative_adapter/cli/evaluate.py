"""`genadapter eval`: how good a generator is on data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from generative_adapter.cli import loading
from generative_adapter.cli.console import bar_progress, output_console, print_json, print_text
from generative_adapter.cli.evaluate_document_qa import document_qa
from generative_adapter.cli.evaluate_forgetting import forgetting
from generative_adapter.cli.evaluate_metaicl import metaicl
from generative_adapter.cli.evaluate_needle import needle
from generative_adapter.cli.evaluate_personalisation import personalisation
from generative_adapter.cli.evaluation_report import report
from generative_adapter.cli.options import BaseModelOption, DeviceOption, DtypeOption, GeneratorOption, JsonOption
from generative_adapter.errors import ConfigError

app = typer.Typer(help="Measures generators and other methods on data.", no_args_is_help=True)


@app.callback()
def evaluate() -> None:
    """Measures generators and other methods on data."""


app.command("document-qa")(document_qa)
app.command("metaicl")(metaicl)
app.command("personalisation")(personalisation)
app.command("needle")(needle)
app.command("forgetting")(forgetting)
app.command("report")(report)


@app.command("methods")
def methods() -> None:
    """Lists the methods that can be measured."""
    from generative_adapter.methods.registry import METHODS

    for name in METHODS:
        print_text(name)


@app.command("perplexity")
def perplexity(
    data: Annotated[Path, typer.Option("--data", metavar="FILE", help="Documents held out from training.")],
    generator: GeneratorOption = None,
    num_segments: Annotated[int, typer.Option("--segments", min=1, help="Segments to read.")] = 100,
    segment_tokens: Annotated[int, typer.Option("--segment-tokens", min=2, help="Tokens of a segment.")] = 2048,
    chunk_tokens: Annotated[
        int | None, typer.Option("--chunk-tokens", min=1, help="Tokens of a chunk (default: the generator's).")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Decides which segments of the file are read.")] = 0,
    base_model: BaseModelOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Reconstruction and completion perplexity on held-out text.

    Reconstruction: a chunk from the adapter that has read it. Completion: a chunk from the adapter of what stands
    before it. Beside them the base model without an adapter, and with all that stands before in its prompt.
    """
    if not data.is_file():
        raise ConfigError(f"--data {data}: there is no such file")
    model = loading.load_model(generator, base_model, device, dtype)

    from generative_adapter.evaluation.perplexity import held_out_segments, measure_perplexity
    from generative_adapter.generator.generator import paper_generator

    generator_of_paper = paper_generator(model.generator, "perplexity of chunks")
    chunk_tokens = chunk_tokens or model.checkpoint.config.chunk_tokens
    segments = held_out_segments(data, model.base, num_segments, segment_tokens, seed)
    with bar_progress("Reading segments") as progress:
        result = measure_perplexity(
            model.base,
            generator_of_paper,
            segments,
            chunk_tokens or model.checkpoint.config.chunk_tokens,
            progress=progress,
        )
    values = result.to_dict()
    if as_json:
        print_json(values)
        return
    table = Table("perplexity", "reconstruction", "completion")
    rows = (
        ("generative adapter", result.reconstruction, result.completion),
        ("without an adapter", result.plain_reconstruction, result.plain_completion),
        ("with the text before in the prompt", None, result.in_context_completion),
    )
    for name, *numbers in rows:
        table.add_row(name, *("–" if number is None else f"{number:,.2f}" for number in numbers))
    output_console().print(table)
