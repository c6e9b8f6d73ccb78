"""Algorithm 1: the training loop of PeRL, one plain script for torchrun.

    torchrun --nproc_per_node 8 perl/train.py --model Qwen/Qwen2.5-VL-7B-Instruct --data TRAIN.jsonl --out RUN
    torchrun --nproc_per_node 2 perl/train.py            # no arguments: the embedded digits task, on any machine

    for t = 0 .. T - 1:
        draw questions x_1; alpha_t = alpha_0 (1 - t / T)
        x_2 .. x_{n_s+1} = permuted copies of x_1, with probability alpha_t                         perl/permute.py
        sample n rollouts from pi_old for each of x_1 .. x_{n_s+1}                                  perl/rollout.py
        rewards; A by Eqs. 4-5 over all orders of a question; ascend Eq. 6                          perl/grpo.py
        pi_old <- pi: the new weights go to the sampling engines

Every rank samples and trains on its own share of each mini-batch; FSDP2 shards weights, gradients, optimizer and reference.
Which questions a step draws, how they are permuted and with which seeds they are sampled depends on (--seed, step, question)
alone, never on the number of ranks: weights, optimizer and step are the whole state of a run, and --resume is exact (up to
rounding on CUDA, where sums have no fixed order). A sample that the coin leaves unpermuted still gets n_s identical
copies, as in the release.

RUN gets config.json, metrics.jsonl, rollouts.jsonl, TensorBoard events in tb/, and every --save-every steps step-N/ with state/
(for --resume, on any number of ranks) and model/ (for vLLM and transformers); RUN/model is a link to the newest. SIGTERM ends
the step, saves, and exits with 0; under torchrun give the step time to end: --shutdown-timeout SECONDS.
"""
import argparse
import ctypes
import hashlib
import json
import random
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from accelerate import init_empty_weights
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_model_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForImageTextToText

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from perl.grpo import Policy, Row, advantages, grpo_loss, rollout_mean
from perl.permute import Copy, DataError, Sample, alpha, copies, load, plain
from perl.rollout import Engine, Rollout, add_engine_arguments, at_least, encode, join_torchrun, prepare, run, seed_for
from rewards.boxed import accuracy, format_ok, options, reward

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
    p.add_argument("--eval", help="JSONL of questions to answer greedily while training")
    p.add_argument("--eval-every", type=int, default=20, help="steps")
    p.add_argument("--save-every", type=int, default=20, help="steps between checkpoints")
    p.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out, if there is one")
    p.add_argument("--wandb", action="store_true", help="send what TensorBoard gets to Weights & Biases, too")
    p.add_argument("--show", type=int, default=2, help="sample rollouts to print and keep each step")
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
        asked = [(o.text, plain(c.sample.answer), options(plain(c.sample.question))) for c, n in zip(group, sampled[mine]) for o in n]
        right = torch.tensor([accuracy(*a) for a in asked])
        r = torch.tensor([reward(*a) for a in asked])
        graded.append(Group(tuple(group), rows, tuple(o for n in sampled[mine] for o in n), right, r, advantages(r[None])[0]))
    return graded

