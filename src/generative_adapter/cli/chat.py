"""`genadapter chat`: a conversation with a memory behind it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from generative_adapter.cli import loading
from generative_adapter.cli.console import message_console, print_json, print_note, print_text, waiting
from generative_adapter.cli.options import BaseModelOption, DeviceOption, DtypeOption, GeneratorOption, JsonOption

_EXIT_COMMANDS = {"/exit", "/quit"}


def chat(
    memory: Annotated[
        Path, typer.Option("--memory", "-m", metavar="MEMORY", help="Memory to talk about, written by contextualize.")
    ],
    generator: GeneratorOption = None,
    base_model: BaseModelOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest reply, in tokens.")] = 256,
    as_json: JsonOption = False,
) -> None:
    """Talks about what a memory holds, one line at a time; /exit ends it. Reads standard input when that is piped."""
    held = loading.load_memory(memory)
    model = loading.load_model(generator, base_model, device, dtype)
    print_note(f"{held.num_tokens} tokens in the memory, none in the prompt; /exit ends the chat.")
    messages: list[dict[str, str]] = []
    replies: list[dict[str, object]] = []
    for line in _lines():
        messages.append({"role": "user", "content": line})
        start = time.perf_counter()
        with waiting("..."):
            reply = model.chat(messages, held, max_new_tokens=max_new_tokens)
        messages.append({"role": "assistant", "content": reply})
        if as_json:
            replies.append({"question": line, "answer": reply, "seconds": round(time.perf_counter() - start, 4)})
        else:
            print_text(reply)
    if as_json:
        print_json({"base_model": model.base.name, "context_tokens": held.num_tokens, "replies": replies})


def _lines() -> Iterator[str]:
    """What the user says, up to /exit or the end of the input; empty lines don't count."""
    interactive = sys.stdin.isatty()
    console = message_console()
    while True:
        try:
            line = console.input("> ") if interactive else sys.stdin.readline()
        except (EOFError, KeyboardInterrupt):
            return
        if not interactive and not line:
            return
        line = line.strip()
        if line in _EXIT_COMMANDS:
            return
        if line:
            yield line
