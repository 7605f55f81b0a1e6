"""Training speed on the CPU, against a plain PyTorch loop and a jit-compiled JAX trainer that do the same work.

The jobs are pretraining runs of the laptop grid (AdamW base, its learning rates in turn, a new seed each). Every
way starts from the same weights and sees the same batches; before anything is timed, the losses of all ways are
compared step by step. What is counted is training steps alone: processes are started, imports done and code compiled
in a warm-up that is not timed, the first step of a run is left out, and so are evaluations and commits. With several
processes the slowest one's time counts. All ways take turns in each round, and ratios are taken within a round. The
machine's peak is that of float32 1024 x 1024 products by a one-thread process on each core, measured in each round.

    python benchmarks/cpu_training.py [--steps 150] [--rounds 3] [--runs-per-core 3]
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import measure
import numpy as np
import peers
import timed
import torch

from synthlm import planner, weights
from synthlm.engines import Workload, usable_cores
from synthlm.engines.local import LocalEngine
from synthlm.experiments import load_grid
from synthlm.experiments.consistency import ConsistencyStudy
from synthlm.jobs import Pretrain
from synthlm.store import Store

CHECKED_STEPS = 60
TOLERANCE = 1e-4
"""Most that a loss (nats per token) may differ between two ways within the checked steps."""

OURS, PLAIN = "synthlm", "plain PyTorch, one run at a time on all cores"
JAX_MAPPED = "JAX, mapped over runs, all cores"


def jobs(first_seed: int, count: int, steps: int, checkpoints: int = 0) -> list[Pretrain]:
    """Pretraining jobs of the laptop grid's AdamW base, cut to ``steps``."""
    study = ConsistencyStudy(measure.given(load_grid("laptop").consistency))
    model, pretraining = study.model, study.settings.pretraining
    base = pretraining.bases["adamw"]
    training = pretraining.training.model_copy(
        update={"steps": steps, "evaluations": 2, "checkpoints": checkpoints}
    )
    return [
        Pretrain(
            seed=seed,
            model=model,
            language=pretraining.language,
            optimizer=base.optimizer.at(base.sweep.rate(seed % base.sweep.count)),
            aux=pretraining.aux,
            training=training,
        )
        for seed in range(first_seed, first_seed + count)
    ]


