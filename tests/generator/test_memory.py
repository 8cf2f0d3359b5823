"""Memories: arithmetic, files, and everything that must be refused."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from damaged_files import cut_off, file_metadata, flip_bit, resave
from generative_adapter.config import MEMORY_DTYPES
from generative_adapter.errors import CheckpointError, ConfigError, DataError, FingerprintMismatchError
from generative_adapter.generator import storage
from generative_adapter.generator.memory import ContextMemory, DocumentEntry, text_digest
from generative_adapter.generator.memory_file import MEMORY_FORMAT, stored_dtype

STATE = 11
NAMES = ("layers.0.o_proj", "layers.5.down_proj")


def entry(text: str, *, read_after: int = 0, num_tokens: int = 13) -> DocumentEntry:
    return DocumentEntry(f"{text}.txt", text_digest(text), num_tokens, 2, read_after)


def memory(*texts: str, seed: int = 0, scale: float = 1.0, entries: tuple[DocumentEntry, ...] = ()) -> ContextMemory:
    """A memory with random states that holds one document a text, none of them streamed unless `entries` say so."""
    generator = torch.Generator().manual_seed(seed)
    states = {name: scale * torch.randn(STATE, STATE, generator=generator) for name in NAMES}
    return ContextMemory(states, "generator-1", "base-1", "base/name", entries or tuple(map(entry, texts)))


def assert_states_close(one: ContextMemory, other: ContextMemory, atol: float = 1e-5) -> None:
    assert list(one.states) == list(other.states)
    for name in one.states:
        torch.testing.assert_close(one.states[name], other.states[name], atol=atol, rtol=0)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int64)


# --------------------------------------------------------------------------------------------------------- arithmetic


def test_memories_add_state_by_state() -> None:
    a, b = memory("a", seed=1), memory("b", "c", seed=2)
    both = a + b
    for name in NAMES:
        assert torch.equal(both.states[name], a.states[name] + b.states[name])
        assert torch.equal((b + a).states[name], both.states[name])
    assert [document.name for document in both.documents] == ["a.txt", "b.txt", "c.txt"]
    assert (both.num_tokens, both.num_chunks) == (39, 6)
    assert [document.name for document in a.documents] == ["a.txt"]  # the operands are what they were


def test_subtracting_a_document_is_never_having_read_it() -> None:
    a, b, c = memory("a", seed=1), memory("b", seed=2, scale=30.0), memory("c", seed=3)
    left = a + b + c - b
    assert_states_close(left, a + c)
    assert left.documents == (a + c).documents


def test_forgetting_the_last_document_leaves_exactly_nothing() -> None:
    a, b = memory("a", seed=1), memory("b", seed=2, scale=1e4)
    nothing = a + b - b - a
    assert nothing.documents == () and nothing.num_tokens == 0
    assert all(torch.equal(state, torch.zeros(STATE, STATE)) for state in nothing.states.values())


def test_a_document_read_twice_is_forgotten_once_at_a_time() -> None:
    a, b = memory("a", seed=1), memory("b", seed=2)
    once = a + b + a - a
    assert_states_close(once, a + b)
    assert sorted(document.name for document in once.documents) == ["a.txt", "b.txt"]
    never = once - a
    assert_states_close(never, b)
    with pytest.raises(DataError, match=r"does not hold 'a.txt', so it can't be forgotten; it holds 'b.txt'"):
        never - a


def test_several_documents_are_forgotten_together() -> None:
    a, b, c = (memory(text, seed=seed) for seed, text in enumerate("abc"))
    assert_states_close((a + b + c) - (c + a), b)
    with pytest.raises(DataError, match=r"does not hold 'a.txt'"):
        (a + b) - (a + a)


def test_nothing_can_be_forgotten_from_an_empty_memory() -> None:
    with pytest.raises(DataError, match="it holds nothing"):
        memory() - memory("a")


def test_documents_are_told_by_their_text_not_by_their_name() -> None:
    a = memory("a", seed=1)
    renamed = replace(a, documents=(replace(a.documents[0], name="other.txt"),))
    assert (a - renamed).documents == ()
    other_text = replace(a, documents=(replace(a.documents[0], sha256=text_digest("b")),))
    with pytest.raises(DataError, match="does not hold"):
        a - other_text


STREAM = (entry("a"), entry("b", read_after=1))


@pytest.mark.parametrize("text", ["a", "b"])
def test_a_stream_is_not_taken_apart(text: str) -> None:
    """What came later was read under the influence of what came before, so neither can be told from the rest."""
    with pytest.raises(DataError, match=f"'{text}.txt' can't be forgotten: it was read as part of a stream"):
        memory(entries=STREAM) - memory(text)


@pytest.mark.parametrize("first", [True, False])
def test_a_document_beside_a_stream_can_be_forgotten(first: bool) -> None:
    stream, apart = memory(entries=STREAM, seed=1), memory("c", seed=2)
    left = (apart + stream if first else stream + apart) - apart
    assert_states_close(left, stream)
    assert left.documents == STREAM


def test_only_what_a_stream_saw_is_held_by_it() -> None:
    """c and d apart, b after a, and a second reading of a after the stream: b saw one document, c and d none."""
    entries = (entry("c"), entry("d"), *STREAM, entry("a"))
    held = memory(entries=entries)
    assert (held - memory("c") - memory("d")).documents == (*STREAM, entry("a"))
    assert (held - memory("a") - memory("c")).documents == (entry("d"), *STREAM)
    with pytest.raises(DataError, match=r"'a.txt' can't be forgotten"):
        held - memory("a") - memory("a")
    seen_by_all = (entry("c"), entry("d"), entry("b", read_after=2))
    with pytest.raises(DataError, match=r"'c.txt' can't be forgotten"):
        memory(entries=seen_by_all) - memory("c")


def test_the_copy_of_a_streamed_document_that_was_read_apart_can_be_forgotten() -> None:
    stream, apart = memory(entries=STREAM, seed=1), memory("a", seed=2)
    left = stream + apart - apart
    assert_states_close(left, stream)
    assert left.documents == STREAM


def test_a_streamed_reading_is_not_subtracted_from_separate_ones() -> None:
    """b's states in the stream are not those of b read on its own, so the difference would be noise."""
    with pytest.raises(DataError, match=r"'b.txt' can't be forgotten"):
        memory("a", "b", "c") - memory(entries=STREAM)


