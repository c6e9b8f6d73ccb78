"""What the paper claims, and what it leaves out, measured at small scale: `make paper`.

The digits task, 20 steps of 32 questions x 12 rollouts, greedy answers on 240 test questions over
the orders of their images (of five images: 24 of them). A seed is everything: the digits and
questions, the base that is warmed up on them, the filter, the training. Each arm changes one
thing; `filter` and `both` also stand for plain GRPO and PeRL in all comparisons below them:

    base             the model before training
    neither          plain GRPO, n_s = 0 and n = 12, on questions drawn from all
    filter           plain GRPO on the questions that the difficulty filter keeps
    permutation      n_s = 1 and n = 6, on questions drawn from all
    both             PeRL: n_s = 1 and n = 6, filtered
    n_s=2, n_s=3     n = 4 and n = 3: Table 2's axis, always 12 rollouts a question
    no decay         PeRL with alpha = 1 throughout
    one permutation  the release's: one sigma for all questions with equally many images
    two baselines    a baseline and a spread for each order of a question, not Eqs. 4-5

One core a run, as many runs at a time as there are cores. What is finished stays in OUT and is
not run again, so an interrupted evening goes on where it stopped.

    python evals/paper.py [--seeds 0 1 2 3 4] [--out runs/paper]

writes OUT/results.json (every figure of every run),
OUT/results.md (the tables) and OUT/results.png."""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from data.digits import TRAIN
from evals.demo import command, draw_advantages, read
from evals.orders import MAX_ORDERS, evaluate, summarise
from perl import grpo, permute
from perl.rollout import encode, run

FIGURES = ("given", "mean_over_orders", "worst_order", "best_order", "consistency")
LIMITS = {"max_prompt": TRAIN["max_prompt"], "max_tokens": TRAIN["max_tokens"]}


# --- Variants: each a small function, an argument of perl/train.py's main ---


def constant_alpha(step: int, total: int, alpha_0: float = 1.0) -> float:
    """No decay."""
    return alpha_0


def release_copies(
    sample: permute.Sample, n_s: int, alpha_t: float, seed: int, step: int
) -> list[permute.Copy]:
    """`permute.copies` with the permutation that the release's reseeding leaves: one for each
    number of images, for ever. The coin stays fair (the release's always comes up the same after
    a shuffle), so that this changes one thing."""
    group = permute.copies(sample, n_s, alpha_t, seed, step)
    sigma = list(range(len(sample.images)))
    # (1, 0), (1, 0, 2), (2, 1, 3, 0), (3, 1, 2, 4, 0): as in the release
    random.Random(42).shuffle(sigma)
    same = permute.Copy(permute.permute(sample, sigma), tuple(sigma))
    return group[:1] + [same if copy.sigma != group[0].sigma else copy for copy in group[1:]]


def two_baselines(rewards: torch.Tensor) -> torch.Tensor:
    """`grpo.advantages` of each order alone: rewards (1, 2 n) -> (1, 2 n)."""
    return grpo.advantages(rewards.view(2, -1)).view_as(rewards)


@dataclass(frozen=True)
class Arm:
    filtered: bool = True
    n_s: int = 1
    every: int = TRAIN["steps"]  # steps between evaluations; the last one is after the last step
    variant: dict[str, Callable] = field(default_factory=dict)  # arguments of perl/train.py's main


ARMS = {
    "neither": Arm(filtered=False, n_s=0),
    "filter": Arm(n_s=0, every=4),
    "permutation": Arm(filtered=False),
    "both": Arm(every=4),
    "n_s=2": Arm(n_s=2),
    "n_s=3": Arm(n_s=3),
    "no decay": Arm(variant={"alpha_of": constant_alpha}),
    "one permutation": Arm(variant={"copies_of": release_copies}),
    "two baselines": Arm(variant={"advantages_of": two_baselines}),
}


# --- One run ---


def over_orders(
    engine, processor, samples: Sequence[permute.Sample], args, grader
) -> dict[str, float]:
    """In the place of train.evaluate: the figures of
    evals/orders.py, from the engine of training."""

    def ask(questions):
        prompts = encode(processor, questions)
        groups = engine.generate(prompts, n=1, seeds=[0] * len(prompts), temperature=0.0)
        return [rollout.text for (rollout,) in groups]

    world = torch.distributed.get_world_size()
    summary = summarise(
        evaluate(ask, samples, args.seed, MAX_ORDERS, torch.distributed.get_rank(), world)
    )
    slots = {f"eval_slot_{slot}": value for slot, value in summary["by_slot"].items()}
    return {f"eval_{name}": summary[name] for name in FIGURES} | slots


