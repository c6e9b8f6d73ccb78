"""One CUDA device: is the shared-prefix row right in bfloat16, how fast is an update, what memory
does it take.

    python bench/cuda.py                # 7B, 4 images, 2 orders x 6 rollouts: bench/cuda.json
    python bench/cuda.py --size 3b      # on a smaller device
    python bench/cuda.py --size tiny    # the same code on 2 layers: on a CPU a test of itself

Nothing is downloaded: the architectures stand below, weights are random and made on the device,
prompts are token ids. An update is forward, the loss of Eq. 6 and backward, with bfloat16 weights
and without an optimizer: the float32 weights and Adam moments that perl/train.py shards over its
GPUs take 12 bytes a parameter, 99 GB for 7B. What each figure means: README.md here. Running out
of memory is a result and is written down. Ends with 1 where a check fails or could not run."""

import argparse
import gc
import json
import platform
import resource
import sys
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
# In place of bench/, where cuda.py would hide NVIDIA's package of that name from torch.
sys.path[0] = str(ROOT)

import torch
import transformers
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig

from perl.grpo import PatchEmbed, Policy, Row, grpo_loss, rollout_mean  # noqa: E402

# The language models of Qwen/Qwen2.5-VL-7B-Instruct and -3B-Instruct; their vision towers differ
# in the width they feed.
NAMES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "tie_word_embeddings",
)
SIZES = {
    "7b": (152_064, 3584, 18_944, 28, 28, 4, False),
    "3b": (151_936, 2048, 11_008, 36, 16, 2, True),
    "tiny": (512, 128, 256, 2, 4, 2, False),
}
VISION = dict(
    depth=32,
    hidden_size=1280,
    intermediate_size=3420,
    num_heads=16,
    fullatt_block_indexes=[7, 15, 23, 31],
)
SHALLOW = dict(depth=2, fullatt_block_indexes=[1])  # a block with windows and one without
TINY_VISION = SHALLOW | dict(hidden_size=64, intermediate_size=128, num_heads=2)
LIMIT = 1e-3  # what float32 may differ by
NOISES = 2.0  # and bfloat16, in multiples of its own rounding
WORDS = 64  # tokens of text in a prompt
GEMM = {"cuda": 8192, "cpu": 256}  # the matrices that measure the peak; a CPU may lack bfloat16


# --- The subject ---


def architecture(size, shallow=False):
    """The configuration of `size`; `shallow`: 2 layers and 2 vision blocks of the same widths."""
    tiny, text = (
        size == "tiny",
        dict(zip(NAMES, SIZES[size])) | (dict(num_hidden_layers=2) if shallow else {}),
    )
    vision, special = (
        TINY_VISION if tiny else VISION | SHALLOW if shallow else VISION,
        500 if tiny else 151_652,
    )
    rope = {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": [4, 6, 6] if tiny else [16, 24, 24],
    }
    return Qwen2_5_VLConfig(
        text_config=text
        | dict(rope_parameters=rope, rms_norm_eps=1e-6, bos_token_id=None, eos_token_id=None),
        vision_config=vision | dict(out_hidden_size=text["hidden_size"], tokens_per_second=2),
        tie_word_embeddings=text["tie_word_embeddings"],
        vision_start_token_id=special,
        vision_end_token_id=special + 1,
        image_token_id=special + 3,
        video_token_id=special + 4,
    )


