"""Verdicts on why an optimizer forgets less (C3, C4, C5), by rules fixed before the numbers are seen.

C3 and C4 ask whether a number told of every (base, geometry) is relatively small where the geometry is that of the
base's own optimizer. For two bases b, c with geometries g, h the effect is the interaction

    ((s[c, g] - s[c, h]) - (s[b, g] - s[b, h])) / 2,    s the natural logarithm of the number,

in which whatever makes one base larger in all geometries, or one geometry larger on all bases, cancels. C5 compares
rank correlations within each base. A seed's effect is the mean over its cells; the verdict is a paired t interval over
seeds.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from synthlm.analysis.prediction import partial_rank_correlation, rank_correlation, unseen_r2
from synthlm.bases import judge_bases, passed_pairs
from synthlm.claims.verdicts import Cell, Estimate, Verdict, decide, estimate, few_seeds, with_holm
from synthlm.statistics import LEVEL

SMALLEST_SIZE = 0.05
"""C3: smallest effect of interest, natural logarithm: a size is five percent smaller on its own optimizer's base."""

SMALLEST_CURVATURE = 0.10
"""C4: twice that of C3, because by the hypothesis curvature along a unit step goes with the squared activation size."""

SMALLEST_CORRELATION = 0.05
"""C5: smallest difference of rank correlations of interest; a twentieth of the way from no to perfect order."""

STRUCTURE_PREDICTORS = ("own/reach", "drift/outputs")
"""C5: the update's size in the base's own norm, paired with activations, and the drift of activations."""

BASELINE = "distance"
"""C5: what they have to beat, the Frobenius size of the whole update."""

FEWEST_MODELS = 8
"""C5: a base and seed with fewer finetuned models gives no rank correlation worth the name."""

CONSTANTS = {
    "smallest_size": SMALLEST_SIZE,
    "smallest_curvature": SMALLEST_CURVATURE,
    "smallest_correlation": SMALLEST_CORRELATION,
    "structure_predictors": list(STRUCTURE_PREDICTORS),
    "baseline": BASELINE,
    "fewest_models": FEWEST_MODELS,
}

_DECISION = (
    f" Supported: the {LEVEL:.0%} t interval over paired seeds lies above 0 and the effect is at least {{0:g}}."
    " Contradicted: the interval lies below {0:g}, the smallest effect of interest. Otherwise, and with fewer than two"
    " seeds: inconclusive. Bases that failed pretraining and control bases do not count. p values of cells are"
    " Holm-corrected."
)

RULE_C3 = (
    "Per seed, base and geometry: the activation size paired with the geometry's norm at the end of pretraining,"
    " natural logarithm, mean over hidden matrices and goal slices of the old language. Effect of two bases: half the"
    " interaction (how much smaller each base's own size is, relative to the other's size and the other base)."
    + _DECISION.format(SMALLEST_SIZE)
)

RULE_C4 = (
    "Per seed, base and geometry: curvature of the old loss along the unit step of the finetuning gradient that is"
    " steepest in that geometry, natural logarithm of the mean over finetuning languages; where it is not positive"
    " there is no logarithm, and the pair does not count in that seed. Effect of two bases: half the interaction (how"
    " much flatter each base is along its own optimizer's steps, relative to the other's steps and the other base)."
    + _DECISION.format(SMALLEST_CURVATURE)
)

RULE_C5 = (
    "Per seed and base: Spearman's rank correlation, over all finetuned models (arms, learning rates, languages), of a"
    " predictor with the old accuracy lost at the end of finetuning. Effect: that of"
    f" {' and '.join(STRUCTURE_PREDICTORS)} minus that of {BASELINE}, mean over these and over bases."
    f" Bases with fewer than {FEWEST_MODELS} finetuned models in a seed do not count there."
    + _DECISION.format(SMALLEST_CORRELATION)
)


