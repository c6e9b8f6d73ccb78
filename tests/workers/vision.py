"""The vision tower as `Policy` runs it against the model's own, as training on CUDA shards it:
bfloat16 mixed precision, activations recomputed. torchrun ... vision.py OUT; writes the largest
differences, over parameters relative to the gradient's norm, with bfloat16's own noise beside."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from bench import cuda
from perl.rollout import join_torchrun
from perl.train import build_policy, reshard

out = Path(sys.argv[1])
rank, world, _ = join_torchrun()


class LikeCuda:
    """What build_policy asks of a device, to take the way of CUDA with tensors on a CPU."""

    type = "cuda"


config = cuda.architecture("tiny")
model = out.parent / "tiny"
if rank == 0:
    cuda.build(config, torch.float32, "cpu").save_pretrained(model)
dist.barrier()
rows = cuda.make_rows(config, images=3, pixels=170, rollouts=4, response=20)
mesh = init_device_mesh("cpu", (world,))


def learn(own: bool, full: bool = False):
    """(log-probabilities, gradients) of one forward and backward; `own`: the model's vision."""
    device = torch.device("cpu") if full else LikeCuda()
    policy = build_policy(str(model), device, mesh, trained=True)
    visual = policy.model.model.visual
    if own:
        visual.config._attn_implementation = "sdpa"
        visual.patch_embed.proj.forward = lambda x: torch.nn.Conv3d.forward(
            visual.patch_embed.proj, x.view(-1, 3, 2, 14, 14)
        )
    logp, _ = policy(rows)
    (cuda.loss_of(logp, rows) * world).backward()
    gradients = {name: p.grad.full_tensor() for name, p in policy.named_parameters()}
    reshard(policy)
    return logp.detach(), gradients


def apart(ours, theirs) -> dict[str, float]:
    worst = 0.0
    for name, gradient in ours[1].items():
        norm = theirs[1][name].norm()
        worst = max(worst, ((gradient - theirs[1][name]).norm() / (norm + 1e-12)).item())
    return {"logp": (ours[0] - theirs[0]).abs().max().item(), "gradient": worst}


exact = learn(own=False, full=True)
found = {
    "float32": apart(exact, learn(own=True, full=True)),
    "mixed": apart(learn(own=False), learn(own=True)),
    "noise": apart(learn(own=True), exact),
}
if rank == 0:
    out.write_text(json.dumps(found))
dist.barrier()
dist.destroy_process_group()