def build(config, dtype, device):
    """A model with random weights, made on `device` in `dtype`."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
    # For the padded passes too: as a convolution it may be slow, or raise, in bfloat16 on CUDA.
    model.model.visual.patch_embed.proj.__class__ = PatchEmbed
    return model.train()


def make_rows(config, images, pixels, rollouts, response):
    """A question in two orders of its images, half of the rollouts each: random tokens, noise for
    pictures. Lengths lie evenly from 2/3 of `response` up to it; the sides of pictures are
    rounded to 28 pixels, as the processor does."""
    g, start, n = torch.Generator().manual_seed(0), config.vision_start_token_id, rollouts // 2
    words = lambda n: torch.randint(start, (n,), generator=g)  # noqa: E731
    side = 2 * max(1, round(pixels / 28))  # in patches of 14 x 14
    pictures = [
        SimpleNamespace(
            key=k,
            pixel_values=torch.randn(side * side, 3 * 2 * 14 * 14, generator=g),
            grid_thw=torch.tensor([1, side, side]),
        )
        for k in range(images)
    ]
    block = torch.tensor(
        [start, *[config.image_token_id] * (side * side // 4), config.vision_end_token_id]
    )
    prompt = torch.cat([words(WORDS // 2), *[block] * images, words(WORDS // 2)])
    lengths = [response - round(k * response / 3 / max(1, n - 1)) for k in range(n)]
    return [
        Row(prompt, tuple(order), tuple(map(words, lengths)))
        for order in (pictures, pictures[1:] + pictures[:1])
    ]


def loss_of(logp, rows):
    """Minus Eq. 6, advantages and distance to the reference random; pi_old is pi."""
    g, lengths = (
        torch.Generator().manual_seed(1),
        torch.tensor([len(o) for row in rows for o in row.responses]),
    )
    A, shift = (
        torch.randn(len(lengths), generator=g).repeat_interleave(lengths),
        0.1 * torch.randn(len(logp), generator=g),
    )
    A, shift, weight = (x.to(logp.device) for x in (A, shift, rollout_mean(lengths, len(lengths))))
    return grpo_loss(logp, same := logp.detach(), same + shift, same, A, weight)[0]


# --- Correctness: shared against padded, in float32 and within the rounding of bfloat16 ---


def padded_logps(model, rows, device):
    """What `Policy` computes, by the model's own forward: sdpa, a padded sequence for each
    rollout, all logits at once."""
    model.model.language_model.config._attn_implementation = "sdpa"
    logps, special = [], [model.config.image_token_id, model.config.video_token_id]
    for row in rows:
        P, n = len(row.prompt_ids), len(row.responses)
        whole = [torch.cat([row.prompt_ids, o]) for o in row.responses]
        ids = pad_sequence(whole, batch_first=True).to(device)  # (n, P + T)
        # (n, P + T, D)
        hidden = model.model(
            input_ids=ids,
            attention_mask=pad_sequence([torch.ones_like(x) for x in whole], batch_first=True).to(
                device
            ),
            pixel_values=torch.cat([i.pixel_values for i in row.images]).repeat(n, 1).to(device),
            use_cache=False,
            image_grid_thw=torch.stack([i.grid_thw for i in row.images]).repeat(n, 1).to(device),
            mm_token_type_ids=(ids == special[0]).int(),
        ).last_hidden_state
        for h, o in zip(hidden, row.responses):
            logits = (h[P - 1 : P - 1 + len(o)] @ model.lm_head.weight.t()).float()  # (T_k, V)
            logits[:, special] = float("-inf")
            logps.append(logits.log_softmax(-1).gather(1, o.to(device)[:, None])[:, 0])
    return torch.cat(logps)


def scored(model, logps, rows):
    """The log-probabilities (N,) that `logps` computes, and the gradient of their loss."""
    model.zero_grad(set_to_none=True)
    logp = logps(rows)
    loss_of(logp, rows).backward()
    return logp.detach(), {name: p.grad for name, p in model.named_parameters()}


def difference(ours, expected):
    """|difference| of log pi; and of the gradient, relative to its norm, in three parts: the
    smallest can't hide."""
    (logp, grads), (wanted, gold) = ours, expected
    # "head": and the embedding, the last norm.
    gap, parts = (
        (logp - wanted).abs(),
        {"vision": [], "layers": [], "head": []},
    )
    for name in gold:
        parts[
            "vision" if ".visual." in name else "layers" if ".layers." in name else "head"
        ].append(name)
    norm = lambda tensors: sum(t.float().norm().item() ** 2 for t in tensors) ** 0.5  # noqa: E731
    relative = {
        f"gradient_{part}": norm(grads[x].float() - gold[x].float() for x in names)
        / norm(gold[x] for x in names)
        for part, names in parts.items()
    }
    return {"logp_max": gap.max().item(), "logp_mean": gap.mean().item()} | relative


def correctness(size, shape, device):
    """Both ways on 2 layers, with equal weights in both precisions: every bfloat16 is a float32."""
    config = architecture(size, shallow=True)
    rows, half, full = (
        make_rows(config, **shape),
        build(config, torch.bfloat16, device),
        build(config, torch.float32, device),
    )
    full.load_state_dict(half.state_dict())
    shared = lambda model: lambda rows: Policy(model)(rows)[0]  # noqa: E731
    padded = lambda model: lambda rows: padded_logps(model, rows, device)  # noqa: E731
    exact = scored(full, padded(full), rows)
    # A wrong order: what a real error looks like.
    exchanged = [replace(row, images=row.images[::-1]) for row in rows]
    checks = {"float32": difference(scored(full, shared(full), rows), exact)}
    checks |= {"images exchanged": difference(scored(full, shared(full), exchanged), exact)}
    full.zero_grad(set_to_none=True)
    rounded = scored(half, padded(half), rows)
    checks |= {
        "bfloat16": difference(scored(half, shared(half), rows), rounded),
        "rounding": difference(rounded, exact),
    }
    limits = {name: NOISES * x for name, x in checks["rounding"].items()}
    return checks | {
        "float32_passed": all(x <= LIMIT for x in checks["float32"].values()),
        "bfloat16_passed": all(x <= limits[name] for name, x in checks["bfloat16"].items()),
    }


