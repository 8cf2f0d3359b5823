"""Controls and `forgetting.json` in tables, in results.json and on the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from generative_adapter.errors import DataError
from generative_adapter.evaluation.report.tables import all_tables
from generative_adapter.evaluation.report.writing import write_report
from generative_adapter.evaluation.run_folder import read_folder
from generative_adapter.evaluation.summary import summarize
from result_lines import sample, write_folder

ESTIMATE = {"mean": -0.05, "low": -0.1, "high": 0.02, "num_values": 40, "num_clusters": 4}
INTERFERENCE = {
    "unchanged": 0.75, "before": 0.5, "after": 0.45, "difference": ESTIMATE, "num_right_before": 20,
    "num_became_wrong": 3, "num_became_right": 1, "right_from": 1.0, "num_answers": 40, "num_contexts": 4,
}  # fmt: skip
ABILITY = {
    "method": "generative-adapter", "plain_perplexity": 20.0, "perplexities": [21.0, 23.0],
    "ratio": {**ESTIMATE, "mean": 1.1, "low": 1.05, "high": 1.15}, "max_ratio": 1.15, "num_tokens": 1022,
    "num_segments": 2, "num_contexts": 2,
}  # fmt: skip
FORGETTING = {
    "schema_version": 1,
    "interference": {"generative-adapter": {"1024": INTERFERENCE, "512": INTERFERENCE}},
    "general_ability": {"generative-adapter": {"512": ABILITY}},
}


def folder_of(path: Path, data: str = "dev") -> Path:
    lines = [
        sample(f"document-qa/{data}/512/{control}", method, name, [value],
               {"context_tokens": 512, "control": label})
        for method, values in (("generative-adapter", (1.0, 0.25)), ("closed-book", (0.5, 0.5)))
        for (control, label), value in zip(
            (("own", "own document"), ("other-document", "other document")), values, strict=True)
        for name in "ab"
    ]  # fmt: skip
    folder = write_folder(path, lines)
    (folder / "forgetting.json").write_text(json.dumps(FORGETTING))
    return folder


def test_controls_share_a_table_with_the_difference_to_closed_book(tmp_path: Path) -> None:
    tables = {table.title: table for table in all_tables(summarize([read_folder(folder_of(tmp_path))]))}
    table = tables["Document QA, dev: F1 by control, %"]
    assert table.columns == ("method", "own document", "other document", "other document less closed-book, points")
    assert table.blocks[0].title == "512 tokens"
    assert table.blocks[0].rows == (
        ("generative-adapter", "100.0 [100.0, 100.0]", "25.0 [25.0, 25.0]", "−25.0 [−25.0, −25.0]"),
        ("closed-book", "50.0 [50.0, 50.0]", "50.0 [50.0, 50.0]", "–"),
    )


def test_interference_and_held_out_text(tmp_path: Path) -> None:
    tables = {table.title: table for table in all_tables(summarize([read_folder(folder_of(tmp_path))]))}
    unrelated = tables["Unrelated questions"]
    assert [block.title for block in unrelated.blocks] == ["512 tokens", "1K tokens"]
    assert unrelated.blocks[0].rows == (
        ("generative-adapter", "75.0", "50.0", "45.0", "−5.0 [−10.0, +2.0]", "3", "1", "40"),
    )
    text = tables["Held-out text"]
    assert text.blocks[0].rows == (("generative-adapter", "20.00", "1.100 [1.050, 1.150]", "1.150", "2", "1,022"),)


def test_a_report_of_several_folders_takes_each_ones_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folders = [folder_of(tmp_path / name, name) for name in ("one", "two")]
    written = write_report(folders, tmp_path / "out")
    results = json.loads(written["results.json"].read_text())
    assert [item["folder"] for item in results["forgetting"]] == ["one", "two"]
    assert results["forgetting"][1]["general_ability"] == FORGETTING["general_ability"]
    for name in ("tables.md", "tables.tex", "report.html"):
        content = written[name].read_text()
        assert "Held-out text, two" in content and "1.150" in content, name


def test_a_broken_file_is_an_error(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    (folder / "forgetting.json").write_text("{")
    with pytest.raises(DataError, match=r"forgetting\.json: not valid JSON"):
        read_folder(folder)
