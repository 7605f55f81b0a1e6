"""The command line: what it makes, what it refuses and how, and that nothing is trained twice."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from synthlm import cli, listing, options
from synthlm.config import InputError
from synthlm.store import Store

GRID = """
title = "tiny"
seeds = 1

[consistency.model]
width = 16
layers = 1
heads = 2
mlp = 32

[consistency.pretraining]
language = { name = "facts", items = 6, alphabet = 8 }
training = { steps = 60, batch = 16, evaluations = 4 }
aux = { name = "adamw", lr = 0.02 }

[consistency.pretraining.bases.adamw]
optimizer = { name = "adamw" }
sweep = { lowest = 0.02, highest = 0.02, count = 1 }

[consistency.pretraining.bases.muon]
optimizer = { name = "muon" }
sweep = { lowest = 0.05, highest = 0.05, count = 1 }

[consistency.finetuning]
training = { steps = 20, batch = 16, evaluations = 4 }
languages.new-facts = { name = "facts", label = "new-facts", tag = 1, items = 6, alphabet = 8 }

[consistency.finetuning.arms.full-adamw]
optimizer = { name = "adamw" }
sweep = { lowest = 0.005, highest = 0.02, count = 2, widen = 0 }

[consistency.finetuning.arms.full-muon]
optimizer = { name = "muon" }
sweep = { lowest = 0.005, highest = 0.02, count = 2, widen = 0 }
"""
SMALL = ["--set", "language.items=6", "--set", "language.alphabet=8", "--set", "training.batch=8"]
SMALL_MODEL = ["--set", "model.width=8", "--set", "model.mlp=16", "--set", "model.heads=1"]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["synthlm", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        code = ended.value.code
        return (code if isinstance(code, int) else 0), out, err

    return command


@pytest.fixture
def grid(tmp_path: Path) -> str:
    path = tmp_path / "tiny.toml"
    path.write_text(GRID)
    return str(path)


def trained(run: Run) -> str:
    """The key of a small pretrained model."""
    code, out, _ = run("train", *SMALL, *SMALL_MODEL, "--steps", "4")
    assert code == 0
    return next(line.split()[1] for line in out.splitlines() if line.startswith("key"))


def test_help_is_light() -> None:
    code = (
        "import sys; sys.argv = ['synthlm', '--help']\n"
        "from synthlm import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'pandas', 'numpy', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    for word in ("run-grid", "train", "finetune", "runs", "show", "tasks", "figures", "run-grid smoke"):
        assert word in ended.stdout


@pytest.mark.parametrize("command", ["run-grid", "train", "finetune", "runs", "show", "tasks", "figures"])
def test_every_command_explains_itself(run: Run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert "Usage" in out


def test_a_grid_twice_trains_once_and_writes_the_same_bytes(run: Run, grid: str, tmp_path: Path) -> None:
    command = ["run-grid", grid, "--engine", "inline", "--device", "cpu", "--out", "out"]
    code, out, err = run(*command)
    assert code == 0, err
    assert "10 jobs done (0 cached, 10 trained), 0 failed" in out
    files = sorted((tmp_path / "out").rglob("*.csv"))
    assert tmp_path / "out" / "results.csv" in files
    assert (tmp_path / "out" / "report.html").is_file()
    assert (tmp_path / "out" / "claims.json").is_file()
    before = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    code, out, _ = run(*command)
    assert code == 0
    assert "10 jobs done (10 cached, 0 trained), 0 failed" in out
    assert before == {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    code, out, _ = run("run-grid", grid, "--dry-run", "--device", "cpu")
    assert code == 0
    kinds = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:3]}
    assert kinds == {"finetune": ["8", "0"], "pretrain": ["2", "0"]}
    code, out, _ = run("figures", "out")
    assert code == 0
    assert "frontier.pdf" in out


def test_a_dry_run_trains_nothing(run: Run, grid: str, tmp_path: Path) -> None:
    code, out, _ = run("run-grid", grid, "--dry-run", "--device", "cpu")
    assert code == 0
    assert "pretrain" in out
    assert "later stages depend on their results" in out
    assert not (tmp_path / "results").exists()
    assert Store(tmp_path / "store").keys() == set()


def test_a_failed_job_gives_exit_code_1_and_a_command_that_repeats_it(
    run: Run, grid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from synthlm import training

    whole = training.run_batch

    def faulty(jobs: list, *rest: object) -> None:
        if any(job.kind == "finetune" and job.optimizer.name == "muon" for job in jobs):
            raise RuntimeError("no luck")
        whole(jobs, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "run_batch", faulty)
    code, out, err = run("run-grid", grid, "--engine", "inline", "--device", "cpu", "--out", "out")
    assert code == 1
    assert "6 jobs done (0 cached, 6 trained), 4 failed" in out
    assert err.count("RuntimeError: no luck") >= 4
    assert "Traceback" not in err
    code, out, _ = run("runs", "status=failed")
    assert "4 jobs" in out
    repeat = next(line.split() for line in err.splitlines() if "repeat: synthlm" in line)
    key = Path(repeat[4]).stem
    code, out, _ = run("show", key[:12])
    assert code == 0
    assert "no luck" in out
    monkeypatch.setattr(training, "run_batch", whole)
    code, out, err = run(*repeat[2:])
    assert code == 0, err
    assert key in out
    code, out, _ = run("run-grid", grid, "--engine", "inline", "--device", "cpu", "--out", "out")
    assert code == 0
    assert "10 jobs done (7 cached, 3 trained), 0 failed" in out


def test_train_finetune_runs_and_show(run: Run, tmp_path: Path) -> None:
    key = trained(run)
    store = Store(tmp_path / "store")
    assert store.has(key)
    code, out, _ = run("train", *SMALL, *SMALL_MODEL, "--steps", "4")
    assert code == 0
    assert "already done" in out
    code, out, err = run("finetune", "--base", key[:8], "--rank", "2", "--steps", "3", *SMALL)
    assert code == 0, err
    (child,) = store.keys() - {key}
    assert child in out
    assert str(store.folder(child)) in out
    assert store.load(child).config["method"]["rank"] == 2
    assert run("runs", "kind=finetune")[1].count(child[:12]) == 1
    assert key[:12] not in run("runs", "kind=finetune")[1]
    assert "2 jobs, 1 shown" in run("runs", "--limit", "1")[1]
    assert "no job" in run("runs", "kind=nothing")[1]
    code, out, _ = run("show", child[:10])
    assert code == 0
    for part in (child, "final.safetensors", '"rank": 2', "new-facts/rote", "loss", "accuracy"):
        assert part in out


def test_a_stored_config_can_be_run_elsewhere_base_and_all(run: Run, tmp_path: Path) -> None:
    key = trained(run)
    run("finetune", "--base", key, "--steps", "2", *SMALL)
    store = Store(tmp_path / "store")
    (child,) = store.keys() - {key}
    config = str(store.folder(child) / "config.json")
    code, _, err = run("finetune", "--job", config, "--store", "other")
    assert code == 0, err
    other = Store(tmp_path / "other")
    assert other.keys() == {key, child}
    for name in (key, child):
        assert other.weights(name).read_bytes() == store.weights(name).read_bytes()


@pytest.mark.parametrize("engine", ["local", "slurm", "ray"])
def test_every_engine_gives_the_same_bytes(run: Run, grid: str, tmp_path: Path, engine: str) -> None:
    if engine == "ray":
        pytest.importorskip("ray")
    trial = ["--engine-set", "cluster=local"] if engine == "slurm" else []
    for name, words in (("inline", []), (engine, [*trial, "--workers", "2"])):
        command = ["run-grid", grid, "--device", "cpu", "--engine", name, *words]
        code, _, err = run(*command, "--store", f"store-{name}", "--out", f"out-{name}")
        assert code == 0, err
    one, other = Store(tmp_path / "store-inline"), Store(tmp_path / f"store-{engine}")
    assert one.keys() == other.keys()
    for key in one.keys():  # noqa: SIM118 (a method of the store)
        for name in ("final.safetensors", "metrics.json"):
            assert (one.folder(key) / name).read_bytes() == (other.folder(key) / name).read_bytes()
    tables = sorted(
        path.relative_to(tmp_path / "out-inline") for path in (tmp_path / "out-inline").rglob("*.csv")
    )
    assert tables
    for table in tables:
        assert (tmp_path / "out-inline" / table).read_bytes() == (
            tmp_path / f"out-{engine}" / table
        ).read_bytes()


def test_the_help_names_every_setting_of_an_engine(run: Run) -> None:
    from synthlm.engines.ray import RaySettings
    from synthlm.engines.slurm import SlurmSettings

    _, out, _ = run("run-grid", "--help")
    for name in (*SlurmSettings.model_fields, *RaySettings.model_fields):
        assert name in out


def test_tasks(run: Run) -> None:
    code, out, _ = run("tasks")
    assert code == 0
    assert {"facts", "modular", "cipher", "mixture"} <= {line.split()[0] for line in out.splitlines()}
    code, out, _ = run("tasks", "facts", "--set", "items=20", "--samples", "2")
    assert code == 0
    assert "20 training items" in out
    assert "240.0 bits" in out  # 20 items, two symbols of 6 bits
    assert out.count("<facts>") == 2
    assert run("tasks", "facts", "--samples", "0")[1].count("<facts>") == 0
    code, out, err = run("tasks", "facts", "--samples", "-2")
    assert (code, out) == (2, "")
    assert "--samples" in err


SLURM = ["run-grid", "GRID", "--engine", "slurm", "--engine-set", "cluster=local"]
REFUSED = [
    (["run-grid", "lapto"], "did you mean 'laptop'?"),
    (["run-grid", "GRID", "--device", "gpu"], "device: 'gpu' is not one of auto, cpu, cuda"),
    (
        ["run-grid", "GRID", "--engine", "slrum"],
        "not one of local, inline, slurm, ray (did you mean 'slurm'?)",
    ),
    (["run-grid", "GRID", "--engine-set", "time=3"], "engine-set: engine 'local' has no settings"),
    ([*SLURM, "--engine-set", "time"], "engine-set: 'time' should be PATH=VALUE"),
    (
        [*SLURM, "--engine-set", "patrition=gpu"],
        "engine-set: patrition: unknown field (did you mean 'partition'?)",
    ),
    ([*SLURM, "--engine-set", "time=soon"], "engine-set: time: 'soon' should be"),
    ([*SLURM, "--engine-set", "sbatch.array=1-3"], "sbatch: array is set by the engine itself"),
    ([*SLURM, "--engine-set", "gpus=1"], "engine-set.gpus: 1, but the device is the CPU; add --device cuda"),
    (["run-grid", "GRID", "--device", "cpu", "--workers", "0"], "workers: 0"),
    (["run-grid", "GRID", "--device", "cpu", "--figures", "frontie"], "did you mean 'frontier'?"),
    (["run-grid", "GRID", "--device", "cpu", "--seeds", "0"], "seeds: 0"),
    (["run-grid", "GRID", "--device", "cpu", "--out", "GRID/out"], "out: cannot write in folder"),
    (["run-grid", "GRID", "--device", "cpu", "--store", "GRID/s"], "store: cannot write in folder"),
    (["train", "--language", "fact"], "did you mean 'facts'?"),
    (["train", "--optimizer", "muo"], "did you mean 'muon'?"),
    (["train", "--optimizer", "adamw", "--set", "optimizer.lr=x"], "optimizer.lr: 'x'"),
    (["train", "--lr", "-1"], "optimizer.lr: -1.0"),
    (["train", "--steps", "0"], "training.steps: 0"),
    (["train", "--set", "model.widht=3"], "did you mean 'width'?"),
    (["train", "--set", "width"], "PATH=VALUE"),
    (["train", "--set", "seed=1", "--set", "seed.x=1"], "contradicts"),
    (["train", "--set", "language=facts"], "language"),
    (["train", "--set", "language.name=fact"], "did you mean 'facts'?"),
    (["train", "--set", "model=3"], "model"),
    (["train", "--job", "nowhere.json"], "nowhere.json cannot be read"),
    (["train", "--job", "GRID"], "not valid JSON"),
    (["finetune"], "base: required"),
    (["finetune", "--base", "abc"], "no job in"),
    (["tasks", "fact"], "did you mean 'facts'?"),
    (["tasks", "facts", "--set", "itms=3"], "did you mean 'items'?"),
    (["runs"], "is not a store"),
    (["show", "abc"], "is not a store"),
    (["figures", "nowhere"], "nowhere does not exist"),
    (["figures", "."], "figures/NAME.csv"),
]


@pytest.mark.parametrize(("words", "part"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_bad_input_gets_one_clear_message(
    run: Run, grid: str, tmp_path: Path, words: list[str], part: str
) -> None:
    code, out, err = run(*(word.replace("GRID", grid) for word in words))
    assert code == 2
    assert part in err
    assert err.startswith("synthlm: ")
    assert "Traceback" not in err
    assert out == ""
    stored = tmp_path / "store" / "jobs"
    assert not stored.exists() or list(stored.iterdir()) == []


@pytest.mark.parametrize("words", [["no-such-command"], ["train", "--steps", "x"], ["run-grid"]])
def test_bad_usage_is_bad_input(run: Run, words: list[str]) -> None:
    code, _, err = run(*words)
    assert code == 2
    assert "Traceback" not in err


def test_a_broken_grid_file_is_refused_with_its_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text('title = "x"\nseeds = = 3\n')
    code, _, err = run("run-grid", "bad.toml", "--device", "cpu")
    assert code == 2
    assert "line 2" in err
    (tmp_path / "bad.toml").write_text(GRID.replace("seeds = 1", "sedes = 1"))
    code, _, err = run("run-grid", "bad.toml", "--device", "cpu")
    assert code == 2
    assert "sedes" in err
    assert "did you mean 'seeds'?" in err


def test_a_job_of_the_other_kind_is_sent_to_its_command(run: Run, tmp_path: Path) -> None:
    key = trained(run)
    config = str(Store(tmp_path / "store").folder(key) / "config.json")
    code, _, err = run("finetune", "--job", config)
    assert code == 2
    assert f"synthlm train --job {config}" in err


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(KeyError, match="a bug"):
        cli.main()


def test_assignments_nest_and_read_toml() -> None:
    given = ["model.width=64", "language.label=new-x", "training.clip=1.5", "a.b.c=[1, 2]", "model.tied=true"]
    assert options.assignments(given) == {
        "model": {"width": 64, "tied": True},
        "language": {"label": "new-x"},
        "training": {"clip": 1.5},
        "a": {"b": {"c": [1, 2]}},
    }
    with pytest.raises(InputError, match="PATH=VALUE"):
        options.assignments(["a..b=1"])


def test_merged_lays_tables_over_tables() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": 3}
    assert options.merged(base, {"a": {"c": 4}, "d": {"e": 5}}) == {"a": {"b": 1, "c": 4}, "d": {"e": 5}}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}


def test_a_failure_record_is_a_job_file(tmp_path: Path) -> None:
    job = options.pretrain_job("facts", "muon", None, 5, 3, [])
    assert job.optimizer.lr == options.LEARNING_RATES["muon"]
    store = Store(tmp_path / "store")
    path = store.fail(job.key, job.model_dump_json(), "an error")
    assert options.read_job(path, "pretrain") == job
    plain = tmp_path / "job.json"
    plain.write_text(job.model_dump_json())
    assert options.read_job(plain, "pretrain").key == job.key


@pytest.mark.parametrize(
    ("query", "fits"),
    [
        ("", True),
        ("optimizer.name=muon", True),
        ("name=mu*", True),
        ("ame=muon", False),
        ("kind=pretrain seed=3", True),
        ("kind=pretrain seed=4", False),
        ("MUON", True),
        ("abc", True),
        ("bc1", False),
    ],
)
def test_queries(query: str, fits: bool) -> None:
    document = json.loads('{"kind": "pretrain", "seed": 3, "optimizer": {"name": "muon"}}')
    assert listing.matches(query, "abc123", document) is fits


def test_ctrl_c_says_how_to_go_on(run: Run, grid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from synthlm import training

    def interrupted(*rest: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "run_batch", interrupted)
    code, _, err = run("run-grid", grid, "--engine", "inline", "--device", "cpu")
    assert code == 130
    assert "the same command goes on" in err
    assert os.listdir("store/failed") == []
