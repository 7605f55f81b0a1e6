"""Analyses as settings: each names functions of ``synthlm.analysis``, takes a subject and gives tidy rows."""

from typing import Annotated

from pydantic import Field

from synthlm.probes.activations import Activations
from synthlm.probes.analysis import Analysis, Columns
from synthlm.probes.basins import Basins, Certificate
from synthlm.probes.curvature import Curvature, SpectralDensity
from synthlm.probes.edge import Edge, EdgeModes, EdgeOnsets
from synthlm.probes.items import Items
from synthlm.probes.landscape import Landscape, Plane
from synthlm.probes.slices import SliceScores
from synthlm.probes.updates import Updates

ANALYSES: dict[str, type[Analysis]] = {
    "slices": SliceScores,
    "items": Items,
    "activations": Activations,
    "updates": Updates,
    "landscape": Landscape,
    "plane": Plane,
    "basins": Basins,
    "certificate": Certificate,
    "curvature": Curvature,
    "spectrum": SpectralDensity,
    "edge": Edge,
    "edge-onsets": EdgeOnsets,
    "edge-modes": EdgeModes,
}
"""Every analysis by name; each runs with its defaults."""

AnyAnalysis = Annotated[
    SliceScores
    | Items
    | Activations
    | Updates
    | Landscape
    | Plane
    | Basins
    | Certificate
    | Curvature
    | SpectralDensity
    | Edge
    | EdgeOnsets
    | EdgeModes,
    Field(discriminator="name"),
]
"""For fields of settings: any analysis, chosen by ``name``."""

__all__ = ["ANALYSES", "Analysis", "AnyAnalysis", "Columns"]