# --- Speed, memory, and where the time goes ---


def now(device):
    """Seconds, once the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_flops(device):
    """FLOP/s of a large bfloat16 matrix product, the fastest
    of five times ten: the peak that MFU refers to."""
    n, seconds = GEMM[device], []
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(6):
        start = now(device)
        for _ in range(10):
            a @ b
        seconds.append((now(device) - start) / 10)
    return 2 * n**3 / min(seconds[1:])


def flops(model, rows):
    """Model FLOPs of forward and backward, of what is executed: 6 a weight and token (4 where
    pixels come in: they have no gradient), 12 a unit of width and pair of tokens that meet.
    Recomputation, norms, activations and look-ups count nothing."""
    text, vision, visual = model.config.text_config, model.config.vision_config, model.model.visual
    weights = lambda module: sum(p.numel() for p in module.parameters() if p.ndim > 1)  # noqa: E731
    tokens = [(len(row.prompt_ids), [len(o) for o in row.responses]) for row in rows]
    pairs = sum(
        P * (P + 1) // 2 + sum(T * P + T * (T + 1) // 2 for T in lengths) for P, lengths in tokens
    )
    sides = [
        image.grid_thw[1:].tolist()
        for image in {image.key: image for row in rows for image in row.images}.values()
    ]
    patches, window, whole = (
        sum(h * w for h, w in sides),
        vision.window_size // 14,
        len(vision.fullatt_block_indexes),
    )
    squares = lambda n: n // window * window**2 + (n % window) ** 2  # noqa: E731, of the windows along a side
    seen = sum(
        whole * (h * w) ** 2 + (vision.depth - whole) * squares(h) * squares(w) for h, w in sides
    )
    return {
        "language_model": 6
        * weights(model.model.language_model.layers)
        * sum(P + sum(lengths) for P, lengths in tokens),
        "attention": 12 * text.num_hidden_layers * text.hidden_size * pairs,
        "head": 6 * weights(model.lm_head) * sum(sum(lengths) for _, lengths in tokens),
        "vision": (
            6 * weights(visual.blocks)
            + 4 * weights(visual.patch_embed)
            + 6 * weights(visual.merger) // 4
        )
        * patches,
        "vision_attention": 12 * vision.hidden_size * seen,
    }


def watch(model, mark):
    """Calls `mark`(name) as an update passes from one part
    of the model to the next, forward and backward."""
    back = lambda tensor, name: tensor.register_hook(lambda gradient: mark(name)) and None  # noqa: E731
    visual, text = model.model.visual, model.model.language_model
    visual.register_forward_pre_hook(lambda *_: mark("prepared"))
    visual.register_forward_hook(lambda *_: mark("seen"))
    text.register_forward_pre_hook(
        lambda module, args, given: back(given["inputs_embeds"], "text_back"), with_kwargs=True
    )
    text.register_forward_hook(
        lambda module, args, out: mark("read") or back(out.last_hidden_state, "head_back")
    )


def measure(size, shape, steps, checkpointing, peak, device):
    """Updates of the whole model: one to warm up, `steps` that count, of which the median is
    told; `peak`: see `peak_flops`."""
    config, at, spans = architecture(size), {}, []
    rows, model = make_rows(config, **shape), build(config, torch.bfloat16, device)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy = Policy(model)
    watch(model, lambda name: at.update({name: now(device)}))
    for _ in range(1 + steps):
        model.zero_grad(set_to_none=True)
        at["start"] = now(device)
        loss_of(policy(rows)[0], rows).backward()
        at["end"] = now(device)
        took = lambda a, b: at[b] - at[a]  # noqa: E731
        spans.append(
            {
                "seconds": took("start", "end"),
                "preparation": took("start", "prepared"),
                "vision": took("prepared", "seen") + took("text_back", "end"),
                "language_model": took("seen", "read") + took("head_back", "text_back"),
                "head_and_loss": took("read", "head_back"),
            }
        )
    executed = sum(len(row.prompt_ids) + sum(map(len, row.responses)) for row in rows)
    logical = sum(len(row.prompt_ids) + len(o) for row in rows for o in row.responses)
    # The most this process ever held.
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    median, counted = (
        sorted(spans[1:], key=lambda span: span["seconds"])[steps // 2],
        flops(model, rows),
    )
    return median | {
        "all_seconds": [span["seconds"] for span in spans[1:]],
        "logical_tokens": logical,
        "executed_tokens": executed,
        "logical_tokens_per_second": logical / median["seconds"],
        "executed_tokens_per_second": executed / median["seconds"],
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else rss,
        "flops": counted,
        "mfu": sum(counted.values()) / median["seconds"] / peak,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def unless_full(function, *args):
    """What `function` returns, or "out of memory".
    Leaves the device's memory as empty as it was."""
    try:
        return function(*args)
    except torch.OutOfMemoryError:
        return "out of memory"
    finally:
        gc.collect()
        if args[-1] == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


