from __future__ import annotations

import json

import pytest


@pytest.fixture
def memory_path(model, tmp_path):
    path = tmp_path / "memory.safetensors"
    model.contextualize("Ann lives in Bonn.", name="first.txt").save(path)
    return path


def test_piped_lines_are_answered_up_to_exit(run, memory_path):
    result = run("chat", "--memory", memory_path, input="hello\n\nwho?\n/exit\nnever read\n")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "1: HELLO\n3: WHO?\n", "")


def test_the_end_of_the_input_ends_the_chat(run, memory_path):
    assert run("chat", "-m", memory_path, input="hello").stdout == "1: HELLO\n"


def test_json(run, memory_path):
    report = json.loads(run("chat", "-m", memory_path, "--json", input="hello\nwho?\n").stdout)
    assert [reply["answer"] for reply in report["replies"]] == ["1: HELLO", "3: WHO?"]
    assert report["context_tokens"] == 4


def test_bad_input(fails, model, tmp_path):
    assert "there is no such memory" in fails("chat", "-m", tmp_path / "none")
    assert "--memory" in fails("chat")
