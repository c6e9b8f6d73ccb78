"""Seconds and memory of a whole training step as one thing grows, beside what is computed.

    python bench/growth.py        # bench/growth.json, growth.png, a table; 25 minutes on two cores
    python bench/growth.py --only n ranks
    python bench/growth.py --steps 2 --only n_s      # a quick look

The subject is that of bench/step.py (33M parameters, float32, pictures of 56 tokens): a question
with 4 images in two orders, 6 rollouts of 48 tokens each. perl/train.py takes a few steps for each
point (sampling, reference, update, sync); a step is the median of all but the first, peak memory
what a rank held at most in all phases. One axis changes at a time:

    images      1 .. 16 images of the question
    n           1 .. 16 rollouts an order
    n_s         0 .. 3 permuted copies
    response    24 .. 192 tokens
    ranks       the same four questions a step on 1, 2 and 4 ranks of one thread each
    asking      questions a second of perl/filter.py (10 rollouts) and evals/orders.py (all
                orders), on as many ranks; the slope between few and many questions, so that
                starting counts nothing

Bound: the multiply-adds of a forward pass to sample, one for the reference, and of the update's
forward and backward, over the fastest float32 matrix product of this machine. Sampling cannot
reach it: it reads all weights for every token.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# In place of bench/, where cuda.py would hide NVIDIA's package of that name from torch.
sys.path[0] = str(ROOT)

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import AutoConfig, AutoModelForImageTextToText  # noqa: E402

from bench import cuda, step  # noqa: E402
from bench.expect import shared_rows  # noqa: E402
from bench.gpu import last_words  # noqa: E402

HEIGHT, WIDTH = 7, 8  # of a picture, in tokens of 28 x 28 pixels
QUESTIONS = 4  # a step on the axis of ranks
FEW, MANY = 16, 64  # questions asked, for the slope


@dataclass(frozen=True)
class Point:
    """What a step is made of."""

    images: int = 4
    n: int = 6
    n_s: int = 1
    response: int = 48
    ranks: int = 1
    questions: int = 1


START = Point()
AXES = {
    "images": [replace(START, images=k) for k in (1, 2, 4, 8, 16)],
    "n": [replace(START, n=k) for k in (1, 2, 4, 8, 16)],
    "n_s": [replace(START, n_s=k) for k in (0, 1, 2, 3)],
    "response": [replace(START, response=k) for k in (24, 48, 96, 192)],
    "ranks": [replace(START, ranks=k, questions=QUESTIONS) for k in (1, 2, 4)],
}


# --- The subject ---


def write_questions(folder: Path, images: int, count: int) -> Path:
    """`count` questions that show the first `images` pictures of the folder."""
    letters = [chr(ord("A") + k) for k in range(images)]
    options = "\n".join(f"{letter}. <image>" for letter in letters)
    file = folder / f"{images}-{count}.jsonl"
    rows = []
    for k in range(count):
        row = {"id": f"bench-{k}", "images": [f"{i}.png" for i in range(images)], "permute": True}
        row |= {"question": f"{options}\nWhich image shows a {k}?", "answer": "[[1|A]]"}
        rows.append(json.dumps(row) + "\n")
    file.write_text("".join(rows))
    return file


def write_subject(folder: Path) -> None:
    """The model of bench/step.py, and sixteen pictures."""
    step.build(folder, HEIGHT, WIDTH)
    most = max(point.images for point in AXES["images"])
    for i in range(step.IMAGES, most):
        picture = Image.open(folder / f"{i % step.IMAGES}.png")
        picture.rotate(90 * (i // step.IMAGES)).resize(picture.size).save(folder / f"{i}.png")


def flops(folder: Path, point: Point) -> float:
    """Of a step: a forward pass to sample, one for the reference, the update's three."""
    config = AutoConfig.from_pretrained(folder / "model")
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    text = 20 + 5 * point.images  # tokens of words, about
    sides = (2 * HEIGHT, 2 * WIDTH)  # in patches
    rows = shared_rows(point.images, point.response, text, sides, point.n_s + 1, point.n)
    update = sum(cuda.flops(model, rows).values())
    return point.questions * update * sum(step.PASSES.values()) / step.PASSES["update"]


# --- Measuring ---


