r"""CPU time and peak memory of a Hessian-vector product, against curvlinops and PyHessian on the same model and data.

One thread. Two models: that of the laptop grid on its pretraining language, and a wider one on random tokens. Every way
runs in a process of its own, round after round, and is divided by "synthlm" in the same round. Its memory is the most
that the process ever held, less what it held before the way was set up. All ways use this package's forward pass with
plain attention, and must agree on v . H v.

The peers are no part of any extra: curvlinops asks for torchvision, which does not import beside a CPU build of torch.

    pip install --no-deps --target peers curvlinops-for-pytorch backpack-for-pytorch einconv linear_operator \
        opt_einsum unfoldNd PyHessian
    PYTHONPATH=peers python benchmarks/hessian.py [--seconds 2] [--rounds 3]
"""

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import measure
import numpy as np
import torch
from torch import Tensor, nn

from synthlm import model as transformer
from synthlm.analysis.adapters import ModuleObjective
from synthlm.analysis.hessian import Hessian
from synthlm.analysis.objective import LanguageObjective, language_objective
from synthlm.experiments import load_grid
from synthlm.experiments.consistency import ConsistencyStudy
from synthlm.model import ModelConfig
from synthlm.seeds import torch_generator
from synthlm.tasks import IGNORE, Table, build

SIDE_BY_SIDE = 8
MODELS = ("laptop", "wide")
WAYS = {
    "synthlm": "",
    f"synthlm, {SIDE_BY_SIDE} vectors side by side": "",
    "synthlm, an nn.Module": "",
    "curvlinops": "curvlinops",
    f"curvlinops, {SIDE_BY_SIDE} columns": "curvlinops",
    "PyHessian": "pyhessian",
}
"""Way -> the package that it needs."""


def problem(name: str) -> tuple[LanguageObjective, Tensor]:
    """An objective and weights ``[param]``."""
    if name == "laptop":
        study = ConsistencyStudy(measure.given(load_grid("laptop").consistency))
        config = study.model
        objective = language_objective(config, build(study.settings.pretraining.language, 0), items=128)
    else:
        config = ModelConfig(vocab=512, length=64, width=256, layers=4, heads=4, mlp=1024)
        tokens = np.random.default_rng(0).integers(0, 512, (16, 65))
        scored = np.ones((16, 64), dtype=bool)
        table = Table(
            tokens[:, :-1].copy(), np.where(scored, tokens[:, 1:], IGNORE), np.zeros((16, 64), dtype=np.int64),
            np.full(16, 1 / 16), np.zeros((16, 64)), np.arange(16),
        )  # fmt: skip
        objective = LanguageObjective(config, table, ("all",))
    return objective, transformer.init(config, torch_generator(0, "init"))


class Plain(nn.Module):
    """The model as an ``nn.Module`` with a parameter a weight: positions in, log-probabilities out."""

    def __init__(self, objective: LanguageObjective, flat: Tensor) -> None:
        super().__init__()
        self.objective = objective
        for name, view in objective.layout.views(flat[None].clone()).items():
            self.register_parameter(name.replace(".", "/"), nn.Parameter(view[0].clone()))

    def forward(self, positions: Tensor) -> Tensor:
        named = {name.replace("/", "."): value[None] for name, value in self.named_parameters()}
        return self.objective.log_probabilities(self.objective.layout.join(named))[0][positions]


