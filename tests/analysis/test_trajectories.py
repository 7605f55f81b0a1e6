"""Folders of checkpoints that this package did not write: those of a plain PyTorch loop."""

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
    with pytest.raises(InputError, match=r"step2\.pt: differs from the first at w \(1,\)"):
        trace_folder(tmp_path, 3)
    torch.save({"w": torch.zeros(1)}, tmp_path / "other-1.pt")
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
