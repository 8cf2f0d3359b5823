"""Plots of hand-made rows: real PNG and SVG, the same every time, no pyplot, one colour a method."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from generative_adapter.errors import MissingDependencyError
from generative_adapter.evaluation.report.cost_plots import costs_over_length
from generative_adapter.evaluation.report.palette import styles
from generative_adapter.evaluation.report.plots import all_plots
from generative_adapter.evaluation.run_folder import read_folder
from generative_adapter.evaluation.summary import Summary, summarize
from result_lines import every_kind, sample, write_folder

Figure = pytest.importorskip("matplotlib.figure").Figure


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    kept = [line for line in every_kind() if line.method in ("full-context", "generative-adapter")]
    return summarize([read_folder(write_folder(tmp_path_factory.mktemp("run"), kept))])


def test_every_kind_is_drawn_and_the_same_twice(summary: Summary) -> None:
    plots = all_plots(summary)
    assert [plot.name for plot in plots] == [
        "document-qa-dev-v1", "document-qa-dev-v1-costs", "personalisation-msc", "needle-passkey-full-context",
        "needle-passkey-generative-adapter", "metaicl",
    ]  # fmt: skip
    for plot in plots:
        assert plot.png.startswith(b"\x89PNG\r\n\x1a\n")
        root = ElementTree.fromstring(plot.svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert b"<dc:date>" not in plot.svg
        assert root.findall(".//{http://www.w3.org/2000/svg}path")
    again = all_plots(summary)
    assert [plot.svg for plot in again] == [plot.svg for plot in plots]
    assert [plot.png for plot in again] == [plot.png for plot in plots]


def test_costs_are_drawn_where_there_are_any(summary: Summary) -> None:
    rows = [row for row in summary.rows if row.task.startswith("document-qa")]
    figure = costs_over_length(Figure(), rows, styles(row.method for row in rows))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert [title.rsplit(", ", 1)[1] for title in titles] == ["TFLOPs", "TFLOPs", "MB"]
    names = ("contextualizing_flops", "answering_flops", "stored_bytes")
    for axes, name, scale in zip(figure.axes, names, (1e12, 1e12, 1e6), strict=True):
        drawn = [list(map(tuple, line.get_xydata())) for line in axes.lines]
        expected = []
        for method in dict.fromkeys(row.method for row in rows):
            spent = {row.split["context_tokens"]: row.costs[name] for row in rows if row.method == method}
            if any(spent.values()):
                expected.append([(length, spent[length] / scale) for length in sorted(spent) if spent[length]])
        assert expected and [np.array(points) for points in expected] == [
            pytest.approx(np.array(line)) for line in drawn
        ]


def test_published_curves_are_drawn_where_wanted(summary: Summary) -> None:
    with_them, without = all_plots(summary)[0].svg, all_plots(summary, with_published=False)[0].svg
    assert b"stroke-dasharray" in with_them
    assert b"stroke-dasharray" not in without
    assert styles(())["generative-adapter"].colour.encode() in without


def test_names_from_data_are_text_alone(tmp_path: Path) -> None:
    lines = [
        sample(f"document-qa/{name}/512", "a $broken", "a", [1.0], {"context_tokens": 512})
        for name in ("cost $x", "cost_$x", "中")
    ]
    plots = all_plots(summarize([read_folder(write_folder(tmp_path, lines))]))
    assert [plot.name for plot in plots] == ["document-qa-cost-x", "document-qa-cost-x-again-1", "document-qa"]


def test_colours_and_markers_differ() -> None:
    style = styles(["zeta", "alpha", "sft-lora"])
    assert len({each.colour for each in style.values()}) == len(style)
    assert len({each.marker for each in style.values()}) == len(style)
    assert styles(["alpha", "zeta"])["alpha"] == style["alpha"]
    assert styles(["sft-lora"])["sft-lora"] == style["sft-lora"]


def test_without_matplotlib_the_error_is_its_install_command(summary: Summary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'generative-adapter\[eval\]'"):
        all_plots(summary)


def test_a_report_needs_neither_torch_nor_pyplot(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [sample("document-qa/x/512", "cmt", "a", [1.0], {"context_tokens": 512})])
    code = (
        "import sys; from generative_adapter.evaluation.report.writing import write_report; "
        "write_report(sys.argv[1]); sys.exit(', '.join({'torch', 'matplotlib.pyplot'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
