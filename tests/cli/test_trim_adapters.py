"""`trim-adapters`, over folders as the plug-in leaves them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from generative_adapter import LowRankAdapter, LowRankFactors
from generative_adapter.cli import trim_adapters
from generative_adapter.export.peft import CONFIG_FILE, save_peft
from vllm_stand_in import StandIn, stand_in


@pytest.fixture
def server() -> Iterator[StandIn]:
    with stand_in() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    adapter = LowRankAdapter({"model.layers.0.mlp.down_proj": LowRankFactors(torch.ones(3, 500), torch.ones(700, 3))})
    for age, name in enumerate(("carl", "bo", "ann")):
        path = tmp_path / "adapters" / name / f"{age:016x}"
        save_peft(adapter, path, "base")
        os.utime(path / CONFIG_FILE, (time.time() - 100 * (1 + age),) * 2)
    return tmp_path / "adapters"


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def gigabytes(folder: Path, name: str) -> float:
    return sum(path.stat().st_size for path in (folder / name).glob("*/*")) / 1e9


def test_the_least_recently_used_go(run, folder):
    one = gigabytes(folder, "ann")
    assert one > 15e-6
    result = run("trim-adapters", folder, "--max-gb", 2 * one)
    assert result.exit_code == 0
    assert result.stdout == f"{folder}: 1 adapter deleted ({one:.3f} GB); 2 adapters left ({2 * one:.3f} GB)\n"
    assert kept(folder) == ["bo", "carl"]


def test_json_and_servers(run, folder, server, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    server.key, server.names = "secret", {"context:ann", "context:carl"}
    one = round(gigabytes(folder, "ann") * 1e9)
    arguments = ["--max-gb", one / 1e9, "--vllm", server.url, "--grace-seconds", 0, "--json"]
    report = json.loads(run("trim-adapters", folder, *arguments).stdout)
    assert report == {
        "folder": str(folder),
        "removed": 2,
        "removed_bytes": 2 * one,
        "in_use": 0,
        "kept": 1,
        "kept_bytes": one,
    }
    assert server.names == {"context:carl"}
    assert set(server.asked) == {"context:ann", "context:bo"}


def test_adapters_in_use_are_told(run, folder, server):
    (path,) = (folder / "ann").iterdir()
    server.on_unload = lambda name: os.utime(path / CONFIG_FILE)
    result = run("trim-adapters", folder, "--max-gb", 0, "--vllm", server.url, "--grace-seconds", 0)
    assert "2 adapters deleted" in result.stdout and ", 1 of them to go but in use)" in result.stdout
    assert kept(folder) == ["ann"]


def test_the_folder_is_that_of_the_plugin(run, folder, monkeypatch):
    monkeypatch.setenv("GENERATIVE_ADAPTER_FOLDERS", str(folder))
    assert run("trim-adapters", "--max-gb", 0).exit_code == 0
    assert kept(folder) == []


def test_every_goes_on_after_errors(run, folder, server, monkeypatch):
    """Rounds with a broken server, then a working one, then an end."""
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        server.broken = False
        if len(waited) == 3:
            raise KeyboardInterrupt

    server.broken = True
    monkeypatch.setattr(trim_adapters.time, "sleep", sleep)
    arguments = ["--max-gb", 0, "--vllm", server.url, "--grace-seconds", 0, "--every", 7]
    result = run("trim-adapters", folder, *arguments)
    assert waited[0] == 7 and waited[-1] == 7
    assert result.exit_code == 130
    assert result.stderr.startswith("error: http://127.0.0.1") and "answered 500" in result.stderr
    assert "3 adapters deleted" in result.stdout and kept(folder) == []


def test_bad_input(fails, folder, server, tmp_path):
    server.unloads = False
    (tmp_path / "file").write_text("")
    assert "--max-gb" in fails("trim-adapters", folder)
    assert "--max-gb" in fails("trim-adapters", folder, "--max-gb", "-1")
    assert "finite" in fails("trim-adapters", folder, "--max-gb", "inf")
    assert "no such folder" in fails("trim-adapters", tmp_path / "none", "--max-gb", "1")
    assert "this is a file" in fails("trim-adapters", tmp_path / "file", "--max-gb", "1")
    assert "no URL" in fails("trim-adapters", folder, "--max-gb", "0", "--vllm", "localhost:8000")
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in fails("trim-adapters", folder, "--max-gb", "0", "--vllm", server.url)
    assert kept(folder) == ["ann", "bo", "carl"]
