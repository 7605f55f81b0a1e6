"""Tables of rote and rule whose truth is known: curves of given shape, for ``synthlm.tendency`` and its figures."""

import numpy as np
import pandas as pd

STEPS = (0, 1, 3, 10, 30, 100, 300)


def logistic(step: float, half: float, top: float) -> float:
    """0 at step 0, ``top``/2 at ``half``, on the axis ln(1 + step)."""
    if step == 0:
        return 0.0
    return top / (1 + np.exp(-4 * (np.log1p(step) - np.log1p(half))))


def make_tendency(
    seeds: int = 3,
    languages: tuple[str, ...] = ("cipher", "routing"),
    items: tuple[int, ...] = (32, 128, 512),
    shares: tuple[float, ...] = (0.25, 0.75),
    optimizers: tuple[str, ...] = ("adamw", "muon", "sgd"),
    lead: float = 0.1,
    zipf: bool = True,
    noise: float = 0.0,
    diverged: tuple[tuple[str, int], ...] = (),
) -> pd.DataFrame:
    """A table ``tendency``. Muon's final rule accuracy is ``lead`` above AdamW's (0.9 at 512 examples), SGD's below.

    ``diverged``: (optimizer, seed) whose chosen runs stop after step 10. Rote recall is halfway at step 30 for all.
    """
    rng = np.random.default_rng(0)
    rows = []
    better = {"adamw": 0.0, "muon": lead, "sgd": -lead}

    def add(key: dict, step: int, slice_: str, goal: str, share: float, accuracy: float, ended: bool) -> None:
        loss = np.nan if ended and step > 10 else 3.0 * (1.001 - min(accuracy, 1.0))
        if not (ended and step > 30):
            rows.append(
                key | {"step": step, "slice": slice_, "goal": goal, "train_share": share, "loss": loss, "floor": 0.0,
                       "accuracy": accuracy, "exact": accuracy, "n": 64}
            )  # fmt: skip

    for language in languages:
        for count in items:
            for share in shares:
                for optimizer in optimizers:
                    for seed in range(seeds):
                        ended = (optimizer, seed) in diverged
                        key = {
                            "job": f"{len(rows):012x}", "seed": seed, "language": language, "items": count,
                            "rote_share": share, "optimizer": optimizer, "lr": 0.01, "chosen": True,
                            "status": "diverged" if ended else "done",
                        }  # fmt: skip
                        top = 0.9 * np.log(count) / np.log(512) + better.get(optimizer, 0.0)
                        top = float(np.clip(top + noise * rng.normal(), 0, 1))
                        for step in STEPS:
                            rule, rote = logistic(step, 60, top), logistic(step, 30, 1.0)
                            train = logistic(step, 20, 1.0)
                            add(key, step, f"{language}/rule/train", "", 1 - share, train, ended)
                            add(key, step, f"{language}/rule/heldout", "rule", 0.0, rule, ended)
                            add(key, step, "facts/rote", "rote", share, rote, ended)
    for optimizer in optimizers if zipf else ():
        for seed in range(seeds):
            key = {
                "job": f"{len(rows):012x}", "seed": seed, "language": "zipf-facts", "items": 256, "rote_share": 1.0,
                "optimizer": optimizer, "lr": 0.01, "chosen": True, "status": "done",
            }  # fmt: skip
            for step in STEPS:
                add(key, step, "facts/rote", "rote", 0.8, logistic(step, 30, 1.0), False)
                add(key, step, "facts/rote/tail", "", 0.2, logistic(step, 100, 1.0), False)
    table = pd.DataFrame(rows)
    swept = table[(table["seed"] == 0) & (table["status"] == "done")].assign(
        lr=0.1, chosen=False, accuracy=0.0
    )
    return pd.concat([table, swept.assign(job="f" * 12)], ignore_index=True)