def train(arm: Arm, seed: int, digits: Path, questions: Path, out: Path, **changes) -> None:
    """perl/train.py with the arm's variant, in this process;
    `changes` to the demo's settings are for tests."""
    import perl.train

    flags = (
        {k: v for k, v in TRAIN.items() if k not in ("n_s", "n")}
        | {
            "model": digits / "base",
            "data": questions,
            "out": out,
            "seed": seed,
            "n_s": arm.n_s,
            "rollouts": 12 // (arm.n_s + 1),
            "eval": digits / "test.jsonl",
            "eval_every": arm.every,
            "save_every": 10**6,
            "show": 0,
        }
        | changes
    )
    perl.train.main(
        [
            word
            for name, value in flags.items()
            for word in (f"--{name.replace('_', '-')}", str(value))
        ],
        evaluate_with=over_orders,
        **arm.variant,
    )


# --- All runs ---


def paths(out: Path, seed: int) -> tuple[Path, Path]:
    """The digits of a seed, shared with `make demo`, and what this script keeps of it."""
    return ROOT / "runs" / ("digits" if seed == 0 else f"digits-{seed}"), out / str(seed)


def prepare(out: Path, seed: int) -> None:
    """Questions, base, filter and the figures of the base, by the project's command lines."""
    digits, folder = paths(out, seed)
    command("data/digits.py", out=digits, seed=seed)
    if not (folder / "train.jsonl").exists():
        command(
            "perl/filter.py",
            digits / "train.jsonl",
            model=digits / "base",
            out=folder / "train.jsonl",
            seed=seed,
            **LIMITS,
        )
    if not (folder / "base" / "orders.json").exists():
        command(
            "evals/orders.py",
            model=digits / "base",
            data=digits / "test.jsonl",
            out=folder / "base",
            seed=seed,
            **LIMITS,
        )


def finished(folder: Path) -> bool:
    """Whether the run in `folder` has written its last step's evaluation."""
    rows = read(folder / "metrics.jsonl")
    return len(rows) == TRAIN["steps"] and "eval_given" in rows[-1] and (folder / "model").exists()


def launch(out: Path, seed: int, name: str) -> None:
    """One arm of one seed in a process of one thread; its words go to the run's log file."""
    folder = out / str(seed) / name
    shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run
    folder.mkdir(parents=True)
    words = [sys.executable, __file__, "--out", str(out), "--seeds", str(seed), "--arm", name]
    with open(folder / "log", "w") as log:
        code = subprocess.run(
            words, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"}
        ).returncode
    if code or not finished(folder):
        raise RuntimeError(f"the run {name!r} of seed {seed} failed: {folder / 'log'} says why")


def collect(out: Path, seeds: Sequence[int]) -> dict:
    """results.json: seed -> arm -> figures; `curve`: the figures over training; `advantages`: the
    histogram of all steps."""
    from importlib.metadata import version

    figures = {}
    for seed in seeds:
        base = json.loads((out / str(seed) / "base" / "orders.json").read_text())
        figures[str(seed)] = {
            "base": {name: base[name] for name in FIGURES} | {"by_slot": base["by_slot"]}
        }
        for name in ARMS:
            rows = read(out / str(seed) / name / "metrics.jsonl")
            curve = [
                {"step": r["step"] + 1} | {f: r[f"eval_{f}"] for f in FIGURES}
                for r in rows
                if "eval_given" in r
            ]
            seconds = [sum(r[k] for k in r if k.startswith("seconds_")) for r in rows]
            figures[str(seed)][name] = {f: curve[-1][f] for f in FIGURES} | {
                "by_slot": {
                    k.removeprefix("eval_slot_"): v
                    for k, v in rows[-1].items()
                    if k.startswith("eval_slot_")
                },
                "reward": [r["reward"] for r in rows],
                "no_spread": statistics.mean(r["no_spread"] for r in rows),
                "permuted": statistics.mean(r["permuted"] for r in rows),
                "seconds": statistics.median(seconds[1:]),
                "logp_gap_max": max(r["logp_gap_max"] for r in rows),
                "curve": curve,
                "advantages": [sum(column) for column in zip(*(r["advantages"] for r in rows))],
            }
    line = "python evals/paper.py --seeds " + " ".join(map(str, seeds))
    versions = {name: version(name) for name in ("torch", "transformers")}
    return {
        "command": line,
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
        "versions": versions,
        "seeds": figures,
    }


