"""Interference and general ability of a run: what is kept, and what is measured again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.checkpoint import save_generator
from generative_adapter.errors import DataError
from generative_adapter.evaluation import forgetting
from generative_adapter.evaluation.forgetting import (
    LossLog,
    general_ability_of,
    interference_of,
    with_before,
    write_forgetting,
)
from generative_adapter.evaluation.general_ability import measure_general_ability
from generative_adapter.evaluation.results import QueryResult, SampleResult
from generative_adapter.evaluation.shelf import MethodShelf
from generative_adapter.methods.protocol import Context, Wording
from generative_adapter.methods.settings import MethodSettings
from tiny_models import tiny_checkpoint

WORDING = Wording("task", "Q: {question}\nA:", "{context}\n\nQ: {question}\nA:")
CONTEXTS = {16: [Context("Ada keeps bees."), Context("Bo sells kites.")], 32: [Context("Cy naps at noon. " * 2)]}
SEGMENTS = [list(range(40, 60)), list(range(90, 70, -1))]


def test_what_methods_are_compared_with() -> None:
    assert with_before(["generative-adapter"]) == ("generative-adapter", "no-adapter")
    assert with_before(["closed-book"]) == ("closed-book",)
    names = ["no-adapter", "sft-lora", "generative-adapter", "full-context"]
    assert with_before(names) == (*names, "closed-book")


@pytest.fixture
def shelf(tiny_llama_base: BaseModel, tmp_path: Path) -> MethodShelf:
    path = tmp_path / "generator.safetensors"
    save_generator(path, tiny_checkpoint(tiny_llama_base))
    names = ("closed-book", "full-context", "generative-adapter")
    return MethodShelf(tiny_llama_base, MethodSettings(WORDING, generator=path), names)


def ability(shelf: MethodShelf, folder: Path, segments=SEGMENTS, **settings):
    names = ("closed-book", "full-context", "generative-adapter")
    return general_ability_of(shelf, names, WORDING, CONTEXTS, segments, folder, **settings)


def test_losses_are_measured_once(shelf: MethodShelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int, int]] = []
    first = ability(shelf, tmp_path, progress=lambda *now: told.append(now))
    assert list(first) == ["generative-adapter"] and list(first["generative-adapter"]) == [16, 32]
    name = "generative-adapter, held-out text"
    assert told == [(f"{name}, 16", 1, 2), (f"{name}, 16", 2, 2), (f"{name}, 32", 1, 1)]
    method = shelf.get("generative-adapter", WORDING)
    for length, own in CONTEXTS.items():
        assert first["generative-adapter"][length] == measure_general_ability(shelf.base, method, own, SEGMENTS)
    log = tmp_path / "text_losses.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    assert len(lines) == 3

    log.write_text("".join(lines[:2]) + lines[2][:20])  # killed while it wrote
    measured: list[Context] = []
    plain = forgetting.segments_loss
    monkeypatch.setattr(
        forgetting, "segments_loss", lambda method, context, s: measured.append(context) or plain(method, context, s)
    )
    assert ability(shelf, tmp_path) == first
    assert measured == CONTEXTS[32] and log.read_text() == "".join(lines)
    ability(shelf, tmp_path, SEGMENTS[:1])  # another text is another loss
    assert len(measured) == 4 and len(log.read_text().splitlines()) == 6


def test_broken_losses_are_named(tmp_path: Path) -> None:
    (tmp_path / "text_losses.jsonl").write_text('{"key": "a", "loss": 1.5}\n{"key": "b"}\n')
    with pytest.raises(DataError, match="line 2: no loss"):
        LossLog(tmp_path)


def line(method: str, length: int, answer: str, value: float) -> SampleResult:
    query = QueryResult("1", "sky?", ("blue",), answer, {"recall": value})
    metadata = {"control": "unrelated question", "context_tokens": length}
    return SampleResult("k", "t", "test", method, "w", "s", "c", metadata, ("recall",), {}, {}, (query,))


def test_interference_by_length(shelf: MethodShelf, tmp_path: Path) -> None:
    results = [line("no-adapter", length, "blue", 1.0) for length in (16, 32)]
    results += [line("generative-adapter", 16, "blue", 1.0), line("generative-adapter", 32, "red", 0.0)]
    found = interference_of(results, ["generative-adapter", "no-adapter"])
    assert list(found) == ["generative-adapter"]
    assert [found["generative-adapter"][length].num_became_wrong for length in (16, 32)] == [0, 1]
    path = write_forgetting(tmp_path, found, ability(shelf, tmp_path))
    values = json.loads(path.read_text())
    assert values["interference"]["generative-adapter"]["32"]["unchanged"] == 0
    assert values["general_ability"]["generative-adapter"]["16"]["num_contexts"] == 2
    assert not list(tmp_path.glob("*.part"))