# --- The model ---
def build_policy(model: str, device: torch.device, mesh, trained: bool) -> Policy:
    """The model, sharded layer by layer: float32 master weights to train, or the frozen reference. On CUDA the compute is
    bfloat16, gradients are reduced in float32 and activations are recomputed in the backward pass. Rank 0 alone reads the
    weights and sends each to its owners; the other ranks start without storage. Collective."""
    cuda, reads = device.type == "cuda", dist.get_rank() == 0
    kind = dict(dtype=torch.float32 if trained or not cuda else torch.bfloat16, attn_implementation="sdpa")
    if reads:
        hf = AutoModelForImageTextToText.from_pretrained(model, **kind)
    else:
        with init_empty_weights():  # parameters on the meta device; buffers, which no checkpoint holds, are real
            hf = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(model), **kind)
        hf.tie_weights()
    if cuda and trained:
        hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tied = hf.get_input_embeddings().weight is hf.lm_head.weight
    policy = Policy(hf).train(trained).requires_grad_(trained)
    whole = policy.state_dict() if reads else {}
    precision = MixedPrecisionPolicy(torch.bfloat16 if cuda else None, reduce_dtype=torch.float32, cast_forward_inputs=False)
    how, text = dict(mesh=mesh, mp_policy=precision), hf.model.language_model
    for layer in [*text.layers, *hf.model.visual.blocks, *[text.embed_tokens][tied:]]:
        fully_shard(layer, **how)
    # Tied, one parameter is embedding and head, and can't live in two groups.
    fully_shard([text.embed_tokens][:tied] + [text.norm, hf.lm_head], reshard_after_forward=False, **how)
    fully_shard(policy, **how)
    set_model_state_dict(policy, whole, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    hf.tie_weights()  # what was on the meta device has been replaced, parameter by parameter
    return policy

def reshard(policy: Policy) -> None:
    """Give up what a forward without backward has left gathered."""
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()

def shards(policy: Policy) -> dict[str, torch.Tensor]:
    """Hugging Face name -> this rank's shard, a DTensor."""
    reshard(policy)
    return {name.removeprefix("model."): weight for name, weight in policy.state_dict().items()}

def full_weights(policy: Policy, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """(Hugging Face name, full tensor), gathered one at a time: no rank ever holds a second whole model. Collective."""
    for name, weight in shards(policy).items():
        yield name, weight.to(dtype).full_tensor()

# --- Checkpoints: written aside, then renamed, so that what has its name is whole ---
KEEP = 2  # ours: checkpoints that stay, each 12 bytes a parameter and the exported model

def save(policy: Policy, optimizer, processor, steps: int, out: Path, dtype: torch.dtype) -> None:
    """OUT/step-N: state/, all that N finished `steps` leave behind, and model/ in Hugging Face format, each rank writing its own
    shards. A kill at any moment, or a full disk, leaves the checkpoints before it as they were. Collective."""
    rank, aside, final = dist.get_rank(), out / "writing", out / f"step-{steps:06d}"
    if rank == 0:
        shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed while it wrote
    dist.barrier()
    weights, moments = get_state_dict(policy, optimizer)
    dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=aside / "state")
    sums = digests(aside / "state")
    model, config = {name: shard.to(dtype) for name, shard in shards(policy).items()}, policy.model.config
    if config.tie_word_embeddings:
        del model["lm_head.weight"]  # it is the embedding
    dcp.save(model, storage_writer=HuggingFaceStorageWriter(aside / "model", save_distributed=True, enable_consolidation=True))
    if rank == 0:
        shutil.rmtree(aside / "model" / "sharded")  # the ranks' parts, consolidated file by file
        config.dtype = dtype
        for part in (config, processor):
            part.save_pretrained(aside / "model")
        policy.model.generation_config.to_json_file(aside / "model" / "generation_config.json")  # as it came, valid or not
        (aside / "sha256").write_text("".join(f"{line}\n" for line in sorted(sums)))
        aside.rename(final)
        (link := out / "link").unlink(missing_ok=True)
        link.symlink_to(Path(final.name) / "model")
        link.replace(out / "model")
        for old in checkpoints(out)[:-KEEP]:
            shutil.rmtree(old)
    dist.barrier()

def checkpoints(out: Path) -> list[Path]:
    """The finished ones, the newest last."""
    return sorted(out.glob("step-" + 6 * "[0-9]"))

def digests(folder: Path) -> set[str]:
    """sha256sum's line for each file in `folder`, the reading shared by the ranks. Collective."""
    ranks, mine = [None] * dist.get_world_size(), []
    for path in sorted(folder.iterdir())[dist.get_rank() :: len(ranks)]:
        with open(path, "rb") as file:
            mine.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}")
    dist.all_gather_object(ranks, mine)
    return {line for rank in ranks for line in rank}