def product(way: str, objective: LanguageObjective, flat: Tensor) -> Callable[[Tensor], Tensor]:
    """``[many, param] -> [many, param]`` by one of the ways."""
    if way.startswith("synthlm") and "nn.Module" not in way:
        return Hessian(objective, flat, width=SIDE_BY_SIDE if "side" in way else 1)
    module = Plain(objective, flat)
    data = (torch.arange(len(objective.target)), objective.target)
    if way.startswith("synthlm"):
        adapted = ModuleObjective(module, [data], head=False)
        order = {entry.name.replace("/", "."): s for entry, s in zip(
            adapted.layout.entries, adapted.layout.slices.values(), strict=True
        )}  # fmt: skip
        index = torch.cat(
            [torch.arange(order[e.name].start, order[e.name].stop) for e in objective.layout.entries]
        )
        hessian = Hessian(adapted, adapted.flat)

        def through(v: Tensor) -> Tensor:
            given = torch.empty_like(v)
            given[:, index] = v
            return hessian(given)[:, index]

        return through
    parameters = list(module.parameters())
    if way.startswith("curvlinops"):
        import curvlinops

        operator = curvlinops.HessianLinearOperator(
            module, nn.CrossEntropyLoss(), parameters, [data], check_deterministic=False
        )
        return lambda v: (operator @ v.T).T
    from pyhessian import hessian as pyhessian
    from pyhessian.utils import hessian_vector_product

    kept = pyhessian(module, nn.CrossEntropyLoss(), data=data, cuda=False)
    shapes = [parameter.shape for parameter in kept.params]

    def by_lists(v: Tensor) -> Tensor:
        pieces = [p.view(s) for p, s in zip(v[0].split([s.numel() for s in shapes]), shapes, strict=True)]
        return torch.cat([p.flatten() for p in hessian_vector_product(kept.gradsH, kept.params, pieces)])[
            None
        ]

    return by_lists


def run_one(way: str, name: str, seconds: float) -> dict[str, float]:
    """CPU seconds a product, peak memory in MiB, and v . H v for a fixed v."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    objective, flat = problem(name)
    with torch.no_grad():
        objective.loss(flat[None])  # libraries are loaded and buffers warm
    many = SIDE_BY_SIDE if str(SIDE_BY_SIDE) in way else 1
    v = torch.randn(many, len(flat), generator=torch_generator(0, "vectors"))
    before = resident()
    multiply = product(way, objective, flat)
    first = multiply(v)
    multiply(v)
    times = []
    while sum(times) < seconds or len(times) < 3:
        begun = time.process_time()
        multiply(v)
        times.append(time.process_time() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "seconds": float(np.median(times)) / many,
        "peak": peak - before,
        "form": float((v[0].double() * first[0].double()).sum()),
    }


def resident() -> float:
    """Memory of this process now, MiB."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="about, for each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "MODEL"), help="measure one way and print JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_one(*options.one, options.seconds)))
        return
    description, begun = measure.machine(), time.monotonic()
    ways = [way for way, needs in WAYS.items() if not needs or importlib.util.find_spec(needs)]
    for way in WAYS.keys() - set(ways):
        print(f"left out: {way} (not installed; see the first lines of this file)")
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for name in MODELS:
            for way in ways:
                command = [sys.executable, __file__, "--one", way, name, "--seconds", str(options.seconds)]
                text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found.setdefault((name, way), []).append(json.loads(text.splitlines()[-1]))
    rows = []
    for (name, way), runs in found.items():
        ours = found[name, "synthlm"]
        if abs(runs[0]["form"] / ours[0]["form"] - 1) > 1e-3:
            raise SystemExit(f"{way} on {name}: v . H v is {runs[0]['form']}, not {ours[0]['form']}")
        seconds, peak = ([run[key] for run in runs] for key in ("seconds", "peak"))
        rows.append(
            {
                "model": name,
                "parameters": problem(name)[0].layout.size,
                "way": way,
                "ms_per_product": measure.spread([1000 * s for s in seconds], 1),
                "time_against_synthlm": measure.spread(
                    measure.ratios(seconds, [run["seconds"] for run in ours])
                ),
                "peak_mib": measure.spread(peak, 0),
                "peak_against_synthlm": measure.spread(measure.ratios(peak, [run["peak"] for run in ours])),
                "rounds": options.rounds,
            }
        )
    measure.show(rows)
    print(f"{time.monotonic() - begun:.0f} s")
    print(measure.write("hessian", rows, description))


if __name__ == "__main__":
    main()