class Ours:
    """The local engine with one-thread workers, batches made by the planner."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.engine = LocalEngine(self.store, "cpu", usable_cores(), Workload(run="timed:run"))

    def __call__(self, given: Sequence[Pretrain]) -> float:
        """Seconds of the slowest worker."""
        for path in self.store.root.glob("seconds-*.jsonl"):
            path.unlink()
        width = planner.width(given[0], "cpu")
        waiting = planner.batches(given, lambda job: width, self.engine.workers)
        number = busy = 0
        while number < len(waiting) or busy:
            while busy < self.engine.workers and number < len(waiting):
                self.engine.submit(number, waiting[number])
                number, busy = number + 1, busy + 1
            for outcome in self.engine.wait(1.0):
                busy -= 1
                if outcome.error:
                    raise RuntimeError(outcome.error + outcome.traceback)
        files = self.store.root.glob("seconds-*.jsonl")
        return max(sum(json.loads(line)["seconds"] for line in path.open()) for path in files)

    def losses(self, job: Pretrain, problem: peers.Problem) -> dict[int, float]:
        """Step -> loss of that step's batch, from the job's checkpoints."""
        model, found = peers.Transformer(job.model), {}
        for path in self.store.folder(job.key).glob("step-*.safetensors"):
            step = int(path.stem.removeprefix("step-"))
            if step < job.training.steps:
                model.fill(peers.rename(job.model, weights.load(path, job.model.layout)))
                items = problem.order[step]
                batch = torch.from_numpy(problem.tokens[items]), torch.from_numpy(problem.targets[items])
                found[step] = model.loss(*batch, problem.first).item()
        return found


class Peer:
    """Processes of ``peer_worker``, each with its share of the jobs."""

    def __init__(self, kind: str, processes: int, threads: int = 0) -> None:
        command = [sys.executable, str(Path(__file__).with_name("peer_worker.py")), kind]
        environment = dict(os.environ)
        if threads:
            # the last two are how JAX is held to one thread
            command += ["--threads", str(threads)]
            environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"), str(threads))
            environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
        self.processes = [
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )
            for _ in range(processes)
        ]

    def ask(self, requests: Sequence[dict]) -> list[dict]:
        """One request a process, all at once."""
        for process, request in zip(self.processes, requests, strict=True):
            assert process.stdin is not None
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        return [json.loads(process.stdout.readline()) for process in self.processes if process.stdout]

    def train(self, given: Sequence[Pretrain]) -> list[dict]:
        count = len(self.processes)
        return self.ask([{"jobs": [job.model_dump_json() for job in given[i::count]]} for i in range(count)])

    def __call__(self, given: Sequence[Pretrain]) -> float:
        """Seconds of the slowest process."""
        return max(reply["seconds"] for reply in self.train(given))

    def losses(self, given: Sequence[Pretrain]) -> np.ndarray:
        """[run, step] losses."""
        found = np.empty((len(given), given[0].training.steps))
        for i, reply in enumerate(self.train(given)):
            found[i :: len(self.processes)] = reply["losses"]
        return found

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
            process.wait()


def check(ours: Ours, others: dict[str, Peer], runs: int) -> None:
    """Assert that all ways have the same losses, step by step (ours at its checkpoints)."""
    given = jobs(0, runs, CHECKED_STEPS, checkpoints=20)
    ours(given)
    reference = others[PLAIN].losses(given)
    for name, other in others.items():
        gap = np.abs(other.losses(given) - reference).max()
        print(f"{name}: losses within {gap:.1e} of plain PyTorch's over {CHECKED_STEPS} steps")
        assert gap < TOLERANCE, f"{name} does not do the same work: losses differ by {gap}"
    gap, seen = 0.0, 0
    for job, row in zip(given, reference, strict=True):
        found = ours.losses(job, peers.problem(job))
        gap = max([gap, *(abs(loss - row[step]) for step, loss in found.items())])
        seen += len(found)
    print(f"{OURS}: losses within {gap:.1e} of plain PyTorch's at {seen} checkpoints of {runs} runs")
    assert seen >= 10 * runs
    assert gap < TOLERANCE, f"{OURS} does not do the same work: losses differ by {gap}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs-per-core", type=int, default=3)
    options = parser.parse_args()
    description, begun = measure.machine(), time.monotonic()
    cores = usable_cores()
    runs = options.runs_per_core * cores
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    )
    others = {PLAIN: Peer("torch", 1), "plain PyTorch, one thread on each core": Peer("torch", cores, 1)}
    if importlib.util.find_spec("jax"):
        others |= {
            JAX_MAPPED: Peer("jax-mapped", 1),
            "JAX, one run at a time on all cores": Peer("jax", 1),
            "JAX, one thread on each core": Peer("jax", cores, 1),
        }
        description += f", JAX {importlib.import_module('jax').__version__}"
    else:
        print("JAX is not installed (pip install synthlm[bench]); its rows are left out")
    matmul = Peer("matmul", cores, 1)
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(Path(folder))
        check(ours, others, runs)
        ways: dict[str, Callable[[Sequence[Pretrain]], float]] = {OURS: ours, **others}
        warm_up = jobs(runs, runs, 10)
        for way in ways.values():
            way(warm_up)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        peak: list[float] = []
        for turn in range(options.rounds):
            given = jobs((turn + 2) * runs, runs, options.steps)
            request = {"size": 1024, "seconds": 1.0}
            peak.append(sum(reply["rate"] for reply in matmul.ask([request] * cores)))
            for name, way in ways.items():
                steps = timed.counted(options.steps) if name == OURS else options.steps - 1
                rates[name].append(runs * steps / way(given))
        ours.engine.close()
    for each in (*others.values(), matmul):
        each.close()
    flops = peers.problem(given[0]).flops
    rows = [
        {
            "way": name,
            "steps_per_second": measure.spread(values, 0),
            "gflops": measure.spread([value * flops / 1e9 for value in values], 1),
            "share_of_peak": measure.spread([v * flops / p for v, p in zip(values, peak, strict=True)]),
            "synthlm_is_faster_by": measure.spread(measure.ratios(rates[OURS], values)),
            "runs": runs,
            "steps": options.steps,
            "rounds": options.rounds,
        }
        for name, values in rates.items()
    ]
    peak_shown = measure.spread([value / 1e9 for value in peak], 1)
    rows.append(dict.fromkeys(rows[0], "") | {"way": "float32 matrix products", "gflops": peak_shown})
    measure.show(rows)
    print(f"{flops / 1e9:.3f} GFLOP a step and run; {time.monotonic() - begun:.0f} s")
    print(measure.write("cpu_training", rows, description))


if __name__ == "__main__":
    main()
