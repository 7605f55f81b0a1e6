"""What the figures on predictors of forgetting share: names of predictors, and their scores."""

import pandas as pd

from synthlm.analysis.prediction import RESAMPLES, score_predictors
from synthlm.statistics import LEVEL

PREDICTORS = {
    "distance": "Frobenius size (l2 norm of the update)",
    "relative/frobenius": "Frobenius size, relative to the weights",
    "own/norm": "size in the base's own norm",
    "own/relative": "own norm, relative to the weights",
    "own/reach": "own norm, paired with activations",
    "own/moved": "outputs moved, in the base's own sizes",
    "reach/max": "max norm, paired with activations",
    "reach/spectral": "spectral norm, paired with activations",
    "reach/frobenius": "Frobenius norm, paired with activations",
    "drift/inputs": "activation drift (inputs)",
    "drift/outputs": "activation drift (outputs)",
    "stable_rank": "stable rank of the update",
    "entropy": "SVD entropy of the update",
    "overlap": "overlap with top Hessian directions",
    "second_order": "second-order estimate of the loss rise",
    "kl": "forward KL on old inputs",
}
"""Column of the table ``predictors`` -> what it is; the last is what was done, not what was foreseen."""

SIZE = ("distance", "relative/frobenius")
"""What the others have to beat."""


def scored(table: pd.DataFrame) -> pd.DataFrame:
    """Scores of every predictor (see ``analysis.prediction``), arms left out in turn, base and seed as clusters."""
    there = [name for name in PREDICTORS if name in table and table[name].notna().sum() > 2]
    return score_predictors(table, there, "forgetting", given="learnt", group="arm", cluster=["base", "seed"])


def score_text(clusters: int) -> str:
    """What the intervals of the scores are."""
    if clusters < 2:
        return "One base and seed: no interval can be given."
    return (
        f"Intervals: {LEVEL:.0%} percentile bootstrap ({RESAMPLES} resamples) of the {clusters} bases and seeds as"
        " clusters."
    )
