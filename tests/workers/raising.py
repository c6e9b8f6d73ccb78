"""A run in which rank 1 raises in one phase, at its second call: torchrun ... raising.py PHASE and
the flags of perl/train.py. A finaliser that blocks stands in for NCCL's tear-down, which waits for
ranks that wait for this one: only a process that leaves at once ends the run."""

import atexit
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from perl import train
from perl.rollout import Engine, run

phase = sys.argv.pop(1)
asked = {
    "sampling": (Engine, "generate"),
    "reference": (train, "logps_of"),
    "update": (train, "update"),
    "sync": (Engine, "sync"),
    "metrics": (train, "reward_metrics"),
    "saving": (train, "save"),
}
owner, name = asked[phase]
original, calls = getattr(owner, name), []


def once_and_then_raise(*arguments, **named):
    calls.append(1)
    if os.environ["RANK"] == "1" and (len(calls) == 2 or phase == "saving"):
        raise RuntimeError(f"rank 1 raises in {phase}")
    return original(*arguments, **named)


setattr(owner, name, once_and_then_raise)
atexit.register(time.sleep, 600)
run(train.main)
