"""Algorithm 1: the training loop of PeRL, one plain script for torchrun.

    torchrun --nproc_per_node 8 perl/train.py --model DIR_OR_HUB_ID --data TRAIN.jsonl --out RUN
    torchrun --nproc_per_node 2 perl/train.py     # no arguments: the embedded digits task

    for t = 0 .. T - 1:
        draw questions x_1; alpha_t = alpha_0 (1 - t / T)
        x_2 .. x_{n_s+1} = permuted copies of x_1, with probability alpha_t       permute.py
        sample n rollouts from pi_old for each of x_1 .. x_{n_s+1}                rollout.py
        rewards; A by Eqs. (4)-(5) over all orders; ascend Eq. (6)                grpo.py
        pi_old <- pi: the new weights go to the sampling engines

Every rank samples and trains on its own share of each mini-batch; FSDP2 shards weights,
gradients, optimizer and reference, over all ranks or, with --replicate N, within each of N nodes.
Which questions a step draws, how they are permuted and with which seeds they are sampled depends on
(--seed, step, question) alone, never on the number of ranks: weights, optimizer and step are the
whole state of a run, and --resume is exact (up to rounding on CUDA, where sums have no fixed
order). A question that the coin leaves unpermuted still gets n_s identical copies, as in the
release.

RUN gets config.json, metrics.jsonl, rollouts.jsonl, TensorBoard events in tb/, and every
--save-every steps step-N/ with state/ (for --resume, on any number of ranks) and model/ (for vLLM
and transformers); RUN/model is a link to the newest. SIGTERM ends the step, saves, and exits with
0; under torchrun give the step time to end: --shutdown-timeout SECONDS.
"""

import argparse
import ctypes
import hashlib
import itertools
import json
import math
import os
import platform
import random
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from accelerate import init_empty_weights
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForImageTextToText

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import rewards
from perl.grpo import Policy, Row, advantages, grpo_loss, rollout_mean
from perl.permute import Copy, DataError, Sample, alpha, copies, load, plain, slot_of
from perl.rollout import (
    Engine,
    Rollout,
    add_engine_arguments,
    at_least,
    check_images,
    encode,
    gather,
    join_torchrun,
    prepare,
    run,
    seed_for,
)
from rewards.boxed import boxed, format_ok, options


def parse_args(
    argv: Sequence[str] | None = None, defaults: dict | None = None
) -> argparse.Namespace:
    """Every default of the method is the paper's (section 4.1 and appendix), the release's where
    the paper is silent, or named ours. `defaults` take their place.
    """
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    count = at_least(1)
    # For 7B on 8 x 80 GB, by docs/training.md; the rest is the trainer's.
    add_engine_arguments(p, gpu_memory=0.6)
    p.add_argument("--data", help="JSONL of questions with marks (schema: docs/data.md)")
    p.add_argument("--out", default="runs/perl", help="where the run is written")
    p.add_argument("--n-s", type=at_least(0), default=1)  # paper: Table 2, copies; 0 is GRPO
    p.add_argument("--rollouts", "--n", dest="n", type=count, default=6)  # paper: 4.1, an order
    p.add_argument("--prompts", type=count, default=128)  # paper: appendix, questions a step
    p.add_argument("--updates", type=count, default=4)  # release: 256 prompts in mini-batches of 64
    p.add_argument("--epochs", type=count, default=2)  # paper: appendix
    p.add_argument("--steps", type=count, help="instead of --epochs")
    p.add_argument("--lr", type=at_least(0, float), default=1e-6)  # paper: 4.1, constant
    p.add_argument("--beta", type=at_least(0, float), default=0.01)  # paper: 4.1; 0: no reference
    p.add_argument("--clip-low", type=float, default=0.2)  # release; the paper names no eps
    p.add_argument("--clip-high", type=float, default=0.2)  # release
    p.add_argument("--tis-cap", type=float, default=2.0)  # ours: see grpo_loss
    p.add_argument("--alpha-0", type=float, default=1.0)  # release: alpha_t = 1 - t / T
    p.add_argument("--temperature", type=at_least(0.01, float), default=1.0)  # release
    p.add_argument("--micro-batch", type=count, default=1)  # ours: questions a pass; release: 4
    p.add_argument(
        "--replicate",
        type=count,
        default=1,
        help="copies of weights and optimizer: one a node, and no layer is gathered across nodes",
    )
    p.add_argument("--reward", metavar="FILE.py:FUNCTION", help="default: rewards/boxed.py:reward")
    p.add_argument("--eval", help="JSONL of questions to answer greedily while training")
    p.add_argument("--eval-every", type=count, default=20, help="steps")
    p.add_argument("--save-every", type=count, default=20, help="steps between checkpoints")
    p.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint in --out"
    )
    p.add_argument("--check-images", action=argparse.BooleanOptionalAction, default=True)
    p.add_argument("--wandb", action="store_true", help="send what TensorBoard gets to W&B, too")
    p.add_argument("--show", type=at_least(0), default=2, help="rollouts to print and keep a step")
    p.add_argument("--seed", type=int, default=0)
    p.set_defaults(**(defaults or {}))
    return p.parse_args(argv)


