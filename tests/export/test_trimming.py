"""Adapters leave the disk, least recently used first, after the servers have let go of them; and are made anew."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from generative_adapter.errors import ConfigError
from generative_adapter.export import adapter_folders
from generative_adapter.export.adapter_folders import AdapterFolders
from generative_adapter.export.memory_store import MemoryStore
from generative_adapter.export.peft import CONFIG_FILE, load_peft
from generative_adapter.export.trimming import TrimReport, stored_adapters, trim_adapters
from generative_adapter.export.vllm_server import VllmServer
from vllm_stand_in import StandIn, stand_in


@pytest.fixture
def folders(model, tmp_path) -> AdapterFolders:
    return AdapterFolders(MemoryStore(tmp_path / "store"), model.checkpoint, tmp_path / "adapters")


@pytest.fixture
def server() -> Iterator[StandIn]:
    with stand_in() as running:
        yield running


def made(folders: AdapterFolders, memory, *names: str) -> list[Path]:
    """Adapters of one memory under several names, each used a second after the one before, the last long ago."""
    paths = []
    for age, name in enumerate(reversed(names)):
        folders.store.put(name, memory)
        path = folders.adapter(name)
        assert path is not None
        used(path, time.time() - 100 - age)
        paths.append(path)
    return paths[::-1]


def used(path: Path, seconds: float) -> None:
    os.utime(path / CONFIG_FILE, (seconds, seconds))


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())


def names(folders: AdapterFolders) -> list[str]:
    return sorted(path.name for path in folders.folder.iterdir())


def test_the_least_recently_used_go_until_the_rest_fits(folders, memory):
    paths = made(folders, memory, "ann", "bo", "carl", "dora")
    one = size(paths[0])
    assert [adapter.memory_id for adapter in stored_adapters(folders.folder)] == ["ann", "bo", "carl", "dora"]
    assert trim_adapters(folders.folder, 4 * one) == TrimReport(0, 0, 0, 4, 4 * one)
    assert trim_adapters(folders.folder, 3 * one - 1) == TrimReport(2, 2 * one, 0, 2, 2 * one)
    assert names(folders) == ["carl", "dora"]
    assert trim_adapters(folders.folder, 0).kept == 0
    assert names(folders) == []


def test_handing_an_adapter_out_marks_it_as_used(folders, memory):
    paths = made(folders, memory, "ann", "bo", "carl")
    assert folders.adapter("ann") == paths[0]
    trim_adapters(folders.folder, size(paths[0]))
    assert names(folders) == ["ann"]


def test_what_a_memory_was_before_goes_first(folders, model, memory):
    made(folders, memory, "ann", "bo")
    (before,) = (folders.folder / "bo").iterdir()
    folders.store.put("bo", memory + model.contextualize("Bo mends pumps."))
    after = folders.adapter("bo")
    assert after is not None and after != before
    used(before, time.time() - 10)  # later than ann's
    trim_adapters(folders.folder, 2 * size(after))
    assert (before.exists(), after.exists(), names(folders)) == (False, True, ["ann", "bo"])


def test_a_trimmed_adapter_is_made_anew_as_it_was(folders, memory):
    (path,) = made(folders, memory, "ann")
    before = load_peft(path)
    trim_adapters(folders.folder, 0)
    assert folders.adapter("ann") == path
    after = load_peft(path)
    assert all((after[name].delta() == before[name].delta()).all() for name in before)


def test_servers_unload_before_and_after(folders, memory, server):
    paths = made(folders, memory, "ann", "bo")
    server.names = {"context:ann", "context:bo", "context:gone"}
    there: list[bool] = []
    server.on_unload = lambda name: there.append(paths[0].exists())
    report = trim_adapters(folders.folder, size(paths[1]), [VllmServer(server.url)], grace_seconds=0)
    assert report.removed == 1
    assert server.asked == ["context:ann", "context:ann"] and there == [True, False]
    assert server.names == {"context:bo", "context:gone"}
    assert not list(folders.folder.glob("*/.*"))


def test_nothing_is_unloaded_where_all_fits(folders, memory, server):
    made(folders, memory, "ann")
    server.unloads = False  # not even asked for
    assert trim_adapters(folders.folder, 10**9, [VllmServer(server.url)]).removed == 0
    assert server.asked == []


def test_what_is_asked_for_meanwhile_stays(folders, memory, server):
    paths = made(folders, memory, "ann", "bo")
    one = size(paths[0])

    def resolve_again(name: str) -> None:
        if name == "context:ann":
            assert folders.adapter("ann") == paths[0]

    server.on_unload = resolve_again
    report = trim_adapters(folders.folder, 0, [VllmServer(server.url)], grace_seconds=0)
    assert report == TrimReport(1, one, 1, 1, one)
    assert names(folders) == ["ann"]
    assert server.asked == ["context:ann", "context:bo", "context:bo"]


def test_the_grace_lies_between_unloading_and_deleting(folders, memory, server):
    (path,) = made(folders, memory, "ann")
    times: list[float] = []
    server.on_unload = lambda name: times.append(time.monotonic())
    trim_adapters(folders.folder, 0, [VllmServer(server.url)], grace_seconds=0.4)
    assert times[1] - times[0] >= 0.4 and not path.exists()
    folders.adapter("ann")
    started = time.monotonic()
    trim_adapters(folders.folder, 0, grace_seconds=60)  # no server, nothing to wait for
    assert time.monotonic() - started < 10


def test_where_a_server_does_not_let_go_nothing_is_deleted(folders, memory, server, tmp_path):
    made(folders, memory, "ann")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ConfigError, match="can't be reached"):
            trim_adapters(folders.folder, 0, [VllmServer(server.url), VllmServer(nobody)], grace_seconds=0)
    server.broken = True
    with pytest.raises(ConfigError, match="answered 500: EngineCore"):
        trim_adapters(folders.folder, 0, [VllmServer(server.url)], grace_seconds=0)
    server.broken, server.unloads = False, False
    with pytest.raises(ConfigError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
        trim_adapters(folders.folder, 0, [VllmServer(server.url)], grace_seconds=0)
    server.unloads, server.key = True, "secret"
    with pytest.raises(ConfigError, match=r"answered 401.*VLLM_API_KEY"):
        trim_adapters(folders.folder, 0, [VllmServer(server.url, "wrong")], grace_seconds=0)
    assert names(folders) == ["ann"] and server.asked == []
    trim_adapters(folders.folder, 0, [VllmServer(f"{server.url}/v1/", "secret")], grace_seconds=0)
    assert names(folders) == []


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "", "http://"])
def test_a_url_that_is_none_is_told(url):
    with pytest.raises(ConfigError, match="no URL of a vLLM server"):
        VllmServer(url)


@pytest.mark.parametrize("numbers", [(-1, 0.0), (0, -1.0)])
def test_negative_numbers_are_refused(tmp_path, numbers):
    with pytest.raises(ConfigError, match="negative"):
        trim_adapters(tmp_path, numbers[0], grace_seconds=numbers[1])


def test_leftovers_of_processes_that_died_go_and_nothing_else(folders, memory):
    (path,) = made(folders, memory, "ann")
    hidden = f".{path.name}"
    old, young = (path.with_name(f"{hidden}.{end}.partial") for end in ("abc", "def"))
    deleted = folders.folder / "bo" / f"{hidden}.{'0' * 32}.trimmed"
    others = [folders.folder / "notes", folders.folder / "carl" / "notes", folders.folder / "dora" / ("0" * 16)]
    for folder in (old, young, deleted, *others):
        (folder / "new").mkdir(parents=True)
        (folder / "new" / "file").write_text("half")
    os.utime(old, (time.time() - 7200,) * 2)
    trim_adapters(folders.folder, 10**9)
    assert (old.exists(), young.exists(), deleted.parent.exists(), path.exists()) == (False, True, False, True)
    trim_adapters(folders.folder, 0)
    assert not path.exists() and young.exists() and all((folder / "new" / "file").exists() for folder in others)


def test_an_adapter_whose_folder_goes_while_it_is_made_is_made_again(folders, memory, monkeypatch):
    (path,) = made(folders, memory, "ann")
    trim_adapters(folders.folder, 0)
    save_peft, failed = adapter_folders.save_peft, []

    def save(*arguments, **settings):
        if not failed:
            failed.append(True)
            raise FileNotFoundError(2, "No such file or directory", str(path.parent))
        return save_peft(*arguments, **settings)

    monkeypatch.setattr(adapter_folders, "save_peft", save)
    assert folders.adapter("ann") == path and load_peft(path)


def test_a_full_disk_is_told(folders, memory, monkeypatch):
    def save(*arguments, **settings):
        raise OSError(28, "No space left on device", "adapter")

    folders.store.put("ann", memory)
    monkeypatch.setattr(adapter_folders, "save_peft", save)
    with pytest.raises(OSError, match="No space left"):
        folders.adapter("ann")


def test_trimming_while_adapters_are_asked_for_leaves_whole_ones(folders, memory):
    """Every folder that comes back is whole, unless it was trimmed after it came back."""
    ids = ["ann", "bo", "carl"]
    made(folders, memory, *ids)
    ended, errors = threading.Event(), []

    def trim() -> None:
        try:
            while not ended.is_set():
                trim_adapters(folders.folder, 0)
        except Exception as error:  # shown by the assertion below
            errors.append(error)

    trimmer = threading.Thread(target=trim)
    trimmer.start()
    try:
        for number in range(60):
            assert folders.adapter(ids[number % 3]) is not None
    finally:
        ended.set()
        trimmer.join()
    assert errors == []
    for name in ids:
        path = folders.adapter(name)
        assert path is not None and load_peft(path)
    assert not list(folders.folder.glob("*/.*"))
