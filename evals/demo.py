"""The whole pipeline on real images, on any machine: `make demo`.

    data and base -> filter -> GRPO, PeRL, PeRL on what the filter keeps -> accuracy over orders

Of the training questions that ask for one image nine of ten ask for the first (--skew of
data/digits.py), as real data may; the test questions are uniform: what was learnt from slot 1
alone shows in the others.

Each stage is one of the project's command lines, printed before it runs, so that it can be
repeated by hand. The results are runs/demo/report.png, filter.png, summary.json and the table
printed at the end.

    python evals/demo.py [--seed 0] [--out runs/demo]
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from data.digits import TRAIN

FIGURES = ["given", "mean_over_orders", "worst_order", "best_order", "consistency", "by_slot"]
SKEW = 0.9  # of the training questions that ask for one image: the share that ask for the first
# 12 rollouts a question each.
RUNS = {
    "grpo": {"n_s": 0, "rollouts": 12},
    "perl": {"n_s": 1, "rollouts": 6},
    "perl_filtered": {"n_s": 1, "rollouts": 6},
}
RANKS = min(2, torch.cuda.device_count()) or 2


def command(script: str, *arguments, **flags) -> None:
    """Run a script of the project under torchrun (scripts that draw or write data: alone), and
    say the line that does the same."""
    words = [
        *map(str, arguments),
        *(w for k, v in flags.items() for w in (f"--{k.replace('_', '-')}", str(v))),
    ]
    launcher = (
        []
        if script in ("data/digits.py", "evals/filter_plot.py")
        else ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(RANKS)]
    )
    said = shlex.join(
        [f"torchrun --nproc_per_node {RANKS}" if launcher else "python", script, *words]
    )
    print(f"\n$ {said.replace(chr(39), '')}", flush=True)
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // RANKS))} if launcher else {}
    subprocess.run(
        [sys.executable, *launcher, script, *words], cwd=ROOT, env=os.environ | threads, check=True
    )


def read(path: Path) -> list[dict]:
    """The finished lines of a JSONL file, none where there
    is no file; a kill may have torn the last line."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def draw_advantages(axes, name: str, histograms: list[list[int]]) -> None:
    """Fig. 9: the summed histograms of `advantages` in metrics.jsonl, as shares."""
    counts = torch.tensor(histograms).sum(0).float()
    axes.stairs(
        counts / counts.sum(), torch.linspace(-3.125, 3.125, 26).tolist(), label=name, linewidth=2
    )
    axes.set(title="advantages of all rollouts (Fig. 9)", xlabel="A", ylabel="share")


