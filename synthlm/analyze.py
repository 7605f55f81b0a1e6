"""Analyses from the command line: of stored models as jobs, of other checkpoints directly."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from synthlm import options
from synthlm.config import InputError, choose, near_match, parse
from synthlm.jobs import Finetune, Pretrain, Probe, job_from_json
from synthlm.probes import ANALYSES, Analysis, Columns
from synthlm.store import Store, check_writable

DATA = ("data", "new-data")
"""First parts of settings that are of no analysis: the languages that checkpoints are scored on."""

ACROSS = 6
"""Columns of numbers in one table."""


@dataclass(frozen=True)
class Request:
    """What was asked for.

    target: a stored model's key, or the path of a checkpoint. names: of analyses. others: models finetuned from the
    target. step: of a stored model; None: its end. seed: of random draws; None: the stored model's own, or 0. settings:
    ``PATH=VALUE``. job: a file to read an analysis job from instead. out: where tables are written.

    Of checkpoints alone: data, new_data, length, pad: see ``probes.foreign.read_data``. model: settings of a weights
    file. aux: patterns of parameters that are no hidden matrices.
    """

    target: str | None
    names: Sequence[str]
    others: Sequence[str] = ()
    step: int | None = None
    seed: int | None = None
    settings: Sequence[str] = ()
    job: Path | None = None
    out: Path | None = None
    data: str | None = None
    new_data: str | None = None
    model: Sequence[str] = ()
    aux: Sequence[str] = ()
    length: int = 64
    pad: int | None = None


def listing() -> str:
    """Every analysis in a line."""
    width = max(map(len, ANALYSES))
    lines = []
    for name, kind in ANALYSES.items():
        told = " ".join((kind.__doc__ or "").split("\n\n")[0].replace("``", "").split())
        lines.append(f"{name:<{width}}  {told}")
    return "\n".join(lines)


def results(
    asked: Request,
    root: Path,
    device: str,
    run: Callable[[Probe, Store], None],
    note: Callable[[str], None],
) -> Iterator[tuple[str, Columns]]:
    """Each analysis and its rows, as soon as they are known.

    Args:
        root: the store. run: runs an analysis of a stored model, unless the store has it. note: shows a line.

    Raises:
        InputError: naming what is wrong.
    """
    if asked.out is not None:
        single = asked.out.suffix == ".csv"
        if single and len(asked.names) > 1:
            raise InputError(
                f"out: {asked.out} is one file, but there are {len(asked.names)} analyses; give a folder"
            )
        check_writable(asked.out.parent if single else asked.out, "out")
    if asked.job is None and asked.target is not None and Path(asked.target).exists():
        yield from _foreign(asked, device, note)
        return
    if asked.job is None and not (root / "jobs").is_dir():
        near = near_match(str(asked.target), [path.name for path in Path().iterdir()])
        raise InputError(f"key: {asked.target!r} is no file or folder{near}, and {root} is not a store")
    store = Store(root)
    for probe in _probes(asked, store):
        run(probe, store)
        yield probe.analysis.name, store.load(probe.key).metrics


def _settings(asked: Request) -> dict[str, dict[str, Any]]:
    """Settings by analysis, or by ``data`` and ``new-data``: ``curvature.items=64``, or ``items=64`` of one alone.

    Raises:
        InputError: when an analysis is unknown, or a setting belongs to none.
    """
    if not asked.names:
        raise InputError(f"analysis: none given; there are {', '.join(ANALYSES)}")
    for name in asked.names:
        choose("analysis", name, list(ANALYSES))
    found: dict[str, dict[str, Any]] = {name: {} for name in (*asked.names, *DATA)}
    for path, value in options.assignments(asked.settings).items():
        if path in found and isinstance(value, Mapping):
            found[path] |= value
        elif len(asked.names) == 1:
            found[asked.names[0]][path] = value
        else:
            raise InputError(
                f"set: {path!r} is not one of {', '.join(found)}; with several analyses, set NAME.{path}"
            )
    return found


def _analysis(name: str, settings: Mapping[str, Any]) -> Analysis:
    return parse(ANALYSES[name], {**settings, "name": name}, name)


def _probes(asked: Request, store: Store) -> list[Probe]:
    """A job for each analysis of a stored model."""
    if asked.job is not None:
        job = options.read_job(asked.job, "probe")
        assert isinstance(job, Probe)
        return [job]
    assert asked.target is not None
    for name in ("data", "new_data", "model", "aux"):
        if getattr(asked, name):
            field = name.replace("_", "-")
            raise InputError(f"{field}: is for checkpoints, and {asked.target!r} is no file or folder")
    settings = _settings(asked)
    for name in DATA:
        if settings[name]:
            raise InputError(f"set: {name} is for checkpoints; a stored model knows its languages")
    subjects = [_trained(store, each) for each in (asked.target, *asked.others)]
    common = {
        "seed": subjects[0].seed if asked.seed is None else asked.seed,
        "subjects": subjects,
        "step": asked.step,
    }
    analyses = [_analysis(name, settings[name]) for name in asked.names]
    return [parse(Probe, {**common, "analysis": each.model_dump()}, "analyze") for each in analyses]


def _trained(store: Store, prefix: str) -> Pretrain | Finetune:
    job = job_from_json(json.dumps(store.load(store.find(prefix)).config))
    if isinstance(job, Probe):
        raise InputError(f"key: {prefix!r} is an analysis; give its model's key, {job.subjects[0].key[:12]}")
    return job


def _foreign(asked: Request, device: str, note: Callable[[str], None]) -> Iterator[tuple[str, Columns]]:
    from synthlm.probes.checkpoints import load_checkpoint
    from synthlm.probes.foreign import ForeignSubject, analyse, read_data

    if asked.step is not None:
        raise InputError("step: a checkpoint has no other steps; give their own files")
    settings = _settings(asked)
    analyses = {name: _analysis(name, settings[name]) for name in asked.names}
    form, seed = options.assignments(asked.model), asked.seed or 0
    paths = [Path(path) for path in (asked.target or "", *asked.others)]
    checkpoints = [load_checkpoint(path, form, tuple(asked.aux)) for path in paths]

    def read(given: str | None, field: str) -> Any:
        return read_data(given, field, checkpoints[0], settings[field], seed, asked.length, asked.pad)

    if asked.data is None:
        note("no --data: random tokens, which tell nothing of what the model knows")
    old = read(asked.data, "data")
    new = None if asked.new_data is None else read(asked.new_data, "new-data")
    for name, analysis in analyses.items():
        yield name, analyse(analysis, ForeignSubject(checkpoints, old, new, name, seed, device))


def render(name: str, columns: Columns, limit: int) -> RenderableType:
    """The first ``limit`` rows, wide ones in several tables; constant columns are told above, empty ones left out."""
    count = len(next(iter(columns.values()), []))
    if not count:
        return Text(f"{name}: no rows")
    texts = {column: [_text(value) for value in values] for column, values in columns.items()}
    texts = {column: values for column, values in texts.items() if any(values)}
    told = {column: values[0] for column, values in texts.items() if count > 1 and len(set(values)) == 1}
    keys = [column for column in texts if column not in told and not _numeric(columns[column])]
    numbers = [column for column in texts if column not in told and _numeric(columns[column])]
    parts: list[RenderableType] = [
        Text(
            f"{name}: {count} rows" + "".join(f", {column} {text}" for column, text in told.items()),
            style="bold",
        )
    ]
    for first in range(0, max(1, len(numbers)), ACROSS):
        table = Table(box=None)
        shown = [*keys, *numbers[first : first + ACROSS]]
        for column in shown:
            table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
        for row in list(zip(*(texts[column] for column in shown), strict=True))[:limit]:
            table.add_row(*map(Text, row))
        parts.append(table)
    if count > limit:
        parts.append(Text(f"... {count - limit} rows more (--limit shows them, --out writes all)"))
    return Group(*parts)


def _numeric(values: Sequence[Any]) -> bool:
    return any(isinstance(value, float) for value in values)


def write(out: Path, name: str, columns: Columns) -> Path:
    """Write ``OUT/NAME.csv``, or the file ``out`` itself when that ends in ``.csv``; the path that was written."""
    import pandas as pd

    path = out if out.suffix == ".csv" else out / f"{name}.csv"
    pd.DataFrame(columns).to_csv(path, index=False, lineterminator="\n")
    return path


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
