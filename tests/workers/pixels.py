"""Pictures as phones and programs write them, seen by sampler and trainer: pixels.py BASE OUT.

Writes for each kind: the largest difference between the pixels that vLLM processed and the
trainer's, and the largest gap of log-probabilities over a group of rollouts. Also makes one
training step on all of them."""

import json
import sys
from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pictures import KINDS, write

from perl.grpo import Row
from perl.permute import Sample
from perl.rollout import Engine, encode, join_torchrun, prepare
from perl.train import build_policy, parse_args

base, out = Path(sys.argv[1]), Path(sys.argv[2])
rank, world, device = join_torchrun()
samples = []
for name in KINDS:
    path = write(name, out.parent)
    samples.append(
        Sample(name, (str(path), str(path)), "<image> <image> Which image shows a 7?", "Image 1")
    )

args = parse_args(
    ["--model", str(base / "base"), "--max-tokens", "8", "--max-pixels", str(64 * 64)]
)
processor, settings = prepare(args, samples)
policy = build_policy(args.model, device, init_device_mesh(device.type, (world,)), trained=True)
engine = Engine(settings)

mean = torch.tensor(processor.image_processor.image_mean).repeat_interleave(2 * 14 * 14)  # (1176,)
std = torch.tensor(processor.image_processor.image_std).repeat_interleave(2 * 14 * 14)
processed = []  # patches of pictures, end to end, call by call


def listen(model) -> None:
    """Record the pixels that vLLM's model is given."""
    process = model._process_image_input

    def recorded(image_input):
        processed.append(image_input["pixel_values"].float().clone())
        return process(image_input)

    model._process_image_input = recorded


engine.llm.apply_model(listen)
found = {}
for sample in samples:
    [prompt] = encode(processor, [sample])
    processed.clear()
    engine.llm.llm_engine.reset_encoder_cache()  # several kinds show the very same pixels
    engine.llm.reset_mm_cache()
    engine.llm.reset_prefix_cache()
    [group] = engine.generate([prompt], n=3, seeds=[0], temperature=1.0)
    # 0..255: vLLM's tower normalises them.
    raw = processed[-1][: len(prompt.images[0].pixel_values)]
    vllm_pixels = (raw / 255 - mean) / std
    row = Row(prompt.ids, prompt.images, tuple(torch.tensor(o.ids) for o in group))
    with torch.no_grad():
        logp, _ = policy([row], 1.0)
    sampler = torch.tensor([x for o in group for x in o.logps])
    found[sample.id] = {
        "pixels": (vllm_pixels - prompt.images[0].pixel_values).abs().max().item(),
        "gap": (logp - sampler).abs().max().item(),
    }
engine.close()
out.write_text(json.dumps(found))
