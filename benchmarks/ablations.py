"""The paper's Table 2 and the switches beyond the paper, at equal budget on the embedded base model.

Trains every row for every seed from one recipe (`configs/ablation-smollm2-135m.yaml`) with `genadapter train`, measures
each with `genadapter eval perplexity` on held-out text, and writes `results.json`, `table.md` and `ablations.png` /
`.svg`. A run that was interrupted goes on when the command is given again; finished ones are left as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROWS: dict[str, tuple[str, ...]] = {
    "default": (),
    "reconstruction only": ("completion_weight=0",),
    "completion only": ("reconstruction_weight=0",),
    "Frobenius": ("generator.normalization=frobenius",),
    "with the feed-forward module": ("generator.targets=[attention_output, feed_forward_down]",),
    "no value shift (the paper's)": ("generator.value_shift=0",),
    "AdamW (the paper's)": ("optimizer=adamw",),
    "ridge": ("generator.normalization=ridge",),
    "feed-forward module instead": ("generator.targets=[feed_forward_down]",),
    "distillation beside": ("distillation_weight=1",),
}
REPORT = "perplexity.json"
MEASURES = ("reconstruction", "completion")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/ablation-smollm2-135m.yaml"))
    parser.add_argument("--output", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--eval-data", type=Path, required=True, help="documents never trained on")
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--segments", type=int, default=200)
    parser.add_argument("--segment-tokens", type=int, default=48)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, a thread each")
    parser.add_argument("--report-only", action="store_true", help="run nothing: report the runs that are there")
    parser.add_argument("--set", action="append", default=[], help="setting for all rows, as of genadapter train")
    arguments = parser.parse_args()
    work = [(row, seed) for seed in arguments.seeds for row in arguments.rows]
    if arguments.report_only:
        work = [one for one in work if (folder_of(*one, arguments) / REPORT).is_file()]
        arguments.rows = [row for row in arguments.rows if any(row == done for done, _ in work)]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(lambda one: run(*one, arguments), work))
    (arguments.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (arguments.output / "table.md").write_text(table(results, arguments.rows))
    plot(results, arguments.rows, arguments.output / "ablations")
    print((arguments.output / "table.md").read_text())


def run(row: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains and measures one row with one seed."""
    folder = folder_of(row, seed, arguments)
    report = folder / REPORT
    if not report.is_file():
        overrides = [*arguments.set, *ROWS[row], f"seed={seed}"]
        flags = [flag for override in overrides for flag in ("--set", override)]
        resume = ["--resume"] if any(folder.glob("checkpoint-*")) else []
        if not (folder / "generator.safetensors").is_file():
            genadapter("train", arguments.config, "--output", folder, *flags, *resume, "--json")
        sizes = ("--segments", arguments.segments, "--segment-tokens", arguments.segment_tokens)
        generator = ("--generator", folder / "generator.safetensors", "--base-model", "embedded")
        measured = genadapter("eval", "perplexity", *generator, "--data", arguments.eval_data, *sizes, "--json")
        report.write_text(measured)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seconds = max(line["seconds"] for line in lines if line["kind"] == "training")
    print(f"{row}, seed {seed}: {seconds:.0f} s", file=sys.stderr, flush=True)
    return {"row": row, "seed": seed, "seconds": seconds, **json.loads(report.read_text())}


def folder_of(row: str, seed: int, arguments: argparse.Namespace) -> Path:
    return arguments.output / f"{'-'.join(''.join(c for c in row if c.isalnum() or c == ' ').split())}-{seed}"


def genadapter(*arguments: Any) -> str:
    command = [str(Path(sys.executable).with_name("genadapter")), *map(str, arguments)]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return done.stdout


def table(results: list[dict[str, Any]], rows: list[str]) -> str:
    """Mean and spread (standard deviation) over seeds, as Markdown."""
    lines = ["| row | seeds | reconstruction | completion |", "|---|---|---|---|"]
    for row in rows:
        own = [result for result in results if result["row"] == row]
        cells = [cell([result[name] for result in own]) for name in MEASURES]
        lines.append(f"| {row} | {len(own)} | {' | '.join(cells)} |")
    first = results[0]
    plain = [f"{first[f'plain_{name}']:.1f}" for name in MEASURES]
    lines.append(f"| without an adapter | | {' | '.join(plain)} |")
    lines.append(f"| with the text before in the prompt | | | {first['in_context_completion']:.1f} |")
    return "\n".join(lines) + "\n"


def cell(values: list[float]) -> str:
    """Mean, and standard deviation of several values."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def plot(results: list[dict[str, Any]], rows: list[str], path: Path) -> None:
    """Reconstruction and completion of every row, a point a seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 0.38 * len(rows) + 1.4), sharey=True)
    for axis, name in zip(axes, MEASURES, strict=True):
        for place, row in enumerate(reversed(rows)):
            values = [result[name] for result in results if result["row"] == row]
            axis.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.6)
            axis.plot([statistics.fmean(values)], [place], "|", color="black", markersize=14)
        axis.axvline(results[0][f"plain_{name}"], color="gray", linestyle=":", label="without an adapter")
        axis.set_xlabel(f"{name} perplexity")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(rows)), list(reversed(rows)))
    axes[0].legend(fontsize=8, loc="center right")
    figure.tight_layout()
    for ending in ("png", "svg"):
        figure.savefig(path.with_suffix(f".{ending}"), dpi=150)


if __name__ == "__main__":
    main()
