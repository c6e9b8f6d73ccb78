"""Two ranks that do nothing but train and save, killed
again and again: python checkpoint.py BASE OUT KILLS.

Each trial resumes, checks that weights and moments are exactly those of the step the checkpoint
names, and saves step after step until it is killed, at a random moment after its first save. The
last trial may write no large file ("disk full"): its save must fail, and the checkpoint before it
must still be whole. Prints one JSON line: the steps resumed from, and how the full disk ended."""

import ctypes
import json
import os
import random
import resource
import signal
import socket
import sys
import time
from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from perl.rollout import join_torchrun, load_processor
from perl.train import build_policy, checkpoints, resume, save

base, out, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
lr = 0.1


def gradient(step: int) -> float:
    return float(step % 7 - 3)


def expected(steps: int) -> tuple[float, float]:
    """What AdamW makes of one weight that starts at
    0, and its first moment, after `steps` steps."""
    w = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.AdamW([w], lr=lr, foreach=False)
    for step in range(steps):
        w.grad = torch.full_like(w, gradient(step))
        optimizer.step()
    return w.item(), optimizer.state[w]["exp_avg"].item() if steps else 0.0


def rank_main(rank: int, port: int, disk_full: bool) -> None:
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE="2",
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    _, world, device = join_torchrun()
    processor, _ = load_processor(str(base / "base"), 784)
    policy = build_policy(
        str(base / "base"), device, init_device_mesh(device.type, (world,)), trained=True
    )
    # As some models on the hub have it. transformers loads it, calls it invalid, and would not
    # save it.
    policy.model.generation_config.do_sample, policy.model.generation_config.temperature = (
        False,
        0.1,
    )
    with torch.no_grad():
        for p in policy.parameters():
            p.zero_()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, foreach=False)
    step = resume(policy, optimizer, out)
    w, moment = expected(step)
    for p in policy.parameters():
        assert torch.all(p.to_local() == w), (step, w, p)
        assert not step or torch.all(optimizer.state[p]["exp_avg"].to_local() == moment), (
            step,
            moment,
        )
    if rank == 0:
        if step:  # also where the kill came before the link
            assert (out / "model").resolve() == checkpoints(out)[-1].resolve() / "model"
        (out / "aside").write_text(str(step))
        (out / "aside").rename(out / "resumed")
    if disk_full:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    while True:
        for p in policy.parameters():
            p.grad = torch.full_like(p, gradient(step))
        optimizer.step()
        step += 1
        save(policy, optimizer, processor, step, out, torch.float32)


def trial(seconds: float, disk_full: bool = False) -> tuple[int, list[int]]:
    """The step resumed from, and the exit codes of both ranks."""
    (out / "resumed").unlink(missing_ok=True)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    ranks = []
    for rank in range(2):
        if (pid := os.fork()) == 0:
            # PR_SET_PDEATHSIG: no rank outlives this process.
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
            try:
                rank_main(rank, port, disk_full)
            except BaseException as error:  # a child must never return into the loop below
                print(
                    f"rank {rank}: {type(error).__name__}: {str(error)[-400:]}",
                    file=sys.stderr,
                    flush=True,
                )
            os._exit(1)
        ranks.append(pid)
    while not (out / "resumed").exists():
        assert os.waitpid(ranks[0], os.WNOHANG) == (0, 0), "rank 0 ended before it had resumed"
        time.sleep(0.01)
    if not disk_full:
        start = int((out / "resumed").read_text())
        # One save succeeds, a later one may not.
        while not any(int(path.name[5:]) > start for path in checkpoints(out)):
            assert all(os.waitpid(pid, os.WNOHANG) == (0, 0) for pid in ranks), (
                "a rank ended before it had saved"
            )
            time.sleep(0.01)
        time.sleep(seconds)
        for pid in ranks:
            os.kill(pid, signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks]
    return int((out / "resumed").read_text()), codes


out.mkdir()
rng, resumed = random.Random(0), []
for _ in range(kills):
    resumed.append(trial(rng.uniform(0.0, 1.5))[0])
before, codes = trial(0.0, disk_full=True)
after, _ = trial(0.2)
print(json.dumps({"resumed": resumed, "before": before, "full disk": codes, "after": after}))
