"""The store: a folder of finished jobs, one folder a job, that can be copied and shared.

    ROOT/jobs/ab/KEY/   config.json  manifest.json  metrics.json  *.safetensors  done.json
    ROOT/partial/KEY/   checkpoints of a job that is not finished
    ROOT/failed/KEY.json   the job, its error and traceback; never served as a result
    ROOT/damaged/       entries that no longer match their checksums, with the reason
    ROOT/tmp/           entries being written
    ROOT/batches/       notes and logs of batches out on other machines

An entry is written aside and renamed into place, so it is there whole or not at all; ``done.json`` holds the
size and sha256 of every file, so damage done later is seen when a file is read.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
import time
import traceback as tracebacks
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthlm.config import InputError

RECORD_FILES = ("config.json", "manifest.json", "metrics.json")
CACHE_BYTES = 64 * 2**20
STALE_SECONDS = 86_400.0


class MissingEntry(InputError):
    """The store holds no sound entry under this key."""


class _Damage(Exception):
    pass


class Record:
    """What is kept of a finished job: three JSON documents.

    Args:
        config: the job's settings.
        manifest: how it was run (seconds, device, versions, status).
        metrics: columns of equal length, one row an observation.

    Each may be given as JSON bytes, which are parsed when first asked for: planning over many jobs reads
    little.
    """

    __slots__ = ("_parts",)

    def __init__(
        self,
        config: dict[str, Any] | bytes,
        manifest: dict[str, Any] | bytes,
        metrics: dict[str, list[Any]] | bytes,
    ) -> None:
        self._parts: dict[str, Any] = {"config": config, "manifest": manifest, "metrics": metrics}

    def _part(self, name: str) -> Any:
        value = self._parts[name]
        if isinstance(value, bytes):
            value = self._parts[name] = json.loads(value)
        return value

    @property
    def config(self) -> dict[str, Any]:
        return self._part("config")

    @property
    def manifest(self) -> dict[str, Any]:
        return self._part("manifest")

    @property
    def metrics(self) -> dict[str, list[Any]]:
        return self._part("metrics")


@dataclass(frozen=True)
class Failure:
    """A job that raised: its settings, the error in one line and the traceback."""

    key: str
    job: dict[str, Any]
    error: str
    traceback: str


class Store:
    """Finished jobs by key.

    Args:
        root: the folder; made when missing, unless ``must_exist``.
        warn: called with one line when an entry is set aside; the ``logging`` module by default.
        must_exist: refuse a folder that is not there (for commands that only read).

    Raises:
        InputError: when the folder cannot be made or written, or is missing with ``must_exist``.
    """

    def __init__(
        self, root: Path | str, warn: Callable[[str], None] | None = None, must_exist: bool = False
    ) -> None:
        self.root = Path(root).absolute()
        self.warn = warn or logging.getLogger(__name__).warning
        if must_exist and not (self.root / "jobs").is_dir():
            raise InputError(f"store: {self.root} is not a store (it has no folder 'jobs')")
        check_writable(self.root, "store")
        for name in ("jobs", "partial", "failed", "damaged", "tmp"):
            (self.root / name).mkdir(exist_ok=True)
        self._jobs = str(self.root / "jobs")
        self._known: set[str] = set()
        self._records: OrderedDict[str, tuple[Record, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._sweep()

    def keys(self) -> set[str]:
        """Every finished job, read afresh from the folder."""
        found: set[str] = set()
        with os.scandir(self._jobs) as shelves:
            for shelf in shelves:
                found.update(os.listdir(shelf.path))
        self._known = found
        return set(found)

    def has(self, key: str, afresh: bool = False) -> bool:
        """Whether the job is finished.

        What other processes add is seen at once, what they set aside only when asked ``afresh``.
        """
        if key in self._known and not afresh:
            return True
        if os.path.isdir(self._path(key)):
            self._known.add(key)
            return True
        self._forget(key)
        return False

    def find(self, prefix: str) -> str:
        """The one key that begins with ``prefix``.

        Raises:
            InputError: when no key or more than one does.
        """
        failed = {path.stem for path in (self.root / "failed").glob("*.json")}
        matches = sorted(key for key in self.keys() | failed if key.startswith(prefix.lower()))
        if not prefix or not matches:
            raise InputError(f"key: no job in {self.root} begins with {prefix!r}")
        if len(matches) > 1:
            some = ", ".join(key[:12] for key in matches[:5])
            raise InputError(f"key: {prefix!r} fits {len(matches)} jobs ({some}); give more digits")
        return matches[0]

    def folder(self, key: str) -> Path:
        """Where the finished job lies (whether or not it is there)."""
        return Path(self._path(key))

    def load(self, key: str) -> Record:
        """Read and verify an entry's config, manifest and metrics.

        Raises:
            MissingEntry: when there is none, or it was damaged (then it has been set aside).
        """
        with self._lock:
            if key in self._records:
                self._records.move_to_end(key)
                return self._records[key][0]
        parts = self._checked(key, RECORD_FILES)
        record = Record(*(parts[name] for name in RECORD_FILES))
        size = sum(map(len, parts.values()))
        with self._lock:
            if key not in self._records:
                self._records[key] = (record, size)
                self._bytes += size
            while self._bytes > CACHE_BYTES and len(self._records) > 1:
                self._bytes -= self._records.popitem(last=False)[1][1]
        return record

    def get(self, key: str) -> Record | None:
        """As ``load``, with None for what is missing or damaged."""
        try:
            return self.load(key)
        except MissingEntry:
            return None

    def weights(self, key: str, name: str = "final.safetensors") -> Path:
        """The path of one file of an entry (its final weights by default), after its checksum was verified.

        Raises:
            MissingEntry: when the entry is missing or damaged (then it has been set aside).
        """
        self._checked(key, (name,))
        return self.folder(key) / name

    def table(self, key: str, name: str) -> dict[str, list[Any]] | None:
        """Columns of a further table ``NAME.json`` of an entry, after its checksum was verified; None without one.

        Raises:
            MissingEntry: when the entry is missing or damaged (then it has been set aside).
        """
        if not (self.folder(key) / f"{name}.json").is_file() and self.has(key, afresh=True):
            return None
        return json.loads(self._checked(key, (f"{name}.json",))[f"{name}.json"])

    def verify(self, key: str) -> None:
        """Check every file of an entry.

        Raises:
            MissingEntry: when the entry is missing or damaged (then it has been set aside).
        """
        self._checked(key, None)

    def create(self, key: str) -> Path:
        """A new empty folder to write an entry in; hand it to ``commit``."""
        return Path(tempfile.mkdtemp(prefix=f"{key}-", dir=self.root / "tmp"))

    def commit(self, key: str, folder: Path) -> None:
        """Make a written folder the entry of ``key``. When another process was first, theirs stays.

        Raises:
            ValueError: when config, manifest or metrics is missing.
        """
        missing = [name for name in RECORD_FILES if not (folder / name).is_file()]
        if missing:
            raise ValueError(f"entry {key[:12]} lacks {', '.join(missing)}")
        files = {}
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            _sync(path)
            files[path.relative_to(folder).as_posix()] = {
                "sha256": _sha256(path.read_bytes()),
                "size": path.stat().st_size,
            }
        _write_synced(folder / "done.json", json.dumps({"files": files}, sort_keys=True))
        _sync(folder)
        target = self.folder(key)
        target.parent.mkdir(exist_ok=True)
        try:
            _rename(folder, target)
        except FileExistsError:
            try:
                self.verify(key)
                shutil.rmtree(folder)
            except MissingEntry:
                _rename(folder, target)
        _sync(target.parent)
        self._known.add(key)
        shutil.rmtree(self.root / "partial" / key, ignore_errors=True)
        self.clear_failure(key)

    def partial(self, key: str) -> Path:
        """The folder of a job's resume checkpoints; it goes when the job is committed."""
        folder = self.root / "partial" / key
        folder.mkdir(exist_ok=True)
        return folder

    def fail(self, key: str, job_json: str, error: BaseException | str, traceback: str = "") -> Path:
        """Record that a job failed; the file that it is kept in."""
        if isinstance(error, BaseException):
            traceback = traceback or "".join(tracebacks.format_exception(error))
            error = f"{type(error).__name__}: {error}"
        path = self.root / "failed" / f"{key}.json"
        data = {"key": key, "job": json.loads(job_json), "error": error, "traceback": traceback}
        aside = self.root / "tmp" / f"{key}-failed-{os.getpid()}"
        _write_synced(aside, json.dumps(data, indent=1))
        os.replace(aside, path)
        return path

    def failures(self) -> list[Failure]:
        """Jobs whose last run failed, by key."""
        found = []
        for path in sorted((self.root / "failed").glob("*.json")):
            try:
                data = json.loads(path.read_text())
                found.append(Failure(path.stem, data["job"], data["error"], data["traceback"]))
            except (OSError, ValueError, KeyError, TypeError):
                path.unlink(missing_ok=True)
                self.warn(f"{path}: unreadable failure record removed")
        return found

    def clear_failure(self, key: str) -> None:
        """Forget that a job failed."""
        (self.root / "failed" / f"{key}.json").unlink(missing_ok=True)

    def set_aside(self, key: str, why: str) -> None:
        """Move a damaged entry out of the way, so that its job is done again."""
        self._forget(key)
        place = Path(tempfile.mkdtemp(prefix=f"{key}-", dir=self.root / "damaged"))
        try:
            os.rename(self.folder(key), place / "entry")
        except FileNotFoundError:
            place.rmdir()
            return
        (place / "why.txt").write_text(why + "\n")
        self.warn(f"store: entry {key[:12]} is damaged ({why}); moved to {place}, its job will be done again")

    def _path(self, key: str) -> str:
        return f"{self._jobs}/{key[:2]}/{key}"

    def _forget(self, key: str) -> None:
        self._known.discard(key)
        with self._lock:
            if key in self._records:
                self._bytes -= self._records.pop(key)[1]

    def _checked(self, key: str, names: tuple[str, ...] | None) -> dict[str, bytes]:
        """Verified contents of the named files (None: of all)."""
        folder = self._path(key)
        try:
            try:
                files = json.loads(_read(f"{folder}/done.json"))["files"]
                return {name: _verified(folder, name, files) for name in (names or files)}
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise _Damage(f"done.json: {type(error).__name__}: {error}") from None
        except _Damage as damage:
            if os.path.isdir(folder):
                self.set_aside(key, str(damage))
            self._forget(key)
            raise MissingEntry(f"{self.root} holds no sound entry {key[:12]}") from None

    def _sweep(self) -> None:
        """Remove what killed writers left behind long ago."""
        limit = time.time() - STALE_SECONDS
        with os.scandir(self.root / "tmp") as entries:
            for entry in entries:
                try:
                    if entry.stat().st_mtime < limit:
                        shutil.rmtree(entry.path) if entry.is_dir() else os.unlink(entry.path)
                except FileNotFoundError:
                    continue


def check_writable(folder: Path, field: str) -> None:
    """Make ``folder`` if need be and try to write in it.

    Raises:
        InputError: naming the field and the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{field}: cannot write in folder {folder} ({error.strerror or error})") from None


def _verified(folder: str, name: str, files: Mapping[str, Mapping[str, Any]]) -> bytes:
    if name not in files:
        raise _Damage(f"{name}: not in done.json")
    try:
        data = _read(f"{folder}/{name}")
    except OSError as error:
        raise _Damage(f"{name}: {error.strerror}") from None
    if len(data) != files[name]["size"] or _sha256(data) != files[name]["sha256"]:
        raise _Damage(f"{name}: its content does not match its checksum")
    return data


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        data = os.read(descriptor, size)
        while len(data) < size and (more := os.read(descriptor, size - len(data))):
            data += more
        return data
    finally:
        os.close(descriptor)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _rename(source: Path, target: Path) -> None:
    """Rename a folder onto a name that must be free or an empty folder."""
    try:
        os.rename(source, target)
    except OSError as error:
        if target.is_dir():
            raise FileExistsError(str(target)) from error
        raise


def _write_synced(path: Path, text: str) -> None:
    path.write_text(text)
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
