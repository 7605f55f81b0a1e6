"""Which pretrained bases learnt their language; only those can show forgetting."""

import pandas as pd

PASS_ACCURACY = 0.9
"""A base passes when its chosen pretraining run ends with at least this accuracy in every goal slice."""

BASE_COLUMNS = [
    "base",
    "optimizer",
    "seed",
    "lr",
    "steps",
    "status",
    "worst_slice",
    "accuracy",
    "passed",
    "why",
]


def judge_bases(table: pd.DataFrame) -> pd.DataFrame:
    """One row per base and seed seen in the results table: its chosen pretraining run, and whether it passed.

    ``accuracy`` is that of the worst goal slice at the last step. ``why`` says what failed, and is empty on a
    pass.
    """
    seen = table[["base", "seed"]].drop_duplicates().sort_values(["base", "seed"])
    runs = table[(table["kind"] == "pretrain") & table["chosen"].astype(bool)]
    goals = runs[(runs["goal"] != "") & (runs["role"] == "old")]
    last = goals[goals["step"] == goals.groupby(["base", "seed", "job"])["step"].transform("max")]
    found = dict(list(last.groupby(["base", "seed"])))
    records = []
    for base, seed in seen.itertuples(index=False):
        rows = found.get((base, seed))
        if rows is None:
            why = "no pretraining run was chosen"
            records.append((base, "", seed, float("nan"), 0, "", "", float("nan"), False, why))
            continue
        worst = rows.sort_values(["accuracy", "slice"], na_position="first").iloc[0]
        why = ""
        if worst["status"] != "done":
            why = str(worst["status"])
        elif not worst["accuracy"] >= PASS_ACCURACY:
            why = f"accuracy {worst['accuracy']:.2f} in {worst['slice']}, below {PASS_ACCURACY:g}"
        records.append((
            base, worst["optimizer"], seed, worst["lr"], int(worst["step"]), worst["status"], worst["slice"],
            worst["accuracy"], why == "", why,
        ))  # fmt: skip
    return pd.DataFrame(records, columns=BASE_COLUMNS).astype({"passed": bool})


def passed_pairs(bases: pd.DataFrame) -> set[tuple[str, int]]:
    """The (base, seed) pairs of ``judge_bases`` that passed."""
    good = bases[bases["passed"]]
    return set(zip(good["base"], (int(seed) for seed in good["seed"]), strict=True))


def base_optimizers(bases: pd.DataFrame) -> dict[str, str]:
    """Base -> the optimizer that pretrained it; a base without any chosen run counts under its own name."""
    known = bases[bases["optimizer"] != ""].drop_duplicates("base")
    names = dict(zip(known["base"], known["optimizer"], strict=True))
    return {base: names.get(base, base) for base in sorted(set(bases["base"]))}
