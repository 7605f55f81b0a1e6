"""Verdicts on claims: computed from tables, by rules that were fixed in code before the numbers were seen."""

from collections.abc import Mapping

import pandas as pd

from synthlm.claims import basins, consistency, edge, mechanism, small_data, tendency
from synthlm.claims.verdicts import Verdict

JUDGES = (consistency, mechanism, basins, small_data, tendency, edge)
"""Modules with CONSTANTS and ``judge(tables)``, in the order of the report."""

CONSTANTS = {module.__name__.rpartition(".")[2]: module.CONSTANTS for module in JUDGES}
"""The constants of each rule."""


def judge(tables: Mapping[str, pd.DataFrame]) -> list[Verdict]:
    """A verdict on every claim that these tables speak of."""
    return [verdict for module in JUDGES for verdict in module.judge(tables)]
