"""A process that trains by other means on request: one JSON line in (jobs), one JSON line out (losses, seconds)."""

import argparse
import json
import sys
import time
from typing import Any


def main() -> None:
    """Serve requests until stdin closes; ``kind`` is torch, jax, jax-mapped or matmul."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    options = parser.parse_args()
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    for line in sys.stdin:
        request = json.loads(line)
        if options.kind == "matmul":
            reply = _matmul(request["size"], request["seconds"])
        else:
            reply = _train(options.kind, request["jobs"])
        print(json.dumps(reply), flush=True)


def _train(kind: str, texts: list[str]) -> dict[str, Any]:
    import peers

    from synthlm.jobs import Pretrain

    problems = [peers.problem(Pretrain.model_validate_json(text)) for text in texts]
    if kind == "torch":
        each = [peers.train(problem) for problem in problems]
        return {"losses": [losses for losses, _ in each], "seconds": sum(seconds for _, seconds in each)}
    import peers_jax

    losses, seconds = peers_jax.train(problems, mapped=kind == "jax-mapped")
    return {"losses": losses, "seconds": seconds}


def _matmul(size: int, seconds: float) -> dict[str, float]:
    """Float32 FLOP/s of square matrix products."""
    import torch

    a, b = torch.randn(2, size, size)
    out = a @ b
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        torch.mm(a, b, out=out)
        count += 1
    return {"rate": 2.0 * size**3 * count / (time.perf_counter() - start)}


if __name__ == "__main__":
    main()
