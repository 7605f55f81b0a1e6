"""What a run from scratch tells of rote and rule: at its end, at the moment of recall, and at equal training loss.

Everything is read off the table ``tendency``, which has a row per job, evaluation step and slice. Curves are straight
between evaluations, in ln(1 + step).
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from synthlm.analysis.tendency import LEVELS, crossing, tendency, value_at
from synthlm.statistics import holm, paired_difference

CELL = ["language", "items", "rote_share"]
RUN = [*CELL, "optimizer", "seed"]

AT_RECALL = tuple(f"rule_at_{round(100 * level)}" for level in LEVELS)
FITTED = tuple(f"fitted_{round(100 * level)}" for level in LEVELS)

READINGS = {
    "rule": "at the end",
    AT_RECALL[-1]: f"when rote recall reaches {LEVELS[-1]:.0%}",
    "matched": "at equal training loss",
}
"""The three ways in which two optimizers' held-out rule accuracies are compared."""


def curves(table: pd.DataFrame) -> pd.DataFrame:
    """One row per run at its cell's chosen learning rate and evaluated step, sorted by RUN and step.

    Columns: RUN, job, lr, status, step; rote, rule (mean accuracy over slices of that goal; NaN where there is none),
    rote_loss, rule_loss, train_loss (nats per scored training token, slices weighted by ``train_share``). Steps with a
    non-finite loss are left out: a diverged run counts up to its divergence.
    """
    rows = table[table["chosen"].astype(bool)].sort_values([*RUN, "step", "slice"], kind="stable")
    keys = [*RUN, "job", "lr", "status", "step"]
    rows = rows[np.isfinite(rows["loss"]).groupby([rows[key] for key in keys]).transform("all")]
    grouped = rows.groupby(keys, sort=False)
    found = (
        (rows["train_share"] * rows["loss"])
        .groupby([rows[key] for key in keys], sort=False)
        .sum()
        .to_frame("train_loss")
    )
    found["train_loss"] /= grouped["train_share"].sum()
    for goal in ("rote", "rule"):
        means = rows[rows["goal"] == goal].groupby(keys, sort=False)[["accuracy", "loss"]].mean()
        found = found.join(means.set_axis([goal, f"{goal}_loss"], axis=1))
    return found.reset_index()


def searches(table: pd.DataFrame) -> pd.DataFrame:
    """One row per cell and optimizer whose search is over: CELL, optimizer, lr (the chosen rate), rates (how many were
    tried), edge ("low" or "high" when the chosen one is an end of them, "only" when there was one, else "").
    """
    records = []
    for key, rows in table.groupby([*CELL, "optimizer"], sort=True):
        chosen = rows[rows["chosen"].astype(bool)]["lr"]
        if chosen.empty:
            continue
        lr, lowest, highest = float(chosen.iloc[0]), rows["lr"].min(), rows["lr"].max()
        edge = "only" if lowest == highest else {lowest: "low", highest: "high"}.get(lr, "")
        records.append(
            dict(zip([*CELL, "optimizer"], key, strict=True))
            | {"lr": lr, "rates": rows["lr"].nunique(), "edge": edge}
        )
    return pd.DataFrame(records, columns=[*CELL, "optimizer", "lr", "rates", "edge"])


def outcomes(traces: pd.DataFrame) -> pd.DataFrame:
    """One row per run of ``curves`` that has rote and rule: RUN, job, lr, status, and

    rote, rule: accuracies at the end. fitted_50, fitted_90: the step at which rote recall first reaches 50% and 90%.
    rule_at_50, rule_at_90: held-out rule accuracy at that moment. area: mean over ln(1 + step) of recall minus rule
    accuracy. NaN where recall never gets there. (Definitions: ``synthlm.analysis.tendency``.)
    """
    both = traces[traces["rote"].notna() & traces["rule"].notna()]
    records = []
    for key, run in both.groupby([*RUN, "job", "lr", "status"], sort=True):
        index = tendency(run["step"], run["rote"], run["rule"])
        last = run.iloc[-1]
        records.append(
            dict(zip([*RUN, "job", "lr", "status"], key, strict=True))
            | {"rote": last["rote"], "rule": last["rule"], "area": index.area}
            | dict(zip(FITTED, index.fitted, strict=True))
            | dict(zip(AT_RECALL, index.rule_at, strict=True))
        )
    columns = [*RUN, "job", "lr", "status", "rote", "rule", "area", *FITTED, *AT_RECALL]
    return pd.DataFrame(records, columns=columns)


def matched(traces: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Held-out rule accuracy of two optimizers at equal training loss, a row per cell and seed.

    The loss is the lowest that both reach, and each is read at the moment it first gets there: the one that ends higher
    at its annealed end, the other in mid-schedule. Pairs of which one diverged are left out: it would set a level from
    before it learnt. Columns: CELL, seed, level (nats), first, second (rule accuracies), first_step, second_step.
    """
    ruled = traces[traces["rule"].notna()]
    records = []
    for key, rows in ruled.groupby([*CELL, "seed"], sort=True):
        runs = {name: run for name, run in rows.groupby("optimizer") if name in (first, second)}
        if len(runs) < 2 or any((run["status"] == "diverged").any() for run in runs.values()):
            continue
        level = max(float(run["train_loss"].min()) for run in runs.values())
        record = dict(zip([*CELL, "seed"], key, strict=True)) | {"level": level}
        for name, optimizer in (("first", first), ("second", second)):
            run = runs[optimizer]
            step = crossing(run["step"], -run["train_loss"], -level)
            record |= {name: value_at(run["step"], run["rule"], step), f"{name}_step": step}
        records.append(record)
    columns = [*CELL, "seed", "level", "first", "first_step", "second", "second_step"]
    return pd.DataFrame(records, columns=columns)


def differences(traces: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Held-out rule accuracy of ``first`` minus ``second`` under each of READINGS, a row per cell, reading and seed.

    Columns: CELL, reading, seed, first, second, difference (NaN where one of them is undefined).
    """
    ends = outcomes(traces)
    both = ends[ends["optimizer"].isin([first, second])]
    wide = both.set_index([*CELL, "seed", "optimizer"])[["rule", AT_RECALL[-1]]].unstack("optimizer")
    frames = []
    for reading in READINGS:
        if reading == "matched":
            read = matched(traces, first, second)[[*CELL, "seed", "first", "second"]]
            pair = wide.index.to_frame(index=False).merge(read, how="left", on=[*CELL, "seed"])
        elif {(reading, first), (reading, second)} <= set(wide.columns):
            pair = wide[reading][[first, second]].set_axis(["first", "second"], axis=1).reset_index()
        else:
            continue
        frames.append(pair.assign(reading=reading))
    columns = [*CELL, "reading", "seed", "first", "second"]
    found = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)
    return found[columns].assign(difference=found["first"] - found["second"])


def significance(pairs: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Paired t over seeds of ``difference`` in each group: columns ``by``, mean, low, high, n, p, p_holm (Holm over all
    rows).
    """
    records = []
    for key, rows in pairs.groupby(list(by), sort=True):
        found = paired_difference(rows["difference"].to_numpy(dtype=float))
        interval = found.interval
        records.append(
            dict(zip(by, key, strict=True))
            | {
                "mean": interval.mean,
                "low": interval.low,
                "high": interval.high,
                "n": interval.n,
                "p": found.p,
            }
        )
    table = pd.DataFrame(records, columns=[*by, "mean", "low", "high", "n", "p"])
    return table.assign(p_holm=holm(table["p"].tolist()))
