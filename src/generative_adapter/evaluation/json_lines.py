"""Files of JSON lines that grow while a run goes on: a run that is killed leaves at most one unfinished line.

Leaves out: what a line holds.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def cut_unfinished_line(path: Path) -> None:
    """Cuts off what stands after a file's last line end; nothing where there is no file."""
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


def append_line(path: Path, values: Any) -> None:
    """Writes a line and waits until it is on the disk."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(values, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
