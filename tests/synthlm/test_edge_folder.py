"""``synthlm edge`` on a folder that a plain PyTorch loop wrote: the same bytes twice, and clear words else."""

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
