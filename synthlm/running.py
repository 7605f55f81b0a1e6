"""What a worker does with a batch of jobs: train them side by side, or analyse one after the other."""

import json
import time
from collections.abc import Callable, Sequence

import torch

from synthlm.jobs import Job, Probe
from synthlm.trained import JobStore


def run_batch(
    jobs: Sequence[Job],
    store: JobStore,
    device: str = "cpu",
    on_step: Callable[[int, int], None] = lambda step, total: None,
) -> None:
    """Run jobs of one kind and shape and commit each to the store.

    Raises:
        InputError: when weights that are needed are missing or damaged.
    """
    trained = [job for job in jobs if not isinstance(job, Probe)]
    if trained:
        from synthlm import training

        training.run_batch(trained, store, device, on_step)
    probes = [job for job in jobs if isinstance(job, Probe)]
    for done, probe in enumerate(probes):
        run_probe(probe, store, device)
        on_step(done + 1, len(probes))


def run_probe(probe: Probe, store: JobStore, device: str = "cpu") -> None:
    """Run one analysis and commit its rows.

    Raises:
        InputError: when weights are missing or damaged, or the analysis cannot take its subject.
        ValueError: when the analysis gives columns of different lengths.
    """
    from synthlm.probes.subject import StoredSubject

    begun = time.monotonic()
    columns = probe.analysis.run(StoredSubject(probe, store, device))
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{probe.analysis.name}: columns of different lengths: {lengths}")
    folder = store.create(probe.key)
    (folder / "config.json").write_text(probe.model_dump_json(indent=1) + "\n")
    (folder / "metrics.json").write_text(json.dumps(columns, allow_nan=False) + "\n")
    manifest = {
        "key": probe.key,
        "kind": probe.kind,
        "status": "done",
        "seconds": time.monotonic() - begun,
        "device": device,
        "torch": torch.__version__,
        "files": [],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    store.commit(probe.key, folder)