def resume(policy: Policy, optimizer, out: Path) -> int:
    """Load the newest checkpoint of OUT into policy and optimizer; the number of its finished steps, 0 without one. Raises
    DataError where it is damaged. Collective."""
    if not (found := checkpoints(out)):
        return 0
    newest, sums = found[-1], found[-1] / "sha256"
    if damaged := digests(newest / "state") ^ set(sums.read_text().splitlines() if sums.is_file() else ()):
        name = min(line.split()[-1] for line in damaged)
        raise DataError(f"{newest}: {name} is damaged; remove {newest.name} to resume from the checkpoint before it")
    weights, moments = get_state_dict(policy, optimizer)
    dcp.load({"model": weights, "optimizer": moments}, checkpoint_id=newest / "state")
    set_state_dict(policy, optimizer, model_state_dict=weights, optim_state_dict=moments)
    return int(newest.name.removeprefix("step-"))

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
        if norms[-1].isfinite():  # of all ranks' gradients: they agree. A loss that is not finite has no finite gradient
            optimizer.step()
        optimizer.zero_grad()
    dist.all_reduce(totals := torch.stack([*sums.values()]))
    dist.all_reduce(gap_max, op=dist.ReduceOp.MAX)
    sums, norms = dict(zip(sums, totals.tolist())), torch.stack(norms)
    skipped = (~norms.isfinite()).sum().item()
    return sums | {"grad_norm": norms.mean().item(), "logp_gap_max": gap_max.item(), "skipped": skipped}

def reward_metrics(groups: Sequence[Group]) -> dict:
    """What the rollouts of a step say, over all ranks' groups. Collective."""
    rollouts, A = [o for g in groups for o in g.rollouts], torch.cat([g.advantages for g in groups])
    mine = {
        "reward": torch.cat([g.rewards for g in groups]).tolist(),
        "accuracy": torch.cat([g.accuracy for g in groups]).tolist(),
        "format": [format_ok(o.text) for o in rollouts],
        "no_spread": [bool(g.rewards.max() == g.rewards.min()) for g in groups],
        "permuted": [c.sigma != g.copies[0].sigma for g in groups for c in g.copies[1:]],
        "response_length": [len(o.ids) for o in rollouts],
        "cut_off": [not o.finished for o in rollouts],
        "prompt_length": [len(row.prompt_ids) for g in groups for row in g.rows for _ in row.responses],
        "advantages": torch.histc(A.clamp(-3, 3), bins=25, min=-3.125, max=3.125),
    }
    dist.all_gather_object(ranks := [None] * dist.get_world_size(), mine)
    histogram = sum(rank.pop("advantages") for rank in ranks).int().tolist()
    every = {name: [x for rank in ranks for x in rank[name]] for name in ranks[0]}
    tokens = sum(every["response_length"] + every.pop("prompt_length"))
    return {name: sum(xs) / max(1, len(xs)) for name, xs in every.items()} | {"tokens": tokens, "advantages": histogram}

def shown(group: Group, k: int) -> dict:
    """Rollout k of a group, for a reader."""
    place = k * len(group.copies) // len(group.rollouts)
    copy, o = group.copies[place], group.rollouts[k]
    return {"id": copy.sample.id, "copy": place, "sigma": copy.sigma, "images": copy.sample.images,
            "question": copy.sample.question, "answer": copy.sample.answer, "reward": group.rewards[k].item(), "advantage": group.advantages[k].item(),
            "response": o.text}  # fmt: skip

