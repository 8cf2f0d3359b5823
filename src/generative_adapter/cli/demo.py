"""`genadapter demo`: a document becomes an adapter, and the adapter answers questions about it.

The same questions go to the base model without the document and with all of it in the prompt.
"""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from generative_adapter.cli import loading
from generative_adapter.cli.answering import AnsweredQuestion, answer_questions
from generative_adapter.cli.console import output_console, print_json, waiting
from generative_adapter.cli.options import (
    BaseModelOption,
    DeviceOption,
    DtypeOption,
    GeneratorOption,
    JsonOption,
    MaxNewTokensOption,
)
from generative_adapter.documents import read_document
from generative_adapter.errors import DataError

_DEMO_FOLDER = files("generative_adapter.cli") / "demo_data"
_COLUMNS = {"adapter": "adapter", "closed-book": "closed-book", "prompt": "whole document in prompt"}


def demo(
    document: Annotated[
        str | None,
        typer.Option("--document", metavar="FILE", help="Document to read (default: the demo's handbook)."),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option("--questions", metavar="JSON", help='{"questions": [{"question": ..., "answers": [...]}, ...]}'),
    ] = None,
    generator: GeneratorOption = None,
    base_model: BaseModelOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    max_new_tokens: MaxNewTokensOption = 32,
    as_json: JsonOption = False,
) -> None:
    """Reads a document and answers five questions about it, from the adapter, closed-book, and from the prompt."""
    text = read_document(document or str(_DEMO_FOLDER / "handbook.md"))
    asked = load_questions(questions or Path(str(_DEMO_FOLDER / "questions.json")))

    stopwatch = loading.Stopwatch()
    with stopwatch.phase("load"):
        model = loading.load_model(generator, base_model, device, dtype)
    with stopwatch.phase("contextualize"):
        memory = loading.read_into_memory(model, [text])
    sources: dict[str, dict[str, Any]] = {
        "adapter": {"memory": memory},
        "closed-book": {},
        "prompt": {"context": text.text},
    }
    answers: dict[str, list[AnsweredQuestion]] = {}
    for method, source in sources.items():
        with stopwatch.phase(method), waiting(f"Answering ({_COLUMNS[method]}) ..."):
            answers[method] = answer_questions(model, list(asked), max_new_tokens=max_new_tokens, **source)

    result = {
        "document": text.name,
        "base_model": model.base.name,
        "generator": generator or "shipped",
        "context_tokens": memory.num_tokens,
        "memory_bytes": memory.num_bytes,
        "seconds": stopwatch.seconds,
        "methods": {method: _report(asked, answers[method]) for method in _COLUMNS},
    }
    if as_json:
        print_json(result)
    else:
        _show(result, asked)


def load_questions(path: Path) -> dict[str, list[str]]:
    """Question -> its acceptable answers, from a JSON file.

    Raises:
        DataError: when the file is missing or not of that form.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["questions"]
        questions = {str(entry["question"]): [str(answer) for answer in entry["answers"]] for entry in entries}
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'{path}: expected {{"questions": [{{"question": "...", "answers": ["..."]}}]}}, found: {error}'
        ) from error
    if not questions or not all(questions.values()):
        raise DataError(f"{path}: expected at least one question, and at least one answer to each")
    return questions


def holds_answer(text: str, accepted: list[str]) -> bool:
    """Whether a text holds one of the accepted answers as whole words; case, punctuation and articles don't count."""
    words = f" {_plain_words(text)} "
    return any(f" {_plain_words(answer)} " in words for answer in accepted if _plain_words(answer))


def _plain_words(text: str) -> str:
    words = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text.lower())
    words = re.sub(r"[^\w\s:.]|[:.](?!\d)|(?<!\d)[:.]", " ", words)
    return " ".join(word for word in words.split() if word not in {"a", "an", "the"})


def _report(asked: dict[str, list[str]], answers: list[AnsweredQuestion]) -> dict[str, Any]:
    marked = [
        answer.to_dict() | {"expected": accepted, "right": holds_answer(answer.answer, accepted)}
        for answer, accepted in zip(answers, asked.values(), strict=True)
    ]
    return {
        "right": sum(entry["right"] for entry in marked),
        "questions": len(marked),
        "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
        "generated_tokens": sum(answer.generated_tokens for answer in answers),
        "seconds": round(sum(answer.seconds for answer in answers), 4),
        "answers": marked,
    }


def _show(result: dict[str, Any], asked: dict[str, list[str]]) -> None:
    console = output_console()
    methods: dict[str, dict[str, Any]] = result["methods"]
    table = Table("question", "expected", *_COLUMNS.values(), title=f"{result['document']}, {result['base_model']}")
    for i, (question, accepted) in enumerate(asked.items()):
        table.add_row(question, accepted[0], *(_marked_answer(methods[method]["answers"][i]) for method in _COLUMNS))
    table.add_section()
    table.add_row("right", "", *(f"{methods[m]['right']} of {methods[m]['questions']}" for m in _COLUMNS))
    table.add_row("tokens in all prompts", "", *(f"{methods[m]['prompt_tokens']:,}" for m in _COLUMNS))
    table.add_row("seconds for all answers", "", *(f"{methods[m]['seconds']:.1f}" for m in _COLUMNS))
    reading = result["seconds"]["contextualize"]
    table.add_row("seconds to read the document once", "", f"{reading:.1f}", "-", "in each answer")
    console.print(table)
    console.print(
        f"The document has {result['context_tokens']:,} tokens, its memory {result['memory_bytes'] / 1e6:.1f} MB. "
        f"Loading took {result['seconds']['load']:.1f} s.\n✓ marks an answer that holds the expected words."
    )


def _marked_answer(entry: dict[str, Any]) -> Text:
    mark, style = ("✓", "green") if entry["right"] else ("✗", "red")
    return Text.assemble((mark, style), " ", " ".join(entry["answer"].split()))
