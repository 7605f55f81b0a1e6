"""A Slurm of one machine for tests: ``sbatch``, ``srun``, ``sacct`` and ``scancel``, by the name it is called under.

In the folder $FAKE_SLURM lie, for each job, its process group (ID.pid) and its state (ID.state), which tests may set.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(os.environ.get("FAKE_SLURM", "."))


def sbatch(script: str) -> None:
    """Start every task of the array. The partition "closed" is refused."""
    flags = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", Path(script).read_text(), re.MULTILINE))
    number = str(time.time_ns() // 10**6)  # submitit remembers numbers as long as the process lives
    (ROOT / f"{number}.sh").write_text(Path(script).read_text())
    if flags.get("partition") == "closed":
        sys.exit("sbatch: error: invalid partition specified: closed")
    last = re.match(r"0-(\d+)", flags.get("array", ""))
    for name in [f"{number}_{i}" for i in range(int(last[1]) + 1)] if last else [number]:
        (ROOT / f"{name}.state").write_text("RUNNING")
        job, _, task = name.partition("_")
        environment = {**os.environ, "SLURM_JOB_ID": job}
        if task:
            environment |= {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": task}
        end = f"echo $state > {ROOT}/{name}.new; mv {ROOT}/{name}.new {ROOT}/{name}.state"  # never seen half written
        command = f"bash {script} && state=COMPLETED || state=FAILED; {end}"
        process = subprocess.Popen(
            command, shell=True, env=environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        (ROOT / f"{name}.pid").write_text(str(process.pid))
    print(f"Submitted batch job {number}")


def srun(*words: str) -> None:
    """Run the command with its streams in the files given."""
    streams = {}
    rest = list(words)
    while rest[0].startswith("--"):
        flag = rest.pop(0)
        if flag in ("--output", "--error"):
            streams[flag] = rest.pop(0)
    names = {
        "%j": os.environ["SLURM_JOB_ID"],
        "%A": os.environ.get("SLURM_ARRAY_JOB_ID", ""),
        "%a": os.environ.get("SLURM_ARRAY_TASK_ID", ""),
        "%t": "0",
    }
    for descriptor, flag in ((1, "--output"), (2, "--error")):
        path = re.sub("%[jAat]", lambda mark: names[mark[0]], streams[flag])
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.execvp(rest[0], rest)


def sacct(*words: str) -> None:
    """State of the jobs given with ``-j``."""
    print("JobID|State|NodeList")
    for asked in [words[i + 1] for i, word in enumerate(words) if word == "-j"]:
        for path in sorted(ROOT.glob("*.state")):
            if path.stem.split("_")[0] == asked:
                print(f"{path.stem}|{path.read_text().strip()}|node1")


def scancel(name: str) -> None:
    end(name, "CANCELLED by 0")


def end(name: str, state: str) -> None:
    """Kill a job and leave a state."""
    os.killpg(int((ROOT / f"{name}.pid").read_text()), signal.SIGKILL)
    (ROOT / f"{name}.state").write_text(state)


def install(folder: Path) -> None:
    """Make the four commands in a folder."""
    for name in ("sbatch", "srun", "sacct", "scancel"):
        path = folder / name
        path.write_text(
            f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(__file__)} {name} "$@"\n'
        )
        path.chmod(0o755)


if __name__ == "__main__":
    {"sbatch": sbatch, "srun": srun, "sacct": sacct, "scancel": scancel}[sys.argv[1]](*sys.argv[2:])
