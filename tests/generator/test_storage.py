"""Files are complete or absent."""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open

from generative_adapter.generator.storage import write_atomically, write_json, write_safetensors


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt(), ValueError("bad")])
def test_an_exception_in_the_middle_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file.json"
    path.write_text("old")

    def write(temporary: Path) -> None:
        assert temporary.parent == path.parent  # a rename is atomic within one folder
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_exception_before_the_first_byte_leaves_no_file(tmp_path: Path) -> None:
    def write(_temporary: Path) -> None:
        raise OSError("read-only")

    with pytest.raises(OSError, match="read-only"):
        write_atomically(tmp_path / "file", write)
    assert list(tmp_path.iterdir()) == []


def test_the_new_file_replaces_the_old_one_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    for text in ("first", "second"):
        write_atomically(path, lambda temporary, text=text: temporary.write_text(text))
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_a_reader_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with path.open() as reader:
        write_atomically(path, lambda temporary: temporary.write_text("new"))
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_json_keeps_every_character(tmp_path: Path) -> None:
    value = {"name": "Zoë “quoted” 漢字", "numbers": [1, 2.5, None, True]}
    write_json(tmp_path / "value.json", value)
    text = (tmp_path / "value.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert "漢字" in text and text.endswith("}\n")


def test_json_that_can_not_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert json.loads(path.read_text()) == {"old": 1}


def test_safetensors_take_views_transposes_and_parameters(tmp_path: Path) -> None:
    """Rows and columns of one storage, in any stride, with or without gradients."""
    whole = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    tensors = {
        "transposed": whole.mT,
        "row": whole[4],
        "column": whole[:, 3],
        "parameter": torch.nn.Parameter(whole[1:3]),
        "half": whole.bfloat16(),
    }
    path = tmp_path / "tensors.safetensors"
    write_safetensors(path, tensors, {"format": "test", "text": "ü"})
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "test", "text": "ü"}
        for name, tensor in tensors.items():
            read = file.get_tensor(name)
            assert read.dtype == tensor.dtype and torch.equal(read, tensor.detach())


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """While open, the operating system refuses to write more to any file, as a full disk would."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_an_error_of_the_operating_system(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    write_safetensors(path, {"a": torch.ones(10)}, {})
    before = path.read_bytes()
    with largest_file(100_000), pytest.raises(OSError) as caught:
        write_safetensors(path, {"a": torch.ones(100_000)}, {})
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(SafetensorError):  # what isn't the system's stays the library's
        write_atomically(path, lambda _: (_ for _ in ()).throw(SafetensorError("no tensor")))