# --- Tables and figures: functions of results.json alone ---


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation."""
    return (
        f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"
        if len(values) > 1
        else f"{values[0]:.3f}"
    )


def table(
    results: dict,
    arms: Sequence[str],
    extra: Sequence[tuple[str, Callable[[dict], float], str]] = (),
) -> str:
    """One row an arm: mean ± standard deviation over seeds, and how its worst order differs from
    PeRL's on the same seeds."""
    runs = results["seeds"].values()
    names = (
        [name.replace("_", " ") for name in FIGURES]
        + ["best - worst", "worst order, against both"]
        + [name for name, *_ in extra]
    )
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for arm in arms:
        mine = [run[arm] for run in runs]
        cells = [spread([r[f] for r in mine]) for f in FIGURES] + [
            spread([r["best_order"] - r["worst_order"] for r in mine])
        ]
        behind = [r["worst_order"] - run["both"]["worst_order"] for r, run in zip(mine, runs)]
        cells.append(
            ""
            if arm == "both"
            else f"{spread(behind)} ({sum(d < 0 for d in behind)} of {len(behind)} lower)"
        )
        cells += [
            "" if arm == "base" else form.format(statistics.mean(map(get, mine)))
            for _, get, form in extra
        ]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gap_table(results: dict) -> str:
    """Best minus worst order over training: the claim of the paper's theory."""
    runs = list(results["seeds"].values())
    steps = [point["step"] for point in runs[0]["both"]["curve"]]
    lines = [
        "| best - worst order after step | 0 | " + " | ".join(map(str, steps)) + " |",
        "|---" * (len(steps) + 2) + "|",
    ]
    for arm, name in (("filter", "GRPO"), ("both", "PeRL")):
        gaps = [
            [
                point["best_order"] - point["worst_order"]
                for point in (run["base"], *run[arm]["curve"])
            ]
            for run in runs
        ]
        lines.append(f"| {name} | " + " | ".join(map(spread, zip(*gaps))) + " |")
    return "\n".join(lines)


def tables(results: dict) -> dict[str, str]:
    """Heading -> table in Markdown."""
    learned = [("groups without spread", lambda r: r["no_spread"], "{:.2f}")]
    seconds = [("seconds a step", lambda r: r["seconds"], "{:.2f}")]
    return {
        "Filter and permutation": table(
            results, ("base", "neither", "filter", "permutation", "both"), learned
        ),
        "Permuted copies, 12 rollouts a question": table(
            results, ("filter", "both", "n_s=2", "n_s=3"), seconds
        ),
        "Best against worst order over training": gap_table(results),
        "Decay, random permutations, merged baselines": table(
            results, ("both", "no decay", "one permutation", "two baselines"), learned
        ),
    }


def plot(results: dict, path: Path) -> None:
    """Worst order of every arm and seed; the gap over training; Fig. 9."""
    from matplotlib.figure import Figure

    runs, arms = list(results["seeds"].values()), ["base", *ARMS]
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    worst, gap, advantage = figure.subplots(1, 3, width_ratios=(1.4, 1, 1))
    for y, arm in enumerate(arms):
        values = [run[arm]["worst_order"] for run in runs]
        worst.scatter(values, [y] * len(values), s=14, color="tab:grey")
        worst.scatter(statistics.mean(values), y, marker="|", s=260, color="tab:blue", linewidth=3)
    worst.set_yticks(range(len(arms)), arms)
    worst.invert_yaxis()
    worst.set(
        title="right in every order of the images",
        xlabel="share of the questions; a dot a seed, a bar the mean",
    )
    for arm, name in (("filter", "GRPO"), ("both", "PeRL")):
        curves = [
            [p["best_order"] - p["worst_order"] for p in (run["base"], *run[arm]["curve"])]
            for run in runs
        ]
        steps = [0] + [p["step"] for p in runs[0][arm]["curve"]]
        means = [statistics.mean(column) for column in zip(*curves)]
        low, high = ([f(column) for column in zip(*curves)] for f in (min, max))
        gap.plot(steps, means, marker="o", label=name)
        gap.fill_between(steps, low, high, alpha=0.15)
        draw_advantages(advantage, name, [run[arm]["advantages"] for run in runs])
    gap.set(
        title="best minus worst order", xlabel="step; mean, and range over seeds", ylim=(0, None)
    )
    for axes in (gap, advantage):
        axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    p.add_argument("--out", default="runs/paper")
    p.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)  # one run, for `launch`
    args = p.parse_args()
    out = ROOT / args.out
    if args.arm:
        digits, folder = paths(out, args.seeds[0])
        arm = ARMS[args.arm]
        questions = (folder if arm.filtered else digits) / "train.jsonl"
        return run(lambda: train(arm, args.seeds[0], digits, questions, folder / args.arm))

    start = time.perf_counter()
    for seed in args.seeds:
        prepare(out, seed)
    left = [
        (seed, name) for seed in args.seeds for name in ARMS if not finished(out / str(seed) / name)
    ]
    at_once = 1 if torch.cuda.is_available() else os.cpu_count()
    print(
        f"\n{len(left)} of {len(args.seeds) * len(ARMS)} runs to do, {at_once} at a time",
        flush=True,
    )
    pool = ThreadPoolExecutor(at_once)
    try:
        with tqdm(total=len(left), desc="runs", dynamic_ncols=True) as bar:
            for done in as_completed([pool.submit(launch, out, *job) for job in left]):
                done.result()
                bar.update()
    finally:
        pool.shutdown(cancel_futures=True)  # after a failure or Ctrl-C nothing more starts
    results = collect(out, args.seeds)
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    text = "\n\n".join(f"## {heading}\n\n{rows}" for heading, rows in tables(results).items())
    (out / "results.md").write_text(text + "\n")
    plot(results, out / "results.png")
    print(
        f"\n{text}\n\n{(time.perf_counter() - start) / 60:.1f} minutes; {args.out}/results.md, results.json, results.png"
    )


if __name__ == "__main__":
    main()
