"""What docs/scaling.md says can be run is there: the worker's Python, the command, and the benchmarks' options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import serving_simulation
from generative_adapter import GenerativeAdapter, MemoryStore
from generative_adapter.base_model.loading import find_embedded_gguf
from generative_adapter.cli.main import app
from generative_adapter.errors import BaseModelError
from vllm_stand_in import stand_in

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


def lines(start: str) -> list[list[str]]:
    return [shlex.split(line) for line in TEXT.splitlines() if line.startswith(start)]


@pytest.mark.embedded
def test_the_worker_adds_to_memories_and_unloads(tmp_path: Path) -> None:
    try:
        find_embedded_gguf()
    except BaseModelError as error:
        pytest.skip(str(error))
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    with stand_in() as server:
        server.names = {"context:alice"}
        code = code.replace("http://localhost:8000", server.url).replace('"store"', repr(str(tmp_path / "store")))
        names: dict[str, Any] = {}
        exec(compile(code, "docs/scaling.md", "exec"), names)
        names["take_in"]("alice", "Bo mends the pumps.")
        assert server.names == set() and server.asked == ["context:alice"] * 2
    model: GenerativeAdapter = names["model"]
    memory = MemoryStore(tmp_path / "store").get("alice", model.generator_fingerprint)
    assert [document.streamed for document in memory.documents] == [False, False]


def test_the_command_trims(tmp_path: Path) -> None:
    ((_, *arguments),) = lines("genadapter trim-adapters")
    assert arguments[1] == "/var/cache/adapters" and arguments[-2:] == ["--every", "60"]
    (tmp_path / "adapters").mkdir()
    given = [str(tmp_path / "adapters") if each == arguments[1] else each for each in arguments[:-2]]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0 and "0 adapters left" in result.stdout


def test_the_simulation_takes_the_options() -> None:
    commands = lines("python benchmarks/serving_simulation.py")
    assert len(commands) == 2
    for _, script, *arguments in commands:
        assert (ROOT / script).is_file()
        assert serving_simulation.parse(arguments).processes == 4
    assert serving_simulation.parse([]).memories == 1_000_000
