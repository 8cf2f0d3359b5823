"""Folders that are complete or absent: filled under a temporary name beside their place, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from generative_adapter.errors import DataError


@contextmanager
def new_folder(folder: Path, replaceable: Collection[str] = ()) -> Iterator[Path]:
    """A temporary folder to fill, which becomes `folder` when the block ends; an exception leaves `folder` as it was.

    Args:
        folder: where it is to be.
        replaceable: a folder that holds only files of these names is replaced.

    Raises:
        DataError: when `folder` is a file, or holds anything else.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: this is a file; give the name of a folder to write")
    kept = sorted(path.name for path in folder.iterdir() if path.name not in replaceable) if folder.is_dir() else []
    if kept:
        raise DataError(f"{folder}: this folder holds other files ({kept[0]}), so it is not replaced; give a new name")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        fresh, old = work / "new", work / "old"
        fresh.mkdir()
        yield fresh
        for path in fresh.iterdir():
            _flush(path)
        if folder.exists():
            folder.rename(old)
        try:
            fresh.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