def judge(tables: Mapping[str, pd.DataFrame]) -> list[Verdict]:
    """Verdicts on C3, C4 and C5 from the tables ``activations``, ``sharpness`` and ``predictors``, as far as there are
    any; ``results`` tells which bases passed."""
    passed = _passed(tables)
    found = []
    if len(tables.get("activations", ())):
        found.append(_judge_sizes(_sound(tables["activations"], passed)))
    if len(tables.get("sharpness", ())):
        found.append(_judge_sharpness(_sound(tables["sharpness"], passed)))
    if len(tables.get("predictors", ())):
        found.append(_judge_predictors(_sound(tables["predictors"], passed)))
    return found


def _passed(tables: Mapping[str, pd.DataFrame]) -> set[tuple[str, int]] | None:
    """(base, seed) whose pretraining passed; None when there is no table to tell."""
    results = tables.get("results")
    return None if results is None or results.empty else passed_pairs(judge_bases(results))


def _sound(table: pd.DataFrame, passed: set[tuple[str, int]] | None) -> pd.DataFrame:
    """Rows of bases that are named after their optimizer (others are controls) and passed pretraining."""
    good = table["base"] == table["base_optimizer"]
    if passed is not None:
        pairs = zip(table["base"], table["seed"], strict=True)
        good &= pd.Series([(base, int(seed)) in passed for base, seed in pairs], index=table.index)
    return table[good]


def final_sizes(activations: pd.DataFrame) -> pd.DataFrame:
    """The table ``activations`` at each base's last step, goal slices alone, one row a geometry: columns seed, base,
    own (the base's geometry), matrix, goal, geometry, value (natural logarithm of the paired size)."""
    last = activations.groupby(["base", "seed"])["step"].transform("max")
    rows = activations[(activations["step"] == last) & (activations["goal"] != "")]
    names = [name for name in rows.columns if name.startswith("size/")]
    keys = ["seed", "base", "own", "matrix", "slice", "goal"]
    long = rows.melt(id_vars=keys, value_vars=names, var_name="geometry", value_name="value")
    long["geometry"] = long["geometry"].str.removeprefix("size/")
    return long.assign(value=_log(long["value"]))


def _log(values: pd.Series) -> pd.Series:
    """Natural logarithm, NaN where there is none."""
    numbers = values.to_numpy(dtype=float)
    return pd.Series(np.log(np.where(numbers > 0, numbers, np.nan)), index=values.index)


def interactions(values: pd.DataFrame) -> pd.DataFrame:
    """The effect of every pair of bases with different geometries, in each seed.

    Args:
        values: columns seed, base, own, geometry, value (logarithms); averaged over other columns' rows.

    Returns:
        Columns seed, pair, effect (NaN where one of the four numbers is missing).
    """
    own = dict(zip(values["base"], values["own"], strict=True))
    cells = values.groupby(["seed", "base", "geometry"])["value"].mean()
    records = []
    for seed in sorted(values["seed"].unique()):
        here = cells[seed]
        for b, c in itertools.combinations(sorted(set(here.index.get_level_values("base"))), 2):
            g, h = own[b], own[c]
            if g != h and {(b, g), (b, h), (c, g), (c, h)} <= set(here.index):
                effect = ((here[c, g] - here[c, h]) - (here[b, g] - here[b, h])) / 2
                records.append({"seed": seed, "pair": f"{b} and {c}", "effect": effect})
    return pd.DataFrame(records, columns=["seed", "pair", "effect"])


def _headline(name: str, found: pd.DataFrame) -> Estimate:
    return estimate(name, found.groupby("seed")["effect"].mean().to_numpy(dtype=float))


def _cells(found: pd.DataFrame, keys: Sequence[str]) -> tuple[Cell, ...]:
    """One cell a combination of ``keys``, Holm-corrected over them."""
    groups = [
        (key, rows["effect"].to_numpy(dtype=float)) for key, rows in found.groupby(list(keys), sort=True)
    ]
    estimates = with_holm([estimate("effect", values) for _, values in groups])
    return tuple(
        Cell(dict(zip(keys, map(str, key), strict=True)), item, item.n > 0, "" if item.n else "no number")
        for (key, _), item in zip(groups, estimates, strict=True)
    )


