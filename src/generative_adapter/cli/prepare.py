"""`genadapter prepare`: tokenises a recipe's data before training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from generative_adapter.cli.console import count, print_json, print_text, tokens_progress
from generative_adapter.cli.options import JsonOption
from generative_adapter.errors import ConfigError


def prepare(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Training config (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=VALUE", help="Setting to use instead of the config's; repeatable."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tokenises and packs a config's data once, as `train` would before its first step.

    Goes on where it was interrupted. Useful before a run of several processes, which otherwise wait for the first.
    """
    if not config.is_file():
        raise ConfigError(f"{config}: there is no such config file")

    from generative_adapter.base_model.loading import load_tokenizer
    from generative_adapter.training import token_cache
    from generative_adapter.training.recipe import load_recipe
    from generative_adapter.training.token_store import TokenStore

    recipe = load_recipe(config, overrides or [])
    with tokens_progress() as progress:
        folders = token_cache.prepare(recipe, load_tokenizer(recipe.base_model), progress)
    stores: list[dict[str, Any]] = []
    kinds = [source.kind for source in recipe.sources if source.kind in token_cache.CACHED_KINDS]
    for folder, kind in zip(folders, kinds, strict=True):
        store = TokenStore(folder)
        unit = "byte" if kind == "cloze" else "token"
        stores.append({"folder": str(folder), "num_records": len(store), f"num_{unit}s": store.num_tokens})
    if as_json:
        print_json({"stores": stores})
        return
    if not stores:
        print_text("nothing to prepare: no source of kind text, instructions or cloze")
    for store in stores:
        size = count(store["num_tokens"], "token") if "num_tokens" in store else count(store["num_bytes"], "byte")
        print_text(f"{store['folder']}: {count(store['num_records'], 'record')}, {size}")