# --- The report ---


def show(report):
    """The tables of a report, as Markdown."""

    def row(*cells):
        return f"| {' | '.join(cells)} |"

    checks, parts = (
        report["correctness"],
        ("seconds", "preparation", "vision", "language_model", "head_and_loss"),
    )
    lines = [
        f"{report['device']}, {report['size']}, {report['shape']}",
        f"{report['peak_of']}: {report['peak_flops'] / 1e12:.3g} TFLOP/s",
        "",
        row("shared against padded", "log pi, max", "mean", "gradient: vision", "layers", "head"),
        "| --- " * 6 + "|",
    ]
    if checks == "out of memory":
        lines.append(row(checks, *[""] * 5))
    else:
        lines += [
            row(name, *(f"{x:.1e}" for x in values.values()))
            for name, values in checks.items()
            if type(values) is dict
        ]
        said = ["pass" if checks[f"{name}_passed"] else "FAIL" for name in ("float32", "bfloat16")]
        lines += [
            "",
            f"float32 within {LIMIT}: {said[0]}; bfloat16 within {NOISES} x rounding: {said[1]}",
        ]
    lines += [
        "",
        row("checkpointing", *parts, "logical tokens/s", "executed tokens/s", "MFU", "peak memory"),
    ]
    lines.append("| --- " * 10 + "|")
    for name, way in report["update"].items():
        lines.append(
            row(name, way, *[""] * 8)
            if way == "out of memory"
            else row(
                name,
                *(f"{way[part]:.3f}" for part in parts),
                f"{way['logical_tokens_per_second']:,.0f}",
                f"{way['executed_tokens_per_second']:,.0f}",
                f"{way['mfu']:.1%}",
                f"{way['peak_bytes'] / 1e9:.2f} GB",
            )
        )
    return "\n".join(lines)


def main(argv=None):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--size", choices=SIZES, default="7b" if device == "cuda" else "tiny")
    for name, value, text in (
        ("images", 4, "a question"),
        ("pixels", 512, "along a side of an image"),
        ("rollouts", 12, "a question: half of them in each of two orders"),
        ("response", 512, "tokens of the longest"),
        ("steps", 3, "timed updates"),
    ):
        p.add_argument(f"--{name}", type=int, default=value, help=text)
    p.add_argument("--out", type=Path, default=ROOT / "bench" / "cuda.json")
    args = p.parse_args(argv)
    shape = {name: getattr(args, name) for name in ("images", "pixels", "rollouts", "response")}
    if min(*shape.values(), args.steps) < 1 or args.rollouts % 2:
        p.error(
            "--images, --pixels, --rollouts, --response and --steps are positive, and --rollouts is even"
        )
    if device == "cpu" and args.size != "tiny":
        p.error(f"--size {args.size} wants a CUDA device; --size tiny runs on a CPU")
    if device == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        p.error(
            f"{torch.cuda.get_device_name()} has no bfloat16 flash attention: that takes compute capability 8.0"
        )
    if not args.out.parent.is_dir():
        p.error(f"--out {args.out}: there is no such directory")
    torch.backends.cudnn.allow_tf32 = (
        False  # float32 is meant; matrix products have no TF32 unless asked
    )
    peak, ways = peak_flops(device), {"on": True, "off": False}
    report = {
        "date": date.today().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "size": args.size,
        "shape": shape,
        "device": torch.cuda.get_device_name()
        if device == "cuda"
        else f"CPU ({platform.machine()})",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "transformers": transformers.__version__,
        },
        "update_is": "forward, loss, backward; bfloat16 weights and gradients; no optimizer",
        "peak_flops": peak,
        "peak_of": "torch {0} x {0} bfloat16 matrix product, measured".format(GEMM[device]),
        "correctness": unless_full(correctness, args.size, shape, device),
        "update": {
            name: unless_full(measure, args.size, shape, args.steps, on, peak, device)
            for name, on in ways.items()
        },
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(show(report))
    checks = report["correctness"]
    return checks == "out of memory" or not (checks["float32_passed"] and checks["bfloat16_passed"])


if __name__ == "__main__":
    sys.exit(main())
