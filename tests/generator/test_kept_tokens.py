"""Memories that keep a row for every token: arithmetic, files, and everything that must be refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from damaged_files import cut_off, file_metadata, flip_bit, resave
from generative_adapter.config import MEMORY_DTYPES, TargetShape
from generative_adapter.errors import CheckpointError, ConfigError, DataError, FingerprintMismatchError
from generative_adapter.generator.memory import ContextMemory, DocumentEntry, text_digest
from generative_adapter.generator.memory_file import stored_dtype
from generative_adapter.generator.memory_form import pack_rows, rows_layout, unpack_rows
from row_keeper import RowKeeper

WIDTH, OTHER_WIDTH = 13, 3
SIZES = {"a": 17, "b": 5, "c": 11, "d": 1}  # tokens of each document
BFLOAT16_ERROR = 2.0**-8


def entry(text: str, *, read_after: int = 0) -> DocumentEntry:
    return DocumentEntry(f"{text}.txt", text_digest(text), SIZES[text], 2, read_after)


def memory(*texts: str, read_after: int = 0) -> ContextMemory:
    """Two states; the rows of a text are always the same ones."""
    states: dict[str, Tensor] = {}
    for name, width in (("memory", WIDTH), ("z.other", OTHER_WIDTH)):
        rows = [
            torch.randn(SIZES[text], width, generator=torch.Generator().manual_seed(ord(text) + width))
            for text in texts
        ]
        states[name] = torch.cat([torch.zeros(0, width), *rows])
    documents = tuple(entry(text, read_after=read_after if at else 0) for at, text in enumerate(texts))
    return ContextMemory(states, "generator-1", "base-1", "base/name", documents, keeps_tokens=True)


def sums() -> ContextMemory:
    states = {"memory": torch.randn(WIDTH, WIDTH, dtype=torch.float64)}
    return ContextMemory(states, "generator-1", "base-1", "base/name", (entry("a"),))


def same(one: ContextMemory, other: ContextMemory) -> bool:
    """Bit for bit, with the same documents in the same order."""
    return (
        list(one.states) == list(other.states)
        and all(torch.equal(state, other.states[name]) for name, state in one.states.items())
        and one.documents == other.documents
        and one.keeps_tokens == other.keeps_tokens
    )


# ------------------------------------------------------------------------------------------- what `write` has read


KEEPER = RowKeeper([TargetShape("layers.0.x", 0, 7, 11)], 11)


def test_rows_of_real_tokens_are_taken_in_chunk_after_chunk() -> None:
    rows = torch.randn(3, 5, WIDTH)
    mask = torch.arange(5) < torch.tensor([[2], [5], [3]])
    taken = KEEPER.taken_in({"x": rows}, mask)["x"]
    assert torch.equal(taken, torch.cat([rows[0, :2], rows[1], rows[2, :3]]))
    assert torch.equal(KEEPER.taken_in({"x": rows}, None)["x"], torch.cat(list(rows)))
    short = KEEPER.taken_in({"x": rows.bfloat16(), "y": rows[:, :, :1]}, mask.long())
    assert {name: (each.dtype, each.shape) for name, each in short.items()} == {
        "x": (torch.float32, (10, WIDTH)),
        "y": (torch.float32, (10, 1)),
    }


def test_sums_are_added_in_float64() -> None:
    class Adder(RowKeeper):
        keeps_tokens = False  # type: ignore[assignment]

    increments = torch.tensor([2.0**30, 1.0, -(2.0**30)]).reshape(3, 1, 1).expand(3, 2, 5)
    taken = Adder(KEEPER.targets, 11).taken_in({"x": increments}, torch.ones(3, 2))["x"]
    assert taken.dtype == torch.float64 and torch.equal(taken, torch.ones(2, 5).double())


# --------------------------------------------------------------------------------------------------------- arithmetic


def test_rows_stand_in_the_order_of_the_documents() -> None:
    both = memory("a", "b") + memory("c")
    assert same(both, memory("a", "b", "c")) and not same(memory("c") + memory("a", "b"), both)
    assert both.states["memory"].shape == (33, WIDTH) and both.num_tokens == 33
    assert torch.equal(both.states["memory"][17:22], memory("b").states["memory"])
    assert both.num_bytes == 33 * (WIDTH + OTHER_WIDTH) * 4
    assert same(memory() + memory("a"), memory("a")) and same(memory("a") + memory(), memory("a"))


def test_accumulating_puts_rows_below_and_leaves_the_old_memory_alone() -> None:
    one = memory("a")
    before = {name: state.clone() for name, state in one.states.items()}
    rows = {name: state.double() for name, state in memory("b").states.items()}
    both = one.accumulate(rows, (entry("a"), entry("b")))
    assert same(both, memory("a", "b")) and both.states["memory"].dtype == torch.float32
    assert all(torch.equal(state, before[name]) for name, state in one.states.items())


@pytest.mark.parametrize("text", "abcd")
def test_forgetting_is_never_having_read_bit_for_bit(text: str) -> None:
    left = memory(*"abcd") - memory(text)
    assert same(left, memory(*"abcd".replace(text, "")))
    assert left.states["memory"].untyped_storage().nbytes() == left.num_tokens * WIDTH * 4  # what is forgotten is gone


def test_several_documents_are_forgotten_together_and_all_leave_nothing() -> None:
    assert same(memory(*"abcd") - memory(*"cad"), memory("b"))
    nothing = memory(*"ab") - memory("b") - memory("a")
    assert same(nothing, memory()) and nothing.num_bytes == 0


def test_of_a_document_read_twice_the_later_reading_is_forgotten() -> None:
    assert same(memory(*"abac") - memory("a"), memory(*"abc"))
    with pytest.raises(DataError, match=r"does not hold 'a.txt', so it can't be forgotten; it holds 'b.txt'"):
        memory(*"ab") - memory("a") - memory("a")
    with pytest.raises(DataError, match="it holds nothing"):
        memory() - memory("a")


def test_a_stream_is_not_taken_apart_but_what_stands_beside_it() -> None:
    stream = memory(*"ab", read_after=1)
    for text in "ab":
        with pytest.raises(DataError, match=f"'{text}.txt' can't be forgotten: it was read as part of a stream"):
            stream - memory(text)
    assert same(memory("c") + stream - memory("c"), stream)
    assert same(stream + memory("a") - memory("a"), stream)


def test_forgetting_needs_a_row_for_every_token() -> None:
    whole = memory(*"abc")
    cut = replace(whole, states={name: state[:-1] for name, state in whole.states.items()})
    with pytest.raises(DataError, match=r"'memory' has 32 rows, but its documents should have 33"):
        cut - memory("b")


def test_the_two_kinds_do_not_go_together() -> None:
    for one, other in ((memory("a"), sums()), (sums(), memory("a"))):
        for operation in (lambda x, y: x + y, lambda x, y: x - y):
            with pytest.raises(
                FingerprintMismatchError, match=r"one .* keeps a row for every token and one holds sums"
            ):
                operation(one, other)
    with pytest.raises(FingerprintMismatchError, match="written by generator generator-2"):
        memory("a") + replace(memory("a"), generator_fingerprint="generator-2")


# -------------------------------------------------------------------------------------------------------------- forms


@pytest.mark.parametrize("dtype", MEMORY_DTYPES)
@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (30, 13), (3, 7)])
def test_the_layout_is_what_is_packed(dtype: str, shape: tuple[int, int]) -> None:
    packed = pack_rows(torch.ones(shape), dtype)
    assert rows_layout(shape, dtype) == {name: (part.dtype, tuple(part.shape)) for name, part in packed.items()}
    assert torch.equal(unpack_rows(packed), torch.ones(shape))


def test_rows_are_rounded_within_their_closed_form() -> None:
    width = 70
    rows = torch.randn(97, width, generator=torch.Generator().manual_seed(2))
    rows[3] *= 1e6  # a row of its own scale
    rows[:, 32:64] *= 1e-4  # a part of its own scale
    rows[4] = 0.0
    assert torch.equal(unpack_rows(pack_rows(rows, "float64")), rows)
    assert torch.equal(unpack_rows(pack_rows(rows, "bfloat16")), rows.bfloat16().float())
    packed = pack_rows(rows, "int8")
    steps, scale = packed["rows"].tolist(), packed["rows_scale"].tolist()
    read = unpack_rows(packed)
    for i in range(len(rows)):
        for j in range(width):
            group = j // 32
            largest = rows[i, 32 * group : 32 * group + 32].abs().max().item()
            assert scale[i][group] == pytest.approx(largest / 127, rel=1e-6, abs=1e-30)
            assert read[i, j].item() == pytest.approx(steps[i][j] * scale[i][group], rel=1e-6)
            assert abs(read[i, j].item() - rows[i, j].item()) <= largest / 254 * (1 + 1e-4)
    assert read.dtype == torch.float32


@pytest.mark.parametrize(("dtype", "value"), [("bfloat16", 3.4e38), ("bfloat16", float("nan")), ("int8", float("inf"))])
def test_rows_that_a_form_cannot_hold_are_refused(dtype: str, value: float, tmp_path: Path) -> None:
    awkward = memory("a")
    awkward.states["memory"][2, 5] = value
    with pytest.raises(DataError, match=f"{dtype} can't hold.*store it as float64"):
        awkward.save(tmp_path / "memory", dtype)
    assert not (tmp_path / "memory").exists()


# -------------------------------------------------------------------------------------------------------------- files


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "memory.safetensors"
    memory(*"abc").save(path)
    return path


@pytest.mark.parametrize("dtype", MEMORY_DTYPES)
@pytest.mark.parametrize("texts", ["", "a", "abc"])
def test_a_memory_of_any_form_and_size_comes_back(tmp_path: Path, dtype: str, texts: str) -> None:
    path = tmp_path / "deep" / "memory.safetensors"
    written = memory(*texts)
    written.save(path, dtype)
    read = ContextMemory.load(path, "generator-1")
    expected = {name: unpack_rows(pack_rows(state, dtype)) for name, state in written.states.items()}
    assert same(read, replace(written, states=expected)) and stored_dtype(path) == dtype
    assert {state.dtype for state in read.states.values()} == {torch.float32}
    assert (read.generator_fingerprint, read.base_fingerprint, read.base_name) == ("generator-1", "base-1", "base/name")
    assert dtype != "float64" or same(read, written)


@pytest.mark.parametrize("dtype", MEMORY_DTYPES)
def test_forgetting_over_a_file_is_exact_in_every_form(tmp_path: Path, dtype: str) -> None:
    memory(*"abc").save(tmp_path / "all", dtype)
    memory(*"ac").save(tmp_path / "never", dtype)
    left = ContextMemory.load(tmp_path / "all") - memory("b")
    assert same(left, ContextMemory.load(tmp_path / "never"))
    left.save(tmp_path / "left", dtype)
    assert same(ContextMemory.load(tmp_path / "left"), ContextMemory.load(tmp_path / "never"))


@pytest.mark.parametrize(("dtype", "token_bytes"), [("float64", 4 * 16), ("bfloat16", 2 * 16), ("int8", 16 + 8)])
def test_a_file_has_so_many_bytes_a_token(tmp_path: Path, dtype: str, token_bytes: int) -> None:
    memory(*"abc").save(tmp_path / "memory", dtype)
    content = (tmp_path / "memory").read_bytes()
    assert len(content) == 8 + int.from_bytes(content[:8], "little") + 33 * token_bytes


def test_the_default_form_is_that_of_the_kind(tmp_path: Path, saved: Path) -> None:
    assert (memory("a").default_dtype, sums().default_dtype) == ("bfloat16", "float64")
    sums().save(tmp_path / "sums")
    assert (stored_dtype(saved), stored_dtype(tmp_path / "sums")) == ("bfloat16", "float64")
    with pytest.raises(ConfigError, match="stored as float64, bfloat16 or int8, not as 'float32'"):
        memory("a").save(saved, "float32")


def test_only_this_kind_is_of_version_3(tmp_path: Path, saved: Path) -> None:
    sums().save(tmp_path / "sums")
    assert (file_metadata(saved)["version"], file_metadata(saved)["keeps_tokens"]) == ("3", "true")
    assert file_metadata(tmp_path / "sums")["version"] == "2" and "keeps_tokens" not in file_metadata(tmp_path / "sums")
    assert not ContextMemory.load(tmp_path / "sums").keeps_tokens
    resave(tmp_path / "sums", version="3")
    with pytest.raises(CheckpointError, match="version 3 and keeps_tokens false, which don't go together"):
        ContextMemory.load(tmp_path / "sums")


@pytest.mark.parametrize("dtype", MEMORY_DTYPES)
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_one_flipped_bit_in_the_tensors_is_found(tmp_path: Path, dtype: str, part: float) -> None:
    path = tmp_path / "memory.safetensors"
    memory(*"abc").save(path, dtype)
    flip_bit(path, part)
    with pytest.raises(CheckpointError, match="can't be read as a memory: its checksum is another"):
        ContextMemory.load(path)


@pytest.mark.parametrize("part", [0.0, 0.1, 0.6, 0.999])
def test_a_cut_off_file_is_refused(saved: Path, part: float) -> None:
    cut_off(saved, part)
    with pytest.raises(CheckpointError, match="can't be read as a memory"):
        ContextMemory.load(saved)


def documents(*sizes: int) -> str:
    return json.dumps([{"name": "x", "sha256": "0", "num_tokens": size, "num_chunks": 1} for size in sizes])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float16"}, "stored as 'float16', expected one of float64, bfloat16, int8"),
        ({"dtype": "int8"}, "don't match its header: memory.rows, memory.rows_scale, z.other.rows"),
        ({"shapes": json.dumps({"memory": [33, 13], "z.other": [32, 3]})}, "don't match its header: z.other.rows"),
        ({"shapes": json.dumps({"memory": [33, 13]})}, "don't match its header: z.other.rows"),
        ({"version": "2"}, "version 2 and keeps_tokens true, which don't go together"),
        ({"version": "1"}, "version 1 and keeps_tokens true, which don't go together"),
        ({"version": "4"}, "is a memory of version 4, this release reads 1 to 3"),
        ({"version": "2", "keeps_tokens": None}, "don't match its header"),
        ({"keeps_tokens": None}, "don't go together"),
        ({"checksum": "00000000"}, "its checksum is another"),
        ({"documents": documents(17, 5)}, "'memory' has 33 rows, but its documents should have 22"),
        ({"documents": "[]"}, "'memory' has 33 rows, but its documents should have 0"),
        ({"documents": "{"}, "can't be read as a memory"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(saved: Path, change: dict[str, str | None], message: str) -> None:
    resave(saved, **change)
    with pytest.raises(CheckpointError, match=message):
        ContextMemory.load(saved)


def test_a_memory_whose_rows_do_not_fit_is_not_written(saved: Path) -> None:
    old = saved.read_bytes()
    with pytest.raises(DataError, match=r"'memory' has 33 rows, but its documents should have 22"):
        replace(memory(*"abc"), documents=memory(*"ab").documents).save(saved)
    assert saved.read_bytes() == old
