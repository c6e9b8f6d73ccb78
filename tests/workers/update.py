"""Two optimizer updates on fixed rollouts, whatever the number of ranks and the mesh:

    torchrun --nproc_per_node N tests/workers/update.py BASE OUT [--n-s 1] [--beta 0.1] ..

With --nan the sampler's log-probabilities of one rollout are none, so that the first update has
no finite gradient. Writes the updated weights and the metrics, for the tests to compare."""

import argparse
import json
import os
import random
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from perl.grpo import Row, advantages
from perl.permute import copies, load
from perl.rollout import Rollout, encode, join_torchrun, load_processor
from perl.train import (
    Group,
    build_policy,
    full_weights,
    logps_of,
    make_mesh,
    parse_args,
    share_of_rank,
    update,
)

p = argparse.ArgumentParser()
p.add_argument("base", type=Path)
p.add_argument("out", type=Path)
p.add_argument("--n-s", type=int, default=1)
p.add_argument("--beta", type=float, default=0.1)
p.add_argument("--micro-batch", type=int, default=1)
p.add_argument("--replicate", type=int, default=1)
p.add_argument("--nan", action="store_true")
asked = p.parse_args()
base, n_s = asked.base, asked.n_s

rank, world, device = join_torchrun()
words = ["--updates", 2, "--n-s", n_s, "--n", 3, "--beta", asked.beta]
words += ["--micro-batch", asked.micro_batch]
args = parse_args([str(word) for word in words])
processor, _ = load_processor(str(base / "base"), args.max_pixels)


def fixed_group(x) -> Group:
    """Rollouts of random tokens and rewards, a function of the question alone; the 'sampler'
    disagrees a little."""
    rng = random.Random(x.id)
    members = copies(x, n_s, 1.0, 0, 0)
    prompts = encode(processor, [c.sample for c in members])
    rollouts = []
    for _ in range(3 * len(members)):
        ids = tuple(rng.randrange(10, 300) for _ in range(rng.randint(1, 9)))
        rollouts.append(Rollout("", ids, tuple(rng.uniform(-6.5, -5.5) for _ in ids), True))
    rows = tuple(
        Row(p.ids, p.images, tuple(torch.tensor(o.ids) for o in rollouts[3 * i : 3 * i + 3]))
        for i, p in enumerate(prompts)
    )
    r = torch.tensor([rng.choice([0.0, 0.1, 0.9, 1.0]) for _ in rollouts])
    return Group(tuple(members), rows, tuple(rollouts), r, r, advantages(r[None])[0])


questions = load(base / "train.jsonl")[:8]
groups = [fixed_group(x) for x in share_of_rank(questions, rank, world, args.updates)]
if asked.nan:
    broken = replace(
        groups[0].rollouts[0], logps=tuple(float("nan") for _ in groups[0].rollouts[0].logps)
    )
    groups[0] = replace(groups[0], rollouts=(broken, *groups[0].rollouts[1:]))
mesh = make_mesh(device.type, world, asked.replicate)
policy = build_policy(str(base / "base"), device, mesh, trained=True)
# A reference that differs from the policy, so that the KL term has a gradient at once.
with torch.no_grad():
    reference = None
    if asked.beta:
        reference = build_policy(str(base / "base"), device, mesh, trained=False)
    for p in policy.parameters():
        p.mul_(1.02)
before = {name: weight.clone() for name, weight in full_weights(policy, torch.float32)}
# Eps: no direction made of rounding errors alone.
optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3, eps=1e-3)
ref = logps_of(reference, groups, args) if reference else None
metrics = update(policy, optimizer, groups, ref, args)
after = {name: weight.clone() for name, weight in full_weights(policy, torch.float32)}
if rank == 0:
    torch.save({"before": before, "after": after}, asked.out)
    asked.out.with_suffix(".json").write_text(json.dumps(metrics))
dist.barrier()
dist.destroy_process_group()
# Gloo's threads now and then abort an interpreter that ends in the usual way, with everything written.
os._exit(0)