# --- The questions of a step: functions of (seed, step) alone ---


def questions_of(samples: Sequence[Sample], step: int, args) -> list[Sample]:
    """The `args.prompts` questions of a step (0-based).

    An epoch is one shuffle of all questions, cut into steps. What is left at its end and would
    not fill a step is not asked in that epoch; the next shuffles all of them again.
    """
    epoch, place = divmod(step, len(samples) // args.prompts)
    order = list(range(len(samples)))
    random.Random(f"epoch/{args.seed}/{epoch}").shuffle(order)
    drawn = order[place * args.prompts : (place + 1) * args.prompts]
    return [samples[i] for i in drawn]


def share_of_rank(questions: Sequence[Sample], rank: int, world: int, updates: int) -> list[Sample]:
    """This rank's questions, mini-batch by mini-batch: which questions share an update does not
    depend on the number of ranks.
    """
    size = len(questions) // updates
    mine = []
    for first in range(0, len(questions), size):
        mine += questions[first : first + size][rank::world]
    return mine


# --- Permute, sample, grade ---


@dataclass(frozen=True)
class Group:
    """One question in all its orders: what was asked, what was answered, and what that is worth."""

    copies: tuple[Copy, ...]  # n_s + 1, the original first
    rows: tuple[Row, ...]  # one for each copy
    rollouts: tuple[Rollout, ...]  # (n_s + 1) n, copy by copy
    accuracy: torch.Tensor  # ((n_s + 1) n,), and so are
    rewards: torch.Tensor
    advantages: torch.Tensor


def sample_groups(
    engine: Engine,
    processor,
    questions: Sequence[Sample],
    step: int,
    alpha_t: float,
    args,
    grader: rewards.Reward = rewards.BOXED,
    copies_of: Callable = copies,
    advantages_of: Callable = advantages,
) -> list[Group]:
    """Permute, sample, grade: the groups of `questions`, in order."""
    members, seeds = [], []
    for x in questions:
        for i, copy in enumerate(copies_of(x, args.n_s, alpha_t, args.seed, step)):
            members.append(copy)
            seeds.append(seed_for(args.seed, step, x.id, i))
    prompts = encode(processor, [copy.sample for copy in members])
    sampled = engine.generate(prompts, n=args.n, seeds=seeds, temperature=args.temperature)

    groups = []
    for first in range(0, len(members), args.n_s + 1):
        mine = range(first, first + args.n_s + 1)
        rows, rollouts, right, paid = [], [], [], []
        for i in mine:
            prompt, x = prompts[i], members[i].sample
            responses = tuple(torch.tensor(o.ids) for o in sampled[i])
            rows.append(Row(prompt.ids, prompt.images, responses))
            choices = options(plain(x.question))
            for o in sampled[i]:
                y = plain(x.answer)  # y_i: each rollout is graded against its own order
                rollouts.append(o)
                right.append(grader.accuracy(o.text, y, choices))
                paid.append(grader.reward(o.text, y, choices))
        r = torch.tensor(paid, dtype=torch.float32)
        A = advantages_of(r[None])[0]
        accuracies = torch.tensor(right, dtype=torch.float32)
        group = tuple(members[i] for i in mine)
        groups.append(Group(group, tuple(rows), tuple(rollouts), accuracies, r, A))
    return groups


# --- The model ---


def make_mesh(device_type: str, world: int, replicate: int = 1) -> DeviceMesh:
    """Which ranks share one copy of the weights: all of them, (world,), or, with `replicate`
    copies, `world / replicate` ranks that follow one another, (replicate, shard).

    torchrun numbers the ranks node by node. With a copy a node, layers are gathered within a node,
    and only gradients cross between nodes, a shard each, once a micro-batch.
    """
    if replicate == 1:
        return init_device_mesh(device_type, (world,))
    shape = (replicate, world // replicate)
    return init_device_mesh(device_type, shape, mesh_dim_names=("replicate", "shard"))


def build_policy(model: str, device: torch.device, mesh, trained: bool) -> Policy:
    """The model, sharded layer by layer: float32 master weights to train, or the frozen reference.

    On CUDA the compute is bfloat16, gradients are reduced in float32 and activations are
    recomputed in the backward pass. Rank 0 alone reads the weights and sends each to its owners;
    the other ranks start without storage. Collective.
    """
    cuda = device.type == "cuda"
    reads = dist.get_rank() == 0
    dtype = torch.float32 if trained or not cuda else torch.bfloat16
    how = {"dtype": dtype, "attn_implementation": "sdpa"}
    if reads:
        hf = AutoModelForImageTextToText.from_pretrained(model, **how)
    else:
        with init_empty_weights():  # no storage for parameters; buffers, in no checkpoint, are real
            config = AutoConfig.from_pretrained(model)
            hf = AutoModelForImageTextToText.from_config(config, **how)
        hf.tie_weights()
    if cuda and trained:
        hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy = Policy(hf).train(trained).requires_grad_(trained)
    whole = policy.state_dict() if reads else {}

    text = hf.model.language_model
    units = [*text.layers, *hf.model.visual.blocks]
    head = [text.norm, hf.lm_head]
    if text.embed_tokens.weight is hf.lm_head.weight:  # one parameter must live in one group
        head.insert(0, text.embed_tokens)
    else:
        units.append(text.embed_tokens)

    compute = torch.bfloat16 if cuda else None
    precision = MixedPrecisionPolicy(compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for unit in units:
        fully_shard(unit, mesh=mesh, mp_policy=precision)
    fully_shard(head, mesh=mesh, mp_policy=precision, reshard_after_forward=False)
    fully_shard(policy, mesh=mesh, mp_policy=precision)

    # Not set_model_state_dict: it has ranks without storage wait at the CPU's backend, while rank 0
    # sends through the GPU's.
    owned = {}
    for name, sharded in policy.state_dict().items():
        if reads:
            full = whole[name].to(mesh.device_type)
        else:
            full = torch.empty(sharded.shape, dtype=dtype, device=mesh.device_type)
        owned[name] = distribute_tensor(full, sharded.device_mesh, sharded.placements)
    policy.load_state_dict(owned, assign=True)
    hf.tie_weights()  # every parameter has been replaced, one by one
    return policy


def reshard(policy: Policy) -> None:
    """Give up what a forward without backward has left gathered."""
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def full_weights(policy: Policy, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """(Hugging Face name, full tensor), gathered one at a
    time: no rank ever holds a second whole model. Collective.
    """
    reshard(policy)
    for name, weight in policy.state_dict().items():
        yield name.removeprefix("model."), weight.to(dtype).full_tensor()


# --- Checkpoints: written aside, then renamed, so that what has its name is whole ---

KEEP = 2  # ours: checkpoints that stay, each 12 bytes a parameter and the exported model


def checkpoints(out: Path) -> list[Path]:
    """The finished ones, the newest last."""
    return sorted(out.glob("step-" + 6 * "[0-9]"))


def save(policy: Policy, optimizer, processor, steps: int, out: Path, dtype: torch.dtype) -> None:
    """OUT/step-N: state/, all that N finished `steps`
    leave behind, and model/ in Hugging Face format.

    A kill at any moment, or a full disk, leaves the checkpoints before it as they were. Collective.
    """
    rank = dist.get_rank()
    aside, final = out / "writing", out / f"step-{steps:06d}"
    if rank == 0:
        shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed while it wrote
    dist.barrier()

    weights, moments = get_state_dict(policy, optimizer)
    dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=aside / "state")
    full = {}
    for name, weight in full_weights(policy, dtype):
        if rank == 0:
            full[name] = weight.cpu()
    if rank == 0:
        export(policy.model, full, processor, aside / "model")
        aside.rename(final)
        link_newest(out)
        for old in checkpoints(out)[:-KEEP]:
            shutil.rmtree(old)
    dist.barrier()


def link_newest(out: Path) -> None:
    """OUT/model, a link to the model of the newest checkpoint."""
    link = out / "link"
    link.unlink(missing_ok=True)
    link.symlink_to(Path(checkpoints(out)[-1].name) / "model")
    link.replace(out / "model")


def export(model, weights: dict[str, torch.Tensor], processor, folder: Path) -> None:
    """`weights` as a model that transformers and vLLM
    load: a twin of `model` without storage takes them.
    """
    config = deepcopy(model.config)  # the attention in it is `Policy`'s
    with init_empty_weights():
        twin = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    twin.load_state_dict(weights, assign=True)
    twin.tie_weights()
    twin.save_pretrained(folder)
    processor.save_pretrained(folder)
    # As it came: transformers loads configurations that it calls invalid and would not save.
    model.generation_config.to_json_file(folder / "generation_config.json")


def resume(policy: Policy, optimizer, out: Path) -> int:
    """Load the newest checkpoint of OUT into policy and optimizer; returns the number of its
    finished steps, 0 without one. Collective.
    """
    found = checkpoints(out)
    if not found:
        return 0
    weights, moments = get_state_dict(policy, optimizer)
    dcp.load({"model": weights, "optimizer": moments}, checkpoint_id=found[-1] / "state")
    set_state_dict(policy, optimizer, model_state_dict=weights, optim_state_dict=moments)
    if dist.get_rank() == 0:
        link_newest(out)  # a kill may have come between the checkpoint and its link
    return int(found[-1].name.removeprefix("step-"))


# --- One step of learning ---


@torch.no_grad()
def logps_of(policy: Policy, groups: Sequence[Group], args) -> list[torch.Tensor]:
    """log pi of every rollout token, a tensor a group, for pi_old and pi_ref. Collective: equally
    many groups on each rank.
    """
    tensors = []
    for first in range(0, len(groups), args.micro_batch):
        micro = groups[first : first + args.micro_batch]
        logp, _ = policy(joined(group.rows for group in micro), args.temperature)
        tensors += logp.split([tokens_of(group) for group in micro])
    return tensors


def joined(lists: Iterable[Sequence]) -> list:
    """The elements of several lists, end to end."""
    return list(itertools.chain.from_iterable(lists))


def tokens_of(group: Group) -> int:
    return sum(len(o.ids) for o in group.rollouts)


def update(
    policy: Policy,
    optimizer,
    groups: Sequence[Group],
    ref: list[torch.Tensor] | None,
    args,
    loss_of: Callable = grpo_loss,
) -> dict[str, float]:
    """`args.updates` optimizer steps on this rank's `groups`, pi_old
    fixed; returns metrics, the same on all ranks. `ref`: pi_ref's
    log-probabilities, a tensor a group; None when beta is 0. Collective.
    """
    world = dist.get_world_size()
    device = policy.model.lm_head.weight.device
    size = len(groups) // args.updates
    # In the first mini-batch pi is still pi_old: its own log-probabilities serve, the ratio is
    # exactly 1, and its gradient still flows.
    old = size * [None] + logps_of(policy, groups[size:], args)
    n_rollouts = size * world * (args.n_s + 1) * args.n  # of the GLOBAL mini-batch

    totals: dict[str, torch.Tensor] = {}
    norms, gap_max = [], torch.zeros((), device=device)
    for first in range(0, len(groups), size):  # one optimizer step each
        is_pi_old = first == 0
        for start in range(first, first + size, args.micro_batch):
            micro = slice(start, min(start + args.micro_batch, first + size))
            rollouts = joined(group.rollouts for group in groups[micro])
            rows = joined(group.rows for group in groups[micro])
            lengths = torch.tensor([len(o.ids) for o in rollouts], device=device)  # (K,)
            A = torch.cat([group.advantages for group in groups[micro]]).to(device)  # (K,)
            sampler_logp = torch.tensor(joined(o.logps for o in rollouts), device=device)  # (N,)
            weight = rollout_mean(lengths, n_rollouts)  # (N,)

            logp, entropy = policy(rows, args.temperature)  # (N,), (N,)
            old_logp = logp.detach() if is_pi_old else torch.cat(old[micro])  # (N,)
            ref_logp = torch.cat(ref[micro]) if ref else logp.detach()  # (N,)
            loss, parts = loss_of(
                logp,
                old_logp,
                ref_logp,
                sampler_logp,
                A.repeat_interleave(lengths),
                weight,
                clip_low=args.clip_low,
                clip_high=args.clip_high,
                beta=args.beta,
                tis_cap=args.tis_cap,
            )
            # FSDP averages over ranks; shares of a global mean want their sum.
            (loss * world).backward()

            gap = (old_logp - sampler_logp).abs()
            gap_max = torch.maximum(gap_max, gap.max())
            parts["loss"] = loss.detach()
            parts["entropy"] = (weight * entropy).sum()
            parts["logp_gap_mean"] = (weight * gap).sum()
            for name, value in parts.items():
                totals[name] = totals.get(name, 0.0) + value / args.updates

        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0).full_tensor()  # release
        norms.append(norm)
        if norm.isfinite():  # of all ranks' gradients, so they agree
            optimizer.step()
        optimizer.zero_grad()

    sums = torch.stack(list(totals.values()))
    dist.all_reduce(sums)
    dist.all_reduce(gap_max, op=dist.ReduceOp.MAX)
    all_norms = torch.stack(norms)
    metrics = dict(zip(totals, sums.tolist()))
    metrics["grad_norm"] = all_norms.mean().item()
    metrics["logp_gap_max"] = gap_max.item()
    metrics["skipped"] = (~all_norms.isfinite()).sum().item()
    return metrics


# --- What a reader sees of a step ---

BINS, WIDEST = 25, 3.125  # of the histogram of advantages, Fig. 9


def mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def reward_metrics(groups: Sequence[Group], world: int) -> dict:
    """What the rollouts of a step say, over all ranks' groups. Collective."""
    by_rollout, by_order, by_group = [], [], []
    for group in groups:
        n = len(group.rollouts) // len(group.copies)
        for k, (copy, row) in enumerate(zip(group.copies, group.rows)):
            answers = [boxed(o.text) for o in group.rollouts[k * n : (k + 1) * n]]
            order = {"distinct_answers": len(set(answers))}
            if k > 0:
                order["permuted"] = copy.sigma != group.copies[0].sigma
            by_order.append(order | {"prompt_tokens": len(row.prompt_ids) * n})
        for k, o in enumerate(group.rollouts):
            by_rollout.append(
                {
                    "reward": group.rewards[k].item(),
                    "accuracy": group.accuracy[k].item(),
                    "format": format_ok(o.text),
                    "response_length": len(o.ids),
                    "cut_off": not o.finished,
                }
            )
        means = group.rewards.view(len(group.copies), n).mean(dim=1)  # (n_s + 1,)
        by_group.append({"no_spread": bool(group.rewards.max() == group.rewards.min())})
        if any(copy.sigma != group.copies[0].sigma for copy in group.copies):
            by_group[-1]["orders_differ"] = bool(means.max() > means.min())

    A = torch.cat([group.advantages for group in groups])
    histogram = torch.histc(A.clamp(-3, 3), bins=BINS, min=-WIDEST, max=WIDEST)
    ranks = gather((by_rollout + by_order + by_group, histogram), world)
    values: dict[str, list] = {}
    for records, _ in ranks:
        for record in records:
            for name, value in record.items():
                values.setdefault(name, []).append(value)

    tokens = sum(values.pop("prompt_tokens")) + sum(values["response_length"])
    metrics = {name: mean(column) for name, column in values.items()}
    metrics["advantages"] = sum(counts for _, counts in ranks).int().tolist()
    return metrics | {"tokens": tokens}


def shown(group: Group, k: int, out: Path) -> dict:
    """Rollout k of a group, for a reader: question and
    answer with marks, image paths relative to OUT.
    """
    place = k * len(group.copies) // len(group.rollouts)
    copy, o = group.copies[place], group.rollouts[k]
    return {
        "id": copy.sample.id,
        "copy": place,
        "sigma": list(copy.sigma),
        "images": [os.path.relpath(path, out) for path in copy.sample.images],
        "question": copy.sample.question,
        "answer": copy.sample.answer,
        "response": o.text,
        "reward": group.rewards[k].item(),
        "advantage": group.advantages[k].item(),
    }


def evaluate(
    engine: Engine, processor, samples: Sequence[Sample], args, grader: rewards.Reward
) -> dict[str, float]:
    """Greedy accuracy of pi in the given order and in one permuted order, drawn once and for all;
    a question that cannot be permuted counts alike in both; and by the slot of the right image,
    where one is named, over both. Collective.
    """
    world = dist.get_world_size()
    mine = samples[dist.get_rank() :: world]
    given, permuted, by_slot = [], [], []
    for first in range(0, len(mine), args.prompts):
        asked, pairs = [], []
        for x in mine[first : first + args.prompts]:
            original, copy = copies(x, 1, 1.0, args.seed, -1)
            pairs.append((len(asked), len(asked) + (copy.sigma != original.sigma)))
            asked += [original.sample] if copy.sigma == original.sigma else [x, copy.sample]

        prompts = encode(processor, asked)
        answers = engine.generate(prompts, n=1, seeds=[0] * len(asked), temperature=0.0)
        right = []
        for x, [o] in zip(asked, answers):
            choices = options(plain(x.question))
            right.append(grader.accuracy(o.text, plain(x.answer), choices))
            by_slot.append((slot_of(x, options(x.question)), right[-1]))
        given += [right[k] for k, _ in pairs]
        permuted += [right[k] for _, k in pairs]

    ranks = gather((given, permuted, by_slot), world)
    metrics = {
        "eval_given": mean(joined(part for part, _, _ in ranks)),
        "eval_permuted": mean(joined(part for _, part, _ in ranks)),
    }
    slots = joined(part for _, _, part in ranks)
    for slot in sorted({slot for slot, _ in slots if slot}):
        metrics[f"eval_slot_{slot}"] = mean([right for place, right in slots if place == slot])
    return metrics


def finite(value):
    """A value as strict JSON has it: null for what is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    return value


GAP = 0.1  # ours: bfloat16's rounding should leave about 0.01, which no GPU has shown yet


class Log:
    """What rank 0 writes into RUN for a reader: config.json, metrics.jsonl, rollouts.jsonl,
    TensorBoard, and the terminal.
    """

    def __init__(self, args, out: Path, first: int, total: int, world: int, choices: dict):
        out.mkdir(parents=True, exist_ok=True)
        command = shlex.join(["torchrun", "--nproc_per_node", str(world), *sys.argv])
        config = vars(args) | {"steps": total, "world": world, "data_sha256": digest(args.data)}
        config |= {"command": command, "versions": versions(), "vllm": choices}
        replace_file(out / "config.json", json.dumps(finite(config), indent=1, allow_nan=False))

        self.metrics, self.rollouts = out / "metrics.jsonl", out / "rollouts.jsonl"
        for file in (self.metrics, self.rollouts):
            drop_steps_from(file, first)
        if args.wandb:
            import wandb

            wandb.init(project="perl", name=out.name, config=config, sync_tensorboard=True)
        self.board = SummaryWriter(out / "tb", purge_step=first)
        self.explained = False

    def write(self, metrics: dict, rows: list[dict], bar: tqdm) -> None:
        """A step's metrics and sample rollouts."""
        step = metrics["step"]
        append_line(self.metrics, metrics)
        for row in rows:
            append_line(self.rollouts, {"step": step} | row)
            said = " | ".join(f"{name} {value}" for name, value in row.items())
            bar.write("  " + said.replace("\n", " / "))
        for name, value in metrics.items():
            if name not in ("step", "advantages"):
                self.board.add_scalar(name, value, step)

        if metrics["no_spread"] == 1 and not self.explained:
            bar.write(
                f"step {step}: the rewards of every group are equal, so all advantages are 0, and "
                "the loss but for its KL term: the questions are too easy or too hard "
                "(perl/filter.py), or no response has the asked form"
            )
            self.explained = True
        if metrics["skipped"]:
            bar.write(f"step {step}: {metrics['skipped']} updates skipped, no finite gradient")
        if metrics["logp_gap_mean"] > GAP:
            bar.write(
                f"step {step}: sampler and trainer are not the same policy: their log-probabilities"
                f" of a sampled token are {metrics['logp_gap_mean']:.2f} apart on average"
            )
        phases = [v for name, v in metrics.items() if name.startswith("seconds_")]
        bar.set_postfix(
            reward=f"{metrics['reward']:.3f}",
            accuracy=f"{metrics['accuracy']:.3f}",
            seconds="+".join(f"{seconds:.1f}" for seconds in phases),
        )


def versions() -> dict[str, str | None]:
    """Of all that a figure may depend on; cuda and cudnn are None on a CPU."""
    names = ("torch", "transformers", "vllm", "accelerate", "safetensors")
    found = {name: sys.modules[name].__version__ for name in names}
    found["python"] = platform.python_version()
    found["cuda"] = torch.version.cuda
    found["cudnn"] = str(torch.backends.cudnn.version()) if torch.version.cuda else None
    return found


def append_line(file: Path, row: dict) -> None:
    with open(file, "a", encoding="utf-8") as lines:
        lines.write(json.dumps(finite(row), ensure_ascii=False, allow_nan=False) + "\n")


def replace_file(file: Path, text: str) -> None:
    """Write aside and rename: a full disk leaves the file before."""
    aside = file.with_suffix(".tmp")
    aside.write_text(text, encoding="utf-8")
    aside.replace(file)


def drop_steps_from(file: Path, first: int) -> None:
    """Drop the lines of steps that will run again, and a last line torn by a kill."""
    if not file.exists():
        return
    whole = file.read_text(encoding="utf-8").split("\n")[:-1]
    kept = [line for line in whole if json.loads(line)["step"] < first]
    replace_file(file, "".join(line + "\n" for line in kept))


def digest(path: str) -> str:
    """sha256 of a file, in hex."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


# --- The run ---

SAME_ON_RESUME = ("model", "data", "seed", "prompts", "updates", "n_s", "n", "lr")


def check(args, samples: Sequence[Sample], world: int) -> None:
    """Raises DataError when a step's questions cannot be drawn or shared out, or --resume would
    go on with another run.
    """
    parts = args.updates * world
    if args.prompts % parts:
        raise DataError(
            f"--prompts {args.prompts} is no multiple of {parts}: "
            f"--updates {args.updates} on {world} ranks"
        )
    if world % args.replicate:
        raise DataError(f"--replicate {args.replicate}: {world} ranks do not make that many copies")
    if len(samples) < args.prompts:
        raise DataError(
            f"{args.data}: {len(samples)} questions are fewer than the {args.prompts} "
            "of one step (--prompts)"
        )
    out = Path(args.out)
    if out.is_file():
        raise DataError(f"--out {args.out}: it is a file, no folder")
    if not checkpoints(out):
        return
    if not args.resume:
        raise DataError(
            f"--out {args.out}: it holds a run already; --resume goes on with it, "
            "another --out starts anew"
        )

    config = out / "config.json"
    if not config.exists():
        return
    before = json.loads(config.read_text(encoding="utf-8"))
    for name in SAME_ON_RESUME:
        now = getattr(args, name)
        if before.get(name) != now:
            raise DataError(
                f"{config}: --resume with another {name}: {before.get(name)} became {now}"
            )
    if before.get("data_sha256") != digest(args.data):
        raise DataError(
            f"{args.data}: --resume with other rows: the file has changed since the run began"
        )


def trim_memory() -> None:
    """Give freed memory back: glibc keeps what was freed in pieces, more with every step."""
    ctypes.CDLL(None).malloc_trim(0)


def main(
    argv: Sequence[str] | None = None,
    *,
    alpha_of: Callable = alpha,
    copies_of: Callable = copies,
    advantages_of: Callable = advantages,
    sample_with: Callable = sample_groups,
    loss_of: Callable = grpo_loss,
    evaluate_with: Callable = evaluate,
) -> None:
    """The run. The functions are the paper's; others are for ablations (evals/paper.py)."""
    args = parse_args(argv)
    grader = rewards.load(args.reward)
    rank, world, device = join_torchrun()
    if not args.model and not args.data:
        from data.digits import example

        args = parse_args(argv, example(rank, args.resume))
    elif not (args.model and args.data):
        raise DataError(
            "--model and --data belong together; with neither, the embedded digits task is trained"
        )

    samples = load(args.data)
    check(args, samples, world)
    held_out = load(args.eval) if args.eval else []
    processor, settings = prepare(args, samples + held_out)
    if args.check_images:
        checked = check_images(samples + held_out, rank, world)
        samples, held_out = checked[: len(samples)], checked[len(samples) :]

    out = Path(args.out)
    total = args.steps or args.epochs * (len(samples) // args.prompts)
    mesh = make_mesh(device.type, world, args.replicate)
    policy = build_policy(args.model, device, mesh, trained=True)
    reference = build_policy(args.model, device, mesh, trained=False) if args.beta > 0 else None
    # weight_decay is the release's; the betas are torch's default.
    optimizer = torch.optim.AdamW(policy.parameters(), lr=args.lr, weight_decay=0.01, fused=True)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    first = resume(policy, optimizer, out)
    engine = Engine(settings)
    if first:
        engine.sleep()
        engine.sync(full_weights(policy, dtype))

    log = Log(args, out, first, total, world, engine.choices()) if rank == 0 else None
    sigterms: list[int] = []
    signal.signal(signal.SIGTERM, lambda signum, frame: sigterms.append(signum))
    failed = 0
    bar = tqdm(
        range(first, total),
        desc=out.name,
        initial=first,
        total=total,
        disable=rank != 0,
        dynamic_ncols=True,
    )
    for step in bar:  # Algorithm 1
        clock = [time.perf_counter()]
        alpha_t = alpha_of(step, total, args.alpha_0)
        drawn = questions_of(samples, step, args)
        questions = share_of_rank(drawn, rank, world, args.updates)
        groups, mistake = [], None
        try:
            groups = sample_with(
                engine, processor, questions, step, alpha_t, args, grader, copies_of, advantages_of
            )
        except DataError as error:  # a picture that was there at the start and is torn now
            mistake = error
        mistakes = [error for error in gather(mistake, world) if error]
        if mistakes:
            if step and not (out / f"step-{step:06d}").exists():
                save(policy, optimizer, processor, step, out, dtype)
            raise mistakes[0]
        engine.sleep()
        clock.append(time.perf_counter())

        ref = None
        if reference:
            ref = logps_of(reference, groups, args)
            reshard(reference)  # it has no backward that would
        clock.append(time.perf_counter())

        learned = update(policy, optimizer, groups, ref, args, loss_of)
        clock.append(time.perf_counter())

        engine.sync(full_weights(policy, dtype))  # theta_old <- theta
        trim_memory()
        clock.append(time.perf_counter())

        metrics = {"step": step, "alpha": alpha_t} | reward_metrics(groups, world) | learned
        metrics["tokens_per_second"] = metrics.pop("tokens") / (clock[-1] - clock[0])
        for k, phase in enumerate(("sampling", "reference", "update", "sync")):
            metrics[f"seconds_{phase}"] = clock[k + 1] - clock[k]
        if held_out and (step + 1) % args.eval_every == 0:
            metrics |= evaluate_with(engine, processor, held_out, args, grader)
        if rank == 0:
            rows = []
            for k in range(args.show):
                group = groups[k % len(groups)]
                rows.append(shown(group, k * args.n % len(group.rollouts), out))
            log.write(metrics, rows, bar)

        failed = failed + 1 if learned["skipped"] else 0
        if failed == 3:
            names = ", ".join(x.id for x in drawn)
            raise RuntimeError(
                "three steps in a row had a gradient that is not finite; "
                f"the questions of step {step}: {names}"
            )
        stopping = any(gather(bool(sigterms), world))
        if stopping or step + 1 == total or (step + 1) % args.save_every == 0:
            save(policy, optimizer, processor, step + 1, out, dtype)
        if stopping:
            break
    if rank == 0:
        log.board.close()
    engine.close()


if __name__ == "__main__":
    run(main)
