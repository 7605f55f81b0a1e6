"""What a grid would take, before anything is trained: jobs by kind, time and disk."""

import time
from dataclasses import dataclass

from synthlm.progress import duration, size
from synthlm.store import Store
from synthlm.study import Study

SAMPLE = 200
"""Finished jobs whose recorded rate is looked at."""

GUESS_SHARE = 0.3
"""Share of a large matrix product's rate that training of small models reaches, where none was recorded."""


@dataclass(frozen=True)
class Estimate:
    """``kinds``: kind -> (cached, to run). ``rate``: FLOP/s of one worker, ``recorded`` if from past jobs.

    Without past jobs, what a GPU on other machines does is not known: ``seconds`` and ``rate`` are None.
    """

    kinds: dict[str, tuple[int, int]]
    seconds: float | None
    disk: int
    rate: float | None
    recorded: bool
    workers: int

    def text(self) -> str:
        """For people to read."""
        rows = [f"{'jobs':<12}{'cached':>8}{'to run':>8}"]
        rows += [
            f"{kind:<12}{cached:>8}{missing:>8}" for kind, (cached, missing) in sorted(self.kinds.items())
        ]
        source = "as in past jobs of this store" if self.recorded else "a guess from a short matrix product"
        if self.seconds is None or self.rate is None:
            time_taken = (
                "not known: there is no GPU on this machine to measure, and no past job in this store"
            )
        else:
            time_taken = (
                f"about {duration(self.seconds)} with {self.workers} worker(s) at "
                f"{self.rate / 1e9:.1f} GFLOP/s each ({source})"
            )
        rows += ["", f"time   {time_taken}", f"disk   about {size(self.disk)}"]
        if any(missing for _, missing in self.kinds.values()):
            rows.append("These are the jobs known now; later stages depend on their results and come on top.")
        return "\n".join(rows)


def estimate(study: Study, store: Store, device: str, workers: int) -> Estimate:
    """Plan once with the results there are; run nothing."""
    store.keys()
    kinds: dict[str, tuple[int, int]] = {}
    flops, disk = 0.0, 0
    finished = []
    for job in study.jobs(lambda job: store.get(job.key)):
        cached, missing = kinds.get(job.kind, (0, 0))
        if store.has(job.key):
            kinds[job.kind] = (cached + 1, missing)
            finished.append(job)
        else:
            kinds[job.kind] = (cached, missing + 1)
            flops += job.cost
            disk += job.disk
    past_flops, past_seconds = 0.0, 0.0
    for job in finished[-SAMPLE:]:
        record = store.get(job.key)
        manifest = record.manifest if record else {}
        if manifest.get("seconds") and manifest.get("device") == device and manifest.get("status") == "done":
            past_flops += job.cost
            past_seconds += manifest["seconds"]
    recorded = past_seconds > 0
    rate = past_flops / past_seconds if recorded else _guess(device)
    seconds = None if rate is None else flops / rate / workers
    return Estimate(kinds, seconds, disk, rate, recorded, workers)


def _guess(device: str) -> float | None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return None
    return GUESS_SHARE * matmul_rate(device)


def matmul_rate(device: str, seconds: float = 0.1) -> float:
    """FLOP/s of float32 matrix products of side 512, on one CPU thread or on the GPU."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        side = 512 if device == "cpu" else 4096
        a = torch.ones(side, side, device=device)
        products, start = 0, time.monotonic()
        while products < 3 or time.monotonic() - start < seconds:
            (a @ a).sum().item()
            products += 1
            if products == 1:
                start = time.monotonic()  # the first one pays for the start-up
        return (products - 1) * 2.0 * side**3 / max(time.monotonic() - start, 1e-9)
    finally:
        torch.set_num_threads(threads)
