"""Weight sync, on any number of ranks: torchrun ... sync.py BASE OUT. Prints nothing; writes the
gaps it measured.

gap: max over tokens of |log-probability in vLLM - log-probability in the trainer|, over ranks,
same images throughout."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from perl.grpo import Row
from perl.permute import load
from perl.rollout import Engine, Settings, encode, join_torchrun, load_processor
from perl.train import build_policy, full_weights, reshard

base, out = Path(sys.argv[1]), Path(sys.argv[2])
rank, world, device = join_torchrun()
model = str(base / "base")
processor, _ = load_processor(model, 512 * 512)
policy = build_policy(model, device, init_device_mesh(device.type, (world,)), trained=True)
engine = Engine(Settings(model, 400, 16, 5, processor.image_processor.size))
# Longer than a block of vLLM's prefix cache on a CPU, 128 tokens: else no stale key could be met.
FILLER = " Look at every image before you answer, and say what you see." * 4
samples = [
    replace(x, question=x.question + FILLER) for x in load(base / "train.jsonl")[rank::world][:6]
]
prompts = encode(processor, samples)
assert all(len(prompt.ids) > 140 for prompt in prompts)


def gap(temperature=1.0) -> float:
    groups = engine.generate(prompts, n=3, seeds=range(len(prompts)), temperature=temperature)
    rows = [
        Row(p.ids, p.images, tuple(torch.tensor(o.ids) for o in g)) for p, g in zip(prompts, groups)
    ]
    sampler = torch.tensor([x for g in groups for o in g for x in o.logps], device=device)
    with torch.no_grad():
        largest = (policy(rows, temperature)[0] - sampler).abs().max()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest.item()


def move(part: str, scale: float) -> None:
    """A large random step of the parameters whose name
    holds `part`, the same on every number of ranks."""
    g = torch.Generator().manual_seed(0)
    reshard(policy)
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if part in name and p.dim() > 1:
                local = p.to_local()
                local += (
                    scale * local.abs().mean() * torch.randn(local.shape, generator=g).to(device)
                )


def parameters():
    """vLLM's own, in this process."""
    return engine.llm.llm_engine.model_executor.driver_worker.worker.model_runner.model.named_parameters()


def sync() -> None:
    engine.sleep()  # on CUDA this drops the weights
    if device.type == "cpu":  # and so does this
        for _, parameter in parameters():
            parameter.data.fill_(float("nan"))
    engine.sync(full_weights(policy, torch.bfloat16 if device.type == "cuda" else torch.float32))


gaps = {"fresh": gap(), "temperature 0.7": gap(0.7)}
move("", 0.5)
gaps["all moved, no sync"] = gap()
sync()
gaps["all moved, synced"] = gap()
move("visual", 2.0)
gaps["vision moved, no sync"] = gap()
sync()
gaps["vision moved, synced"] = gap()
same = engine.generate(prompts, n=3, seeds=range(len(prompts)), temperature=1.0)
gaps["reproducible"] = float(
    same == engine.generate(prompts, n=3, seeds=range(len(prompts)), temperature=1.0)
)
many = engine.generate(prompts, n=20, seeds=range(len(prompts)), temperature=1.0)
gaps["more tokens than a batch holds"] = sum(len(p.ids) for p in prompts) * 20
gaps["all sampled"] = float(all(len(group) == 20 for group in many))
gaps["banned sampled"] = float(any(i in o.ids for g in same for o in g for i in engine.banned))
gaps["parameters left NaN"] = float(sum(p.isnan().any().item() for _, p in parameters()))
engine.close()
if rank == 0:
    out.write_text(json.dumps(gaps))
