"""Folders of checkpoints that this package did not write: those of a plain PyTorch loop."""

import argparse
import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from synthlm.analysis.trajectories import checkpoint_steps, load_tensors, trace, trace_folder
from synthlm.config import InputError


class Net(nn.Module):
    """A stranger's model: attention, an MLP, a tied head, a buffer of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(7, 8)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.lm_head = nn.Linear(8, 7, bias=False)
        self.lm_head.weight = self.wte.weight
        self.register_buffer("mask", torch.ones(3, dtype=torch.int64))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens)
        x = x + self.attn(x, x, x, need_weights=False)[0]
        return self.lm_head(x + self.mlp(x))


def plain_loop(
    folder: Path, generator: torch.Generator, steps: int = 14, nested: bool = False
) -> list[Tensor]:
    """Train and torch.save in a loop, as anybody would; the weights of each step, tied ones once."""
    torch.manual_seed(int(torch.randint(10**6, (1,), generator=generator)))
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    kept = []
    folder.mkdir(exist_ok=True)
    for step in range(0, 10 * steps, 10):
        state = net.state_dict()
        whole = {"model_state_dict": state, "optimizer": optimizer.state_dict(), "step": step}
        torch.save(whole if nested else state, folder / f"ckpt_{step}.pt")
        kept.append(torch.cat([p.detach().flatten() for _, p in sorted(net.named_parameters())]))
        tokens = torch.randint(7, (16, 5), generator=generator)
        loss = nn.functional.cross_entropy(net(tokens).flatten(0, 1), tokens.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(optimizer.state_dict(), folder / "optimizer_130.pt")
    torch.save(net.state_dict(), folder / "final.pt")
    return kept


@pytest.mark.parametrize("nested", [False, True])
def test_a_folder_of_a_plain_loop(tmp_path: Path, generator: torch.Generator, nested: bool) -> None:
    kept = plain_loop(tmp_path / "run", generator, nested=nested)
    assert list(checkpoint_steps(tmp_path / "run")) == list(range(0, 140, 10))
    found = {each.name: each for each in trace_folder(tmp_path / "run", 4, ("all", "attention", "mlp"))}
    net = Net()
    sizes = {name: p.numel() for name, p in net.named_parameters()}
    assert found["all"].parameters == sum(sizes.values())
    assert found["attention"].parameters == sum(n for name, n in sizes.items() if name.startswith("attn"))
    assert found["mlp"].parameters == sum(n for name, n in sizes.items() if name.startswith("mlp"))
    updates = np.diff(torch.stack(kept).double().numpy(), axis=0)
    statistics = found["all"].statistics(lr=1e-2)
    assert statistics["step"].tolist() == list(range(40, 140, 10))
    for at in range(10):
        sigma = np.linalg.svd(updates[at : at + 4], compute_uv=False)
        np.testing.assert_allclose(statistics["sigma"][at], sigma, rtol=1e-5)
    assert np.isfinite(statistics["adiabatic_sigma"][1:]).all()


def test_safetensors_in_folders_of_their_own(tmp_path: Path, generator: torch.Generator) -> None:
    flats = torch.randn(9, 6, generator=generator).cumsum(0)
    for step, flat in enumerate(flats):
        place = tmp_path / f"checkpoint-{step * 500}"
        place.mkdir()
        safetensors.torch.save_file({"a.attn.w": flat[:4], "b": flat[4:]}, place / "model.safetensors")
        (place / "trainer_state.json").write_text("{}")
    (one,) = trace_folder(tmp_path, 3, ("all",), every=2)
    assert one.step.tolist() == [1000, 2000, 3000, 4000]
    updates = np.diff(flats[::2].double().numpy(), axis=0)
    for t in range(4):
        for lag in range(t + 1):
            assert one.rows[t, lag] == pytest.approx(updates[t] @ updates[t - lag], rel=1e-6, abs=1e-9)
    (same,) = trace(((step, {"w": flat}) for step, flat in enumerate(flats[::2])), 3)
    np.testing.assert_allclose(same.rows, one.rows, rtol=1e-9)


def test_a_wrapped_half_precision_model(tmp_path: Path, generator: torch.Generator) -> None:
    weights = torch.randn(5, generator=generator).half()
    torch.save(
        {"state_dict": {"_orig_mod.w": weights, "n": torch.tensor(3)}, "epoch": 1}, tmp_path / "e1.ckpt"
    )
    found = load_tensors(tmp_path / "e1.ckpt")
    assert list(found) == ["w"]
    assert torch.equal(found["w"], weights)


def test_folders_that_are_no_trajectory_are_refused(tmp_path: Path, generator: torch.Generator) -> None:
    with pytest.raises(InputError, match="not a folder"):
        checkpoint_steps(tmp_path / "none")
    with pytest.raises(InputError, match="holds 0 checkpoints"):
        checkpoint_steps(tmp_path)
    for step in (1, 2, 3):
        torch.save({"w": torch.zeros(step)}, tmp_path / f"step{step}.pt")
    with pytest.raises(InputError, match="window: 10 updates need 11 checkpoints"):
        trace_folder(tmp_path)
    torch.save({"w": torch.zeros(1)}, tmp_path / "step4.pt")
    with pytest.raises(
        InputError, match=r"window: 3 updates need as many parameters, but the set 'all' has 1"
    ):
        trace_folder(tmp_path, 3, ("all",))
    for step in (1, 2, 3, 4):
        torch.save({"w": torch.zeros(3 + step)}, tmp_path / f"step{step}.pt")
    with pytest.raises(InputError, match=r"step2\.pt: differs from the first at w \(4,\)"):
        trace_folder(tmp_path, 3)
    torch.save({"w": torch.zeros(1)}, tmp_path / "other-step1.pt")
    with pytest.raises(InputError, match="both look like step 1"):
        checkpoint_steps(tmp_path)


def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a1.pt").write_bytes(b"not a zip")
    (tmp_path / "a2.safetensors").write_bytes(b"nor this")
    torch.save({"epoch": 3}, tmp_path / "a3.pt")
    for name, message in (
        ("a1.pt", "cannot be read"),
        ("a2.safetensors", "cannot be read"),
        ("a3.pt", "no weights"),
    ):
        with pytest.raises(InputError, match=message):
            load_tensors(tmp_path / name)


def touch(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


TRAINER = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_0.pth", "training_args.bin",
           "trainer_state.json")  # fmt: skip
LAYOUTS = {
    "trainer": ("checkpoint-{}/model.safetensors", *(f"checkpoint-{{}}/{name}" for name in TRAINER)),
    "folder of a step": ("step-{}/gpt2.pt",),
    "a model's number after the step": ("step{}-gpt2.pt",),
    "a loss after the step": ("step{}_loss{loss}.pt",),
    "epoch and step": ("epoch={loss}-step={}.ckpt", "optim_{}.pt"),
    "a folder's number": ("{}/model.pt", "{}/optimizer-1.pt"),
    "a model's number before the step": ("gpt2-{}.pt", "gpt2-final.pt"),
    "a word that begins with another": ("modest-{}.pt", "modes-{}.pt", "optimal.pt"),
    "the same number twice": ("run3/{}/net-{}.pth",),
    "megatron": ("iter_{:07}/mp_rank_00/model_optim_rng.pt",),
    "deepspeed": (
        "global_step{}/mp_rank_00_model_states.pt",
        "global_step{}/zero_pp_rank_0_mp_rank_00_optim_states.pt",
    ),
    "thousands": ("ckpt-{}k.pt",),
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_layouts_in_use_are_put_in_order(tmp_path: Path, layout: str) -> None:
    rng = np.random.default_rng(secrets.randbits(60))
    steps = sorted(rng.choice(20_000, 6, replace=False).tolist())
    names = LAYOUTS[layout]
    losses = rng.permutation([0.5, 1.25, 2.5, 3.0, 4.75, 9.0]) if "loss" in layout else rng.permutation(6)
    for step, loss in zip(steps, losses, strict=True):
        touch(tmp_path, [name.replace("{}", str(step)).format(step, loss=loss) for name in names])
    touch(
        tmp_path,
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "training_args.bin"],
    )
    unit = 1000 if layout == "thousands" else 1
    found = checkpoint_steps(tmp_path)
    assert list(found) == [unit * step for step in steps]
    for step, loss in zip(steps, losses, strict=True):
        first = names[0].replace("{}", str(step)).format(step, loss=loss)
        assert found[unit * step] == (tmp_path / first,)


@pytest.mark.parametrize("stem", ["model", "pytorch_model"])
def test_shards_are_merged(tmp_path: Path, generator: torch.Generator, stem: str) -> None:
    weights = torch.randn(6, 9, generator=generator).cumsum(0)
    for step, flat in enumerate(weights):
        place = tmp_path / f"checkpoint-{10 * step}"
        place.mkdir()
        for at, part in enumerate(
            ({"a": flat[:4].clone(), "c": flat[7:].clone()}, {"b": flat[4:7].clone()}), 1
        ):
            if stem == "model":
                safetensors.torch.save_file(part, place / f"model-0000{at}-of-00002.safetensors")
            else:
                torch.save(part, place / f"pytorch_model-0000{at}-of-00002.bin")
    (one,) = trace_folder(tmp_path, 3, ("all",))
    (same,) = trace(((10 * step, {"w": flat}) for step, flat in enumerate(weights)), 3)
    assert one.parameters == 9
    np.testing.assert_array_equal(one.step, same.step)
    np.testing.assert_allclose(one.rows, same.rows, rtol=1e-9)
    next((tmp_path / "checkpoint-20").glob("*-00002-of*")).unlink()
    with pytest.raises(InputError, match=r"checkpoint-20/.* in 2 shards: shard 2 is missing"):
        checkpoint_steps(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("net-10-7.pt", "net-20-3.pt"), r"net-20-3.pt may be 20 or 3, as both vary"),
        (("step10-step20.pt", "step30-step40.pt"), r"step10-step20.pt may be 10 or 20"),
        (("epoch-1.pt", "epoch-2.pt", "step-100.pt"), "epoch-1.pt counts epochs and step-100.pt does not"),
        (("epoch_1/step_5.pt", "epoch_2/step_5.pt"), "both look like step 5"),
    ],
)
def test_names_with_two_steps_are_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    touch(tmp_path, names)
    with pytest.raises(InputError, match=message):
        checkpoint_steps(tmp_path)


def test_the_weights_of_a_file_are_found_or_asked_for(tmp_path: Path, generator: torch.Generator) -> None:
    state = {"a": torch.randn(3, generator=generator), "scale": torch.tensor(1.5)}
    optimizer = {"state": {0: {"exp_avg": torch.randn(3, generator=generator)}}, "param_groups": []}
    path = tmp_path / "step1.pt"
    for whole in (
        {"net": state, "best_loss": torch.tensor(2.0), "optim": optimizer},
        {"trainer": {"net": state}, "metrics": {"loss": torch.tensor(2.0)}},
        {"model": state, "ema": state},
        state,
    ):
        torch.save(whole, path)
        assert torch.equal(load_tensors(path)["a"], state["a"])
    for whole, message in (
        (
            {"net": state, "ema": state},
            r"step1.pt: weights may be 'net' or what is under 'ema'; allowed: .*state_dict",
        ),
        ({"net": state, "mean": torch.zeros(2)}, "weights may be 'mean' or what is under 'net'"),
        ({"best_loss": torch.tensor(2.0), "optimizer": optimizer}, "no weights in it"),
    ):
        torch.save(whole, path)
        with pytest.raises(InputError, match=message):
            load_tensors(path)


def test_shared_memory_counts_once_and_equal_copies_each(tmp_path: Path, generator: torch.Generator) -> None:
    head = torch.randn(4, 3, generator=generator)
    torch.save({"wte": head, "lm_head": head, "turned": head.T, "copy": head.clone()}, tmp_path / "1.pt")
    assert set(load_tensors(tmp_path / "1.pt")) == {"wte", "copy"}
    safetensors.torch.save_file({"wte": head, "lm_head": head.clone()}, tmp_path / "1.safetensors")
    assert set(load_tensors(tmp_path / "1.safetensors")) == {"wte", "lm_head"}


def test_files_that_cannot_be_read_are_told_in_one_line(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(3), "settings": argparse.Namespace(a=1)}, tmp_path / "pickled.pt")
    torch.save({"w": torch.zeros(300)}, tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:600])
    (tmp_path / "empty.pt").touch()
    (tmp_path / "noise.bin").write_bytes(secrets.token_bytes(200))
    for name, message in (
        ("pickled.pt", "it holds argparse.Namespace, and pickled objects are not run; allowed: "),
        ("cut.pt", "damaged, or no PyTorch file"),
        ("empty.pt", "damaged, or no PyTorch file"),
        ("noise.bin", "damaged, or no PyTorch file"),
    ):
        with pytest.raises(InputError, match=message) as told:
            load_tensors(tmp_path / name)
        text = str(told.value)
        assert name in text
        assert "weights_only" not in text
        assert not set("\n\x1b") & set(text)
