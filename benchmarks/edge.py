"""What recording the spectral edge costs in training, as a share of the steps' own time.

Language, batch and schedule are those of the laptop grid's pretraining, several runs side by side below width 128, one
thread. Every second step is recorded, so that steps with and without a record alternate in one run and whatever else
slows the machine meets both alike; a record costs the median over pairs of neighbours of the difference, divided by the
median step without one. At a cadence of c steps the overhead is a c-th of that.

    python benchmarks/edge.py [--seconds 3] [--rounds 5]
"""

import argparse
import tempfile
import time
from pathlib import Path

import measure
import numpy as np
import torch

from synthlm.experiments import load_grid
from synthlm.experiments.consistency import ConsistencyStudy
from synthlm.jobs import Pretrain
from synthlm.model import ModelConfig
from synthlm.recording import EdgeConfig
from synthlm.store import Store
from synthlm.training import run_batch

WIDTHS = {32: 4, 64: 2, 128: 1}
"""Model width -> runs side by side."""


def jobs(rule: str, width: int, steps: int) -> list[Pretrain]:
    """Jobs that differ in their seeds."""
    study = ConsistencyStudy(measure.given(load_grid("laptop").consistency))
    pretraining, model = study.settings.pretraining, study.model
    base = pretraining.bases[rule]
    plan = {
        "steps": steps,
        "evaluations": 2,
        "evaluate_every": None,
        "checkpoints": 0,
        "edge": EdgeConfig(every=2),
    }
    return [
        Pretrain(
            seed=seed,
            model=ModelConfig.model_validate(model.model_dump() | {"width": width, "mlp": 4 * width}),
            language=pretraining.language,
            optimizer=base.optimizer.at(base.sweep.rate(0)),
            aux=pretraining.aux,
            training=pretraining.training.model_copy(update=plan),
        )
        for seed in range(WIDTHS[width])
    ]


def cost_of_a_record(rule: str, width: int, steps: int) -> tuple[float, float]:
    """In steps without one, and the seconds of such a step."""
    marks: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        run_batch(
            jobs(rule, width, steps), Store(Path(folder)), "cpu", lambda *_: marks.append(time.perf_counter())
        )
    filled = 2 * EdgeConfig().window
    # from step filled + 2 on, which is recorded; the last step is evaluated
    taken = np.diff(marks)[filled:-1]
    recorded, plain = taken[::2], taken[1::2]
    pairs = min(len(recorded), len(plain))
    extra = np.median(recorded[:pairs] - plain[:pairs])
    return float(extra / np.median(plain)), float(np.median(plain))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="about, for each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    description, begun = measure.machine(), time.monotonic()
    torch.set_num_threads(1)
    rows = []
    for rule in ("adamw", "muon"):
        for width, runs in WIDTHS.items():
            step = cost_of_a_record(rule, width, 60)[1]
            steps = max(100, round(options.seconds / step))
            found = [cost_of_a_record(rule, width, steps)[0] for _ in range(options.rounds)]
            every = EdgeConfig().every
            rows.append(
                {
                    "rule": rule,
                    "width": width,
                    "runs": runs,
                    "parameters": jobs(rule, width, 60)[0].model.layout.size,
                    "window": EdgeConfig().window,
                    "sets": len(EdgeConfig().sets),
                    "percent_recorded_every_step": measure.spread([100 * each for each in found], 1),
                    f"percent_recorded_every_{every}_steps": measure.spread(
                        [100 * each / every for each in found], 2
                    ),
                    "steps": steps,
                    "rounds": options.rounds,
                }
            )
    measure.show(rows)
    print(f"{time.monotonic() - begun:.0f} s")
    print(measure.write("edge", rows, description))


if __name__ == "__main__":
    main()
