"""Algorithm 1: the training loop of PeRL, one plain script for torchrun.

    torchrun --nproc_per_node 8 perl/train.py --model Qwen/Qwen2.5-VL-7B-Instruct --data TRAIN.jsonl --out RUN
    torchrun --nproc_per_node 2 perl/train.py            # no arguments: the embedded digits task, on any machine

    for t = 1 .. T:
        draw questions x_1; alpha_t = alpha_0 (1 - t / T)
        x_2 .. x_{n_s+1} = permuted copies of x_1, with probability alpha_t                         perl/permute.py
        sample n rollouts from pi_old for each of x_1 .. x_{n_s+1}                                  perl/rollout.py
        rewards; A by Eqs. 4-5 over all orders of a question; ascend Eq. 6                          perl/grpo.py
        pi_old <- pi: the new weights go to the sampling engines

Every rank samples and trains on its own share of each mini-batch; FSDP2 shards weights, gradients, optimizer and reference.
Which questions a step draws, how they are permuted and with which seeds they are sampled depends on (--seed, step, question)
alone, never on the number of ranks. A sample that the coin or a refusal leaves unpermuted still gets n_s identical copies, as
in the release. RUN gets config.json, metrics.jsonl, TensorBoard events in tb/, and the model in model/.
"""
import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import AutoModelForImageTextToText

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from perl.grpo import Policy, Row, accuracy, advantages, format_ok, grpo_loss, rollout_mean, shaped
from perl.permute import Copy, DataError, Sample, alpha, copies, load, options
from perl.rollout import Engine, Rollout, add_engine_arguments, encode, join_torchrun, prepare, run, seed_for

def parse_args(argv: Sequence[str] | None = None, defaults: dict | None = None) -> argparse.Namespace:
    """Every default is the paper's (section 4.1 and appendix), or the release's where the paper is silent, or named ours."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_engine_arguments(p, gpu_memory=0.4)  # the rest is the trainer's. paper: --model Qwen/Qwen2.5-VL-7B-Instruct
    p.add_argument("--data", help="JSONL of questions (schema: README)")
    p.add_argument("--out", default="runs/perl", help="where the run is written")
    p.add_argument("--n-s", type=int, default=1)  # paper: Table 2, permuted copies a question; 0 is plain GRPO
    p.add_argument("--rollouts", "--n", dest="n", type=int, default=6)  # paper: section 4.1, an order; 12 a question
    p.add_argument("--prompts", type=int, default=128)  # paper: appendix, questions a step (256 counts both orders)
    p.add_argument("--updates", type=int, default=4)  # release: 256 prompts in mini-batches of 64
    p.add_argument("--epochs", type=int, default=2)  # paper: appendix
    p.add_argument("--steps", type=int, help="instead of --epochs")
    p.add_argument("--lr", type=float, default=1e-6)  # paper: section 4.1, constant
    p.add_argument("--beta", type=float, default=0.01)  # paper: section 4.1, KL coefficient; 0 loads no reference
    p.add_argument("--clip-low", type=float, default=0.2)  # release; the paper names no eps
    p.add_argument("--clip-high", type=float, default=0.2)  # release
    p.add_argument("--tis-cap", type=float, default=2.0)  # ours: bound of the sampler-trainer correction
    p.add_argument("--alpha-0", type=float, default=1.0)  # release: alpha_t = 1 - t / T
    p.add_argument("--temperature", type=float, default=1.0)  # release
    p.add_argument("--micro-batch", type=int, default=1)  # ours: questions a forward pass; the release: 4 prompts
    p.add_argument("--show", type=int, default=2, help="sample rollouts to print each step")
    p.add_argument("--seed", type=int, default=0)
    p.set_defaults(**(defaults or {}))
    return p.parse_args(argv)

# --- The data of a step: functions of (seed, step) alone ---
def questions_of(samples: Sequence[Sample], step: int, args) -> list[Sample]:
    """The questions of a step (0-based): each epoch is a fresh shuffle; what does not fill a last step is left out of it."""
    epoch, place = divmod(step, len(samples) // args.prompts)
    order = list(range(len(samples)))
    random.Random(f"epoch/{args.seed}/{epoch}").shuffle(order)
    return [samples[i] for i in order[place * args.prompts : (place + 1) * args.prompts]]

def share_of_rank(questions: Sequence[Sample], rank: int, world: int, updates: int) -> list[Sample]:
    """This rank's questions, mini-batch by mini-batch: which questions share an update does not depend on `world`."""
    size = len(questions) // updates
    return [q for u in range(updates) for q in questions[u * size : (u + 1) * size][rank::world]]

