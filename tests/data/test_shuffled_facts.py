"""Records of scripts/shuffled_facts.py: the words of facts without the facts, training side, one answer."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from generative_adapter.data.facts import sample_facts_record
from generative_adapter.data.records import read_records

SCRIPT = Path(__file__).parents[2] / "scripts" / "shuffled_facts.py"


def test_shuffled_contexts_state_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "shuffled.jsonl"
    subprocess.run([sys.executable, str(SCRIPT), str(path), "--contexts", "30"], check=True)
    records = list(read_records(path))
    assert len(records) == 30
    assert {answer for record in records for q in record.questions for answer in q.answers} == {"not stated"}
    assert all(1 <= len(record.questions) <= 5 for record in records)
    assert len({record.context for record in records}) == 30
    first = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert set(first) == {"context", "qa"}


def test_words_are_those_of_training_facts_in_another_order() -> None:
    spec = importlib.util.spec_from_file_location("shuffled_facts", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    asked: list[tuple[str, str]] = []

    def spy(rng, **settings):
        record = sample_facts_record(rng, **settings)
        assert settings["split"] == "train"
        asked.append((record.context, record.questions[0].question))
        return record

    script.sample_facts_record = spy
    records = list(script.shuffled_records(20, seed=3))
    for record, (context, question) in zip(records, asked, strict=True):
        assert sorted(record["context"].split()) == sorted(context.split())
        assert record["context"] != " ".join(context.split())
        assert record["qa"][0]["question"] == question
