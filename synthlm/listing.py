"""What a store holds, for people: a list of its jobs, and one job in full."""

import fnmatch
import json
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.json import JSON
from rich.table import Table
from rich.text import Text

from synthlm.progress import size
from synthlm.store import Failure, Store

BARS = "▁▂▃▄▅▆▇█"
CURVES = ("loss", "accuracy")


def flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted paths and values, as text, of a nested document."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from flat(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from flat(inner, f"{path}.{index}")
    else:
        yield path, str(value)


def matches(query: str, key: str, document: Mapping[str, Any]) -> bool:
    """Whether every term of the query fits.

    ``path=pattern`` looks at a setting (``optimizer.name=mu*``; the end of a path will do); any other word is
    a part of a value or the beginning of the key.
    """
    values = list(flat(document))
    for term in query.split():
        path, equals, pattern = term.partition("=")
        if equals:
            found = any(
                (name == path or name.endswith(f".{path}")) and fnmatch.fnmatchcase(value, pattern)
                for name, value in values
            )
        else:
            found = key.startswith(term.lower()) or any(term.lower() in value.lower() for _, value in values)
        if not found:
            return False
    return True


def runs(store: Store, query: str, limit: int) -> RenderableType:
    """A table of the jobs that fit the query: finished, diverged and failed ones.

    Args:
        query: see ``matches``; its terms see the config and ``status``.
        limit: most rows.
    """
    table = Table(
        "key", "kind", "language", "optimizer", "method", "base", "seed", "steps", "status", box=None
    )
    shown = found = 0
    for key, config, status in _all(store):
        if not matches(query, key, {**config, "status": status}):
            continue
        found += 1
        if shown < limit:
            table.add_row(*map(Text, _row(key, config, status)))
            shown += 1
    if not found:
        return Text(f"no job in {store.root}" + (f" fits {query!r}" if query else ""))
    more = f", {shown} shown (see --limit)" if shown < found else ""
    return Group(table, Text(f"{found} jobs{more}"))


def show(store: Store, prefix: str) -> RenderableType:
    """One job: config, manifest, files and curves, or the error it failed with.

    Raises:
        InputError: when no job, or more than one, begins with ``prefix``.
    """
    key = store.find(prefix)
    if not store.has(key):
        failure = next(failure for failure in store.failures() if failure.key == key)
        return _failed(failure)
    record = store.load(key)
    files = sorted(path for path in store.folder(key).rglob("*") if path.is_file())
    listed = ", ".join(f"{path.name} ({size(path.stat().st_size)})" for path in files)
    return Group(
        Text(f"{key}\n{store.folder(key)}\n{listed}\n", overflow="fold"),
        Text("config", style="bold"),
        JSON(json.dumps(record.config)),
        Text("\nmanifest", style="bold"),
        JSON(json.dumps(record.manifest)),
        Text("\ncurves", style="bold"),
        _curves(record.metrics),
    )


def _all(store: Store) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Key, config and status of every job."""
    for key in sorted(store.keys()):
        record = store.get(key)
        if record is not None:
            yield key, record.config, record.manifest.get("status", "done")
    for failure in store.failures():
        if not store.has(failure.key):
            yield failure.key, failure.job, "failed"


def _row(key: str, config: Mapping[str, Any], status: str) -> tuple[str, ...]:
    optimizer, method, base = (config.get(name) or {} for name in ("optimizer", "method", "base"))
    rule = f"{optimizer.get('name', '')} {optimizer.get('lr', '')}".strip()
    rank = f"{method.get('kind', '')} {method.get('rank', '')}".strip()
    return (
        key[:12],
        str(config.get("kind", "")),
        _language(config.get("language") or {}),
        rule,
        rank,
        (base.get("optimizer") or {}).get("name", ""),
        str(config.get("seed", "")),
        str((config.get("training") or {}).get("steps", "")),
        status,
    )


def _language(config: Mapping[str, Any]) -> str:
    parts = config.get("parts")
    return "+".join(map(_language, parts)) if parts else str(config.get("label") or config.get("name", ""))


def _failed(failure: Failure) -> RenderableType:
    return Group(
        Text(f"{failure.key}\nfailed: {failure.error}\n"),
        Text("config", style="bold"),
        JSON(json.dumps(failure.job)),
        Text(f"\n{failure.traceback}"),
    )


def _curves(metrics: Mapping[str, list[Any]]) -> RenderableType:
    """First value, course and last value of loss and accuracy, a line for each role and slice."""
    names = [name for name in CURVES if name in metrics]
    rows: dict[tuple[str, str], dict[str, list[Any]]] = {}
    for i in range(len(metrics.get("step", []))):
        place = rows.setdefault((metrics["role"][i], metrics["slice"][i]), {name: [] for name in names})
        for name in names:
            place[name].append(metrics[name][i])
    table = Table("role", "slice", *names, box=None)
    for (role, slice_name), columns in rows.items():
        table.add_row(role, slice_name, *(_course(columns[name]) for name in names))
    return table


def _course(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    low, high = min(known), max(known)
    span = (high - low) or 1.0
    bars = "".join(" " if v is None else BARS[round((v - low) / span * (len(BARS) - 1))] for v in values)
    return f"{known[0]:.3f} {bars} {known[-1]:.3f}"
