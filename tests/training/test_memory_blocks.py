"""The C library is told to keep freed memory, on a CPU with glibc only."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from generative_adapter.training import memory_blocks, run
from generative_adapter.training.memory_blocks import keep_memory_blocks

GLIBC = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"

COUNT_FAULTS = """
import resource, sys, torch
from generative_adapter.training.memory_blocks import keep_memory_blocks
if sys.argv[1] == "kept":
    assert keep_memory_blocks()
def step():
    torch.ones(2**24)
for _ in range(20):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not GLIBC, reason="needs glibc")
def test_pages_are_asked_for_once() -> None:
    """A block of 64 MiB, at least 32 pages, is made and freed twenty times."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    faults = {
        kind: int(
            subprocess.run(
                [sys.executable, "-c", COUNT_FAULTS, kind], capture_output=True, check=True, env=environment
            ).stdout
        )
        for kind in ("kept", "returned")
    }
    assert faults["returned"] > 20 * 30  # a huge page of 2 MiB counts once
    assert faults["kept"] < faults["returned"] / 4


@pytest.mark.parametrize(
    ("system", "library"), [("darwin", ("", "")), ("win32", ("", "")), ("linux", ("", "")), ("linux", ("musl", "1.2"))]
)
def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch, system: str, library: tuple[str, str]) -> None:
    monkeypatch.setattr(memory_blocks.sys, "platform", system)
    monkeypatch.setattr(platform, "libc_ver", lambda: library)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("the C library was touched"))
    assert keep_memory_blocks() is False


@pytest.mark.parametrize("problem", [OSError, AttributeError])
def test_never_fails(monkeypatch: pytest.MonkeyPatch, problem: type[Exception]) -> None:
    def load(_: None) -> Any:
        raise problem("no such thing")

    monkeypatch.setattr(memory_blocks.sys, "platform", "linux")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert keep_memory_blocks() is False


def test_training_on_a_cpu_keeps_them(write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(run, "keep_memory_blocks", lambda: calls.append("kept"))
    run.run_training(write_recipe(num_steps=1))
    assert calls == ["kept"]