def launch(ranks: int, threads: int, script: str, *words) -> tuple[float, int]:
    """Seconds that a script under torchrun took, and the most bytes that a rank of it held."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", ranks]
    command = [sys.executable, *launcher, script, *words]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)  # of torchrun and the ranks that it waited for
    if status:
        raise RuntimeError(f"{script}: {last_words(said)}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def measure(folder: Path, point: Point, steps: int) -> dict:
    data = write_questions(folder, point.images, point.questions)
    run = folder / "runs" / "-".join(str(value) for value in asdict(point).values())
    words = ["--model", folder / "model", "--data", data, "--out", run, "--steps", steps]
    words += ["--prompts", point.questions, "--updates", 1, "--n-s", point.n_s]
    words += ["--rollouts", point.n, "--max-tokens", point.response, "--show", 0]
    words += ["--save-every", 10**6]
    threads = 1 if point.questions > 1 else os.cpu_count()
    _, peak = launch(point.ranks, threads, "perl/train.py", *words)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][1:]
    phases = {}
    for name in (*step.PASSES, "sync"):
        phases[name] = statistics.median(row[f"seconds_{name}"] for row in rows)
    found = asdict(point) | {"phases": phases, "seconds": sum(phases.values()), "peak": peak}
    return found | {"flops": flops(folder, point), "length": rows[-1]["response_length"]}


def asking(folder: Path, script: str, ranks: int) -> dict:
    """Questions a second once all is started."""
    taken = []
    for count in (FEW, MANY):
        data = write_questions(folder, START.images, count)
        words = ["--model", folder / "model", "--max-tokens", START.response]
        if script == "perl/filter.py":
            words += [data, "--out", folder / f"kept-{ranks}-{count}.jsonl"]
        else:
            words += ["--data", data, "--out", folder / f"orders-{ranks}-{count}"]
        taken.append(launch(ranks, 1, script, *words)[0])
    return {"script": script, "ranks": ranks, "a_second": (MANY - FEW) / (taken[1] - taken[0])}


# --- What was measured ---


def table(report: dict) -> str:
    lines = [
        "| axis | at | seconds | sampling, reference, update, sync | bound, s | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for axis, points in report["axes"].items():
        for point in points:
            phases = ", ".join(f"{seconds:.2f}" for seconds in point["phases"].values())
            bound = point["flops"] / report["gemm_flops"]
            lines.append(
                f"| {axis} | {point[axis]} | {point['seconds']:.2f} | {phases} "
                f"| {bound:.2f} | {point['peak'] / 1e9:.2f} GB |"
            )
    if report["asking"]:
        ranks = sorted({row["ranks"] for row in report["asking"]})
        lines += ["", "| questions a second | " + " | ".join(f"{k} ranks" for k in ranks) + " |"]
        lines.append("|---" * (1 + len(ranks)) + "|")
        for script in ("perl/filter.py", "evals/orders.py"):
            cells = [f"{r['a_second']:.2f}" for r in report["asking"] if r["script"] == script]
            lines.append(f"| {script} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(report: dict, path: Path) -> None:
    """Seconds and bound on the left axis of each panel, memory on the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(report["axes"]), 3.2), layout="constrained")
    panels = figure.subplots(1, len(report["axes"]), squeeze=False)[0]
    for panel, (axis, points) in zip(panels, report["axes"].items()):
        at = [point[axis] for point in points]
        panel.plot(at, [point["seconds"] for point in points], "o-", label="seconds")
        bounds = [point["flops"] / report["gemm_flops"] for point in points]
        panel.plot(at, bounds, "o:", color="tab:grey", label="bound")
        panel.set(xlabel=axis, ylim=(0, None))
        memory = panel.twinx()
        memory.plot(at, [point["peak"] / 1e9 for point in points], "s--", color="tab:orange")
        memory.set(ylim=(0, None))
    panels[0].set_ylabel("seconds a step; GB a rank (orange)")
    panels[0].legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = [*AXES, "asking"]
    p.add_argument("--only", nargs="+", choices=parts, default=parts, metavar="AXIS")
    p.add_argument("--steps", type=int, default=4, help="of a run; the first is not counted")
    p.add_argument("--out", type=Path, default=ROOT / "bench" / "growth.json")
    args = p.parse_args()

    report = {
        "date": date.today().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "gemm_flops": step.peak_gemm(os.cpu_count()),
        "axes": {},
        "asking": [],
    }

    def keep() -> None:  # what was measured is on disk before the next part starts
        args.out.write_text(json.dumps(report, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_subject(folder)
        known: dict[Point, dict] = {}
        for axis in args.only:
            if axis == "asking":
                for script in ("perl/filter.py", "evals/orders.py"):
                    for ranks in (1, 2, 4):
                        report["asking"].append(asking(folder, script, ranks))
                        keep()
                continue
            report["axes"][axis] = []
            for point in AXES[axis]:
                if point not in known:
                    print(f"{axis} {asdict(point)[axis]} ..", flush=True)
                    known[point] = measure(folder, point, args.steps)
                report["axes"][axis].append(known[point])
                keep()
    print(table(report))
    if report["axes"]:
        plot(report, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
