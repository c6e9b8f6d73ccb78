"""A run whose disk is full from one write on: torchrun ... full_disk.py PLACE and the flags of
perl/train.py. No file may grow beyond LIMIT bytes from then on, which is what a full disk says of
every write (OSError), and needs no rights."""

import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from perl import train
from perl.rollout import run

LIMIT = 100

place = sys.argv.pop(1)
asked = {
    "config": (train, "replace_file"),
    "metrics": (train, "append_line"),
    "board": (train.SummaryWriter, "add_scalar"),
    "state": (train.dcp, "save"),
    "model": (train, "export"),
}
owner, name = asked[place]
original = getattr(owner, name)


def on_a_full_disk(*arguments, **named):
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    return original(*arguments, **named)


setattr(owner, name, on_a_full_disk)
run(train.main)