def test_only_memories_of_one_generator_and_base_go_together() -> None:
    a = memory("a")
    stranger = replace(a, generator_fingerprint="generator-2")
    other_base = replace(a, base_fingerprint="base-2", base_name="other/base")
    for operation in (lambda x, y: x + y, lambda x, y: x - y):
        with pytest.raises(FingerprintMismatchError, match="written by generator generator-2, not by generator-1"):
            operation(a, stranger)
        with pytest.raises(FingerprintMismatchError, match=r"two base models .*base/name base-1, other/base base-2"):
            operation(a, other_base)


def test_accumulate_is_equation_three_and_its_size_is_constant() -> None:
    one = memory()
    increments = [memory(seed=seed).states for seed in range(1, 41)]
    many = one
    for number, increment in enumerate(increments, start=1):
        many = many.accumulate(increment, (DocumentEntry("a", "0", 1024 * number, number),))
    for name in NAMES:
        expected = one.states[name].double() + sum(increment[name].double() for increment in increments)
        torch.testing.assert_close(many.states[name].double(), expected, atol=1e-4, rtol=0)
    assert one.num_chunks == 0 and (many.num_chunks, many.num_tokens) == (40, 40 * 1024)
    assert one.num_bytes == many.num_bytes == 2 * STATE * STATE * 4