def evaluate(engine: Engine, processor, samples: Sequence[Sample], args) -> dict[str, float]:
    """Greedy accuracy of pi in the given order and in one permuted order, drawn once and for all (the given one again where a
    question can't be permuted). Collective."""
    mine, right = samples[dist.get_rank() :: dist.get_world_size()], []
    for start in range(0, len(mine), args.prompts):
        asked = [c.sample for x in mine[start : start + args.prompts] for c in copies(x, 1, 1.0, args.seed, -1)]
        answers = engine.generate(encode(processor, asked), n=1, seeds=[0] * len(asked), temperature=0.0)
        right += [accuracy(o.text, plain(x.answer), options(plain(x.question))) for x, (o,) in zip(asked, answers)]
    dist.all_gather_object(ranks := [None] * dist.get_world_size(), right)
    given, permuted = (sum(y for rank in ranks for y in rank[k::2]) / len(samples) for k in (0, 1))
    return {"eval_given": given, "eval_permuted": permuted}

class Log:
    """What rank 0 writes into RUN for a reader: config.json, metrics.jsonl, rollouts.jsonl, TensorBoard, and the terminal."""
    def __init__(self, args, out: Path, first: int, total: int, world: int):
        out.mkdir(parents=True, exist_ok=True)
        versions = {name: sys.modules[name].__version__ for name in ("torch", "transformers", "vllm")}
        command = shlex.join(["torchrun", "--nproc_per_node", str(world), *sys.argv])
        config = vars(args) | {"steps": total, "world": world, "command": command, "versions": versions}
        (aside := out / "config.tmp").write_text(json.dumps(config, indent=1))
        aside.replace(out / "config.json")  # a full disk leaves the one before
        self.files = [out / "metrics.jsonl", out / "rollouts.jsonl"]
        for file in self.files:  # drop the lines of steps that will run again, and a line torn by a kill
            lines = [x for x in file.read_text().split("\n")[:-1] if json.loads(x)["step"] < first] if file.exists() else []
            (aside := file.with_suffix(".tmp")).write_text("".join(f"{x}\n" for x in lines))
            aside.replace(file)
        if args.wandb:
            import wandb
            wandb.init(project="perl", name=out.name, config=config, sync_tensorboard=True)
        self.board, self.explained = SummaryWriter(out / "tb", purge_step=first), False

    def write(self, metrics: dict, rows: list[dict], bar: tqdm) -> None:
        """A step's metrics and sample rollouts."""
        step = metrics["step"]
        for file, lines in zip(self.files, ([metrics], [{"step": step} | row for row in rows])):
            with open(file, "a") as appended:
                appended.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        for name in metrics.keys() - {"step", "advantages"}:
            self.board.add_scalar(name, metrics[name], step)
        for row in rows:
            bar.write("  " + " | ".join(f"{name} {value}".replace("\n", " / ") for name, value in row.items()))
        if metrics["no_spread"] == 1 and not self.explained:
            bar.write(f"step {step}: the rewards of every group are equal, so all advantages are 0, and the loss but for its KL "
                      "term: the questions are too easy or too hard (perl/filter.py), or no response has the asked form")
            self.explained = True
        if metrics["skipped"]:
            bar.write(f"step {step}: {metrics['skipped']} updates skipped, their gradient is not finite")
        seconds = "+".join(f"{value:.1f}" for name, value in metrics.items() if name.startswith("seconds_"))
        bar.set_postfix(reward=f"{metrics['reward']:.3f}", accuracy=f"{metrics['accuracy']:.3f}", seconds=seconds)

def check(args, samples: Sequence[Sample], world: int) -> None:
    """Raises DataError when a step's questions can't be drawn or shared out."""
    at_least(args, prompts=1, updates=1, n=1, micro_batch=1, epochs=1, steps=1, save_every=1, eval_every=1,
             n_s=0, lr=0, beta=0, temperature=0.01)
    if args.prompts % (parts := args.updates * world):
        raise DataError(f"--prompts {args.prompts} is no multiple of {parts}: --updates {args.updates} on {world} ranks")
    if len(samples) < args.prompts:
        raise DataError(f"{args.data}: {len(samples)} questions are fewer than the {args.prompts} of one step (--prompts)")
    out, found = Path(args.out), checkpoints(Path(args.out))
    if found and not args.resume:
        raise DataError(f"--out {args.out}: it holds a run already; --resume goes on with it, another --out starts anew")
    if out.is_file():
        raise DataError(f"--out {args.out}: it is a file, no folder")
    if found and (config := out / "config.json").exists():
        before = json.loads(config.read_text())
        for name in ("model", "data", "seed", "prompts", "updates", "n_s", "n", "lr"):
            if before.get(name) != getattr(args, name):
                raise DataError(f"{config}: --resume with another {name}: {before.get(name)} became {getattr(args, name)}")

