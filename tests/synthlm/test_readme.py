"""The README's Python runs as it stands, and its command for one's own model on what that wrote."""

import re
import shlex
from pathlib import Path
from typing import Any

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
