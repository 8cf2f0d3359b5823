"""`genadapter ask`: questions about documents or a memory, answered by one method."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from generative_adapter.cli import loading
from generative_adapter.cli.answering import Method, answer_questions, count_tokens
from generative_adapter.cli.console import print_json, print_note, print_text
from generative_adapter.cli.options import (
    BaseModelOption,
    DeviceOption,
    DtypeOption,
    GeneratorOption,
    JsonOption,
    MaxNewTokensOption,
)
from generative_adapter.documents import read_document
from generative_adapter.errors import ConfigError, DataError


def ask(
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION...", help="What to ask.", show_default=False)],
    context: Annotated[
        list[str] | None,
        typer.Option(
            "--context", "-c", metavar="FILE", help="Document to answer from, - is standard input; repeatable."
        ),
    ] = None,
    memory: Annotated[
        Path | None,
        typer.Option("--memory", "-m", metavar="MEMORY", help="Memory to answer from, written by contextualize."),
    ] = None,
    method: Annotated[
        Method, typer.Option("--method", help="Answer from the adapter, from nothing, or from the text in the prompt.")
    ] = Method.ADAPTER,
    generator: GeneratorOption = None,
    base_model: BaseModelOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    max_new_tokens: MaxNewTokensOption = 64,
    as_json: JsonOption = False,
) -> None:
    """Answers questions about documents.

    Each document is read on its own and their memories are added, so the order of the documents doesn't matter.
    """
    paths = context or []
    _check_sources(method, paths, memory, questions)
    documents = [read_document(path) for path in paths] if method is not Method.CLOSED_BOOK else []

    stopwatch = loading.Stopwatch()
    with stopwatch.phase("load"):
        model = loading.load_model(generator, base_model, device, dtype)
        held = loading.load_memory(memory) if memory and method is Method.ADAPTER else None
    prompt_context = None
    context_tokens = 0
    with stopwatch.phase("contextualize"):
        if method is Method.ADAPTER:
            held = loading.read_into_memory(model, documents, held)
            context_tokens = held.num_tokens
        elif method is Method.PROMPT:
            prompt_context = "\n\n".join(document.text for document in documents)
            context_tokens = count_tokens(model, prompt_context)
    with stopwatch.phase("generate"):
        answers = answer_questions(model, questions, memory=held, context=prompt_context, max_new_tokens=max_new_tokens)

    result: dict[str, Any] = {
        "method": method.value,
        "base_model": model.base.name,
        "generator": generator or "shipped",
        "context_tokens": context_tokens,
        "seconds": stopwatch.seconds,
        "answers": [answer.to_dict() for answer in answers],
    }
    if as_json:
        print_json(result)
        return
    for answer in answers:
        print_text(answer.answer if len(answers) == 1 else f"{answer.question}\n  {answer.answer}")
    seconds = ", ".join(f"{phase} {value:.1f} s" for phase, value in stopwatch.seconds.items())
    prompt_tokens = sum(answer.prompt_tokens for answer in answers)
    print_note(f"{context_tokens} tokens in the context, {prompt_tokens} in the prompts; {seconds}")


def _check_sources(method: Method, paths: list[str], memory: Path | None, questions: list[str]) -> None:
    if any(not question.strip() for question in questions):
        raise DataError("a question is empty; give a text to ask")
    if paths.count("-") > 1:
        raise ConfigError("standard input can be read only once; give --context - once")
    if method is Method.ADAPTER and not paths and not memory:
        raise ConfigError("nothing to answer from: give --context FILE or --memory MEMORY (or --method closed-book)")
    if method is Method.PROMPT and memory:
        raise ConfigError("a memory holds no text to put into a prompt; give --context FILE with --method prompt")
    if method is Method.PROMPT and not paths:
        raise ConfigError("nothing to put into the prompt: give --context FILE with --method prompt")
