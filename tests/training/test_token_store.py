"""Token stores against plain lists: read back, limits, interruption at any record, damage."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from generative_adapter.errors import DataError
from generative_adapter.training.token_store import EncodedRecord, TokenStore, fill_store, is_complete

IDENTITY = {"files": ["a"], "version": 1}


def some_records(count: int, largest: int = 60_000) -> list[EncodedRecord]:
    rng = random.Random(4)
    records = []
    for number in range(count):
        parts = [[rng.randint(0, largest) for _ in range(rng.randint(1, 9))] for _ in range(rng.randint(1, 5))]
        records.append(EncodedRecord(2 * number + 3, rng.getrandbits(32), parts))  # a row in two makes a record
    return records


def after(records: list[EncodedRecord], skip: int) -> Iterator[EncodedRecord]:
    return (record for record in records if record.row > skip)


def read_all(folder: Path) -> list[list[list[int]]]:
    store = TokenStore(folder)
    return [store.parts(number) for number in range(len(store))]


@pytest.mark.parametrize(("largest", "kind"), [(255, np.uint8), (60_000, np.uint16), (70_000, np.int32)])
def test_what_is_read_is_what_was_written(tmp_path: Path, largest: int, kind: type) -> None:
    records = some_records(40, largest)
    fill_store(tmp_path, IDENTITY, lambda skip: after(records, skip), shard_tokens=70)
    assert len(list(tmp_path.glob("shard-*.safetensors"))) > 5
    store = TokenStore(tmp_path)
    assert read_all(tmp_path) == [record.parts for record in records]
    assert store.digests.tolist() == [record.digest for record in records]
    assert store.lengths.tolist() == [len(record.parts[0]) for record in records]
    assert store.num_tokens == sum(len(part) for record in records for part in record.parts)
    for number, record in enumerate(records):
        assert store.tokens(number) == record.parts[0]
        assert store.tokens(number, 1, 4) == record.parts[0][1:4]
        assert store.tokens(number, 0, 99) == record.parts[0]
        assert store.tokens(number, 99, 120) == []
    assert {file.get_tensor("ids").dtype for file in store._files} == {np.dtype(kind)}


def test_limits(tmp_path: Path) -> None:
    records = some_records(20)
    told: list[tuple[int, int]] = []
    fill_store(
        tmp_path / "records",
        IDENTITY,
        lambda skip: after(records, skip),
        max_records=7,
        progress=lambda *done: told.append(done),
    )
    assert read_all(tmp_path / "records") == [record.parts for record in records[:7]]
    assert told[-1] == (7, TokenStore(tmp_path / "records").num_tokens) and len(told) == 7
    fill_store(tmp_path / "tokens", IDENTITY, lambda skip: after(records, skip), max_tokens=50)
    sizes = np.cumsum([sum(map(len, record.parts)) for record in records])
    assert len(TokenStore(tmp_path / "tokens")) == int((sizes < 50).sum()) + 1
    fill_store(tmp_path / "none", IDENTITY, lambda skip: iter(()))
    assert is_complete(tmp_path / "none") and len(TokenStore(tmp_path / "none")) == 0


@pytest.mark.parametrize("fails_at", range(0, 17, 3))
def test_filling_goes_on_after_an_interruption(tmp_path: Path, fails_at: int) -> None:
    records = some_records(20)
    fill_store(tmp_path / "whole", IDENTITY, lambda skip: after(records, skip), shard_tokens=40, max_records=18)
    asked: list[int] = []

    def breaking(skip: int) -> Iterator[EncodedRecord]:
        asked.append(skip)
        for number, record in enumerate(after(records, skip)):
            if len(asked) < 3 and number == fails_at:
                raise OSError("no space left on device")
            yield record

    folder = tmp_path / "broken"
    for _ in range(2):
        try:
            fill_store(folder, IDENTITY, breaking, shard_tokens=40, max_records=18)
        except OSError:
            assert not (folder / "store.json").exists() or not is_complete(folder)
    fill_store(folder, IDENTITY, breaking, shard_tokens=40, max_records=18)
    assert read_all(folder) == read_all(tmp_path / "whole")
    assert asked[0] == 0 and asked == sorted(asked)
    if fails_at > 9:
        assert asked[-1] > 0  # the shards before weren't made again
    fill_store(folder, IDENTITY, lambda skip: pytest.fail("a complete store is left alone"))


def test_other_data_and_damage_are_told(tmp_path: Path) -> None:
    records = some_records(5)
    with pytest.raises(DataError, match="can't be read"):
        TokenStore(tmp_path)
    fill_store(tmp_path, IDENTITY, lambda skip: after(records, skip))
    with pytest.raises(DataError, match="holds tokens of other data"):
        fill_store(tmp_path, {**IDENTITY, "version": 2}, lambda skip: after(records, skip))
    shard = next(tmp_path.glob("shard-*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"can't be read .* remove it"):
        TokenStore(tmp_path)
    shard.write_bytes(whole)
    index = json.loads((tmp_path / "store.json").read_text())
    index["shards"][0]["num_records"] = 4
    (tmp_path / "store.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"isn't what store\.json tells of"):
        TokenStore(tmp_path)
    (tmp_path / "store.json").write_text(json.dumps({**index, "complete": False}))
    with pytest.raises(DataError, match="genadapter prepare"):
        TokenStore(tmp_path)
    (tmp_path / "store.json").write_text("{")
    with pytest.raises(DataError, match="is made again"):
        is_complete(tmp_path)
