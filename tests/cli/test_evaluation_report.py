"""`genadapter eval report` on hand-made lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from result_lines import sample, write_folder

pytest.importorskip("matplotlib")

Run = Callable[..., Result]


def test_report(run: Run, tmp_path: Path) -> None:
    line = sample("document-qa/squad/512", "closed-book", "a", [1.0, 0.0], {"context_tokens": 512})
    folder = write_folder(tmp_path / "run", [line])
    result = run("eval", "report", folder, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout)["report.html"] == str(folder / "report.html")
    result = run("eval", "report", folder, "--output", tmp_path / "out", "--no-published")
    assert result.exit_code == 0
    assert "report.html" in result.stdout and (tmp_path / "out" / "report.html").is_file()


def test_a_folder_without_results_is_an_error_in_a_line(run: Run, tmp_path: Path) -> None:
    result = run("eval", "report", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and "samples.jsonl" in result.stderr
