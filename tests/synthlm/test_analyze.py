"""``synthlm analyze``: stored models, a Hugging Face folder, weights files; what it refuses and how."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from synthlm import cli, weights
from synthlm.analysis.causal_lm import causal_lm_objective, load_causal_lm
from synthlm.analysis.objective import language_objective
from synthlm.config import parse
from synthlm.jobs import Probe
from synthlm.probes import ANALYSES
from synthlm.store import Store
from synthlm.trained import final_weights

Run = Callable[..., tuple[int, str, str]]
SMALL = [
    "--language", "facts", "--steps", "12",
    *(f"--set={setting}" for setting in (
        "language.items=8", "language.alphabet=8", "training.batch=8", "training.checkpoints=2",
        "model.width=8", "model.mlp=16", "model.heads=2", "model.layers=1",
    )),
]  # fmt: skip
FAST = [
    "--set", "curvature.eigenvalues=2", "--set", "curvature.samples=4", "--set", "curvature.pairs=2",
    "--set", "curvature.steps=2", "--set", "curvature.items=6",
]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["synthlm", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """A tiny GPT-2 saved to disk, and sequences of tokens beside it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    config = GPT2Config(
        n_layer=1, n_head=2, n_embd=8, vocab_size=30, n_positions=16, bos_token_id=1, eos_token_id=1
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokens = np.random.default_rng(4).integers(2, 30, (12, 7))
    tokens[:5, 4:] = 0
    np.save(tmp_path / "tokens.npy", tokens)
    return tmp_path / "gpt2"


def key_in(out: str) -> str:
    return next(line.split()[1] for line in out.splitlines() if line.startswith("key"))


def test_a_stored_model_is_analysed_once(run: Run) -> None:
    key = key_in(run("train", *SMALL)[1])
    code, out, err = run("analyze", key[:8], "curvature", "slices", *FAST, "--out", "tables")
    assert code == 0, err
    assert "eigenvalue" in out
    assert "was already done" not in out
    before = {path.name: path.read_bytes() for path in Path("tables").iterdir()}
    assert set(before) == {"curvature.csv", "slices.csv"}
    code, out, err = run("analyze", key[:8], "curvature", "slices", *FAST, "--out", "tables")
    assert code == 0
    assert out.count("(was already done)") == 2
    assert {path.name: path.read_bytes() for path in Path("tables").iterdir()} == before
    table = pd.read_csv("tables/slices.csv")
    store = Store("store")
    job = cli_job(store, key)
    objective = language_objective(job.model, job.language.build(job.seed), goals_only=False)
    wanted = objective.losses(final_weights(job, store)[None])[0].tolist()
    assert table["loss"].tolist() == pytest.approx(wanted, rel=1e-5)


def cli_job(store: Store, key: str):
    from synthlm.jobs import job_from_json

    return job_from_json(json.dumps(store.load(key).config))


def test_a_step_and_finetuned_models_beside(run: Run) -> None:
    base = key_in(run("train", *SMALL)[1])
    tuned = key_in(run(
        "finetune", "--base", base[:8], "--steps", "4", "--set", "language.items=8",
        "--set", "language.alphabet=8", "--set", "training.batch=8",
    )[1])  # fmt: skip
    code, out, err = run("analyze", base[:8], "updates", "--with", tuned[:8], "--out", "updates.csv")
    assert code == 0, err
    assert pd.read_csv("updates.csv").query("matrix == 'all'")["kl"].item() > 0
    code, out, _ = run("analyze", base[:8], "slices", "--step", "1")
    assert code == 0
    assert "at step 1" in out
    code, _, err = run("analyze", base[:8], "slices", "--step", "5")
    assert code == 2
    assert "step: 5 was not kept; allowed: 0, 1, 12" in err
    code, _, err = run("analyze", base[:8], "updates")
    assert code == 2
    assert "needs models finetuned from one base" in err


def test_a_hugging_face_folder_of_ones_own(run: Run, gpt2: Path) -> None:
    code, _, err = run(
        "analyze", "gpt2", "slices", "curvature", *FAST, "--data", "tokens.npy", "--pad", "0", "--out", "x"
    )
    assert code == 0, err
    tokens = torch.from_numpy(np.load("tokens.npy"))
    objective = causal_lm_objective(load_causal_lm(gpt2), tokens, pad=0)
    assert objective.counts == (5 * 3 + 7 * 6,)
    loss = pd.read_csv("x/slices.csv")["loss"].item()
    assert loss == pytest.approx(objective.loss(objective.flat[None]).item(), rel=1e-5)
    curvature = pd.read_csv("x/curvature.csv")
    assert (curvature.query("quantity == 'eigenvalue'")["value"].diff().dropna() <= 1e-6).all()
    assert set(curvature["geometry"].dropna()) == {"max", "spectral", "frobenius"}


@pytest.mark.parametrize("name", ["activations", "landscape", "basins", "spectrum"])
def test_other_analyses_take_it_too(name: str, run: Run, gpt2: Path) -> None:
    small = {
        "activations": ["items=4"],
        "landscape": ["items=4", "draws=1", "radii=[0.1]", "steps=1", 'kinds=["relative"]'],
        "basins": ["items=4", "draws=2", "count=3"],
        "spectrum": ["items=4", "probes=1", "steps=5"],
    }[name]
    code, out, err = run("analyze", "gpt2", name, *(f"--set={s}" for s in small), "--data", "tokens.npy")
    assert code == 0, err
    assert "rows" in out


def test_random_tokens_are_owned_up_to(run: Run, gpt2: Path) -> None:
    code, out, err = run("analyze", "gpt2", "slices")
    assert code == 0
    assert "random tokens" in err
    assert run("analyze", "gpt2", "slices")[1] == out


def test_a_language_on_a_foreign_model_and_models_finetuned_from_it(run: Run, gpt2: Path) -> None:
    from transformers import GPT2LMHeadModel

    other = GPT2LMHeadModel.from_pretrained(gpt2)
    with torch.no_grad():
        other.transformer.h[0].mlp.c_fc.weight += 0.1
    other.save_pretrained("tuned")
    language = ["--data", "facts", "--set", "data.items=9", "--set", "data.alphabet=8"]
    code, _, err = run("analyze", "gpt2", "slices", "updates", *language, "--with", "tuned", "--out", "x")
    assert code == 0, err
    assert "facts/rote" in pd.read_csv("x/slices.csv")["slice"].tolist()
    moved = pd.read_csv("x/updates.csv").set_index("matrix")["norm/frobenius"]
    assert moved["transformer.h.0.mlp.c_fc.weight"] == pytest.approx(0.1 * (8 * 32) ** 0.5, rel=1e-4)
    assert moved["transformer.h.0.attn.c_attn.weight"] == 0
    code, _, err = run("analyze", "gpt2", "landscape", *language, "--with", "tuned")
    assert code == 2
    assert "new-data: this analysis needs what the further models learnt" in err


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_weights_file(suffix: str, run: Run) -> None:
    key = key_in(run("train", *SMALL)[1])
    store = Store("store")
    job = cli_job(store, key)
    flat = final_weights(job, store)
    path = Path(f"mine{suffix}")
    if suffix == ".safetensors":
        weights.save(path, flat, job.model.layout)
    else:
        views = job.model.layout.views(flat[None])
        torch.save({"model": {name: view[0].clone() for name, view in views.items()}}, path)
    told = ["--model", "heads=2", "--model", "activation=relu2"]
    language = ["--data", "facts", "--set", "data.items=8", "--set", "data.alphabet=8"]
    code, _, err = run("analyze", str(path), "slices", *told, *language, "--out", "x.csv")
    assert code == 0, err
    assert run("analyze", key[:8], "slices", "--out", "y.csv")[0] == 0
    assert pd.read_csv("x.csv")["loss"].tolist() == pytest.approx(
        pd.read_csv("y.csv")["loss"].tolist(), rel=1e-6
    )
    code, _, err = run("analyze", str(path), "slices")
    assert (code, "does not tell heads and activation; give --model heads=... " in err) == (2, True)
    code, _, err = run("analyze", str(path), "slices", *told, "--data", "tasks.npz")
    assert (code, "data: 'tasks.npz' is neither a file nor one of facts" in err) == (2, True)
    np.save("t.npy", np.random.default_rng(0).integers(1, job.model.vocab, (5, 6)))
    assert run("analyze", str(path), "slices", *told, "--data", "t.npy")[0] == 0
    code, _, err = run("analyze", str(path), "items", *told, *language)
    assert (code, "needs a model of the store" in err) == (2, True)


BAD = {
    "curvatur": "analysis: 'curvatur' is not one of .*did you mean 'curvature'",
    "curvature --set itms=3": r"curvature: itms: unknown field \(did you mean 'items'\?\)",
    "curvature slices --set items=3": "set: 'items' is not one of curvature, slices",
    "curvature slices --out x.csv": "out: x.csv is one file, but there are 2 analyses",
    "slices --data tokens.npz": "data: 'tokens.npz' is neither a file",
    "slices --data fact": "did you mean 'facts'",
    "slices --data facts --set data.item=3": "data: item: unknown field",
    "slices --data facts": "do not fit the model's vocabulary of 30",
    "slices --data text.txt": "gpt2 has no tokenizer; give token ids",
    "slices --model heads=2": "tells its model itself",
    "slices --step 3": "step: a checkpoint has no other steps",
    "plane --data tokens.npy": "plane: needs 2 models",
    "slices --aux nothing*": "aux: 'nothing\\*' matches no parameter",
}


@pytest.mark.parametrize("command", BAD)
def test_bad_input_is_named(command: str, run: Run, gpt2: Path) -> None:
    Path("text.txt").write_text("to be or not to be " * 40)
    code, _, err = run("analyze", "gpt2", *command.split())
    assert code == 2
    assert "Traceback" not in err
    assert re.search(BAD[command], err), err


def test_what_is_no_model(run: Run, gpt2: Path) -> None:
    assert "'gpt' is no file or folder (did you mean 'gpt2'?)" in run("analyze", "gpt", "slices")[2]
    Path("empty").mkdir()
    assert "empty has no config.json" in run("analyze", "empty", "slices")[2]
    Path("broken.safetensors").write_bytes(b"no")
    assert "broken.safetensors cannot be read" in run("analyze", "broken.safetensors", "slices")[2]
    torch.save({"a": 1}, "wrong.pt")
    assert "wrong.pt holds no tensors by name" in run("analyze", "wrong.pt", "slices")[2]
    torch.save({"a": torch.ones(1)}, "other.pt")
    assert "other.pt holds no transformer of this package" in run("analyze", "other.pt", "slices")[2]
    assert "should end in" in run("analyze", "tokens.npy", "slices")[2]
    key = key_in(run("train", *SMALL)[1])
    entry = str(Store("store").folder(key))
    assert f"is an entry of a store; give its key, {key[:12]}" in run("analyze", entry, "slices")[2]


def test_the_command_that_repeats_a_failed_analysis(run: Run) -> None:
    key = key_in(run("train", *SMALL)[1])
    job = parse(Probe, {"subjects": [cli_job(Store("store"), key)], "analysis": {"name": "slices"}}, "probe")
    Path("failed.json").write_text(
        json.dumps({"job": json.loads(job.model_dump_json()), "error": "", "key": job.key})
    )
    code, out, err = run("analyze", "--job", "failed.json", "--store", "store")
    assert code == 0, err
    assert job.key in out
    code, _, err = run("train", "--job", "failed.json")
    assert (code, "use 'synthlm analyze --job" in err) == (2, True)


def test_without_arguments_it_lists_the_analyses(run: Run) -> None:
    code, out, _ = run("analyze")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(ANALYSES)


def test_a_text_is_cut_into_sequences_by_the_folders_tokenizer(run: Run, gpt2: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = ["to", "be", "or", "not", "that", "is", "the", "question"]
    made = Tokenizer(WordLevel({w: i + 2 for i, w in enumerate(words)} | {"<unk>": 0}, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>").save_pretrained(gpt2)
    text = " ".join(np.random.default_rng(2).choice(words, 100))
    Path("text.txt").write_text(text)
    code, _, err = run("analyze", "gpt2", "slices", "--data", "text.txt", "--length", "9", "--out", "x.csv")
    assert code == 0, err
    tokens = torch.tensor([words.index(w) + 2 for w in text.split()]).view(10, 10)
    objective = causal_lm_objective(load_causal_lm(gpt2), tokens)
    wanted = objective.loss(objective.flat[None]).item()
    assert pd.read_csv("x.csv")["loss"].item() == pytest.approx(wanted, rel=1e-5)
