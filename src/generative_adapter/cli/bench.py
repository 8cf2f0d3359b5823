"""`genadapter bench`: how fast things run on this machine."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from generative_adapter.cli.console import bar_progress, output_console, print_json
from generative_adapter.cli.options import BaseModelOption, DeviceOption, DtypeOption, JsonOption
from generative_adapter.errors import ConfigError

if TYPE_CHECKING:
    from generative_adapter.evaluation.training_speed import TrainingSpeed


app = typer.Typer(help="Measures how fast things run on this machine.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measures how fast things run on this machine."""


@app.command("training")
def training(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="[CONFIG]", help="Training config (default: segments of synthetic text).", exists=False),
    ] = None,
    num_segments: Annotated[int | None, typer.Option("--segments", min=1, help="Segments a step [4].")] = None,
    segment_tokens: Annotated[int | None, typer.Option(min=2, help="Tokens of a segment [512].")] = None,
    chunk_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a chunk [128].")] = None,
    state_dim: Annotated[int | None, typer.Option(min=1, help="Width of a memory [128].")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank that svd keeps (default: the state's).")] = None,
    normalization: Annotated[
        str | None, typer.Option(help="svd, frobenius, newton_schulz [the default] or ridge.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Measured steps.")] = 5,
    warmup_steps: Annotated[int, typer.Option(min=0, help="Steps before those.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Decides weights and texts.")] = 0,
    skip_plain: Annotated[bool, typer.Option("--skip-plain", help="Leave the plain implementation out.")] = False,
    plain_attention: Annotated[
        str, typer.Option(help="Attention of the plain implementation: sdpa, which Transformers models have, or eager.")
    ] = "sdpa",
    base_model: BaseModelOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Times training steps against a plain implementation of the same loss, and splits their time.

    The plain one reads chunk after chunk in a Python loop and normalises by torch.svd_lowrank: context after context,
    as the paper's reference code does, and again with all contexts of a pass side by side. It attends by sdpa, as
    Transformers models do unless told otherwise. This project's steps attend as the config says; without a config by
    grouped on a CPU where chunks have at most 256 tokens, as in the shipped configs for CPUs, else by sdpa. Grouped is
    eager with fewer operations; --plain-attention eager compares with that. Where a CPU computes in bfloat16, so does
    the backward of newton_schulz without a config.
    """
    sizes = {
        "num_segments": num_segments,
        "segment_tokens": segment_tokens,
        "chunk_tokens": chunk_tokens,
        "state_dim": state_dim,
        "rank": rank,
        "normalization": normalization,
    }
    given = {name: value for name, value in sizes.items() if value is not None}
    if config is not None and given:
        flags = ", ".join("--" + name.removeprefix("num_").replace("_", "-") for name in given)
        raise ConfigError(f"{flags}: the config {config} decides this; change it there, or leave the config out")
    if config is not None and not config.is_file():
        raise ConfigError(f"{config}: there is no such config file")

    if plain_attention not in ("eager", "sdpa"):
        raise ConfigError(f"--plain-attention must be eager or sdpa, got {plain_attention!r}")

    from generative_adapter.evaluation.speed_recipe import segments_recipe
    from generative_adapter.evaluation.training_speed import measure_training
    from generative_adapter.training.recipe import load_recipe

    with tempfile.TemporaryDirectory() as folder, bar_progress("Training steps") as progress:
        recipe = load_recipe(config) if config else segments_recipe(Path(folder), seed=seed, device=device, **given)
        changed = {"base_model": base_model, "device": device, "dtype": dtype}
        recipe = replace(recipe, **{name: value for name, value in changed.items() if value not in (None, "auto")})
        result = measure_training(
            recipe,
            steps,
            warmup_steps,
            seed,
            plain=not skip_plain,
            plain_attention=plain_attention,
            progress=progress,
        )
    if as_json:
        print_json(result.to_dict())
    else:
        _show(result)


def _show(result: TrainingSpeed) -> None:
    console = output_console()
    title = (
        f"{result.base_model}, {result.dtype} on {result.device}, {result.num_threads} threads; state_dim "
        f"{result.state_dim}, {result.contexts_per_step} contexts, {result.tokens_per_step:,.0f} tokens a step"
    )
    table = Table("", "tokens/s", "seconds a step", title=title)
    rows = {
        f"this project ({result.normalization}, {result.attention} attention)": result.ours,
        f"plain (svd_lowrank, {result.plain_attention} attention), context after context": result.plain,
        "the same, contexts side by side": result.plain_batched,
    }
    for name, times in rows.items():
        if times is not None:
            table.add_row(name, f"{times.tokens_per_second:,.1f}", f"{times.median_step_seconds:.3f}")
    for name, ratio in (("ratio to the first", result.ratio), ("ratio to the second", result.batched_ratio)):
        if ratio is not None:
            table.add_row(name, f"{ratio:.2f}", "")
    console.print(table)
    if result.split is not None:
        table = Table("part of a step", "seconds", "share")
        for name, part in result.split.items():
            table.add_row(name.replace("_", " "), f"{part.seconds:.3f}", f"{part.share:.1%}")
        table.add_section()
        table.add_row("generator and normalization", "", f"{result.generator_share:.1%}")
        console.print(table)
