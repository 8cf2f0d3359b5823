"""`genadapter trim-adapters`: keeps the adapters that the vLLM plug-in has made on this machine below a size."""

from __future__ import annotations

import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from generative_adapter.cli.console import count, print_error, print_json, print_text
from generative_adapter.cli.options import JsonOption
from generative_adapter.errors import ConfigError, GenerativeAdapterError

if TYPE_CHECKING:
    from generative_adapter.export.vllm_server import VllmServer

API_KEY_VARIABLE = "VLLM_API_KEY"  # vLLM's own


def trim_adapters(
    max_gb: Annotated[
        float, typer.Option("--max-gb", min=0.0, help="What may stay, in GB of 10^9 bytes.", show_default=False)
    ],
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FOLDER]", help="Where the adapters are (default: where the environment has the plug-in put them)."
        ),
    ] = None,
    vllm: Annotated[
        list[str] | None,
        typer.Option(
            "--vllm",
            metavar="URL",
            help="vLLM server that uses the folder, http://host:port; repeatable. All that run have to be named: one "
            "that still holds a deleted adapter fails. An API key is read from VLLM_API_KEY.",
        ),
    ] = None,
    grace_seconds: Annotated[
        float,
        typer.Option(
            "--grace-seconds",
            min=0.0,
            help="How long a request may take in vLLM, waiting included; with --vllm so much time lies between "
            "unloading an adapter and deleting it.",
        ),
    ] = 60.0,
    every: Annotated[
        float | None,
        typer.Option("--every", metavar="SECONDS", min=1.0, help="Go on for ever: trim again so long after each time."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Deletes adapters, least recently asked for first, until the others fit; they are made anew when asked for.

    Adapters of what a memory was before it changed go first. Every vLLM server named unloads an adapter before it is
    deleted; one that is asked for again meanwhile stays. With --every, an error is told and the next time tried again.
    """
    from generative_adapter.export.vllm_plugin import adapters_folder
    from generative_adapter.export.vllm_server import VllmServer

    if not all(map(math.isfinite, (max_gb, grace_seconds, every or 0.0))):
        raise ConfigError("--max-gb, --grace-seconds and --every have to be finite numbers")
    servers = [VllmServer(url, os.environ.get(API_KEY_VARIABLE)) for url in vllm or []]
    chosen = folder or adapters_folder()
    if chosen.exists() and not chosen.is_dir():
        raise ConfigError(f"{chosen}: this is a file; give the folder of the adapters")
    if every is None:
        _trim(chosen, max_gb, servers, grace_seconds, as_json)
        return
    while True:
        try:
            _trim(chosen, max_gb, servers, grace_seconds, as_json)
        except (GenerativeAdapterError, OSError) as error:
            print_error(error)
        time.sleep(every)


def _trim(folder: Path, max_gb: float, servers: list[VllmServer], grace_seconds: float, as_json: bool) -> None:
    from generative_adapter.export.trimming import trim_adapters

    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder; the plug-in makes it with the first adapter")
    report = trim_adapters(folder, int(max_gb * 1e9), servers, grace_seconds=grace_seconds)
    if as_json:
        print_json({"folder": str(folder)} | asdict(report))
        return
    in_use = f", {report.in_use:,} of them to go but in use" if report.in_use else ""
    print_text(
        f"{folder}: {count(report.removed, 'adapter')} deleted ({report.removed_bytes / 1e9:.3f} GB); "
        f"{count(report.kept, 'adapter')} left ({report.kept_bytes / 1e9:.3f} GB{in_use})"
    )
