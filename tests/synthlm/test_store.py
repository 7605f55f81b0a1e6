"""The store: whole entries or none, damage seen and set aside, failures apart, safe when shared."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fake_jobs import FakeJob, write_entry

from synthlm.config import InputError
from synthlm.store import STALE_SECONDS, MissingEntry, Record, Store


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, warnings: list[str]) -> Store:
    return Store(tmp_path / "store", warn=warnings.append)


def add(store: Store, name: str) -> FakeJob:
    job = FakeJob(name=name)
    store.commit(job.key, write_entry(store, job, os.urandom(64)))
    return job


def test_an_entry_comes_back_as_it_was_written(store: Store) -> None:
    job = add(store, "one")
    record = store.load(job.key)
    assert record.config == json.loads(job.model_dump_json())
    assert record.manifest["status"] == "done"
    assert record.metrics["loss"] == [2.0, 1.0]
    assert store.has(job.key)
    assert store.keys() == {job.key}
    assert store.folder(job.key) == store.root / "jobs" / job.key[:2] / job.key


def test_done_json_holds_size_and_sha256_of_every_file(store: Store) -> None:
    folder = store.folder(add(store, "one").key)
    files = json.loads((folder / "done.json").read_text())["files"]
    assert set(files) == {"config.json", "manifest.json", "metrics.json", "final.safetensors"}
    for name, facts in files.items():
        data = (folder / name).read_bytes()
        assert facts == {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def test_nothing_is_served_before_the_commit(store: Store) -> None:
    job = FakeJob(name="one")
    folder = write_entry(store, job)
    assert not store.has(job.key)
    assert store.get(job.key) is None
    with pytest.raises(MissingEntry):
        store.load(job.key)
    store.commit(job.key, folder)
    assert store.get(job.key) is not None
    assert not folder.exists()


def test_commit_refuses_an_incomplete_folder(store: Store) -> None:
    folder = store.create("ab" * 32)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"manifest\.json, metrics\.json"):
        store.commit("ab" * 32, folder)
    assert store.keys() == set()


@pytest.mark.parametrize("name", ["config.json", "manifest.json", "metrics.json", "done.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damage_is_set_aside_with_a_warning(
    store: Store, warnings: list[str], name: str, damage: str
) -> None:
    job, other = add(store, "one"), add(store, "two")
    path = store.folder(job.key) / name
    data = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    fresh = Store(store.root, warn=warnings.append)
    assert fresh.get(job.key) is None
    assert not fresh.has(job.key)
    assert fresh.keys() == {other.key}
    assert len(warnings) == 1
    assert job.key[:12] in warnings[0]
    assert len(list((store.root / "damaged").glob("*/entry"))) == 1
    fresh.commit(job.key, write_entry(fresh, job))
    assert fresh.load(job.key).metrics["loss"] == [2.0, 1.0]


def test_damaged_weights_are_seen_when_they_are_asked_for(store: Store, warnings: list[str]) -> None:
    job = add(store, "one")
    assert store.weights(job.key) == store.folder(job.key) / "final.safetensors"
    path = store.weights(job.key, "final.safetensors")
    path.write_bytes(b"x" * path.stat().st_size)
    assert store.get(job.key) is not None
    with pytest.raises(MissingEntry):
        store.weights(job.key, "final.safetensors")
    assert store.get(job.key) is None, "a cached record must go with its entry"
    assert len(warnings) == 1


def test_a_folder_without_a_done_marker_counts_as_absent(store: Store, warnings: list[str]) -> None:
    key = "cd" * 32
    store.folder(key).mkdir(parents=True)
    (store.folder(key) / "config.json").write_text("{}")
    assert store.get(key) is None
    assert not store.has(key)
    assert warnings


def test_the_second_commit_of_a_key_is_harmless(store: Store) -> None:
    job = FakeJob(name="one")
    first, second = write_entry(store, job, b"first"), write_entry(store, job, b"second")
    store.commit(job.key, first)
    Store(store.root).commit(job.key, second)
    assert store.weights(job.key).read_bytes() == b"first"
    assert list((store.root / "tmp").iterdir()) == []


def test_a_commit_replaces_a_damaged_entry(store: Store) -> None:
    job = add(store, "one")
    (store.folder(job.key) / "metrics.json").write_text("{")
    store.commit(job.key, write_entry(store, job, b"new"))
    assert store.weights(job.key).read_bytes() == b"new"


def test_many_threads_may_commit_one_key(store: Store) -> None:
    job = FakeJob(name="one")
    folders = [write_entry(store, job) for _ in range(8)]
    errors: list[BaseException] = []

    def commit(folder: Path) -> None:
        try:
            Store(store.root).commit(job.key, folder)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=commit, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    store.verify(job.key)
    assert list((store.root / "damaged").iterdir()) == []


def test_entries_of_other_processes_are_seen(store: Store) -> None:
    job = FakeJob(name="one")
    assert not store.has(job.key)
    add(Store(store.root), "one")
    assert store.has(job.key)
    Store(store.root).set_aside(job.key, "test")
    assert not store.has(job.key, afresh=True)
    assert not store.has(job.key)


def test_failures_are_kept_apart_and_cleared_by_success(store: Store) -> None:
    job = FakeJob(name="one")
    try:
        raise ZeroDivisionError("by nought")
    except ZeroDivisionError as error:
        path = store.fail(job.key, job.model_dump_json(), error)
    assert path == store.root / "failed" / f"{job.key}.json"
    assert not store.has(job.key)
    assert store.get(job.key) is None
    (failure,) = store.failures()
    assert failure.key == job.key
    assert failure.job == json.loads(job.model_dump_json())
    assert failure.error == "ZeroDivisionError: by nought"
    assert "raise ZeroDivisionError" in failure.traceback
    add(store, "one")
    assert store.failures() == []


def test_an_unreadable_failure_record_is_no_obstacle(store: Store, warnings: list[str]) -> None:
    (store.root / "failed" / "x.json").write_text("{")
    assert store.failures() == []
    assert warnings


def test_partial_goes_with_the_commit(store: Store) -> None:
    job = FakeJob(name="one")
    (store.partial(job.key) / "resume.safetensors").write_bytes(b"half")
    assert (store.partial(job.key) / "resume.safetensors").exists()
    store.commit(job.key, write_entry(store, job))
    assert not (store.root / "partial" / job.key).exists()


def test_find_by_prefix(store: Store) -> None:
    jobs = [add(store, str(i)) for i in range(20)]
    assert store.find(jobs[3].key[:12]) == jobs[3].key
    with pytest.raises(InputError, match="no job"):
        store.find("zz")
    digits = [job.key[0] for job in jobs]  # 20 keys, 16 digits: one is shared
    with pytest.raises(InputError, match="more digits"):
        store.find(max(digits, key=digits.count))


def test_an_unwritable_root_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=str(tmp_path / "file" / "store")):
        Store(tmp_path / "file" / "store")
    with pytest.raises(InputError, match="not a store"):
        Store(tmp_path / "nowhere", must_exist=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_killed_commit_leaves_nothing_behind(tmp_path: Path) -> None:
    code = """