def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    rank, world, device = join_torchrun()
    if not args.model and not args.data:
        from data.digits import example
        args = parse_args(argv, example(rank, args.resume))
    elif not (args.model and args.data):
        raise DataError("--model and --data belong together; with neither, the embedded digits task is trained")
    check(args, samples := load(args.data), world)
    held_out = load(args.eval) if args.eval else []
    processor, settings = prepare(args, samples + held_out)
    total = args.steps or args.epochs * (len(samples) // args.prompts)
    mesh, out = init_device_mesh(device.type, (world,)), Path(args.out)
    policy = build_policy(args.model, device, mesh, trained=True)
    reference = build_policy(args.model, device, mesh, trained=False) if args.beta > 0 else None
    optimizer = torch.optim.AdamW(policy.parameters(), lr=args.lr, weight_decay=0.01, fused=True)  # release; betas 0.9, 0.999
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    first = resume(policy, optimizer, out)
    engine = Engine(*settings)
    if first:
        engine.sleep()
        engine.sync(full_weights(policy, dtype))
    log = Log(args, out, first, total, world) if rank == 0 else None
    sigterms, failed = [], 0
    signal.signal(signal.SIGTERM, lambda *_: sigterms.append(1))
    bar = tqdm(range(first, total), desc=out.name, initial=first, total=total, disable=rank != 0, dynamic_ncols=True)
    for step in bar:  # Algorithm 1
        times, alpha_t = [time.perf_counter()], alpha(step, total, args.alpha_0)
        questions = share_of_rank(questions_of(samples, step, args), rank, world, args.updates)
        groups = sample_groups(engine, processor, questions, step, alpha_t, args)
        engine.sleep()
        times.append(time.perf_counter())
        ref = logps_of(reference, groups, args) if reference else None
        if reference:
            reshard(reference)  # it has no backward that would
        times.append(time.perf_counter())
        learned = update(policy, optimizer, groups, ref, args)
        times.append(time.perf_counter())
        engine.sync(full_weights(policy, dtype))  # theta_old <- theta
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps what it freed in pieces, more with every step
        times.append(time.perf_counter())
        metrics = {"step": step, "alpha": alpha_t} | reward_metrics(groups) | learned | engine.hits
        metrics["tokens_per_second"] = metrics.pop("tokens") / (times[-1] - times[0])
        phases = ("sampling", "reference", "update", "sync")
        metrics |= {f"seconds_{phase}": end - start for phase, start, end in zip(phases, times, times[1:])}
        if held_out and (step + 1) % args.eval_every == 0:
            metrics |= evaluate(engine, processor, held_out, args)
        if rank == 0:
            log.write(metrics, [shown(groups[k % len(groups)], k * args.n % len(groups[0].rollouts)) for k in range(args.show)], bar)
        failed = failed + 1 if learned["skipped"] else 0
        if failed == 3:
            names = ", ".join(x.id for x in questions_of(samples, step, args))
            raise RuntimeError(f"three steps in a row had a gradient that is not finite; the questions of step {step}: {names}")
        dist.all_reduce(stop := torch.tensor(len(sigterms), device=device))
        if stop or step + 1 == total or (step + 1) % args.save_every == 0:
            save(policy, optimizer, processor, step + 1, out, dtype)
        if stop:
            break
    if rank == 0:
        log.board.close()
    engine.close()

if __name__ == "__main__":
    run(main)
