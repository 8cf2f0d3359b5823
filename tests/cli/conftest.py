"""A stand-in for the model, so that the commands are tested without one. Memories and their files are the real ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from generative_adapter.cli import loading
from generative_adapter.cli.main import app
from generative_adapter.errors import EmptyContextError
from generative_adapter.generator.memory import ContextMemory, DocumentEntry, text_digest


@dataclass(frozen=True)
class FakeAnswer:
    text: str
    num_prompt_tokens: int
    num_generated_tokens: int


@dataclass
class FakeModel:
    """Answers with the names of the documents it knows; a token is a word."""

    base: Any = field(
        default_factory=lambda: SimpleNamespace(
            name="fake-base", tokenizer=lambda text, add_special_tokens: {"input_ids": text.split()}
        )
    )
    load_arguments: tuple[Any, ...] = ()
    calls: list[tuple[str, Any]] = field(default_factory=list)

    def contextualize(
        self,
        text: str,
        memory: ContextMemory | None = None,
        *,
        name: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> ContextMemory:
        if not text:
            raise EmptyContextError("empty")
        self.calls.append(("contextualize", (name, memory is not None)))
        if progress:
            progress(1, 1)
        words = len(text.split())
        entry = DocumentEntry(name or "text", text_digest(text), words, 1, len(memory.documents) if memory else 0)
        held = memory.documents if memory else ()
        state = torch.full((3, 3), float(words)) + (memory.states["target"] if memory else 0.0)
        return ContextMemory({"target": state}, "generator-1", "base-1", "fake-base", (*held, entry))

    def forget(self, memory: ContextMemory, text: str) -> ContextMemory:
        return memory - self.contextualize(text)

    def answer(
        self,
        questions: Sequence[str],
        memories: ContextMemory | None = None,
        *,
        contexts: Sequence[str] | None = None,
        max_new_tokens: int = 64,
    ) -> list[FakeAnswer]:
        assert memories is None or contexts is None
        self.calls.append(("answer", (list(questions), max_new_tokens)))
        known = "nothing"
        if memories is not None:
            known = "memory of " + " + ".join(document.name for document in memories.documents)
        if contexts is not None:
            known = f"prompt {contexts[0]!r}"
        extra = len(contexts[0].split()) if contexts else 0
        return [FakeAnswer(known, extra + len(question.split()), len(known.split())) for question in questions]

    def chat(
        self, messages: list[dict[str, str]], memory: ContextMemory | None = None, *, max_new_tokens: int = 256
    ) -> str:
        assert memory is not None
        return f"{len(messages)}: {messages[-1]['content'].upper()}"


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    fake = FakeModel()

    def load_model(*arguments: Any) -> FakeModel:
        fake.load_arguments = arguments
        return fake

    monkeypatch.setattr(loading, "load_model", load_model)
    return fake


@pytest.fixture
def run() -> Callable[..., Result]:
    """Runs `genadapter` with these arguments."""
    return lambda *arguments, **options: CliRunner().invoke(app, [str(argument) for argument in arguments], **options)


@pytest.fixture
def fails(run: Callable[..., Result]) -> Callable[..., str]:
    """Runs `genadapter`, which must end with status 2, one line on standard error and nothing else; gives that line."""

    def check(*arguments: Any, **options: Any) -> str:
        result = run(*arguments, **options)
        assert result.exit_code == 2, (result.exit_code, result.output)
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        return result.stderr.removeprefix("error: ").strip()

    return check


@pytest.fixture
def two_documents(tmp_path: Path) -> tuple[Path, Path]:
    first, second = tmp_path / "first.txt", tmp_path / "second.md"
    first.write_text("Ann lives in Bonn.\n")
    second.write_text("Carl lives in the town of Delft.\n")
    return first, second
