"""Hashes the held-out splits in a data folder, for training to refuse them; writes the package's file.

python scripts/hash_held_out.py DATA_FOLDER

Held out is everything under a `test` folder, `squad/dev-*` and `pretrain/valid-*`. Of MetaICL these are rows (input and
output), of conversations the sessions and the whole, of everything else the documents. A split is named by its file, of
MetaICL by its task; what stands in two splits counts for the first.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from generative_adapter.data.converters import CONVERTERS
from generative_adapter.data.held_out_texts import TextHashes, load_held_out, save_held_out, text_hashes
from generative_adapter.data.records import numbered_records
from generative_adapter.evaluation.tasks.reading import first_object, json_rows

TARGET = Path(__file__).parents[1] / "src/generative_adapter/data/held_out_texts.safetensors"


def held_out_files(folder: Path) -> list[Path]:
    """Files of the held-out splits, by name."""
    files = (path for path in folder.rglob("*.json*") if path.is_file())
    return sorted(path for path in files if is_held_out(path.relative_to(folder)))


def is_held_out(path: Path) -> bool:
    return "test" in path.parts[:-1] or path.match("squad/dev-*") or path.match("pretrain/valid-*")


def split_name(path: Path) -> str:
    """Of a file in the data folder."""
    return str(path.parent) if path.parts[0] == "metaicl" else str(path).split(".json")[0]


def texts_of(path: Path) -> Iterator[str]:
    """The texts of a held-out file."""
    first = first_object(path)
    if "conversation" in first or "sessions" in first or not first:
        for _, row in json_rows(path, "conversations"):
            yield from conversation_texts(row)
    elif {"task", "input", "output"} <= first.keys():
        for where, row in json_rows(path, "rows"):
            record = CONVERTERS["metaicl"].read(row, where)
            yield record.context if record is not None else ""
    else:
        for _, record in numbered_records(path):
            yield record.context


def conversation_texts(row: dict[str, Any]) -> Iterator[str]:
    """Each session and the whole, a line a turn, speakers' names left out."""
    if isinstance(row.get("conversation"), str):
        yield row["conversation"]
        return
    talk = row.get("conversation", {})
    names = sorted((name for name in talk if re.fullmatch(r"session_\d+", name)), key=lambda name: int(name[8:]))
    turns = [session["dialog"] for session in row.get("sessions", [])] or [talk[name] for name in names]
    sessions = ["\n".join(turn["text"] for turn in session) for session in turns]
    yield from sessions
    yield "\n\n".join(sessions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, default=TARGET)
    given = parser.parse_args()
    splits: dict[str, TextHashes] = {}
    for path in held_out_files(given.folder):
        own = splits.setdefault(split_name(path.relative_to(given.folder)), TextHashes())
        for text in texts_of(path):
            found = text_hashes(text)
            own.wholes.update(found.wholes)
            own.parts.update(found.parts)
    save_held_out(given.output, splits)
    for name, hashes in splits.items():
        print(f"{name}: {len(hashes.wholes):,} texts, {len(hashes.parts):,} parts")
    size = given.output.stat().st_size / 1e6
    print(f"{given.output}: {len(load_held_out(given.output)):,} hashes, {size:.2f} MB")


if __name__ == "__main__":
    main()
