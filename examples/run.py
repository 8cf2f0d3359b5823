"""Reads each text of this folder into an adapter, asks its five questions, and writes results.md, the misses too.

    python examples/run.py [--generator FILE] [--output FILE]

Each question is put on its own, as `genadapter ask` puts it: a batch is padded, and in bfloat16 that can change a word.
The base model runs on the CPU in one thread, so the same generator gives the same page on the same kind of processor.
Closed-book answers are those of the base model without the adapter.

An answer is judged after SQuAD's normalisation (`generative_adapter.evaluation.metrics.normalize`: case, punctuation
and articles don't count). It is right when it equals an accepted answer ("exact") or contains one as whole words
("contains").
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from generative_adapter import GenerativeAdapter
from generative_adapter.cli.demo import load_questions
from generative_adapter.documents import Document, read_document
from generative_adapter.evaluation.metrics import exact_match, normalize
from generative_adapter.evaluation.report.formats import NOTHING
from generative_adapter.generator.storage import write_atomically

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.md"
DOCUMENTS = {
    "Project README": "readme/README.md",
    "News article": "news/article.txt",
    "Meeting notes": "meeting/notes.md",
    "Chat log": "chat/chat.txt",
}
MAX_NEW_TOKENS = 64  # that of `genadapter ask`


@dataclass(frozen=True)
class Example:
    """A text with its questions.

    Attributes:
        title: what kind of text it is.
        path: of the text, as seen from this folder.
        document: the text.
        questions: question -> its accepted answers; the first is shown.
    """

    title: str
    path: str
    document: Document
    questions: dict[str, list[str]]


@dataclass(frozen=True)
class Row:
    """A question, what was expected and what came out, from the adapter and closed-book."""

    question: str
    accepted: list[str]
    answer: str
    closed_book: str


@dataclass(frozen=True)
class Result:
    """The answers about one text, and the text's length in tokens."""

    example: Example
    num_tokens: int
    rows: list[Row]


def load_examples() -> list[Example]:
    """The texts of this folder; `questions.json` stands beside each, in the form that `genadapter demo` reads."""
    return [
        Example(title, path, read_document(FOLDER / path), load_questions((FOLDER / path).parent / "questions.json"))
        for title, path in DOCUMENTS.items()
    ]


def verdict(answer: str, accepted: Sequence[str]) -> str:
    """How an answer compares with the accepted ones: "exact", "contains" or "no"; the first two are right."""
    if exact_match(answer, accepted):
        return "exact"
    words = f" {normalize(answer)} "
    return "contains" if any(f" {normalize(each)} " in words for each in accepted) else "no"


def ask(model: GenerativeAdapter, example: Example) -> Result:
    """Every question about a text, answered from the text's adapter and closed-book."""
    memory = model.contextualize(example.document.text, name=example.document.name)
    rows = [
        Row(
            question,
            accepted,
            model.generate(question, memory, max_new_tokens=MAX_NEW_TOKENS),
            model.generate(question, max_new_tokens=MAX_NEW_TOKENS),
        )
        for question, accepted in example.questions.items()
    ]
    return Result(example, memory.num_tokens, rows)


def ask_command(example: Example, generator: Path | None) -> str:
    """The command that puts the same questions to the same adapter."""
    chosen = [] if generator is None else ["--generator", generator.name]
    return shlex.join(["genadapter", "ask", "--context", f"examples/{example.path}", *chosen, *example.questions])


def results_page(model: GenerativeAdapter, results: Sequence[Result], generator: Path | None) -> str:
    """The results as Markdown; nothing in it depends on when or where it was made."""
    name = "shipped" if generator is None else generator.name
    command = "python examples/run.py" + ("" if generator is None else shlex.join([" --generator", generator.name]))
    lines = [
        "# What came out",
        "",
        f"`{command}` made this page; don't edit it.",
        "",
        f"- generator: {name}, fingerprint `{model.generator_fingerprint}`",
        f"- base model: {model.base.name}, {str(model.base.model.dtype).removeprefix('torch.')}, CPU, one thread",
        f"- each question on its own, greedy, at most {MAX_NEW_TOKENS} tokens; no text in the prompt",
        '- right: after SQuAD\'s normalisation, the answer equals an accepted one ("exact") or contains it as whole '
        'words ("contains")',
        "",
        "| text | tokens | right, adapter | of these exact | right, closed-book |",
        "|---|---|---|---|---|",
        *(_summary(result.example.title, [result]) for result in results),
        _summary("all", results),
    ]
    for result in results:
        lines += [
            "",
            f"## {result.example.title}",
            "",
            f"[{result.example.path}]({result.example.path}), {result.num_tokens} tokens",
            "",
            "```",
            ask_command(result.example, generator),
            "```",
            "",
            "| question | expected | adapter | right | closed-book | right |",
            "|---|---|---|---|---|---|",
            *(_cells(_row_cells(row)) for row in result.rows),
        ]
    return "\n".join(lines) + "\n"


def _summary(title: str, results: Sequence[Result]) -> str:
    rows = [row for result in results for row in result.rows]
    own = [verdict(row.answer, row.accepted) for row in rows]
    closed_book = [verdict(row.closed_book, row.accepted) for row in rows]
    right, closed_book_right = (len(rows) - verdicts.count("no") for verdicts in (own, closed_book))
    num_tokens = sum(result.num_tokens for result in results)
    return _cells(
        [title, f"{num_tokens:,}", f"{right} of {len(rows)}", str(own.count("exact")), f"{closed_book_right}"]
    )


def _row_cells(row: Row) -> list[str]:
    return [
        row.question,
        row.accepted[0],
        row.answer,
        verdict(row.answer, row.accepted),
        row.closed_book,
        verdict(row.closed_book, row.accepted),
    ]


def _cells(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_plain, cells)) + " |"


def _plain(text: str) -> str:
    """A text that Markdown shows as it is, in one line; a dash for none."""
    text = (" ".join(text.split()) or NOTHING).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{character}" if character in "\\`*_[]|~$" else character for character in text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", type=Path, help="file of a generator (default: the shipped one)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="page to write (default: examples/results.md)")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = GenerativeAdapter.from_pretrained(given.generator, device="cpu")
    results = [ask(model, example) for example in load_examples()]
    page = results_page(model, results, given.generator)
    write_atomically(given.output, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    print(f"{given.output}: {_summary('all', results)}")


if __name__ == "__main__":
    main()
