"""Analyses as settings: each names functions of ``synthlm.analysis``, takes a subject and gives tidy rows."""

from typing import Annotated

from pydantic import Field

from synthlm.probes.analysis import Analysis, Columns
from synthlm.probes.slices import SliceScores

ANALYSES: dict[str, type[Analysis]] = {
    "slices": SliceScores,
}
"""Every analysis by name; each runs with its defaults."""

AnyAnalysis = Annotated[SliceScores, Field()]
"""For fields of settings: any analysis, chosen by ``name``."""

__all__ = ["ANALYSES", "Analysis", "AnyAnalysis", "Columns"]
