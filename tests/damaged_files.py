"""Changes to safetensors files that a reader has to notice."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file


def file_metadata(path: Path) -> dict[str, str]:
    """What the file's header says besides its tensors."""
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def resave(path: Path, **changes: str | None) -> None:
    """The same tensors with other metadata; None drops a key."""
    metadata = {**file_metadata(path), **changes}
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    path.unlink()
    save_file(tensors, path, {key: value for key, value in metadata.items() if value is not None})


def cut_off(path: Path, part: float) -> None:
    """Only this part of the file, from its beginning."""
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])


def flip_bit(path: Path, part: float) -> None:
    """One bit of the tensors is another, this far into them."""
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[start + int(part * (len(content) - start))] ^= 16
    path.write_bytes(content)
