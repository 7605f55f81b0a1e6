"""Speed per run against how many runs share the run axis, on one thread: what the planner's widths rest on.

A model of width d has 2 layers, 4 heads and an MLP of 4 d; language, batch and steps are those of the laptop grid's
pretraining. Only training steps count (see ``timed``). Every (rule, d) goes through all numbers of runs in turn, round
after round, and each number is divided by that of one run in the same round.

    python benchmarks/run_axis.py [--seconds 0.8] [--rounds 3]
"""

import argparse
import tempfile
import time
from pathlib import Path

import measure
import timed
import torch

from synthlm.experiments import load_grid
from synthlm.experiments.consistency import ConsistencyStudy
from synthlm.jobs import Pretrain
from synthlm.model import ModelConfig
from synthlm.store import Store

RULES, WIDTHS, RUNS = ("adamw", "muon"), (16, 32, 64), (1, 2, 4, 8, 16)


def jobs(rule: str, width: int, runs: int, steps: int) -> list[Pretrain]:
    """Jobs that differ in their seeds."""
    study = ConsistencyStudy(measure.given(load_grid("laptop").consistency))
    pretraining, model = study.settings.pretraining, study.model
    base = pretraining.bases[rule]
    return [
        Pretrain(
            seed=seed,
            model=ModelConfig.model_validate(model.model_dump() | {"width": width, "mlp": 4 * width}),
            language=pretraining.language,
            optimizer=base.optimizer.at(base.sweep.rate(0)),
            aux=pretraining.aux,
            training=pretraining.training.model_copy(
                update={"steps": steps, "evaluations": 2, "checkpoints": 0}
            ),
        )
        for seed in range(runs)
    ]


def run_steps(rule: str, width: int, runs: int, steps: int) -> float:
    """Steps x runs a second."""
    with tempfile.TemporaryDirectory() as folder:
        taken = timed.seconds(jobs(rule, width, runs, steps), Store(Path(folder)))
    return runs * timed.counted(steps) / taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.8, help="about, for each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    description, begun = measure.machine(), time.monotonic()
    torch.set_num_threads(1)
    cells = [(rule, width) for rule in RULES for width in WIDTHS]
    pace = {(rule, width): run_steps(rule, width, 4, 20) for rule, width in cells}
    found: dict[tuple[str, int, int], list[float]] = {}
    for _ in range(options.rounds):
        for rule, width in cells:
            for runs in RUNS:
                steps = max(10, round(options.seconds * pace[rule, width] / runs))
                found.setdefault((rule, width, runs), []).append(run_steps(rule, width, runs, steps))
    rows = [
        {
            "rule": rule,
            "width": width,
            "runs": runs,
            "run_steps_per_second": measure.spread(values, 0),
            "speed_per_run_against_one_run": measure.spread(measure.ratios(values, found[rule, width, 1])),
            "rounds": options.rounds,
        }
        for (rule, width, runs), values in found.items()
    ]
    measure.show(rows)
    print(f"{time.monotonic() - begun:.0f} s")
    print(measure.write("run_axis", rows, description))


if __name__ == "__main__":
    main()
