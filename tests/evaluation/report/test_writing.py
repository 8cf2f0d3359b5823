"""The files of a report, and the page: what it says, that it loads nothing, and that data stays text."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from generative_adapter.errors import ConfigError, DataError, MissingDependencyError
from generative_adapter.evaluation.report.answers import shown_answers
from generative_adapter.evaluation.report.writing import write_report
from result_lines import every_kind, query, sample, write_folder

pytest.importorskip("matplotlib")

SCRIPT = "<script>alert('x')</script>"
SQUAD = "document-qa/squad/512"
AT_512 = {"context_tokens": 512}
RUN = {
    "command": ["genadapter", "eval", "document-qa", "--data", "my file.json"],
    "seed": 3,
    "machine": {"cpu": SCRIPT},
    "keys": None,
}
VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """What a page holds: tags, attributes, text; fails on tags that don't nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    return page


def test_all_files_and_nothing_else(tmp_path: Path) -> None:
    lines = [line for line in every_kind() if line.method in ("closed-book", "full-context")]
    folder = write_folder(tmp_path / "run", lines, RUN)
    written = write_report(folder)
    assert set(written) >= {"results.json", "tables.md", "tables.tex", "report.html", "plots/metaicl.svg"}
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        *written, "samples.jsonl", "run.json",
    }  # fmt: skip
    results = json.loads(written["results.json"].read_text())
    assert results["schema_version"] == 1
    assert results["runs"][0]["settings"] == {key: value for key, value in RUN.items() if key != "keys"}
    first = results["rows"][0]
    assert set(first) == {
        "task", "method", "split", "classification", "wordings", "metrics", "num_queries", "num_contexts",
        "num_samples", "values", "draws", "costs", "measured", "reference", "differences",
    }  # fmt: skip
    assert set(first["values"]["f1"]) == {"mean", "low", "high", "num_values", "num_clusters"}
    contents = {name: path.read_bytes() for name, path in written.items()}
    again = write_report(folder)
    assert {name: path.read_bytes() for name, path in again.items()} == contents


def test_the_page_loads_nothing_and_says_what_was_run(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, every_kind()[:16], RUN)
    path = write_report(folder)["report.html"]
    page = page_of(path)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "srcset", "data", "poster"):
            assert value.startswith("data:image/")
        if name == "href":
            assert value.startswith("#")
    style = re.findall(r"<style>(.*?)</style>", path.read_text(), re.DOTALL)
    assert len(style) == 1 and "url(" not in style[0] and "@import" not in style[0]
    assert "prefers-color-scheme: dark" in style[0] and "overflow-x: auto" in style[0]
    assert page.tags.count("img") == 2
    assert "genadapter eval document-qa --data 'my file.json'" in page.text
    for told in ("What was run", "machine.cpu", SCRIPT, "Document QA, dev-v1: F1, %", "Answers", "How to reproduce"):
        assert told in page.text


def test_texts_from_data_stay_texts(tmp_path: Path) -> None:
    nasty = f"{SCRIPT}\"' & \ud800 ]]> %_$"
    asked = (
        query("1", {"f1": 1.0}, question=nasty, answer=nasty, references=(nasty,), metadata={"category": nasty}),
        query("2", {"f1": 0.0}, question="q" * 5000, answer="", references=("a", "b")),
    )
    line = sample(f"document-qa/{nasty}/512", f"method {nasty}", nasty, [], AT_512, wording=nasty)
    folder = write_folder(tmp_path, [replace(line, queries=asked)], {"command": nasty, nasty: [nasty, {nasty: 1}]})
    written = write_report(folder)
    page = page_of(written["report.html"])
    assert "script" not in page.tags
    assert page.text.count(SCRIPT) >= 8
    assert "q" * 601 not in page.text
    assert SCRIPT not in written["tables.md"].read_text()
    assert json.loads(written["results.json"].read_text())["rows"][0]["method"] == f"method {nasty}"


def test_several_folders_become_one_report(tmp_path: Path) -> None:
    one = write_folder(tmp_path / "one", [sample(SQUAD, "closed-book", "a", [0.0], AT_512)], RUN)
    two = write_folder(tmp_path / "two", [sample(SQUAD, "sft-lora", "a", [1.0], AT_512)])
    with pytest.raises(ConfigError, match="name the output folder"):
        write_report([one, two])
    written = write_report([one, two], tmp_path / "both")
    assert {path.parent.name for path in written.values()} == {"both", "plots"}
    rows = json.loads(written["results.json"].read_text())["rows"]
    assert [(row["method"], row["reference"]) for row in rows] == [("closed-book", None), ("sft-lora", "closed-book")]
    assert "one" in page_of(written["report.html"]).text


def test_an_empty_folder_gets_no_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no samples\.jsonl"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_tables_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        write_report(write_folder(tmp_path, [sample(SQUAD, "sft-lora", "a", [1.0], AT_512)]))
    assert {path.name for path in tmp_path.iterdir()} == {"samples.jsonl", "results.json", "tables.md", "tables.tex"}


def test_shown_answers_are_right_and_wrong_and_fixed() -> None:
    lines = [
        sample(SQUAD, method, name, [1.0, 0.5, 0.4, 0.0, 0.0, 1.0, 0.2], AT_512)
        for method in ("closed-book", "sft-lora")
        for name in ("a", "b")
    ]
    shown = shown_answers(lines, num_of_each=2, seed=1)
    assert [(item.method, item.right) for item in shown] == [
        (method, right) for method in ("closed-book", "sft-lora") for right in (True, True, False, False)
    ]
    assert all(item.right == (item.value >= 0.5) for item in shown)
    places = [(item.sample, item.query.id) for item in shown]
    assert places[:4] == places[4:]  # both methods are shown on the same questions
    assert (
        shown
        == shown_answers(lines[::-1], num_of_each=2, seed=1)[4:] + shown_answers(lines[::-1], num_of_each=2, seed=1)[:4]
    )
    others = {tuple(item.query.id for item in shown_answers(lines, num_of_each=2, seed=seed)) for seed in range(5)}
    assert len(others) > 1
