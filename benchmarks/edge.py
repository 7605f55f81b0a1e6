"""What recording the spectral edge costs in training: time of steps with it, over time of the same steps without.

Language, batch and schedule are those of the laptop grid's pretraining, four runs side by side below width 64, one
thread. Steps are timed alone (see ``timed``); with and without follow each other in every round, and ratios are taken
round by round.

    python benchmarks/edge.py [--seconds 2] [--rounds 5]
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
from synthlm.recording import EdgeConfig
from synthlm.store import Store

WIDTHS = {32: 4, 64: 2, 128: 1}
"""Model width -> runs side by side."""

CADENCES = (EdgeConfig().every, 1)
"""The default, and every step."""


def jobs(rule: str, width: int, steps: int, edge: EdgeConfig | None) -> list[Pretrain]:
    """Jobs that differ in their seeds."""
    study = ConsistencyStudy(measure.given(load_grid("laptop").consistency))
    pretraining, model = study.settings.pretraining, study.model
    base = pretraining.bases[rule]
    plan = {"steps": steps, "evaluations": 2, "evaluate_every": None, "checkpoints": 0, "edge": edge}
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


def seconds(rule: str, width: int, steps: int, edge: EdgeConfig | None) -> float:
    """Of the counted steps."""
    with tempfile.TemporaryDirectory() as folder:
        return timed.seconds(jobs(rule, width, steps, edge), Store(Path(folder)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="about, for each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    description, begun = measure.machine(), time.monotonic()
    torch.set_num_threads(1)
    rows = []
    for rule in ("adamw", "muon"):
        for width in WIDTHS:
            pace = timed.counted(40) / seconds(rule, width, 40, None)
            steps = max(60, round(options.seconds * pace))
            found: dict[int, list[float]] = {every: [] for every in (0, *CADENCES)}
            for _ in range(options.rounds):
                for every in found:
                    edge = EdgeConfig(every=every) if every else None
                    found[every].append(seconds(rule, width, steps, edge))
            for every in CADENCES:
                rows.append(
                    {
                        "rule": rule,
                        "width": width,
                        "runs": WIDTHS[width],
                        "parameters": jobs(rule, width, 40, None)[0].model.layout.size,
                        "window": EdgeConfig().window,
                        "recorded_every": every,
                        "seconds_with_over_without": measure.spread(
                            measure.ratios(found[every], found[0]), 3
                        ),
                        "steps": timed.counted(steps),
                        "rounds": options.rounds,
                    }
                )
    measure.show(rows)
    print(f"{time.monotonic() - begun:.0f} s")
    print(measure.write("edge", rows, description))


if __name__ == "__main__":
    main()
