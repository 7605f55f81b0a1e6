"""Experiments: each turns settings into jobs, and finished jobs into tidy tables. A grid is a file of such settings."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from synthlm import grids
from synthlm.config import Config, InputError, near_match, parse
from synthlm.experiments.consistency import ConsistencySettings, ConsistencyStudy
from synthlm.experiments.edge import EdgeSettings, EdgeStudy
from synthlm.experiments.mechanism import MechanismSettings, MechanismStudy
from synthlm.experiments.tendency import TendencySettings, TendencyStudy
from synthlm.study import Results, Study

if TYPE_CHECKING:
    import pandas as pd

PRESETS = ("smoke", "laptop", "paper")

STUDIES: dict[str, Callable[[Any, Mapping[str, Any]], Study]] = {
    "consistency": lambda settings, built: ConsistencyStudy(settings),
    "mechanism": lambda settings, built: MechanismStudy(settings, built["consistency"]),
    "tendency": lambda settings, built: TendencyStudy(settings),
    "edge": lambda settings, built: EdgeStudy(settings, built.get("consistency")),
}
"""Study -> how it is made from its settings and the studies before it."""

NEEDS: dict[str, str] = {"mechanism": "consistency"}
"""Study -> the study whose models it analyses."""


class Grid(Config):
    """A grid file (TOML): a section for each study. ``figures`` lists the figures to draw; empty means all.

    ``seeds`` is the number of seeds of every study whose section does not give its own.
    """

    title: str
    seeds: int = Field(3, ge=1)
    figures: tuple[str, ...] = ()
    consistency: ConsistencySettings | None = None
    mechanism: MechanismSettings | None = None
    tendency: TendencySettings | None = None
    edge: EdgeSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _shared_seeds(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("seeds", 3), int):
            return data
        seeds = {"seeds": data.get("seeds", 3)}
        return {
            name: {**seeds, **value} if name in STUDIES and isinstance(value, dict) else value
            for name, value in data.items()
        }

    @model_validator(mode="after")
    def _complete(self) -> "Grid":
        given = [name for name in STUDIES if getattr(self, name) is not None]
        if not given:
            raise ValueError(f"no study in it; give at least one section of {', '.join(STUDIES)}")
        for name in given:
            if name in NEEDS and NEEDS[name] not in given:
                raise ValueError(f"{name}: needs the section {NEEDS[name]}, whose models it analyses")
        if self.mechanism is not None and self.consistency is not None:
            self.mechanism.check(self.consistency)
        return self


class Suite:
    """The studies of a grid, as one.

    Args:
        only: names of studies; they and those they need are run. None: all that the grid has.
    """

    def __init__(self, grid: Grid, only: Sequence[str] | None = None) -> None:
        wanted = set(STUDIES if only is None else only)
        wanted |= {NEEDS[name] for name in wanted if name in NEEDS}
        self.grid = grid
        self.studies: dict[str, Study] = {}
        for name, make in STUDIES.items():
            settings = getattr(grid, name)
            if settings is not None and name in wanted:
                self.studies[name] = make(settings, self.studies)

    def describe(self) -> str:
        """What is run, a paragraph for each study."""
        return "\n\n".join([self.grid.title, *(study.describe() for study in self.studies.values())])

    def jobs(self, results: Results) -> Sequence[Any]:
        """Every job wanted by any study, once."""
        return list(dict.fromkeys(job for study in self.studies.values() for job in study.jobs(results)))

    def tables(self, results: Results) -> "dict[str, pd.DataFrame]":
        """The tables of every study."""
        return {
            name: table for study in self.studies.values() for name, table in study.tables(results).items()
        }


def load_grid(name_or_path: str, seeds: int | None = None, figures: list[str] | None = None) -> Grid:
    """Read a preset by name, or a grid file in TOML.

    Args:
        seeds: takes the place of every number of seeds in the grid.
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
    if seeds is not None:
        data["seeds"] = seeds
        for name in STUDIES:
            if isinstance(data.get(name), dict):
                data[name].pop("seeds", None)
    if figures is not None:
        data["figures"] = figures
    return parse(Grid, data, path.name)
