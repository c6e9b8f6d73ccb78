"""Runs of perl/train.py on two ranks, each with a fault: python faults.py OUT.json FAULT .. -- FLAGS.

A fault is `raise PHASE` (rank 1 raises there, at its second call) or `full PLACE` (from that write
on no file may grow beyond LIMIT bytes: what a full disk says of every write, and it needs no
rights). Each fault has a run of its own, in the folder that --out names, one after another. What
is imported is imported once: torchrun's own agent forks the ranks. Writes for each fault the exit
code of the rank that failed first, the seconds until all ranks were gone, and what they said.
"""

import json
import os
import resource
import shlex
import sys
import threading
import time
from multiprocessing.util import Finalize
from pathlib import Path

import psutil
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from perl import train
from perl.rollout import Engine, run

LIMIT = 100

PHASES = {
    "sampling": (Engine, "generate"),
    "reference": (train, "logps_of"),
    "update": (train, "update"),
    "sync": (Engine, "sync"),
    "evaluation": (train, "slot_of"),
    "metrics": (train, "reward_metrics"),
    "saving": (train, "save"),
}
PLACES = {
    "config": (train, "replace_file"),
    "metrics": (train, "append_line"),
    "curves": (train.SummaryWriter, "add_scalar"),
    "state": (train.dcp, "save"),
    "model": (train, "export"),
}


def replaced(owner, name: str, before) -> None:
    """Call `before` ahead of every call of owner.name."""
    original = getattr(owner, name)

    def with_fault(*arguments, **named):
        before()
        return original(*arguments, **named)

    setattr(owner, name, with_fault)


def rank_raises(phase: str) -> None:
    """A finaliser that blocks stands in for NCCL's tear-down, which waits for ranks that wait for
    this one: only a process that leaves at once ends the run.
    """
    calls = []

    def maybe_raise():
        calls.append(1)
        if os.environ["RANK"] == "1" and (len(calls) == 2 or phase == "saving"):
            print("the fault is at", time.time(), file=sys.stderr, flush=True)
            raise RuntimeError(f"rank 1 raises in {phase}")

    replaced(*PHASES[phase], maybe_raise)
    # Not atexit: in Python 3.11 a forked process skips it.
    Finalize(None, time.sleep, args=(600,), exitpriority=1)


def disk_is_full(place: str) -> None:
    def fill():
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))

    replaced(*PLACES[place], fill)


def rank_main(fault: str, words: list[str], pipe: int) -> None:
    for stream in (1, 2):
        os.dup2(pipe, stream)
    kind, where = fault.split()
    {"raise": rank_raises, "full": disk_is_full}[kind](where)
    sys.argv = ["perl/train.py", *words]
    run(train.main)


def launch(fault: str, words: list[str]) -> dict:
    reads, writes = os.pipe()  # no file: the disk may be full
    said: list[str] = []
    with open(reads, errors="replace") as pipe:
        listener = threading.Thread(target=lambda: said.append(pipe.read()))
        listener.start()
        code = exit_code(fault, words, writes)
        ended = time.time()
        os.close(writes)
        listener.join()  # every rank has closed its end
    found = {"code": code, "said": said[0], "left": len(psutil.Process().children())}
    mark = "the fault is at "
    if mark in said[0]:
        found["seconds"] = ended - float(said[0].split(mark)[1].split()[0])
    return found


def exit_code(fault: str, words: list[str], pipe: int) -> int:
    """Of the rank that failed first; 0 where none did."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="fork",
    )
    try:
        elastic_launch(config, rank_main)(fault, words, pipe)
    except ChildFailedError as error:
        return error.get_first_failure()[1].exitcode
    return 0


def main() -> None:
    at = sys.argv.index("--")
    out, faults, flags = Path(sys.argv[1]), sys.argv[2:at], sys.argv[at + 1 :]
    from vllm import LLM  # noqa: F401  after the environment of perl.rollout, before the forks

    found = {}
    for fault in faults:
        words = shlex.split(shlex.join(flags).replace("FAULT", fault.replace(" ", "-")))
        found[fault] = launch(fault, words)
        out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