def _seed_caveats(found: pd.DataFrame) -> list[str]:
    notes = few_seeds(found.dropna(subset="effect")["seed"].nunique())
    missing = int(found["effect"].isna().sum())
    if missing:
        notes.append(f"{missing} of {len(found)} comparisons have no number and do not count")
    if found.dropna(subset="effect").groupby("seed").size().nunique() > 1:
        notes.append("seeds do not have the same cells, so seed means differ in what they average over")
    return notes


def _own_ratio(values: pd.DataFrame, text: str) -> list[Estimate]:
    """Per base: the other bases' mean minus its own, in its own geometry, with nothing cancelled."""
    out = []
    cells = values.groupby(["base", "geometry", "seed"])["value"].mean()
    bases = sorted(set(values["base"]))
    for base, own in sorted(set(zip(values["base"], values["own"], strict=True))):
        others = [cells[other, own] for other in bases if other != base and (other, own) in cells.index]
        if others and (base, own) in cells.index:
            out.append(estimate(f"{text} {base}", pd.concat(others, axis=1).mean(axis=1) - cells[base, own]))
    return with_holm(out)


def _judge_sizes(activations: pd.DataFrame) -> Verdict:
    values = final_sizes(activations)
    found = interactions(values)
    effect = _headline("C3", found)
    verdict, reason = decide(effect, SMALLEST_SIZE)
    free = values["matrix"].str.endswith(("W_O", "W_out"))
    groups = [_headline(f"goal: {goal}", interactions(rows)) for goal, rows in values.groupby("goal")]
    groups += [
        _headline("inputs right after a norm (query, key, value, MLP in)", interactions(values[~free])),
        _headline("other inputs (attention out, MLP out)", interactions(values[free])),
    ]
    return Verdict(
        "C3",
        "Optimizers regularize activations differently: each shrinks the activation size that pairs with its own weight"
        " norm, relative to the other bases.",
        "arXiv 2605.06654 for 'regularize activations'; the pairing is ours",
        verdict, reason, effect, "log ratio of sizes, positive: own size relatively smaller", RULE_C3,
        cells=_cells(found, ["pair"]),
        groups=tuple(with_holm(groups)),
        secondary=tuple(_own_ratio(values, "own size, other bases over")),
        artifacts=("activation_sizes", "activation_statistics", "activations.csv"),
        caveats=(
            *_seed_caveats(found),
            "right after an RMS norm inputs have a fixed l2 norm up to gains, which one optimizer trains in all bases",
        ),
    )  # fmt: skip


def _judge_sharpness(sharpness: pd.DataFrame) -> Verdict:
    found, effect = _along(sharpness, "C4")
    verdict, reason = decide(effect, SMALLEST_CURVATURE)
    secondary = [
        _along(
            sharpness,
            "curvature along steps of equal Frobenius norm relative to the weights",
            kind="relative",
        )[1],
        _along(sharpness, "curvature along steps for the old loss' own gradient", gradient="old")[1],
        _along(sharpness, "critical sharpness, old loss' own gradient", "critical", "old")[1],
    ]
    return Verdict(
        "C4",
        "The loss landscape around a checkpoint is flattest along update directions of the optimizer that made it,"
        " relative to the other bases.",
        "arXiv 2605.06654; the reading is ours",
        verdict, reason, effect, "log ratio of curvatures, positive: own directions relatively flatter", RULE_C4,
        cells=_cells(found, ["pair"]),
        groups=tuple(with_holm([
            _along(rows, f"language: {language}")[1]
            for language, rows in sharpness[sharpness["gradient"] == "new"].groupby("language")
        ])),
        secondary=tuple(item for item in secondary if item.n),
        artifacts=("sharpness_matrix", "sharpness.csv"),
        caveats=tuple(_seed_caveats(found)),
    )  # fmt: skip


def _along(
    sharpness: pd.DataFrame,
    name: str,
    quantity: str = "curvature",
    gradient: str = "new",
    kind: str = "native",
) -> tuple[pd.DataFrame, Estimate]:
    """Interactions and headline of one quantity, its mean over languages taken before the logarithm."""
    chosen = sharpness[(sharpness["gradient"] == gradient) & (sharpness["kind"] == kind)]
    keys = ["seed", "base", "own", "geometry"]
    if quantity not in chosen:
        return interactions(pd.DataFrame(columns=[*keys, "value"])), estimate(name, [])
    mean = chosen.groupby(keys, as_index=False)[quantity].mean()
    found = interactions(mean.assign(value=_log(mean[quantity])))
    return found, _headline(name, found)


