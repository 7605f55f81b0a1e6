"""Tables of an edge study with planted effects: what its claims and figures are tested on."""

import numpy as np
import pandas as pd

from synthlm.analysis.edge_statistics import edge_statistics, normalized
from synthlm.analysis.nulls import first_order, trajectory
from synthlm.analysis.onsets import onset
from synthlm.edge_scores import RUN, pairs
from synthlm.experiments.edge import Milestones, _phases
from synthlm.probes.edge import SIGNALS, Edge

PARAMETERS, RECORDS, WINDOW, EVERY = 400, 40, 5, 15
RHO = {"adamw": 0.5, "muon": 0.9, "sgd": 0.9}
"""Lag correlation that gives a plain k* of 2 and of 1."""


def tables(
    rng: np.random.Generator,
    seeds: int = 4,
    fall: float = 0.0,
    nonstationary: float = 0.0,
    grokked: bool = True,
    tasks: tuple[str, ...] = ("subtraction", "recall"),
    arms: tuple[str, ...] = ("adamw", "muon"),
) -> dict[str, pd.DataFrame]:
    """Tables by name.

    Args:
        fall: factor (natural log) by which step norms of main runs fall more than those of controls, before the rise.
        nonstationary: size of a change of direction of main runs late on, which no stationary null has.
    """
    runs, windows, onsets, modes = [], [], [], []
    for task in tasks:
        for arm in arms:
            for seed in range(seeds):
                for condition in ("main", "control"):
                    main = condition == "main" and grokked
                    own = Milestones(50.0, 400.0 if main else np.nan, 500.0 + 10 * seed if main else np.nan)
                    marks = {**vars(own), "horizon": 400.0 if grokked else np.nan,
                             "deadline": 500.0 + 10 * seed if grokked else np.nan}  # fmt: skip
                    labels = {"job": f"{len(runs):012d}", "task": task, "arm": arm}
                    labels |= {"condition": condition, "seed": seed, "source": "edge"}
                    runs.append(labels | {"status": "done"} | marks)
                    slope = fall if condition == "main" else 0.0
                    norms = np.exp(
                        -0.2 * np.linspace(0, 1, RECORDS) - slope * np.linspace(0, 1, RECORDS) ** 2
                    )
                    rows = trajectory(rng, norms, first_order(RHO.get(arm, 0.5), RECORDS), PARAMETERS, WINDOW)
                    if condition == "main" and nonstationary:
                        # late updates are alike from step to step, so that the second gap closes beyond any step norm
                        cross = rows[:, 1:] + nonstationary * np.sqrt(rows[:, :1] * rows[:, :1])
                        late = np.arange(RECORDS)[:, None] > RECORDS // 3
                        rows[:, 1:] = np.where(late, np.minimum(cross, 0.995 * rows[:, :1]), rows[:, 1:])
                    steps = EVERY * (1 + np.arange(RECORDS))
                    windows.append(_windows(rng, rows, steps, own, labels, marks))
                    onsets.append(_onsets(rng, rows, norms, steps, labels))
                    modes.append(_modes(rng, labels, marks))
    tuned = windows[0].assign(condition="finetuned", phase="forgetting", job="f" * 12)
    found = {"edge_runs": pd.DataFrame(runs), "edge_windows": pd.concat([*windows, tuned], ignore_index=True)}
    found["edge_onsets"] = pd.concat(onsets, ignore_index=True).merge(pairs(found["edge_runs"]), on=RUN)
    found["edge_modes"] = pd.concat(modes, ignore_index=True)
    return found


def _windows(
    rng: np.random.Generator, rows: np.ndarray, steps: np.ndarray, own: Milestones, labels: dict, marks: dict
) -> pd.DataFrame:
    frames = []
    for name, share in (("all", 1), ("attention", 2)):
        found = Edge(samples=19).windows(rows, PARAMETERS // share, np.full(RECORDS, 1e-3), rng)
        frame = pd.DataFrame(found)
        frame.insert(0, "step", steps[WINDOW - 1 :])
        frames.append(frame.assign(set=name, parameters=PARAMETERS // share))
    found = pd.concat(frames, ignore_index=True).assign(**labels, **marks)
    found["phase"] = _phases(found["step"].to_numpy(), own)
    place = found["step"] / found["step"].max()
    found["train"], found["train_loss"] = np.minimum(1, 8 * place), 3 * np.exp(-9 * place)
    rises = np.isfinite(own.grokked)
    found["heldout"] = np.where(rises, 1 / (1 + np.exp(-(found["step"] - 450) / 20)), 0.03)
    found["heldout_loss"] = np.where(rises, 3 - 2.9 * found["heldout"], 3 + place)
    return found


def _onsets(
    rng: np.random.Generator, rows: np.ndarray, norms: np.ndarray, steps: np.ndarray, labels: dict
) -> pd.DataFrame:
    drawn = {"directions": [1.0], "stationary": first_order(RHO.get(labels["arm"], 0.5), 5)}
    sources = [("observed", 0, rows), ("normalized", 0, normalized(rows))]
    sources += [
        (name, i, trajectory(rng, norms, lags, PARAMETERS, WINDOW))
        for name, lags in drawn.items()
        for i in range(3)
    ]
    out = []
    for source, sample, these in sources:
        found = edge_statistics(these, PARAMETERS)
        for signal, falling in SIGNALS.items():
            at = int(onset(found[signal], falling))
            when = float(steps[WINDOW - 1 + at]) if at >= 0 else np.nan
            out.append(labels | {"source": source, "sample": sample, "signal": signal, "onset": when})
    return pd.DataFrame(out)


def _modes(rng: np.random.Generator, labels: dict, marks: dict) -> pd.DataFrame:
    out = []
    for step in (60, 200, 480, 600):
        out.append({"kind": "none", "origin": "", "mode": 0, "loss": 1.0, "step": step})
        out.append({"kind": "defect", "origin": "", "mode": 0, "value": rng.uniform(1, 100), "step": step})
        for kind, size in (("mode", 0.3), ("matched", 0.02), ("projected", 1e-4)):
            for origin in ("update", "weights"):
                for mode in (1, 2):
                    loss = 1.0 + size * rng.uniform(0.5, 1.5)
                    out.append({"kind": kind, "origin": origin, "mode": mode, "loss": loss, "step": step})
    return pd.DataFrame(out).assign(**labels, **marks)