@dataclass(frozen=True)
class Group:
    """One question in all its orders: what was asked, what was answered, and what that is worth."""
    copies: tuple[Copy, ...]  # n_s + 1, the original first
    rows: tuple[Row, ...]  # one for each copy
    rollouts: tuple[Rollout, ...]  # (n_s + 1) n, copy by copy
    accuracy: torch.Tensor  # ((n_s + 1) n,), and so are
    rewards: torch.Tensor
    advantages: torch.Tensor

def sample_groups(engine: Engine, processor, questions: Sequence[Sample], step: int, alpha_t: float, args) -> list[Group]:
    """Permute, sample, grade: the groups of `questions`, in order."""
    groups = [copies(x, args.n_s, alpha_t, args.seed, step) for x in questions]
    prompts = encode(processor, [c.sample for group in groups for c in group])
    seeds = [seed_for(args.seed, step, c.sample.id, i) for group in groups for i, c in enumerate(group)]
    sampled = engine.generate(prompts, n=args.n, seeds=seeds, temperature=args.temperature)
    graded = []
    for g, group in enumerate(groups):
        mine = slice(g * (args.n_s + 1), (g + 1) * (args.n_s + 1))
        rows = tuple(Row(p.ids, p.images, tuple(torch.tensor(o.ids) for o in n)) for p, n in zip(prompts[mine], sampled[mine]))
        # Each rollout is graded against the answer of its own order: y_i of Eq. 1.
        asked = [(o.text, c.sample.answer, options(c.sample.question)) for c, n in zip(group, sampled[mine]) for o in n]
        right = torch.tensor([accuracy(*a) for a in asked])
        r = torch.tensor([shaped(y, format_ok(text)) for y, (text, *_) in zip(right.tolist(), asked)])
        graded.append(Group(tuple(group), rows, tuple(o for n in sampled[mine] for o in n), right, r, advantages(r[None])[0]))
    return graded