def test_documents_are_digested_as_utf8() -> None:
    assert text_digest("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert text_digest("ä") != text_digest("a") and len(text_digest("\ud800")) == 64


# -------------------------------------------------------------------------------------------------------------- files


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "memory.safetensors"
    memory("a", "b", seed=4).save(path)
    return path


def test_a_saved_memory_comes_back_bit_for_bit(tmp_path: Path) -> None:
    written = memory(entries=(DocumentEntry("Über „uns“.txt", "f0" * 32, 7, 1), *STREAM), seed=7)
    awkward = torch.tensor([-0.0, 1e-45, -3e38, 1 / 3, 1.0000001])
    written.states[NAMES[0]][2, :5] = awkward
    path = tmp_path / "deep" / "memory.safetensors"
    written.save(path)
    read = ContextMemory.load(path, expected_generator="generator-1")
    assert set(read.states) == set(NAMES)
    for name in NAMES:
        assert read.states[name].dtype == torch.float64
        assert torch.equal(bits(read.states[name]), bits(written.states[name].double()))
    assert read.documents == written.documents
    assert (read.generator_fingerprint, read.base_fingerprint, read.base_name) == ("generator-1", "base-1", "base/name")
    assert [file.name for file in path.parent.iterdir()] == ["memory.safetensors"]


def test_a_loaded_memory_outlives_its_file(saved: Path) -> None:
    read = ContextMemory.load(saved)
    before = {name: state.clone() for name, state in read.states.items()}
    memory("z", seed=9).save(saved)
    saved.unlink()
    assert all(torch.equal(read.states[name], before[name]) for name in NAMES)


def test_the_size_of_a_file_does_not_depend_on_what_was_read(tmp_path: Path) -> None:
    sizes = set()
    for num_tokens in (1, 9):
        path = tmp_path / f"{num_tokens}.safetensors"
        memory(entries=(entry("a", num_tokens=num_tokens),), seed=num_tokens).save(path)
        sizes.add(path.stat().st_size)
    assert len(sizes) == 1


def test_the_memory_of_another_generator_is_refused(saved: Path) -> None:
    with pytest.raises(FingerprintMismatchError, match=r"memory.safetensors was written by generator generator-1"):
        ContextMemory.load(saved, expected_generator="generator-2")
    read = ContextMemory.load(saved)
    read.check_generator("generator-1")
    with pytest.raises(FingerprintMismatchError, match="load that generator, or read the context again"):
        read.check_generator("generator-2")


def test_a_missing_file_names_the_remedy(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match=r"no memory file at .*genadapter contextualize"):
            ContextMemory.load(path)


@pytest.mark.parametrize("part", [0.0, 0.001, 0.1, 0.6, 0.999])
def test_a_cut_off_file_is_refused(saved: Path, part: float) -> None:
    cut_off(saved, part)
    with pytest.raises(CheckpointError, match="can't be read as a memory"):
        ContextMemory.load(saved)


@pytest.mark.parametrize(
    "content", [b"A text, not a memory.", b"\xff" * 64, b'{"format": "json"}', b"PK\x03\x04" + bytes(99)]
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="can't be read as a memory"):
        ContextMemory.load(path)


@pytest.mark.parametrize(
    "metadata", [None, {"format": "pt"}, {"format": "generative-adapter-generator", "version": "1"}]
)
def test_other_safetensors_are_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(3, 5)}, path, metadata)
    with pytest.raises(CheckpointError, match="is not a memory: its format is"):
        ContextMemory.load(path)


def test_a_version_from_the_future_is_refused(saved: Path) -> None:
    resave(saved, version="4")
    with pytest.raises(CheckpointError, match="is a memory of version 4, this release reads 1 to 3"):
        ContextMemory.load(saved)


def save_as_version_1(path: Path, written: ContextMemory) -> None:
    """The file that releases before version 2 wrote: the states as they are, under their own names."""
    metadata = {
        "format": "generative-adapter-memory",
        "version": "1",
        "generator_fingerprint": written.generator_fingerprint,
        "base_fingerprint": written.base_fingerprint,
        "base_name": written.base_name,
        "documents": json.dumps([asdict(document) for document in written.documents]),
    }
    save_file({name: state.contiguous() for name, state in written.states.items()}, path, metadata)


