"""``synthlm edge`` on a folder that a plain PyTorch loop wrote: the same bytes twice, and clear words else."""

import re
import secrets
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from synthlm import cli, edge_folder
from synthlm.config import InputError
from synthlm.table import read_csv


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A stranger's run: a perceptron, saved every ten steps."""
    place = tmp_path / "run"
    place.mkdir()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for step in range(0, 130, 10):
        torch.save(net.state_dict(), place / f"net-{step}.pth")
        x = torch.randn(64, 6)
        loss = nn.functional.mse_loss(net(x), x[:, :3].square())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return place


def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["synthlm", "edge", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_table_and_figure_of_a_folder(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    words = [str(folder), "--window", "4", "--sets", "all,0.*", "--lr", "0.05", "--samples", "29"]
    code, out, _ = call(monkeypatch, capsys, *words, "--out", str(tmp_path / "one"))
    assert code == 0
    assert "all: 243 parameters, 9 windows" in out
    assert "0.*: 168 parameters" in out
    found = read_csv(tmp_path / "one" / "edge.csv")
    assert found[found["set"] == "all"]["step"].tolist() == list(range(40, 130, 10))
    assert (found["k_ratio"] >= 1).all()
    assert np.isfinite(found["ratio/stationary/mid"]).all()
    assert np.isfinite(found["adiabatic_sigma"]).sum() == 16  # all but the first window of each set
    assert (tmp_path / "one" / "edge.pdf").stat().st_size > 1000
    assert call(monkeypatch, capsys, *words, "--out", str(tmp_path / "two"))[0] == 0
    for name in ("edge.csv", "edge.png", "edge.pdf"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_what_is_refused(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    cases = [
        ([str(tmp_path / "none")], "not a folder"),
        ([str(folder), "--window", "30"], "window: 30 updates need 31 checkpoints"),
        ([str(folder), "--sets", "attention"], "no parameter belongs to attention"),
        ([str(folder), "--sets", "atention"], "did you mean 'attention'"),
        ([str(folder), "--window", "2"], "window: 2"),
        ([str(folder), "--sets", "*bias*", "--window", "12", "--sketch", "12"], "sketch: 12 numbers"),
    ]
    for words, message in cases:
        code, _, err = call(monkeypatch, capsys, *words, "--out", str(tmp_path / "out"))
        assert code == 2
        assert message in err
        assert "Traceback" not in err


def test_a_sketch_of_a_folder_is_close(folder: Path) -> None:
    exact, sketched = (
        edge_folder.table(folder, 4, ("all",), sketch=sketch, samples=19) for sketch in (None, 150)
    )
    assert abs(sketched["share"] - exact["share"]).max() < 0.25
    with pytest.raises(InputError, match="sketch"):
        edge_folder.table(folder, 4, ("all",), sketch=2)


def save(place: Path, weights: Iterable[torch.Tensor], steps: Iterable[int]) -> Path:
    place.mkdir()
    for step, each in zip(steps, weights, strict=False):
        torch.save({"w": each.clone()}, place / f"step{step}.pt")
    return place


@pytest.fixture
def walk() -> torch.Tensor:
    """Weights ``[checkpoint, param]`` of a random walk."""
    seed = secrets.randbits(60)
    print(f"seed {seed}")
    return torch.randn(16, 200, generator=torch.Generator().manual_seed(seed)).cumsum(0)


def test_steps_are_told_and_unequal_ones_warned_of(walk, tmp_path: Path, monkeypatch, capsys) -> None:
    even = save(tmp_path / "even", walk, range(50, 900, 50))
    words = ["--window", "4", "--sets", "all", "--samples", "19", "--out", str(tmp_path / "out")]
    code, out, err = call(monkeypatch, capsys, str(even), *words)
    assert (code, err) == (0, "")
    assert "16 checkpoints, steps 50 to 800, 50 apart\n" in out
    odd = save(tmp_path / "odd", walk, [2**i for i in range(9)])
    code, out, err = call(monkeypatch, capsys, str(odd), *words)
    assert code == 0
    assert "9 checkpoints, steps 1 to 256, 1 to 128 apart\n" in out
    assert "warning: checkpoints are not equally spaced" in err
    assert edge_folder.steps_found(even, 3) == ("6 checkpoints, steps 50 to 800, 150 apart", "")


def test_windows_with_equal_checkpoints_are_left_out(walk, tmp_path: Path) -> None:
    at = 5 + secrets.randbelow(6)
    walk[at] = walk[at - 1]
    found = edge_folder.table(save(tmp_path / "run", walk, range(16)), 4, ("all",), samples=19)
    void = found["step"].between(at, at + 3)
    assert void.sum() == 4
    for column in (
        "p",
        "ratio",
        "gap",
        "ratio/stationary/mid",
        "k_ratio/stationary/mean",
        "k_bulk/directions/mean",
    ):
        np.testing.assert_array_equal(found[column].isna(), void)
    assert not found.loc[void, ["k_ratio", "k_mass", "k_bulk"]].any(axis=None)
    told = edge_folder.summary(found)
    assert "all: 200 parameters, 8 windows, 4 left out" in told
    assert "nan" not in told
    alone = edge_folder.summary(found[~void])
    assert told.split("\n")[1:] == alone.split("\n")[1:]
    paths = edge_folder.write(found, tmp_path / "out", "a run")
    assert all(path.stat().st_size for path in paths)


def test_folders_without_a_window_are_refused_in_one_line(walk, tmp_path, monkeypatch, capsys) -> None:
    walk[3] = float("nan")
    cases = {
        "equal": (walk[:1].expand(8, -1), "all 8 checkpoints of .* hold equal weights in the set 'all'"),
        "broken": (walk[:7], "of 6 updates 0 are zero .* and 2 are not finite; allowed: at least one window"),
        "small": (
            walk[4:12, :3],
            "window: 4 updates need as many parameters, but the set 'all' has 3; allowed: ",
        ),
    }
    for name, (weights, message) in cases.items():
        place = save(tmp_path / name, weights, range(10))
        words = ["--window", "4", "--sets", "all", "--out", str(tmp_path / "out")]
        code, _, err = call(monkeypatch, capsys, str(place), *words)
        assert code == 2
        assert re.search(message, err), err
        assert len(err.strip().splitlines()) == 1


def test_a_sketch_tells_its_effective_dimension(walk, tmp_path: Path) -> None:
    found = edge_folder.table(save(tmp_path / "run", walk, range(16)), 4, ("all",), sketch=40, samples=19)
    assert set(found["parameters"]) == {200}
    assert set(found["dimension"]) == {200 / (1 + 199 / 40)}
    assert "all: 200 parameters (sketched: 33 dimensions), 12 windows" in edge_folder.summary(found)