def report(out: Path, summary: dict, metrics: dict[str, list[dict]]) -> None:
    """Reward, accuracy over orders and Fig. 9 above; below, for each run, accuracy by slot over
    training. The filter's histogram is a picture of its own, filter.png.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 7.5), layout="constrained")
    (reward, orders, advantage), by_slot = figure.subplots(2, 3)
    for name, rows in metrics.items():
        reward.plot([r["step"] for r in rows], [r["reward"] for r in rows], label=name)
        draw_advantages(advantage, name, [r["advantages"] for r in rows])
    reward.set(title="reward while training", xlabel="step", ylabel="mean reward of the rollouts")

    kinds = FIGURES[:-1]
    for i, name in enumerate(["base", *RUNS]):
        places = [k + 0.2 * (i - 1.5) for k in range(len(kinds))]
        orders.bar(places, [summary[name][k] for k in kinds], width=0.2, label=name)
    orders.set_xticks(range(len(kinds)), [k.replace("_", "\n") for k in kinds])
    orders.set(title="test questions, over the orders of their images", ylim=(0, 1.05))

    for axes, (name, rows) in zip(by_slot, metrics.items()):
        draw_slots(axes, name, summary["base"]["by_slot"], rows)
    for axes, place in (
        (reward, "lower right"),
        (orders, "lower right"),
        (advantage, "upper left"),
    ):
        axes.legend(loc=place)
    figure.savefig(out / "report.png", dpi=110)


def draw_slots(axes, name: str, base: dict[str, float], rows: list[dict]) -> None:
    """Accuracy by the slot of the right image over training: do slots 3 to 5 rise, or stay?"""
    points = [row for row in rows if "eval_given" in row]
    steps = [0] + [row["step"] + 1 for row in points]
    for slot, before in base.items():
        axes.plot(steps, [before] + [row[f"eval_slot_{slot}"] for row in points], label=slot)
    axes.set(title=f"{name}: accuracy by slot", xlabel="step", ylim=(0, 1.05))
    axes.legend(title="slot", loc="lower right")


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", default="runs/demo")
    args = p.parse_args()
    start, seed, out = time.perf_counter(), args.seed, Path(args.out)
    digits = Path("runs") / ("digits" if seed == 0 else f"digits-{seed}")
    settings = {k: v for k, v in TRAIN.items() if k != "n"}
    limits = {k: TRAIN[k] for k in ("max_prompt", "max_tokens")}

    command("data/digits.py", out=digits, seed=seed, skew=SKEW)
    filtered = out / "train.jsonl"
    command(
        "perl/filter.py",
        digits / "train.jsonl",
        model=digits / "base",
        out=filtered,
        seed=seed,
        **limits,
    )
    command("evals/filter_plot.py", filtered, out=out / "filter.png")
    for name, groups in RUNS.items():
        # Of the demo before this one; train.py goes over no run.
        shutil.rmtree(ROOT / out / name, ignore_errors=True)
        command(
            "perl/train.py",
            model=digits / "base",
            data=filtered if name == "perl_filtered" else digits / "train.jsonl",
            out=out / name,
            seed=seed,
            eval=digits / "test.jsonl",
            eval_every=5,
            **(settings | groups),
        )
    models = {"base": digits / "base"} | {name: out / name / "model" for name in RUNS}
    for name, model in models.items():
        command(
            "evals/orders.py",
            model=model,
            data=digits / "test.jsonl",
            out=out / f"eval-{name}",
            seed=seed,
            **limits,
        )

    out = ROOT / out
    evals = {
        name: json.loads((out / f"eval-{name}" / "orders.json").read_text()) for name in models
    }
    metrics = {name: read(out / name / "metrics.jsonl") for name in RUNS}
    # The file keeps the scores of other seeds, too.
    made = {
        "model": str(digits / "base"),
        "seed": seed,
    }
    scored = [
        row
        for row in read(out / "train.jsonl.scores.jsonl")
        if made.items() <= row["settings"].items()
    ]
    before = list({row["id"]: row["accuracy"] for row in scored}.values())
    after = [row["accuracy"] for row in read(out / "train.jsonl")]
    summary = {"seed": seed} | {
        name: {k: evals[name][k] for k in (*FIGURES, "by_task")} for name in models
    }
    summary["filter"] = {
        "mean_before": sum(before) / len(before),
        "mean_after": sum(after) / len(after),
    }
    summary["max_abs_logp_gap"] = max(
        row["logp_gap_max"] for rows in metrics.values() for row in rows
    )
    summary["minutes"] = (time.perf_counter() - start) / 60
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    report(out, summary, metrics)

    print(
        f"\n{'':14}"
        + "".join(f"{k.replace('_', ' '):>18}" for k in FIGURES[:-1])
        + "   by slot of the right image"
    )
    for name in models:
        by_slot = " ".join(f"{v:.2f}" for v in summary[name]["by_slot"].values())
        print(
            f"{name:14}"
            + "".join(f"{summary[name][k]:18.3f}" for k in FIGURES[:-1])
            + f"   {by_slot}"
        )
    print(
        f"\n{summary['minutes']:.1f} minutes; {args.out}/report.png, {args.out}/filter.png, "
        f"{args.out}/summary.json",
        flush=True,
    )


if __name__ == "__main__":
    main()
