"""Results tables with a known truth, for the tests of statistics, frontiers, claims and figures."""

from collections.abc import Sequence
from hashlib import sha256

import numpy as np
import pandas as pd

ARMS = {
    "full-adamw": ("full", "adamw", 0),
    "full-muon": ("full", "muon", 0),
    "full-sgd": ("full", "sgd", 0),
    "lora4-adamw": ("lora", "adamw", 4),
    "lora16-adamw": ("lora", "adamw", 16),
    "lora64-adamw": ("lora", "adamw", 64),
    "lora16-muon": ("lora", "muon", 16),
}
OPTIMIZERS = {"adamw": "adamw", "muon": "muon", "sgd": "sgd", "adamw-matched": "adamw"}
STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)


def make_table(
    *,
    seeds: int = 3,
    bases: Sequence[str] = ("adamw", "muon", "sgd"),
    arms: Sequence[str] = (
        "full-adamw",
        "full-muon",
        "full-sgd",
        "lora4-adamw",
        "lora16-adamw",
        "lora16-muon",
    ),
    languages: Sequence[str] = ("new-rule", "new-facts"),
    rates: int = 7,
    advantage: float = 0.1,
    noise: float = 0.01,
    failed: Sequence[tuple[str, int]] = (),
    never: Sequence[str] = (),
    diverged: Sequence[tuple[str, int]] = (),
    steps: Sequence[int] = STEPS,
    slices: int = 1,
    generator: int = 0,
) -> pd.DataFrame:
    """A tidy results table.

    At learning l the best rate of an arm keeps 0.95 - forget * l of the old accuracy, forget = 0.5 for an arm
    that is not matched and 0.5 - ``advantage`` (at l = 1) for the matched full arm: so the matched arm keeps
    advantage * l more. Other rates keep less and learn less. ``noise``: sd of an offset per run and of the
    seed. ``failed``: (base, seed) whose pretraining stops at accuracy 0.6. ``never``: arms that stay below
    rescaled learning 0.2. ``diverged``: (arm, index of the rate) whose runs turn non-finite half way.
    ``slices``: old slices of each goal (to make large tables).
    """
    rng = np.random.default_rng(generator)
    rows: list[dict] = []
    for seed in range(seeds):
        for base in bases:
            rows += _pretraining(base, seed, (base, seed) in failed)
            for language in languages:
                for arm in arms:
                    method, optimizer, rank = ARMS[arm]
                    matched = method == "full" and optimizer == OPTIMIZERS[base]
                    for index in range(rates):
                        gap = abs(index - rates // 2)
                        lr = float(f"{1e-4 * 3**index:.3g}")
                        forget = 0.5 - (advantage if matched else 0.0) + 0.1 * gap + noise * rng.normal()
                        top = 0.15 if arm in never else 1.0 - 0.03 * gap
                        breaks = (arm, index) in diverged
                        key = sha256(f"{seed}{base}{language}{arm}{lr}".encode()).hexdigest()[:12]
                        for position, step in enumerate(steps):
                            share = position / (len(steps) - 1)
                            broken = breaks and share > 0.5
                            relative = top * share
                            common = {
                                "job": key, "kind": "finetune", "seed": seed, "base": base, "arm": arm,
                                "method": method, "optimizer": optimizer, "rank": rank, "language": language,
                                "lr": lr, "steps_total": steps[-1],
                                "status": "diverged" if breaks else "done",
                                "chosen": False, "step": step, "n": 512,
                            }  # fmt: skip
                            rows += _evaluation(common, relative, forget, broken, slices)
    return pd.DataFrame(rows)


def _evaluation(common: dict, relative: float, forget: float, broken: bool, slices: int) -> list[dict]:
    """Rows of one evaluation: old rote forgets 0.05 more per learning than the mean, old rule 0.05 less."""
    rows = []
    bad = float("nan") if broken else 1.0
    for index in range(slices):
        for goal, extra in (("rote", 0.05), ("rule", -0.05)):
            accuracy = 0.95 - (forget + extra) * relative
            rows.append({
                **common, "role": "old", "slice": f"old{index}/{goal}", "goal": goal,
                "loss": bad * (0.1 + 3 * (forget + extra) * relative), "floor": 0.0, "exact": accuracy,
                "accuracy": 0.0 if broken else accuracy, "kl": bad * 2 * (forget + extra) * relative,
            })  # fmt: skip
    learnt = 0.05 + 0.95 * relative
    for name, goal, accuracy in (
        ("new/rule/heldout", "rule", learnt),
        ("new/rule/train", "", min(1.0, 1.1 * learnt)),
    ):
        rows.append({
            **common, "role": "new", "slice": name, "goal": goal, "floor": 0.0,
            "loss": bad * 3 * (1 - accuracy),
            "accuracy": 0.0 if broken else accuracy, "exact": accuracy, "kl": float("nan"),
        })  # fmt: skip
    return rows


def _pretraining(base: str, seed: int, failed: bool) -> list[dict]:
    rows = []
    for index, lr in enumerate((1e-3, 3e-3)):
        key = sha256(f"{seed}{base}{lr}".encode()).hexdigest()[:12]
        for step in (0, 1, 4, 16, 64, 256, 1024):
            grown = np.log2(step + 1) / 10
            for goal in ("rote", "rule"):
                accuracy = (0.6 if failed else 0.99) * grown ** (1 + seed / 5 + (goal == "rule"))
                rows.append({
                    "job": key, "kind": "pretrain", "seed": seed, "base": base, "arm": "", "method": "",
                    "optimizer": OPTIMIZERS[base], "rank": 0, "language": "pretraining", "lr": lr,
                    "steps_total": 1024, "status": "done", "chosen": index == 1, "step": step, "role": "old",
                    "slice": f"old0/{goal}", "goal": goal, "loss": 4 * (1 - accuracy), "floor": 0.0,
                    "accuracy": min(1.0, accuracy), "exact": min(1.0, accuracy), "kl": float("nan"), "n": 512,
                })  # fmt: skip
    return rows
