"""Puts the tables and plots of finished evaluations into docs/results.md.

    python scripts/results_page.py FOLDER [FOLDER ...] [--page docs/results.md] [--images docs/images/results]

The page's own text stays; what stands between its two markers is replaced. `scripts/evaluate_shipped.sh` fills the
folders.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path

from generative_adapter.errors import GenerativeAdapterError
from generative_adapter.evaluation.report.writing import write_report

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--page", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--images", type=Path, default=Path("docs/images/results"))
    options = parser.parse_args()
    page = options.page.read_text(encoding="utf-8")
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        sys.exit(f"error: {options.page} doesn't hold {BEGIN} and {END} once each")
    with tempfile.TemporaryDirectory() as folder:
        try:
            written = write_report(options.folders, Path(folder))
        except GenerativeAdapterError as error:
            sys.exit(f"error: {error}")
        tables = written["tables.md"].read_text(encoding="utf-8")
        shutil.rmtree(options.images, ignore_errors=True)
        options.images.mkdir(parents=True)
        shown = []
        for name, path in written.items():
            if name.endswith(".png"):
                shutil.copy(path, options.images / path.name)
                link = (options.images / path.name).relative_to(options.page.parent)
                shown.append(f"![{path.stem.replace('-', ' ')}]({link.as_posix()})")
    body = re.sub(r"\A# .*\n+", "", tables)
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    content = "\n\n".join([BEGIN, "## Plots", *shown, body.strip(), END])
    options.page.write_text(before + content + after, encoding="utf-8")


if __name__ == "__main__":
    main()