def _judge_predictors(models: pd.DataFrame) -> Verdict:
    found = correlations(models, [*STRUCTURE_PREDICTORS, BASELINE, "relative/frobenius", "own/norm"])
    wide = found.pivot(index=["seed", "base"], columns="predictor")
    gains = pd.concat(
        [
            (wide["spearman", name] - wide["spearman", BASELINE]).rename("effect").reset_index()
            .assign(predictor=name)
            for name in STRUCTURE_PREDICTORS
        ],
        ignore_index=True,
    )  # fmt: skip
    effect = _headline("C5", gains)
    verdict, reason = decide(effect, SMALLEST_CORRELATION)

    def mean_gain(text: str, score: str, baseline: str = BASELINE) -> Estimate:
        both = wide[score][list(STRUCTURE_PREDICTORS)].mean(axis=1) - wide[score][baseline]
        return estimate(text, both.groupby("seed").mean())

    levels = [
        estimate(f"rank correlation of {name}", wide["spearman"][name].groupby("seed").mean())
        for name in (*STRUCTURE_PREDICTORS, "own/norm", BASELINE)
    ]
    return Verdict(
        "C5",
        "Forgetting is predicted by the structure of the weight update (its size in the base's own norm, activation"
        " drift) better than by its Frobenius size.",
        "arXiv 2605.06654 for 'structure'; the predictors are ours",
        verdict, reason, effect, "difference of rank correlations, positive: structure predicts better", RULE_C5,
        cells=_cells(gains, ["base", "predictor"]),
        groups=tuple(with_holm([
            _headline(f"predictor: {name}", rows) for name, rows in gains.groupby("predictor")
        ])),
        secondary=(
            mean_gain("against the Frobenius size relative to the weights", "spearman", "relative/frobenius"),
            mean_gain("partial rank correlation, given what was learnt", "partial"),
            mean_gain("R^2 on arms left out", "r2"),
            *levels,
        ),
        artifacts=("forgetting_predictors", "predictor_scores", "predictors.csv"),
        caveats=(
            *_seed_caveats(gains),
            *_ceiling(wide["spearman"][BASELINE]),
            "drift is measured on old inputs, so it sees part of the damage that forgetting is",
        ),
    )  # fmt: skip


def _ceiling(baseline: pd.Series) -> list[str]:
    """A note when the baseline leaves little to gain."""
    mean = float(baseline.mean())
    if not 1 - mean < 2 * SMALLEST_CORRELATION:
        return []
    return [
        f"{BASELINE} alone has a rank correlation of {mean:.2f}, so a gain above {1 - mean:.2f} is impossible"
    ]


def correlations(models: pd.DataFrame, predictors: Sequence[str]) -> pd.DataFrame:
    """Columns seed, base, predictor, spearman, partial, r2: each predictor of ``forgetting`` within a base and seed.

    NaN with fewer than ``FEWEST_MODELS`` models.
    """
    records = []
    for (base, seed), rows in models.groupby(["base", "seed"]):
        usable = rows.dropna(subset=[*predictors, "forgetting", "learnt"])
        enough = len(usable) >= FEWEST_MODELS
        for name in predictors:
            x, y = usable[name].to_numpy(dtype=float), usable["forgetting"].to_numpy(dtype=float)
            record = {"seed": seed, "base": base, "predictor": name}
            scores = {
                "spearman": rank_correlation(x, y) if enough else np.nan,
                "partial": partial_rank_correlation(x, y, usable["learnt"]) if enough else np.nan,
                "r2": unseen_r2(x, y, usable["arm"]) if enough else np.nan,
            }
            records.append(record | scores)
    columns = ["seed", "base", "predictor", "spearman", "partial", "r2"]
    return pd.DataFrame(records, columns=columns)
