"""What is installed is what there is."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_package_is_installed() -> None:
    """An editable install finds folders that a wheel would lack."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {name: ROOT / folder for name, folder in tool["package-dir"].items()}
    found = {"synthlm", "synthlm.grids"}
    for name, folder in folders.items():
        for part in folder.rglob("__init__.py"):
            found.add(".".join([name, *part.parent.relative_to(folder).parts]))
    assert set(tool["packages"]) == found
