"""Experiments: each turns a grid (settings) into jobs, and finished jobs into one tidy table."""

import tomllib
from pathlib import Path

from synthlm import grids
from synthlm.config import InputError, near_match, parse
from synthlm.experiments.consistency import ConsistencyGrid, ConsistencyStudy

PRESETS = ("smoke", "laptop", "paper")
Grid = ConsistencyGrid
Study = ConsistencyStudy


def load_grid(name_or_path: str, seeds: int | None = None, figures: list[str] | None = None) -> Grid:
    """Read a preset by name, or a grid file in TOML.

    Args:
        seeds: takes the place of the grid's own number of seeds.
        figures: takes the place of the grid's own list of figures.

    Raises:
        InputError: unknown preset, unreadable file, TOML error (with its line), or a wrong setting.
    """
    path = Path(grids.__path__[0]) / f"{name_or_path}.toml" if name_or_path in PRESETS else Path(name_or_path)
    try:
        data = tomllib.loads(path.read_text())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        hint = near_match(name_or_path, list(PRESETS))
        raise InputError(
            f"grid: {name_or_path!r} is neither a preset ({', '.join(PRESETS)}) nor a TOML file{hint}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"grid: {path} cannot be read ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"grid: {path} is not valid TOML: {error}") from None
    overrides = {"seeds": seeds, "figures": figures}
    data |= {field: value for field, value in overrides.items() if value is not None}
    return parse(ConsistencyGrid, data, path.name)


def study(grid: Grid) -> Study:
    """The experiment that a grid describes."""
    return ConsistencyStudy(grid)
