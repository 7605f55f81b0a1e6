"""Verdicts on basins (B1 to B4), by rules fixed before the numbers are seen.

Widths are those of ``synthlm.analysis.basins``: the sigma, per coordinate, at which the mean accuracy on the old
language's goal slices has fallen by the tolerance. A seed's effect is the mean over its cells; the verdict is a paired
t interval over seeds. Bases that failed pretraining and control bases do not count.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from synthlm.analysis.basins import crossing
from synthlm.bases import judge_bases, passed_pairs
from synthlm.claims.verdicts import Cell, Estimate, Verdict, decide, estimate, few_seeds, with_holm
from synthlm.frontier import LEVELS, MINIMUM_TOP, ON_GRID, frontiers, matched_levels
from synthlm.statistics import LEVEL

SOURCE = "arXiv 2505.17646"

PARABOLA = 0.25
"""B1: the share of its fall that a parabola has at half the distance; every smooth maximum looks like one close by."""

SMALLEST_FLATNESS = 0.05
"""B1: smallest effect of interest: at half the distance at most a fifth of the fall, where a parabola has a quarter."""

SMALLEST_RATIO = math.log(1.1)
"""B1b, B4: smallest effect of interest on a width, natural logarithm: ten percent."""

SMALLEST_WORST = math.log(2)
"""B2: 'much smaller' is at least a factor of two."""

SMALLEST_KEPT = 0.02
"""B4b: two points of accuracy on the old language, as in C1."""

LEARNT = MINIMUM_TOP
"""B3: models count that learnt at least so much of the new language (rescaled): one that did not move keeps
everything."""

CONSTANTS = {
    "parabola": PARABOLA,
    "smallest_flatness": SMALLEST_FLATNESS,
    "smallest_ratio": SMALLEST_RATIO,
    "smallest_worst": SMALLEST_WORST,
    "smallest_kept": SMALLEST_KEPT,
    "learnt": LEARNT,
}

_DECISION = (
    f" Supported: the {LEVEL:.0%} t interval over paired seeds lies above 0 and the effect is at least"
    f" {{0}}. Contradicted: the interval lies below 0 or below {{0}}, the smallest effect of interest."
    " Otherwise, and with fewer than two seeds: inconclusive. p values of cells are Holm-corrected."
)

RULES = {
    "B1": (
        "Per seed and base: the mean accuracy over Gaussian directions, and the sigma at which it has lost"
        " half of its value at the centre. Effect: a quarter minus the share of that fall that is already"
        " there at half that sigma (a parabola:"
        " a quarter; a straight line: a half)." + _DECISION.format(f"{SMALLEST_FLATNESS:g}")
    ),
    "B1b": (
        "Per seed, base and finetuning language: natural logarithm of the most-case width of the old"
        " language around the base over that of the new language around the model finetuned with the base's"
        " own optimizer, at equal"
        " tolerance." + _DECISION.format(f"{SMALLEST_RATIO:.3g}")
    ),
    "B2": (
        "Per seed and base: natural logarithm of the most-case width over the worst-case width, at equal"
        " tolerance. Ascent finds a lower bound of the worst case, so the ratio is a lower bound too."
        + _DECISION.format(f"{SMALLEST_WORST:.3g}")
    ),
    "B3": (
        "Per seed and base: of the finetuned models (arms, learning rates, languages) whose distance per"
        f" coordinate is below the base's most-case width, and that learnt at least {LEARNT:g} of the new"
        " language, the mean old accuracy lost. Effect: the basin's tolerance minus that loss. Supported:"
        f" the {LEVEL:.0%} t interval over paired seeds lies above 0; contradicted: it lies below 0."
        " Otherwise, and with fewer than two seeds: inconclusive."
    ),
    "B4": (
        "Per seed and variant trained under Gaussian weight noise: natural logarithm of its most-case width"
        " over that of the"
        " plain base, same steps, data and learning rate." + _DECISION.format(f"{SMALLEST_RATIO:.3g}")
    ),
    "B4b": (
        "Per seed and variant trained under Gaussian weight noise: old accuracy kept at equal learning by"
        f" the same arm, minus that of the plain base, averaged over the common levels of {LEVELS[0]:.2f} to"
        f" {LEVELS[-1]:.2f} (none below"
        f" {MINIMUM_TOP:g}: not counted)." + _DECISION.format(f"{SMALLEST_KEPT:g}")
    ),
}

STATEMENTS = {
    "B1": "Along random Gaussian directions the score is flat, then falls: a basin.",
    "B1b": "What is finetuned has a narrower basin than what was pretrained.",
    "B2": "The worst-case basin is much smaller than the most-case basin.",
    "B3": "Finetuning that stays inside the most-case basin keeps the earlier abilities.",
    "B4": "Training under Gaussian weight noise enlarges the basin.",
    "B4b": "A base trained under Gaussian weight noise forgets less.",
}


def judge(tables: Mapping[str, pd.DataFrame]) -> list[Verdict]:
    """Verdicts on B1, B1b, B2, B3 (with ``predictors``), B4 and B4b (with ``noise``), from the table ``basins``."""
    if not len(tables.get("basins", ())):
        return []
    results = tables.get("results", pd.DataFrame())
    basins = tables["basins"]
    if len(results):
        passed = passed_pairs(judge_bases(results))
        basins = basins[[(b, int(s)) in passed for b, s in zip(basins["base"], basins["seed"], strict=True)]]
    plain = basins[(basins["variant"] == "plain") & (basins["base"] == basins["base_optimizer"])]
    found = [_flatness(plain), _specific(plain), _worst(plain)]
    if len(tables.get("predictors", ())):
        found.append(_inside(plain, tables["predictors"]))
    if (basins["variant"] != "plain").any():
        found.append(_enlarged(basins))
        if len(tables.get("noise", ())):
            found.append(_forgets(basins, tables["noise"]))
    return found


# -- widths and profiles -----------------------------------------------------------------------------------------------


def widths(
    basins: pd.DataFrame,
    case: str = "most",
    scale: str = "absolute",
    measure: str = "accuracy",
    part: str = "all",
    role: str = "old",
    centre: str = "pretrained",
) -> pd.DataFrame:
    """The rows of one kind of width; ``part`` is a slice."""
    return basins[
        (basins["row"] == "width") & (basins["case"] == case) & (basins["scale"] == scale)
        & (basins["measure"] == measure) & (basins["slice"] == part) & (basins["role"] == role)
        & (basins["centre"] == centre)
    ]  # fmt: skip


def profile(basins: pd.DataFrame, scale: str = "absolute", part: str = "") -> pd.DataFrame:
    """Mean accuracy over directions and goal slices around each base: columns base, seed, sigma, accuracy.

    sigma 0 is the centre. ``part``: only slices with this in their name.
    """
    rows = basins[
        (basins["row"] == "profile") & (basins["role"] == "old") & (basins["centre"] == "pretrained")
        & basins["slice"].str.contains(part, regex=False)
        & ((basins["case"] == "centre") | ((basins["case"] == "most") & (basins["scale"] == scale)))
    ]  # fmt: skip
    return rows.groupby(["base", "seed", "sigma"], as_index=False)["accuracy"].mean()


def half_shares(profiles: pd.DataFrame) -> pd.DataFrame:
    """Columns base, seed, half (sigma of half the centre's accuracy), share (of that fall at half that sigma).

    NaN where the accuracy never falls so far, or half that sigma lies below the grid.
    """
    records = []
    for (base, seed), rows in profiles.groupby(["base", "seed"]):
        centre = float(rows.loc[rows["sigma"] == 0, "accuracy"].iloc[0])
        around = rows[rows["sigma"] > 0].sort_values("sigma")
        sigmas = around["sigma"].to_numpy(dtype=float)
        falls = centre - around["accuracy"].to_numpy(dtype=float)
        half = share = math.nan
        if (falls > centre / 2).any() and falls[0] < centre / 2:
            half = float(crossing(sigmas, falls, centre / 2))
            if half / 2 >= sigmas[0]:
                share = float(np.interp(math.log(half / 2), np.log(sigmas), falls)) / (centre / 2)
        records.append({"base": base, "seed": seed, "half": half, "share": share})
    return pd.DataFrame(records, columns=["base", "seed", "half", "share"])


# -- verdicts ----------------------------------------------------------------------------------------------------------


def _verdict(
    name: str,
    found: pd.DataFrame,
    smallest: float,
    unit: str,
    cell_keys: Sequence[str],
    secondary: Sequence[Estimate] = (),
    artifacts: Sequence[str] = ("basins", "basin_widths", "basins.csv"),
    caveats: Sequence[str] = (),
) -> Verdict:
    """From ``found``: columns seed, effect and the cells' own."""
    effect = _headline(name, found)
    verdict, reason = decide(effect, smallest)
    groups = [(key, rows["effect"]) for key, rows in found.groupby(list(cell_keys), sort=True)]
    estimates = with_holm([estimate("effect", values.to_numpy(dtype=float)) for _, values in groups])
    cells = tuple(
        Cell(
            dict(zip(cell_keys, map(str, key), strict=True)), item, item.n > 0, "" if item.n else "no number"
        )
        for (key, _), item in zip(groups, estimates, strict=True)
    )
    return Verdict(
        name, STATEMENTS[name], SOURCE, verdict, reason, effect, unit, RULES[name], cells,
        secondary=tuple(item for item in secondary if item.n), artifacts=tuple(artifacts),
        caveats=(*_seeds(found), *caveats),
    )  # fmt: skip


def _headline(name: str, found: pd.DataFrame) -> Estimate:
    return estimate(name, found.groupby("seed")["effect"].mean().to_numpy(dtype=float))


def _seeds(found: pd.DataFrame) -> list[str]:
    known = found.dropna(subset="effect")
    notes = few_seeds(known["seed"].nunique())
    if len(known) < len(found):
        notes.append(f"{len(found) - len(known)} of {len(found)} comparisons have no number and do not count")
    return notes


def _at_edges(*parts: pd.DataFrame) -> list[str]:
    rows = pd.concat(parts)
    edge = int((rows["bound"] != "").sum())
    return [f"{edge} of {len(rows)} widths lie beyond the grid and count as its end"] if edge else []


def _flatness(plain: pd.DataFrame) -> Verdict:
    def effects(scale: str = "absolute", part: str = "") -> pd.DataFrame:
        found = half_shares(profile(plain, scale, part))
        return found.assign(effect=PARABOLA - found["share"])

    return _verdict(
        "B1", effects(), SMALLEST_FLATNESS, "share of the fall, positive: flatter than a parabola", ["base"],
        secondary=[
            _headline("noise relative to each tensor's size", effects("relative")),
            _headline("rote slices", effects(part="/rote")),
            _headline("rule slices", effects(part="/rule")),
        ],
    )  # fmt: skip


def _log_ratio(above: pd.DataFrame, below: pd.DataFrame, on: Sequence[str]) -> pd.DataFrame:
    """Columns ``on``, those of ``below`` and effect: ln(above / below), matched on ``on``."""
    left = above[[*on, "width"]].rename(columns={"width": "above"})
    both = below.merge(left, on=list(on), validate="many_to_one")
    return both.assign(effect=np.log(both["above"] / both["width"]))


def _specific(plain: pd.DataFrame) -> Verdict:
    on = ["base", "seed"]

    def effects(**kind: str) -> pd.DataFrame:
        basic = widths(plain, **kind)
        return _log_ratio(basic, widths(plain, role="new", centre="finetuned", **kind), on)

    around = widths(plain, centre="finetuned")
    return _verdict(
        "B1b", effects(), SMALLEST_RATIO, "log ratio of widths, positive: the finetuned ability is narrower",
        ["base", "language"],
        secondary=[
            _headline("noise relative to each tensor's size", effects(scale="relative")),
            _headline("widths by loss", effects(measure="loss")),
            _headline(
                "the old language around the finetuned model, against around the base",
                _log_ratio(widths(plain), around, on),
            ),
        ],
        caveats=_at_edges(widths(plain), widths(plain, role="new", centre="finetuned")),
    )  # fmt: skip


def _worst(plain: pd.DataFrame) -> Verdict:
    on = ["base", "seed"]
    return _verdict(
        "B2", _log_ratio(widths(plain), widths(plain, "worst"), on), SMALLEST_WORST,
        "log ratio of widths, positive: the worst case is narrower", ["base"],
        secondary=[
            _headline(
                "widths by loss",
                _log_ratio(widths(plain, measure="loss"), widths(plain, "worst", measure="loss"), on),
            ),
            _headline("finetuning case", _log_ratio(widths(plain), widths(plain, "finetuning"), on)),
        ],
        caveats=_at_edges(widths(plain), widths(plain, "worst")),
    )  # fmt: skip


def _inside(plain: pd.DataFrame, models: pd.DataFrame) -> Verdict:
    basins = widths(plain)[["base", "seed", "width", "tolerance", "parameters"]]
    both = models.merge(basins, on=["base", "seed"], validate="many_to_one")
    both = both[both["relative"] >= LEARNT]
    sigma = both["distance"] / np.sqrt(both["parameters"])
    inside, outside = both[sigma <= both["width"]], both[sigma > both["width"]]
    found = inside.groupby(["base", "seed"]).agg(
        lost=("forgetting", "mean"), tolerance=("tolerance", "first")
    )
    found = found.assign(effect=found["tolerance"] - found["lost"]).reset_index()
    beyond = outside.groupby(["base", "seed"])["forgetting"].mean().rename("beyond").reset_index()
    apart = found.merge(beyond, on=["base", "seed"])
    kept = inside.assign(effect=inside["forgetting"] <= inside["tolerance"]).astype({"effect": float})
    return _verdict(
        "B3", found, 0.0, "old accuracy, positive: less is lost than the basin's tolerance", ["base"],
        secondary=[
            _headline("more lost outside than inside", apart.assign(effect=apart["beyond"] - apart["lost"])),
            _headline("share of the models inside that keep within the tolerance", kept),
        ],
        artifacts=("certificate", "basins", "predictors.csv"),
        caveats=[f"{len(inside)} of {len(both)} models that learnt lie inside"],
    )  # fmt: skip


def _by_noise(basins: pd.DataFrame) -> dict[str, bool]:
    """Variant -> whether it was trained under Gaussian weight noise (others are controls)."""
    rows = basins[basins["variant"] != "plain"].drop_duplicates("variant")
    return {
        str(variant): str(perturb).startswith("noise")
        for variant, perturb in zip(rows["variant"], rows["perturb"], strict=True)
    }


def _enlarged(basins: pd.DataFrame) -> Verdict:
    noisy = _by_noise(basins)
    on = ["base", "seed"]

    def effects(**kind: str) -> pd.DataFrame:
        rows = widths(basins, **kind)
        plain, others = rows[rows["variant"] == "plain"], rows[rows["variant"] != "plain"]
        found = _log_ratio(plain, others, on)
        return found.assign(effect=-found["effect"])

    found = effects()
    trained = found["variant"].map(noisy).astype(bool)
    controls = [
        _headline(f"control: {variant}", rows) for variant, rows in found[~trained].groupby("variant")
    ]

    def of_noise(text: str, **kind: str) -> Estimate:
        rows = effects(**kind)
        return _headline(text, rows[rows["variant"].map(noisy).astype(bool)])

    return _verdict(
        "B4", found[trained], SMALLEST_RATIO, "log ratio of widths, positive: wider under noise",
        ["base", "variant"],
        secondary=[
            of_noise("noise relative to each tensor's size", scale="relative"),
            of_noise("widths by loss", measure="loss"),
            of_noise("worst case", case="worst"),
            *controls,
        ],
        artifacts=("basin_widths", "basins.csv"),
        caveats=_at_edges(widths(basins)),
    )  # fmt: skip


def _forgets(basins: pd.DataFrame, noise: pd.DataFrame) -> Verdict:
    """``noise``: as ``results``, with the variant as base."""
    noisy = _by_noise(basins)
    found = frontiers(noise)
    kept = found.curves["kept"]
    cells = found.cells.assign(row=np.arange(len(found.cells)))
    plain = cells[cells["base"] == "plain"][["language", "arm", "seed", "row"]]
    pairs = cells[cells["base"] != "plain"].merge(
        plain, on=["language", "arm", "seed"], suffixes=("", "_plain")
    )
    records = []
    for (variant, language, arm), rows in pairs.groupby(["base", "language", "arm"]):
        mine, theirs = rows["row"].to_numpy(dtype=int), rows["row_plain"].to_numpy(dtype=int)
        levels = matched_levels(kept[np.concatenate([mine, theirs])])
        apart = np.full(len(rows), np.nan)
        if levels.any():
            apart = (kept[mine][:, ON_GRID[levels]] - kept[theirs][:, ON_GRID[levels]]).mean(axis=1)
        records.append(
            pd.DataFrame(
                {"variant": variant, "language": language, "arm": arm, "seed": rows["seed"], "effect": apart}
            )
        )
    columns = ["variant", "language", "arm", "seed", "effect"]
    effects = pd.concat(records, ignore_index=True) if records else pd.DataFrame(columns=columns)
    trained = effects["variant"].map(noisy).fillna(False).astype(bool)
    controls = [_headline(f"control: {name}", rows) for name, rows in effects[~trained].groupby("variant")]
    return _verdict(
        "B4b", effects[trained], SMALLEST_KEPT, "old accuracy, positive: more kept under noise",
        ["variant", "language", "arm"], secondary=controls, artifacts=("basin_widths", "noise.csv"),
    )  # fmt: skip
