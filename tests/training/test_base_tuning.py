"""Scripts that fine-tune the base model itself: `scripts/questions/train_writer.py` and `train_reader.py`."""

from __future__ import annotations

import importlib
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

SCRIPTS = Path(__file__).parents[2] / "scripts" / "questions"


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("train_reader")


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("zstandard")
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("train_writer")


def test_the_writer_learns_its_list_and_the_reader_its_answers(base_folder, writer, reader):
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    found = writer.example(tokenizer, ("ab cd", [("x", "y?"), ("z", "w?")]))
    learnt = tokenizer.decode([found.ids[at] for at in found.learnt])
    assert learnt.startswith("- x | y?\n- z | w?\n") and found.ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(found.ids[: found.learnt[0]]) == "ab cd" + writer.HEADING

    text = reader.Text("ab cd", [("y?", "x"), ("w?", "z")], random.Random(0))
    found = reader.example(tokenizer, text)
    assert [tokenizer.decode([found.ids[at] for at in found.learnt])] in ([" x\n z\n"], [" z\n x\n"])
    first = "\n\nQuestion: {}?\n\nAnswer: {}\n\nQuestion: {}?\n\nAnswer: {}\n"
    whole = tokenizer.decode(found.ids, skip_special_tokens=True)
    assert whole in ("ab cd" + first.format("y", "x", "w", "z"), "ab cd" + first.format("w", "z", "y", "x"))


def test_texts_of_a_reader_are_joined_while_there_is_room(tmp_path, reader):
    path = tmp_path / "questions.jsonl"
    rows = [{"context": f"{n} " + "x" * 40, "qa": [{"question": f"q{n}?", "answers": [str(n)]}]} for n in range(7)]
    path.write_text("\n".join(map(json.dumps, rows)))
    alone = reader.texts([path], 0.0, 100, random.Random(0))
    joined = reader.texts([path], 1.0, 100, random.Random(0))
    assert len(alone) == 7 and len(joined) == 4
    assert max(len(each.context) for each in joined) < 100
    assert sorted(pair for each in joined for pair in each.asked) == [(f"q{n}?", str(n)) for n in range(7)]
    for each in joined:
        assert all(f"{answer} xx" in each.context for _, answer in each.asked)


def test_too_few_examples_are_told(tmp_path, reader, monkeypatch):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"context": "It is red.", "qa": [{"question": "What is it?", "answers": ["red"]}]}))
    monkeypatch.setattr(sys, "argv", ["x", "--base", "base", "--output", "out", str(path)])
    with pytest.raises(SystemExit, match="1 examples to train on and 0 held out; a step takes 16"):
        reader.main()


def test_tuning_lowers_the_loss_and_saves_a_model(base_folder, tmp_path):
    path, output = tmp_path / "questions.jsonl", tmp_path / "reader"
    rows = [
        {"context": f"The {n} is red.", "qa": [{"question": f"What is the {n}?", "answers": ["red"]}]}
        for n in range(80)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command += [str(SCRIPTS / "train_reader.py"), "--base", str(base_folder), "--output", str(output), str(path)]
    command += ["--max-seconds", "4", "--first-block", "1", "--learning-rate", "1e-2", "--per-step", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    made = json.loads((output / "training.json").read_text())
    before = float(re.findall(r"held-out loss ([\d.]+)", done.stdout)[0])
    assert made["steps"] >= 5 and made["held_out_loss"] < before - 0.5
    tuned, plain = (AutoModelForCausalLM.from_pretrained(each).state_dict() for each in (output, base_folder))
    changed = {name for name in plain if not torch.equal(tuned[name].float(), plain[name].to(torch.bfloat16).float())}
    assert changed and not any("layers.0." in name or "embed" in name for name in changed)
