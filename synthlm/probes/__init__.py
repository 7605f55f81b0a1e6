"""Analyses as settings: each names functions of ``synthlm.analysis``, takes a subject and gives tidy rows."""

from typing import Annotated

from pydantic import Field

from synthlm.probes.activations import Activations
from synthlm.probes.analysis import Analysis, Columns
from synthlm.probes.slices import SliceScores
from synthlm.probes.updates import Updates

ANALYSES: dict[str, type[Analysis]] = {
    "slices": SliceScores,
    "activations": Activations,
    "updates": Updates,
}
"""Every analysis by name; each runs with its defaults."""

AnyAnalysis = Annotated[SliceScores | Activations | Updates, Field(discriminator="name")]
"""For fields of settings: any analysis, chosen by ``name``."""

__all__ = ["ANALYSES", "Analysis", "AnyAnalysis", "Columns"]
