"""The README's Python runs as it stands, and its command for one's own model on what that wrote."""

import importlib.util
import os
import re
import shlex
from pathlib import Path
from typing import Any

import fake_slurm
import pandas as pd
import pytest

from synthlm import cli

TEXT = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_python_and_own_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) >= 3
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert "torch.Size([4, " in capsys.readouterr().out
    found = re.search(r"<!-- own model -->\n```bash\n(.*?)```", TEXT, re.DOTALL)
    assert found
    monkeypatch.setattr("sys.argv", shlex.split(found[1]))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert set(pd.read_csv("results/my-gpt2/curvature.csv")["quantity"]) >= {
        "eigenvalue",
        "trace",
        "curvature",
    }
    assert len(pd.read_csv("results/my-gpt2/activations.csv")) == 8


def test_commands_for_several_machines_are_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fake_slurm.install(tmp_path)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), os.environ["PATH"]]))
    found = re.search(r"<!-- machines -->\n```bash\n(.*?)```", TEXT, re.DOTALL)
    assert found
    lines = [shlex.split(line, comments=True) for line in found[1].splitlines() if line.startswith("synthlm")]
    assert {"slurm", "ray"} <= {word for words in lines for word in words}
    for words in lines:
        if "ray" in words and importlib.util.find_spec("ray") is None:
            continue
        monkeypatch.setattr("sys.argv", [*words, "--dry-run"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        assert "pretrain" in capsys.readouterr().out