def test_a_file_of_version_1_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    written = memory("a", "b", seed=3)
    keys = torch.randn(STATE, 29, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    written.states[NAMES[0]] = torch.cat([written.states[NAMES[0]].double(), keys @ keys.mT])
    save_as_version_1(path, written)
    read = ContextMemory.load(path, "generator-1")
    assert read.documents == written.documents
    for name in NAMES:
        assert read.states[name].dtype == torch.float64
        torch.testing.assert_close(read.states[name], written.states[name].double(), rtol=1e-15, atol=1e-14)
    assert torch.equal(read.states[NAMES[0]][STATE:], read.states[NAMES[0]][STATE:].mT)
    assert stored_dtype(path) == "float64"
    read.save(path, "bfloat16")
    assert stored_dtype(path) == "bfloat16"


@pytest.mark.parametrize("dtype", MEMORY_DTYPES)
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_one_flipped_bit_in_the_tensors_is_found(tmp_path: Path, dtype: str, part: float) -> None:
    path = tmp_path / "memory.safetensors"
    memory("a", seed=4).save(path, dtype)
    flip_bit(path, part)
    with pytest.raises(CheckpointError, match="can't be read as a memory: its checksum is another"):
        ContextMemory.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float16"}, "stored as 'float16', expected one of float64, bfloat16, int8"),
        ({"dtype": "int8"}, "don't match its header"),
        ({"dtype": None}, "dtype"),
        ({"shapes": None}, "shapes"),
        ({"shapes": "[3]"}, "can't be read as a memory"),
        ({"shapes": json.dumps({name: [11, 13] for name in NAMES})}, "don't match its header: layers.0.o_proj.values"),
        ({"shapes": json.dumps({NAMES[0]: [11, 11]})}, "don't match its header: layers.5.down_proj.values"),
        ({"shapes": json.dumps({name: [11, 11] for name in (*NAMES, "x")})}, "don't match its header: x.values"),
        ({"shapes": json.dumps({name: [22, 11] for name in NAMES})}, "don't match its header: layers.0.o_proj.keys"),
    ],
)
def test_a_header_that_does_not_fit_the_tensors_is_refused(
    saved: Path, change: dict[str, str | None], message: str
) -> None:
    resave(saved, **change)
    with pytest.raises(CheckpointError, match=message):
        ContextMemory.load(saved)


def test_an_unknown_form_names_the_choices(saved: Path) -> None:
    old = saved.read_bytes()
    with pytest.raises(ConfigError, match="stored as float64, bfloat16 or int8, not as 'fp8'"):
        memory("a").save(saved, "fp8")
    assert saved.read_bytes() == old


@pytest.mark.parametrize(
    "documents", [None, "", "{", "null", "[3]", '["a"]', '[{"name": "a"}]', json.dumps([{"unknown": 1}])]
)
def test_a_damaged_list_of_documents_is_refused(saved: Path, documents: str | None) -> None:
    resave(saved, documents=documents)
    with pytest.raises(CheckpointError, match="can't be read as a memory"):
        ContextMemory.load(saved)


@pytest.mark.parametrize("key", ["generator_fingerprint", "base_fingerprint", "base_name"])
def test_missing_metadata_is_refused(saved: Path, key: str) -> None:
    resave(saved, **{key: None})
    with pytest.raises(CheckpointError, match=key):
        ContextMemory.load(saved)


def test_the_file_says_what_it_is(saved: Path) -> None:
    assert file_metadata(saved)["format"] == MEMORY_FORMAT
    assert [item["name"] for item in json.loads(file_metadata(saved)["documents"])] == ["a.txt", "b.txt"]


def test_a_failed_save_leaves_the_old_memory(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = saved.read_bytes()

    def fail_halfway(_tensors: object, path: Path, _metadata: object) -> None:
        path.write_bytes(b"half a memory")
        raise OSError("no space left on device")

    monkeypatch.setattr(storage, "save_file", fail_halfway)
    with pytest.raises(OSError, match="no space left"):
        memory("z", seed=9).save(saved)
    assert saved.read_bytes() == old
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]