import os, sys, synthlm.store as s
from fake_jobs import FakeJob, write_entry
store, job = s.Store(sys.argv[1]), FakeJob(name="one")
s._rename = lambda a, b: os.kill(os.getpid(), 9)
store.commit(job.key, write_entry(store, job))
"""
    root = tmp_path / "store"
    ended = subprocess.run([sys.executable, "-c", code, str(root)], check=False)
    assert ended.returncode == -9
    store = Store(root)
    assert store.keys() == set()
    (left,) = (root / "tmp").iterdir()
    old = time.time() - 2 * STALE_SECONDS
    os.utime(left, (old, old))
    Store(root)
    assert list((root / "tmp").iterdir()) == []
    add(store, "one")


def test_the_record_cache_is_bounded_and_returns_the_same_numbers(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [add(store, str(i)) for i in range(30)]
    monkeypatch.setattr("synthlm.store.CACHE_BYTES", 3000)
    for _ in range(2):
        for job in jobs:
            assert store.load(job.key).config["name"] == job.name
    assert 0 < len(store._records) < 30
    assert store._bytes <= 3000
    assert store._bytes == sum(size for _, size in store._records.values())


def test_a_record_takes_documents_or_bytes() -> None:
    given = Record({"a": 1}, {"b": 2}, {"c": [3]})
    parsed = Record(b'{"a": 1}', b'{"b": 2}', b'{"c": [3]}')
    assert given.config == parsed.config == {"a": 1}
    assert given.manifest == parsed.manifest == {"b": 2}
    assert given.metrics == parsed.metrics == {"c": [3]}


def test_a_copied_store_is_the_same_store(store: Store, tmp_path: Path) -> None:
    import shutil

    job = add(store, "one")
    shutil.copytree(store.root, tmp_path / "copy")
    copy = Store(tmp_path / "copy")
    copy.verify(job.key)
    assert copy.keys() == store.keys()
