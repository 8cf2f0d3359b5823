"""The report as one HTML file: tables, plots, costs, answers, and how to make it again.

It loads nothing: styles stand in it, plots are data URIs, there is no script; a content policy in its head forbids
anything else. Every text that comes from data is escaped. Legible in light and dark, and on a phone, where tables
scroll. Leaves out: what tables and plots hold (`tables`, `plots`).
"""

from __future__ import annotations

import base64
import html
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from generative_adapter.evaluation.report.answers import RIGHT_FROM, ShownAnswer
from generative_adapter.evaluation.report.layout import Table, html_table
from generative_adapter.evaluation.report.plots import Plot
from generative_adapter.evaluation.run_folder import RunFolder

_MAX_LETTERS = 600  # of a question that is shown
_MAX_LINES = 30  # of a setting that isn't folded away
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --page: #ffffff; --line: #d5d5d5; --faint: #5d5d5d;
  --shade: #f3f3f3; --right: #00664b; --wrong: #a63d00; }
@media (prefers-color-scheme: dark) { :root { --text: #e7e7e7; --page: #17191c; --line: #40444a; --faint: #a9adb3;
  --shade: #22252a; --right: #4fcfa6; --wrong: #ff9a5c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 68rem; color: var(--text); background: var(--page);
  font: 1rem/1.5 system-ui, sans-serif; }
h1, h2, h3 { line-height: 1.25; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; } tbody th { font-weight: normal; } th.block { font-style: italic; }
thead th { white-space: normal; vertical-align: bottom; border-bottom: 2px solid var(--text); }
.note { color: var(--faint); font-size: 0.9rem; }
table.text td, table.text th { text-align: left; }
table.text td { white-space: normal; min-width: 10rem; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; height: auto; background: #ffffff; border-radius: 4px; }
figcaption { color: var(--faint); font-size: 0.9rem; }
pre { overflow-x: auto; padding: 0.8rem; background: var(--shade); border-radius: 4px; }
.right { color: var(--right); } .wrong { color: var(--wrong); } nav a { margin-right: 1rem; } a { color: inherit; }
"""


def html_page(
    runs: Sequence[RunFolder],
    tables: Sequence[Table],
    plots: Sequence[Plot],
    answers: Sequence[ShownAnswer],
) -> str:
    """The page."""
    topics = list(dict.fromkeys(item.topic for item in (*tables, *plots)))
    sections = [("What was run", _runs(runs))]
    for topic in topics:
        own_plots = [_figure(plot) for plot in plots if plot.topic == topic]
        own_tables = [html_table(table) for table in tables if table.topic == topic]
        sections.append((topic, "\n".join([*own_plots, *own_tables])))
    sections += [("Answers", _answers(answers)), ("How to reproduce", _commands(runs))]
    links = "".join(f'<a href="#part-{n}">{html.escape(title)}</a> ' for n, (title, _) in enumerate(sections))
    body = "\n".join(
        f'<section id="part-{number}">\n<h2>{html.escape(title)}</h2>\n{content}\n</section>'
        for number, (title, content) in enumerate(sections)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Evaluation report</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>Evaluation report</h1>\n<nav>{links}</nav>\n{body}\n</body>\n</html>\n"
    )


def _runs(runs: Sequence[RunFolder]) -> str:
    pieces = []
    for run in runs:
        missing = f" {run.num_missing:,} samples of the run are still to do." if run.num_missing else ""
        pieces.append(f"<h3>{html.escape(run.name)}</h3>\n<p>{html.escape(_in_short(run))}{missing}</p>")
        told = {name: value for name, value in run.settings.items() if name not in ("command", "commands")}
        parts = {name: _flat({name: value}) for name, value in told.items()}
        short = _settings_table([line for lines in parts.values() if len(lines) <= _MAX_LINES for line in lines])
        if short:
            pieces.append(f"<details><summary>settings, versions, machine</summary>{short}</details>")
        for name, lines in parts.items():
            if len(lines) > _MAX_LINES:
                table = _settings_table(lines)
                pieces.append(f"<details><summary>{html.escape(name)}</summary>{table}</details>")
    return "\n".join(pieces)


def _in_short(run: RunFolder) -> str:
    """Base model, methods and numbers in a sentence each."""
    base = run.settings.get("base_model")
    name = base.get("name") if isinstance(base, Mapping) else base
    methods = ", ".join(dict.fromkeys(result.method for result in run.results))
    questions = {(result.sample, result.task, query.id) for result in run.results for query in result.queries}
    numbers = f"{len(questions):,} questions, {len({result.context_id for result in run.results}):,} contexts"
    unfinished = " It has not ended: some methods lack answers." if "started" in run.settings and (
        "ended" not in run.settings) else ""  # fmt: skip
    return f"{f'Base model: {name}. ' if name else ''}Methods: {methods}. {numbers}.{unfinished}"


def _settings_table(settings: Sequence[tuple[str, str]]) -> str:
    lines = [
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(value)}</td></tr>' for name, value in settings
    ]
    return f'<div class="scroll"><table class="text"><tbody>{"".join(lines)}</tbody></table></div>' if lines else ""


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Settings as names with dots and texts."""
    lines: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            lines += _flat(value, f"{before}{name}.")
        else:
            lines.append((f"{before}{name}", value if isinstance(value, str) else _plain(value)))
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return ", ".join(map(str, value))
    return json.dumps(value, ensure_ascii=False)


def _figure(plot: Plot) -> str:
    picture = base64.b64encode(plot.svg).decode("ascii")
    title = html.escape(plot.title)
    return (
        f'<figure><img alt="{title}" src="data:image/svg+xml;base64,{picture}">'
        f"<figcaption>{title}.</figcaption></figure>"
    )


def _answers(answers: Sequence[ShownAnswer]) -> str:
    told = f"A sample by a fixed draw; right means that the main metric is at least {RIGHT_FROM:g}."
    pieces = [f'<p class="note">{told}</p>']
    for family in dict.fromkeys(item.family for item in answers):
        pieces.append(f"<h3>{html.escape(family)}</h3>")
        heads = "".join(f'<th scope="col">{name}</th>' for name in ("method", "", "question", "answer", "expected"))
        lines = [_answer(item) for item in answers if item.family == family]
        table = f'<table class="text"><thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
        pieces.append(f'<div class="scroll">{table}</div>')
    return "\n".join(pieces)


def _answer(item: ShownAnswer) -> str:
    mark = "right" if item.right else "wrong"
    texts = (_short(item.query.question), _short(item.query.answer), _short(" / ".join(item.query.references)))
    cells = "".join(f"<td>{html.escape(text)}</td>" for text in texts)
    judged = f'<td class="{mark}">{mark} ({100 * item.value:.0f} %)</td>'
    return f'<tr><th scope="row">{html.escape(item.method)}</th>{judged}{cells}</tr>'


def _short(text: str) -> str:
    """The end of a long text: questions with demonstrations have what is asked there."""
    return text if len(text) <= _MAX_LETTERS else f"… {text[-_MAX_LETTERS:]}"


def _commands(runs: Sequence[RunFolder]) -> str:
    commands = []
    for run in runs:
        command = run.settings.get("command")
        if isinstance(command, list):
            command = shlex.join(map(str, command))
        earlier = run.settings.get("commands")
        told = [*(earlier if isinstance(earlier, list) else ()), *([command] if command else ())]
        commands += dict.fromkeys(map(str, told))
    if not commands:
        return "<p>The run's folder doesn't tell the command that made it.</p>"
    return (
        "<p>The same command, data and seed give the same answers on the same machine and versions; what is there "
        f"already is not run again.</p>\n<pre>{html.escape(chr(10).join(commands))}</pre>"
    )