# --- The model ---
def build_policy(model: str, device: torch.device, mesh, trained: bool) -> Policy:
    """The model, sharded layer by layer: float32 master weights to train, or the frozen reference. On CUDA the compute is
    bfloat16, gradients are reduced in float32 and activations are recomputed in the backward pass."""
    cuda = device.type == "cuda"
    dtype = torch.float32 if trained or not cuda else torch.bfloat16
    hf = AutoModelForImageTextToText.from_pretrained(model, dtype=dtype, attn_implementation="sdpa")
    if cuda and trained:
        hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tied = hf.get_input_embeddings().weight is hf.lm_head.weight
    policy = Policy(hf).train(trained).requires_grad_(trained)
    bf16 = torch.bfloat16 if cuda else None
    precision = MixedPrecisionPolicy(param_dtype=bf16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    shard, text = partial(fully_shard, mesh=mesh, mp_policy=precision), hf.model.language_model
    for layer in [*text.layers, *hf.model.visual.blocks]:
        shard(layer)
    if not tied:  # else one parameter is both, and can't live in two groups
        shard(text.embed_tokens)
    shard([text.embed_tokens][:tied] + [text.norm, hf.lm_head], reshard_after_forward=False)
    return shard(policy)

def full_weights(policy: Policy, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """(Hugging Face name, full tensor), gathered one at a time: no rank ever holds a second whole model. Collective."""
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # a forward without backward leaves some groups whole
    for name, weight in policy.state_dict().items():
        weight = weight.to(dtype)
        yield name.removeprefix("model."), weight.full_tensor() if isinstance(weight, DTensor) else weight

def save_model(policy: Policy, processor, out: Path, dtype: torch.dtype) -> None:
    """A Hugging Face directory that `from_pretrained` and vLLM load. Collective; rank 0 holds and writes the weights."""
    writes, tied = dist.get_rank() == 0, policy.model.config.tie_word_embeddings
    weights = {name: weight.cpu() for name, weight in full_weights(policy, dtype) if writes}
    if writes:
        weights.pop("lm_head.weight" if tied else None, None)  # it is the embedding
        policy.model.config.dtype = dtype
        policy.model.save_pretrained(out, state_dict=weights)
        processor.save_pretrained(out)

# --- One step of learning ---
@torch.no_grad()
def logps_of(policy: Policy, groups: Sequence[Group], args) -> list[torch.Tensor]:
    """log pi of every rollout token, a tensor a group. For pi_old and pi_ref. Collective: equally many groups on each rank."""
    tensors = []
    for start in range(0, len(groups), args.micro_batch):
        micro = groups[start : start + args.micro_batch]
        logp, _ = policy([row for g in micro for row in g.rows], args.temperature)
        tensors += logp.split([sum(len(o.ids) for o in g.rollouts) for g in micro])
    return tensors

def update(policy: Policy, optimizer, groups: Sequence[Group], ref: list | None, args) -> dict[str, float]:
    """`args.updates` optimizer steps on this rank's `groups`, pi_old fixed; returns metrics, the same on all ranks. `ref`:
    pi_ref's log-probabilities, a tensor a group, or None when beta is 0. Collective."""
    world, device = dist.get_world_size(), policy.model.lm_head.weight.device
    # With one update pi_old is pi itself: the ratio is exactly 1 and its gradient still flows.
    old = logps_of(policy, groups, args) if args.updates > 1 else None
    size = len(groups) // args.updates
    n_rollouts = size * world * (args.n_s + 1) * args.n  # of the GLOBAL mini-batch
    sums, gap_max, norms = {}, torch.zeros((), device=device), []
    for first in range(0, len(groups), size):
        for start in range(first, first + size, args.micro_batch):
            which = range(start, min(start + args.micro_batch, first + size))
            rollouts = [o for g in which for o in groups[g].rollouts]
            lengths = torch.tensor([len(o.ids) for o in rollouts], device=device)  # (K,)
            A = torch.cat([groups[g].advantages for g in which]).to(device).repeat_interleave(lengths)  # (N,)
            sampler_logp = torch.tensor([x for o in rollouts for x in o.logps], device=device)  # (N,)
            weight = rollout_mean(lengths, n_rollouts)  # (N,)
            logp, entropy = policy([row for g in which for row in groups[g].rows], args.temperature)  # (N,)
            old_logp = torch.cat([old[g] for g in which]) if old else logp.detach()  # (N,)
            ref_logp = torch.cat([ref[g] for g in which]) if ref else logp.detach()  # (N,)
            loss, parts = grpo_loss(logp, old_logp, ref_logp, sampler_logp, A, weight, clip_low=args.clip_low,
                                    clip_high=args.clip_high, beta=args.beta, tis_cap=args.tis_cap)
            (loss * world).backward()  # FSDP averages gradients over ranks; shares of the global mean want their sum
            gap = (old_logp - sampler_logp).abs()
            parts |= {"loss": loss.detach(), "entropy": (weight * entropy).sum(), "logp_gap_mean": (weight * gap).sum()}
            sums = {name: sums.get(name, 0.0) + value / args.updates for name, value in parts.items()}
            gap_max = torch.maximum(gap_max, gap.max())
        norms.append(torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0).full_tensor())  # release
        optimizer.step()
        optimizer.zero_grad()
    dist.all_reduce(totals := torch.stack([*sums.values()]))
    dist.all_reduce(gap_max, op=dist.ReduceOp.MAX)
    sums = dict(zip(sums, totals.tolist()))
    return sums | {"grad_norm": torch.stack(norms).mean().item(), "logp_gap_max": gap_max.item()}

def reward_metrics(groups: Sequence[Group]) -> dict:
    """What the rollouts of a step say, over all ranks' groups. Collective."""
    ranks = [None] * dist.get_world_size()
    light = [replace(g, rows=tuple(len(r.prompt_ids) * len(r.responses) for r in g.rows)) for g in groups]  # no pictures
    dist.all_gather_object(ranks, light)
    groups = [g for rank in ranks for g in rank]
    rollouts = [o for g in groups for o in g.rollouts]
    mean = lambda xs: sum(xs) / max(1, len(xs))  # noqa: E731
    return {
        "reward": mean(torch.cat([g.rewards for g in groups]).tolist()),
        "accuracy": mean(torch.cat([g.accuracy for g in groups]).tolist()),
        "format": mean([format_ok(o.text) for o in rollouts]),
        "no_spread": mean([bool(g.rewards.max() == g.rewards.min()) for g in groups]),
        "permuted": mean([c.sigma != g.copies[0].sigma for g in groups for c in g.copies[1:]]),
        "response_length": mean([len(o.ids) for o in rollouts]),
        "cut_off": mean([not o.finished for o in rollouts]),
        "tokens": sum(sum(g.rows) for g in groups) + sum(len(o.ids) for o in rollouts),
        "advantages": torch.histc(torch.cat([g.advantages for g in groups]), bins=25, min=-3.125, max=3.125).int().tolist(),
    }

def show(group: Group, k: int) -> str:
    """One rollout, for a reader: prompt, image order, answer, response, reward."""
    copy = group.copies[k * len(group.copies) // len(group.rollouts)]
    x, order = copy.sample, " ".join(str(i + 1) for i in copy.sigma)
    return (f"  {x.id} | images {order} | {' / '.join(x.question.splitlines())}\n    answer {x.answer} | reward "
            f"{group.rewards[k]:.1f} | advantage {group.advantages[k]:+.2f} | {group.rollouts[k].text}")

def check(args, samples: Sequence[Sample], world: int) -> None:
    """Raises DataError when a step's questions can't be drawn or shared out."""
    if args.prompts % (parts := args.updates * world):
        raise DataError(f"--prompts {args.prompts} is no multiple of {parts}: --updates {args.updates} on {world} ranks")
    if len(samples) < args.prompts:
        raise DataError(f"{args.data}: {len(samples)} questions are fewer than the {args.prompts} of one step (--prompts)")

def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    rank, world, device = join_torchrun()
    if not args.model and not args.data:
        from data.digits import TRAIN
        digits = ROOT / "runs" / "digits"
        args = parse_args(argv, TRAIN | {"model": str(digits / "base"), "data": str(digits / "train.jsonl")})
        if rank == 0:
            print("No --model and --data: training the embedded digits task. The paper's run: torchrun --nproc_per_node 8 "
                  "perl/train.py --model Qwen/Qwen2.5-VL-7B-Instruct --data TRAIN.jsonl --out RUN", flush=True)
            alone = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}  # the other ranks are waiting
            subprocess.run([sys.executable, ROOT / "data" / "digits.py", "--out", digits], env=alone, check=True)
        dist.barrier()
    elif not (args.model and args.data):
        raise DataError("--model and --data belong together; with neither, the embedded digits task is trained")
    check(args, samples := load(args.data), world)
    processor, settings = prepare(args, samples)
    total = args.steps or args.epochs * (len(samples) // args.prompts)
    mesh = init_device_mesh(device.type, (world,))
    policy = build_policy(args.model, device, mesh, trained=True)
    reference = build_policy(args.model, device, mesh, trained=False) if args.beta > 0 else None
    optimizer = torch.optim.AdamW(policy.parameters(), lr=args.lr, weight_decay=0.01)  # release; betas 0.9, 0.999
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    engine = Engine(*settings)
    out = Path(args.out)
    if rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.json").write_text(json.dumps(vars(args) | {"steps": total, "world": world}, indent=1))
        (out / "metrics.jsonl").write_text("")
        board = SummaryWriter(out / "tb")
    bar = tqdm(range(total), desc=out.name, disable=rank != 0, dynamic_ncols=True)
    for step in bar:
        times, alpha_t = [time.perf_counter()], alpha(step, total, args.alpha_0)
        questions = share_of_rank(questions_of(samples, step, args), rank, world, args.updates)
        groups = sample_groups(engine, processor, questions, step, alpha_t, args)
        engine.sleep()
        times.append(time.perf_counter())
        ref = logps_of(reference, groups, args) if reference else None
        times.append(time.perf_counter())
        learned = update(policy, optimizer, groups, ref, args)
        times.append(time.perf_counter())
        engine.sync(full_weights(policy, dtype))  # theta_old <- theta
        times.append(time.perf_counter())
        metrics = {"step": step, "alpha": alpha_t} | reward_metrics(groups) | learned
        metrics["tokens_per_second"] = metrics.pop("tokens") / (times[-1] - times[0])
        for phase, start, end in zip(("sampling", "reference", "update", "sync"), times, times[1:]):
            metrics[f"seconds_{phase}"] = end - start
        if rank == 0:
            with open(out / "metrics.jsonl", "a") as file:
                file.write(json.dumps(metrics) + "\n")
            for name in metrics.keys() - {"step", "advantages"}:
                board.add_scalar(name, metrics[name], step)
            for k in range(args.show):  # a rollout of an original, one of a copy, ...
                bar.write(show(groups[k % len(groups)], k * args.n % len(groups[0].rollouts)))
            bar.set_postfix(reward=f"{metrics['reward']:.3f}", accuracy=f"{metrics['accuracy']:.3f}")
    save_model(policy, processor, out / "model", dtype)
    if rank == 0:
        board.close()
    engine.close()

if __name__ == "__main__":
    run(main)
