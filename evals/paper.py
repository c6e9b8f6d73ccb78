"""Where permutation helps, and where it does not: `make paper`.

The digits task, 20 steps of 32 questions x 12 rollouts; greedy answers on 240 test questions over
the orders of their images (of four and of five images: 6 of them). The test questions are always
uniform; of the training questions that ask for one image most ask for the first (`skew 0.9`: nine
of ten), as real data may. A seed is everything: digits, questions, the base that is warmed up, training. The
parts, and how many seeds each has, are PARTS; what each arm changes is ARMS:

    main      GRPO and PeRL at skew 0.9
    axis      the two on uniform questions and at skew 0.5, 0.7 and 1.0
    arms      at skew 0.9: the difficulty filter, more copies, no decay, one sigma for ever, two
              baselines, plain augmentation, joint reward, adaptive permutation
    mix       questions with several images alone, with one image alone (the paper's Table 3)
    ratio     each rollout's ratio under the original prompt instead of its own
    filter    the paper's histogram against plain bands, at equal numbers of questions
    danger    a base that is right only in slot 1, originals that are always right: does the
              merged baseline punish the permuted order as a whole?

One core a run, as many runs at a time as there are cores. The figures of each run are added to
--results as they come, and what is there is not run again: an interrupted evening goes on where
it stopped.

    python evals/paper.py [--only axis arms] [--seeds 0 1 2] [--out runs/paper]
    python evals/paper.py --write        # docs/results.md, results.png, skew.png from results.json
"""

import argparse
import hashlib
import json
import math
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from data import digits
from data.digits import TRAIN
from evals.demo import command, draw_advantages, read
from evals.orders import evaluate, summarise
from perl import grpo, permute
from perl.rollout import encode, run
from perl.train import sample_groups

FIGURES = ("given", "mean_over_orders", "worst_order", "best_order", "consistency")
ORDERS = 6  # asked of a question, at most
LIMITS = {"max_prompt": TRAIN["max_prompt"], "max_tokens": TRAIN["max_tokens"]}
EVERY = 5  # steps between the points of a curve
EARLY = 5  # steps: the first ones, in which groups still have spread


# --- Variants: each a small function, an argument of perl/train.py's main ---


def constant_alpha(step: int, total: int, alpha_0: float = 1.0) -> float:
    """No decay."""
    return alpha_0


def release_copies(
    x: permute.Sample, n_s: int, alpha_t: float, seed: int, step: int
) -> list[permute.Copy]:
    """`permute.copies` with the permutation that the release's reseeding leaves: one for each
    number of images, for ever. The coin stays fair (the release's always comes up the same after
    a shuffle), so that this changes one thing.
    """
    group = permute.copies(x, n_s, alpha_t, seed, step)
    sigma = list(range(len(x.images)))
    # (1, 0), (1, 0, 2), (2, 1, 3, 0), (3, 1, 2, 4, 0): as in the release
    random.Random(42).shuffle(sigma)
    same = permute.Copy(permute.permute(x, sigma), tuple(sigma))
    return group[:1] + [same if copy.sigma != group[0].sigma else copy for copy in group[1:]]


def augmented(
    x: permute.Sample, n_s: int, alpha_t: float, seed: int, step: int
) -> list[permute.Copy]:
    """Plain augmentation: the question in one order, any with equal probability; no other one to
    be merged with, and no decay.
    """
    sigma = list(range(len(x.images)))
    if x.permute:
        moving = sigma[x.stem :]
        random.Random(f"augmented/{seed}/{step}/{x.id}").shuffle(moving)
        sigma[x.stem :] = moving
    return [permute.Copy(permute.permute(x, sigma), tuple(sigma))]


def two_baselines(rewards: torch.Tensor) -> torch.Tensor:
    """`grpo.advantages` of each order alone: rewards (1, 2 n) -> (1, 2 n)."""
    return grpo.advantages(rewards.view(2, -1)).view_as(rewards)


def joint(rewards: torch.Tensor) -> torch.Tensor:
    """Rollout j of one order is paid what the worse of the two rollouts j earned (the joint
    reward of ConsistRoll, arXiv 2606.29812): (1, 2 n) -> (1, 2 n).
    """
    worse = rewards.view(2, -1).min(dim=0).values  # (n,)
    return grpo.advantages(torch.cat([worse, worse])[None])


class Adaptive:
    """The probability of permuting a question follows how much two orders of such questions last
    differed, instead of the clock: twice the gap of their mean rewards, a running mean for each
    task, from 0.1 to 1. (A run asks few questions twice, so a memory for each question would stay
    empty.)
    """

    def __init__(self):
        self.gap: dict[str, float] = {}

    def copies(self, x, n_s, alpha_t, seed, step):
        alpha = min(1.0, max(0.1, 2 * self.gap.get(x.task, 1.0)))
        return permute.copies(x, n_s, alpha, seed, step)

    def sample(self, *arguments):
        groups = sample_groups(*arguments)
        for group in groups:
            original, copy = group.copies
            if copy.sigma != original.sigma:
                given, permuted = group.rewards.view(2, -1).mean(dim=1).tolist()
                before = self.gap.get(copy.sample.task, 1.0)
                self.gap[copy.sample.task] = 0.9 * before + 0.1 * abs(given - permuted)
        return groups


def adaptive() -> dict[str, Callable]:
    state = Adaptive()
    return {"copies_of": state.copies, "sample_with": state.sample}


def under_the_original(*arguments):
    """`sample_groups`, but the trainer reads each rollout after the original prompt, whatever
    order it was sampled in.
    """
    groups = []
    for group in sample_groups(*arguments):
        original = group.rows[0]
        rows = tuple(replace(original, responses=row.responses) for row in group.rows)
        groups.append(replace(group, rows=rows))
    return groups


def loss_without_correction(logp, old_logp, ref_logp, sampler_logp, A, weight, **settings):
    """Eq. (6) without the weight between sampler and trainer: here the two read other prompts."""
    return grpo.grpo_loss(logp, old_logp, ref_logp, old_logp, A, weight, **settings)


# --- Arms and parts ---


@dataclass(frozen=True)
class Arm:
    skew: float | None = 0.9  # of the questions that ask for one image; None: uniform
    keep: str = "all"  # of them: all, filtered, 0.1-0.9, 0.2-0.8, several images, one image
    n_s: int = 1
    base: str = "base"  # or "weak": right only where the right image stands first
    every: int = TRAIN["steps"]  # steps between evaluations; the last one is after the last step
    variant: Callable[[], dict[str, Callable]] = field(default=dict)  # arguments of train.main


def fixed(**variant: Callable) -> Callable[[], dict]:
    return lambda: variant


ARMS = {
    "grpo uniform": Arm(skew=None, n_s=0),
    "perl uniform": Arm(skew=None),
    "grpo skew 0.5": Arm(skew=0.5, n_s=0),
    "perl skew 0.5": Arm(skew=0.5),
    "grpo skew 0.7": Arm(skew=0.7, n_s=0),
    "perl skew 0.7": Arm(skew=0.7),
    "grpo skew 0.9": Arm(n_s=0, every=EVERY),
    "perl skew 0.9": Arm(every=EVERY),
    "grpo skew 1.0": Arm(skew=1.0, n_s=0),
    "perl skew 1.0": Arm(skew=1.0),
    "augmentation": Arm(n_s=0, variant=fixed(copies_of=augmented)),
    "filter, grpo": Arm(keep="filtered", n_s=0),
    "filter, perl": Arm(keep="filtered"),
    "n_s = 2": Arm(n_s=2),
    "one permutation": Arm(variant=fixed(copies_of=release_copies)),
    "no decay": Arm(variant=fixed(alpha_of=constant_alpha)),
    "two baselines": Arm(variant=fixed(advantages_of=two_baselines)),
    "joint reward": Arm(variant=fixed(advantages_of=joint)),
    "adaptive": Arm(variant=adaptive),
    "several images": Arm(keep="several images"),
    "one image": Arm(keep="one image"),
    "original prompt": Arm(
        variant=fixed(sample_with=under_the_original, loss_of=loss_without_correction)
    ),
    "band 0.1-0.9": Arm(keep="0.1-0.9"),
    "band 0.2-0.8": Arm(keep="0.2-0.8"),
    "weak, grpo": Arm(skew=1.0, n_s=0, base="weak"),
    "weak, perl": Arm(skew=1.0, base="weak"),
    "weak, two baselines": Arm(
        skew=1.0, base="weak", variant=fixed(advantages_of=two_baselines)
    ),
    "weak, augmentation": Arm(
        skew=1.0, n_s=0, base="weak", variant=fixed(copies_of=augmented)
    ),
}  # fmt: skip

MAIN = ("grpo skew 0.9", "perl skew 0.9")
AXIS = {"uniform": 0.32, "skew 0.5": 0.5, "skew 0.7": 0.7, "skew 0.9": 0.9, "skew 1.0": 1.0}
PARTS = {  # the arms, and how many seeds
    "main": (list(MAIN), 5),
    "axis": (
        [
            f"{method} {place}"
            for place in AXIS
            if place != "skew 0.9"
            for method in ("grpo", "perl")
        ],
        5,
    ),
    "arms": (
        [
            *("augmentation", "filter, grpo", "filter, perl", "n_s = 2", "one permutation"),
            *("no decay", "two baselines", "joint reward", "adaptive"),
        ],
        5,
    ),
    "mix": (["several images", "one image"], 3),
    "ratio": (["original prompt"], 3),
    "filter": (["band 0.1-0.9", "band 0.2-0.8"], 3),
    "danger": (["weak, grpo", "weak, perl", "weak, two baselines", "weak, augmentation"], 3),
}


def jobs(parts: Sequence[str], seeds: Sequence[int]) -> list[tuple[int, str]]:
    """(seed, arm) of every run, a seed after the other, the main arms first."""
    found = []
    for seed in seeds:
        arms = []
        for part in parts:
            names, n_seeds = PARTS[part]
            if seed < n_seeds:
                arms += names
        arms.sort(key=lambda name: name not in MAIN)
        found += [(seed, name) for name in arms]
    return found


# --- The questions and the base of a seed ---


def folder_of(out: Path, seed: int) -> Path:
    return out / str(seed)


def base_of(out: Path, seed: int, base: str) -> Path:
    """The base of `make demo` with this seed, or the weak one of data/digits.py."""
    if base == "weak":
        return folder_of(out, seed) / "weak" / "base"
    return ROOT / "runs" / ("digits" if seed == 0 else f"digits-{seed}") / "base"


def questions_of(out: Path, seed: int, skew: float | None) -> Path:
    return folder_of(out, seed) / ("uniform" if skew is None else f"skew-{skew}") / "train.jsonl"


def prepare(out: Path, seed: int, arms: Sequence[str]) -> None:
    """What the arms of a seed read: bases with their figures, questions, the filter's scores."""
    wanted = [ARMS[name] for name in arms]
    home = base_of(out, seed, "base").parent
    command("data/digits.py", out=home, seed=seed)
    if any(arm.base == "weak" for arm in wanted):
        command("data/digits.py", "--weak", out=base_of(out, seed, "weak").parent, seed=seed)
    for base in {arm.base for arm in wanted}:
        evaluated = folder_of(out, seed) / f"eval-{base}"
        if not (evaluated / "orders.json").exists():
            command(
                "evals/orders.py",
                model=base_of(out, seed, base),
                data=home / "test.jsonl",
                out=evaluated,
                seed=seed,
                orders=ORDERS,
                **LIMITS,
            )

    for skew in {arm.skew for arm in wanted}:
        file = questions_of(out, seed, skew)
        if not file.exists():
            digits.write_questions(file.parent, seed, digits.split_digits(seed), skew)
    kept = questions_of(out, seed, 0.9).with_name("filtered.jsonl")
    if any(arm.keep not in ("all", *SHARES) for arm in wanted) and not kept.exists():
        command(
            "perl/filter.py",
            questions_of(out, seed, 0.9),
            model=base_of(out, seed, "base"),
            out=kept,
            seed=seed,
            **LIMITS,
        )


SHARES = {
    "several images": lambda row: len(row["images"]) > 1,
    "one image": lambda row: len(row["images"]) == 1,
}


def kept(arm: Arm, seed: int, out: Path) -> Path:
    """The file with the questions of an arm, made of its skew's train.jsonl."""
    source = questions_of(out, seed, arm.skew)
    if arm.keep == "all":
        return source
    filtered = source.with_name("filtered.jsonl")
    if arm.keep == "filtered":
        return filtered

    rows = read(source)
    if arm.keep in SHARES:
        chosen = [row for row in rows if SHARES[arm.keep](row)]
    else:  # a plain band, as many questions as the paper's histogram keeps
        low, high = map(float, arm.keep.split("-"))
        scores = {row["id"]: row["accuracy"] for row in read(Path(f"{filtered}.scores.jsonl"))}
        inside = [row for row in rows if low - 1e-9 <= scores[row["id"]] <= high + 1e-9]
        count = min(len(inside), len(read(filtered)))
        chosen = random.Random(f"band/{seed}").sample(inside, count)
    file = source.with_name(f"{arm.keep.replace(' ', '-')}.jsonl")
    aside = file.with_suffix(f".{os.getpid()}")
    aside.write_text("".join(json.dumps(row) + "\n" for row in chosen))
    aside.replace(file)
    return file


# --- One run ---


def over_orders(
    engine, processor, samples: Sequence[permute.Sample], args, grader
) -> dict[str, float]:
    """In the place of train.evaluate: the figures of evals/orders.py, from the engine of
    training; by task also the worst order.
    """

    def ask(questions):
        prompts = encode(processor, questions)
        groups = engine.generate(prompts, n=1, seeds=[0] * len(prompts), temperature=0.0)
        return [rollout.text for (rollout,) in groups]

    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    records = evaluate(ask, samples, args.seed, ORDERS, rank, world)
    summary = summarise(records)
    figures = {f"eval_{name}": summary[name] for name in FIGURES}
    for slot, value in summary["by_slot"].items():
        figures[f"eval_slot_{slot}"] = value
    for task, value in summary["by_task"].items():
        mine = summarise([record for record in records if record["task"] == task])
        figures[f"eval_task_{task}"] = value
        if mine["worst_order"] is not None:
            figures[f"eval_worst_{task}"] = mine["worst_order"]
    return figures


def train(arm: Arm, seed: int, model: Path, questions: Path, test: Path, out: Path, **changes):
    """perl/train.py with the arm's variant, in this process; `changes` to the demo's settings
    are for tests.
    """
    import perl.train

    flags = {name: value for name, value in TRAIN.items() if name not in ("n_s", "n")}
    flags |= {"model": model, "data": questions, "out": out, "seed": seed}
    flags |= {"n_s": arm.n_s, "rollouts": 12 // (arm.n_s + 1)}
    flags |= {"eval": test, "eval_every": arm.every, "save_every": 10**6, "show": 0}
    words = []
    for name, value in (flags | changes).items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    perl.train.main(words, evaluate_with=over_orders, **arm.variant())


def figures_of(folder: Path) -> dict:
    """What a finished run leaves in results.json."""
    rows = read(folder / "metrics.jsonl")
    seconds = [sum(v for name, v in row.items() if name.startswith("seconds_")) for row in rows]

    def evaluated(row: dict, prefix: str) -> dict[str, float]:
        start = f"eval_{prefix}"
        return {name.removeprefix(start): v for name, v in row.items() if name.startswith(start)}

    curve = []
    for row in rows:
        if "eval_given" in row:
            point = {name: row[f"eval_{name}"] for name in FIGURES}
            curve.append({"step": row["step"] + 1, **point, "by_slot": evaluated(row, "slot_")})
    last = rows[-1]
    return {name: last[f"eval_{name}"] for name in FIGURES} | {
        "by_slot": evaluated(last, "slot_"),
        "by_task": evaluated(last, "task_"),
        "worst_by_task": evaluated(last, "worst_"),
        "reward": [round(row["reward"], 4) for row in rows],
        "no_spread": statistics.mean(row["no_spread"] for row in rows),
        "permuted": statistics.mean(row.get("permuted", 0.0) for row in rows),
        "orders_differ": [round(row["orders_differ"], 4) for row in rows if "orders_differ" in row],
        "distinct_answers": statistics.mean(row["distinct_answers"] for row in rows),
        "seconds": statistics.median(seconds[1:]),
        "logp_gap_max": max(row["logp_gap_max"] for row in rows),
        "curve": curve,
        "early_advantages": summed(row["advantages"] for row in rows[:EARLY]),
    }


def figures_of_base(out: Path, seed: int, base: str) -> dict:
    """What was measured of a base, and which one it is: seeds are compared within one alone."""
    asked = json.loads((folder_of(out, seed) / f"eval-{base}" / "orders.json").read_text())
    weights = (base_of(out, seed, base) / "model.safetensors").read_bytes()
    figures = {name: asked[name] for name in (*FIGURES, "by_slot", "by_task")}
    return figures | {"weights": hashlib.sha256(weights).hexdigest()[:16]}


def summed(histograms) -> list[int]:
    return [sum(column) for column in zip(*histograms)]


# --- All runs ---


def load_results(file: Path) -> dict:
    return json.loads(file.read_text()) if file.exists() else {"seeds": {}}


def add_figures(file: Path, seed: int, name: str, figures: dict) -> None:
    """Write aside and rename: a kill leaves the file as it was."""
    results = load_results(file)
    results["python"] = sys.version.split()[0]
    results["cores"] = os.cpu_count()
    results["versions"] = {name: version(name) for name in ("torch", "transformers")}
    results["seeds"].setdefault(str(seed), {})[name] = figures
    aside = file.with_suffix(".tmp")
    aside.write_text(json.dumps(results, indent=1) + "\n")
    aside.replace(file)


def run_folder(out: Path, seed: int, name: str) -> Path:
    return folder_of(out, seed) / re.sub(r"[^\w.]+", "-", name)


def launch(out: Path, seed: int, name: str) -> dict:
    """One arm of one seed in a process of one thread; its words go to the run's log file."""
    folder = run_folder(out, seed, name)
    shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run
    folder.mkdir(parents=True)
    words = [sys.executable, __file__, "--out", str(out), "--seeds", str(seed), "--arm", name]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(folder / "log", "w") as log:
        code = subprocess.run(words, stdout=log, stderr=log, env=one_thread).returncode
    if code:
        raise RuntimeError(f"the run {name!r} of seed {seed} failed: {folder / 'log'} says why")
    figures = figures_of(folder)
    for big in (*folder.glob("step-*"), folder / "tb"):
        shutil.rmtree(big)
    return figures


def run_all(out: Path, results: Path, parts: Sequence[str], seeds: Sequence[int]) -> None:
    """Every run of `parts` that `results` has not."""
    done = load_results(results)["seeds"]
    left = [job for job in jobs(parts, seeds) if job[1] not in done.get(str(job[0]), {})]
    at_once = 1 if torch.cuda.is_available() else os.cpu_count()
    print(f"\n{len(left)} runs to do, {at_once} at a time", flush=True)
    writing = threading.Lock()

    def one(seed: int, name: str) -> None:
        figures = launch(out, seed, name)
        with writing:
            add_figures(results, seed, name, figures)

    with tqdm(total=len(left), desc="runs", dynamic_ncols=True) as bar:
        for seed in sorted({seed for seed, _ in left}):
            mine = [name for of, name in left if of == seed]
            prepare(out, seed, mine)
            for base in {ARMS[name].base for name in mine}:
                figures = figures_of_base(out, seed, base)
                before = done.get(str(seed), {}).get(base, figures)
                if before["weights"] != figures["weights"]:
                    sys.exit(
                        f"paper.py: {results} has runs of seed {seed} from another base than this "
                        "machine makes: name other --seeds, or another --results"
                    )
                add_figures(results, seed, base, figures)
            pool = ThreadPoolExecutor(at_once)
            try:
                for finished in as_completed([pool.submit(one, seed, name) for name in mine]):
                    finished.result()
                    bar.update()
            finally:
                pool.shutdown(cancel_futures=True)  # after a failure or Ctrl-C nothing more starts


# --- Tables and pictures: functions of results.json alone ---


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds, and half the width of its 95% interval (Student's t)."""
    from scipy.stats import t

    n = len(values)
    if n < 2:
        return values[0], float("inf")
    half = t.ppf(0.975, n - 1) * statistics.stdev(values) / n**0.5
    return statistics.mean(values), half


def seeds_with(results: dict, *arms: str) -> list[str]:
    """The seeds that have run all of the arms."""
    return [seed for seed, runs in results["seeds"].items() if all(arm in runs for arm in arms)]


def values_of(results: dict, arm: str, get: Callable[[dict], float], seeds) -> list[float]:
    return [get(results["seeds"][seed][arm]) for seed in seeds]


def worst(run: dict) -> float:
    return run["worst_order"]


def single_images(run: dict) -> float:
    """Accuracy on questions with one image; earlier runs did not keep it."""
    return run.get("by_task", {}).get("single", float("nan"))


def difference(results: dict, arm: str, other: str, get: Callable = worst) -> str:
    """Arm minus other, seed by seed: mean, 95% interval, and whether it excludes 0."""
    seeds = seeds_with(results, arm, other)
    if not seeds:
        return ""
    pairs = zip(values_of(results, arm, get, seeds), values_of(results, other, get, seeds))
    mean, half = interval([mine - theirs for mine, theirs in pairs])
    if len(seeds) == 1:
        return f"{mean:+.3f}, one seed: nothing to tell"
    verdict = "not told apart" if abs(mean) <= half else "higher" if mean > 0 else "lower"
    return f"{mean:+.3f} ± {half:.3f}, {verdict}"


def mean_of(results: dict, arm: str, get: Callable, seeds: Sequence[str]) -> str:
    """The mean over seeds; "" where there is none, or nothing was kept."""
    if not seeds:
        return ""
    mean = statistics.mean(values_of(results, arm, get, seeds))
    return "" if math.isnan(mean) else f"{mean:.3f}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def arm_table(results: dict, arms: Sequence[str], against: str) -> str:
    """One row an arm that has run: means over the seeds that all of them have run, and the paired
    difference of its worst order to `against`.
    """
    shown = [arm for arm in arms if seeds_with(results, arm)]
    seeds = seeds_with(results, *shown)
    rows = []
    for arm in shown:
        cells = [mean_of(results, arm, lambda run, name=name: run[name], seeds) for name in FIGURES]
        single = mean_of(results, arm, single_images, seeds)
        behind = "" if arm == against else difference(results, arm, against)
        rows.append([arm, str(len(seeds)), *cells, single, behind])
    names = [name.replace("_", " ") for name in FIGURES]
    head = ["arm", "seeds", *names, "one image", f"worst order, against `{against}`"]
    return markdown(head, rows)


def run_table(results: dict) -> str:
    """What has been run, of what `make paper` runs."""
    rows = []
    for part, (arms, seeds) in PARTS.items():
        done = sum(len(seeds_with(results, arm)) for arm in arms)
        rows.append([part, str(len(arms)), str(seeds), f"{done} of {len(arms) * seeds}"])
    return markdown(["part", "arms", "seeds", "runs"], rows)


def axis_table(results: dict, get: Callable = worst) -> str:
    """GRPO and PeRL against the skew of the training questions."""
    rows = []
    for place in AXIS:
        grpo_arm, perl_arm = f"grpo {place}", f"perl {place}"
        seeds = seeds_with(results, grpo_arm, perl_arm)
        if not seeds:
            continue
        cells = [mean_of(results, arm, get, seeds) for arm in (grpo_arm, perl_arm)]
        rows.append([place, str(len(seeds)), *cells, difference(results, perl_arm, grpo_arm, get)])
    return markdown(["questions", "seeds", "GRPO", "PeRL", "PeRL - GRPO"], rows)


def seed_table(results: dict) -> str:
    """The two main arms, seed by seed."""
    rows = []
    for seed in seeds_with(results, *MAIN):
        runs = results["seeds"][seed]
        base, theirs, ours = (worst(runs[arm]) for arm in ("base", *MAIN))
        rows.append([seed, *(f"{x:.3f}" for x in (base, theirs, ours)), f"{ours - theirs:+.3f}"])
    return markdown(["seed", "base", *MAIN, "difference"], rows)


def training_table(results: dict) -> str:
    """The worst order of the two main arms over training."""
    grpo_arm, perl_arm = MAIN
    rows = []
    for step in range(EVERY, TRAIN["steps"] + 1, EVERY):
        get = lambda run, step=step: at_step(run, step)["worst_order"]  # noqa: E731
        cells = [mean_of(results, arm, get, seeds_with(results, *MAIN)) for arm in MAIN]
        rows.append([str(step), *cells, difference(results, perl_arm, grpo_arm, get)])
    return markdown(["after step", "GRPO", "PeRL", "PeRL - GRPO"], rows)


def at_step(run: dict, step: int) -> dict:
    """A run's figures after so many steps."""
    [point] = [point for point in run["curve"] if point["step"] == step]
    return point


def task_table(results: dict) -> str:
    """The worst order by kind of question."""
    rows = []
    for task in ("options", "index", "references", "invariant"):
        get = lambda run, task=task: run["worst_by_task"][task]  # noqa: E731
        cells = [mean_of(results, arm, get, seeds_with(results, *MAIN)) for arm in MAIN]
        copies = difference(results, "n_s = 2", MAIN[1], get)
        rows.append([task, *cells, difference(results, MAIN[1], MAIN[0], get), copies])
    return markdown(["task", *MAIN, "PeRL - GRPO", "n_s = 2, against PeRL"], rows)


def slot_table(results: dict, arms: Sequence[str]) -> str:
    """Accuracy by slot over training."""
    rows = []
    for arm in arms:
        runs = [results["seeds"][seed][arm] for seed in seeds_with(results, arm)]
        for points in zip(*(found["curve"] for found in runs)):
            slots = [
                f"{statistics.mean(point['by_slot'][slot] for point in points):.2f}"
                for slot in "12345"
            ]
            rows.append([arm, str(points[0]["step"]), *slots])
    return markdown(["arm", "after step", *(f"slot {slot}" for slot in "12345")], rows)


def spread_table(results: dict) -> str:
    """Whose groups carry a signal, and whose orders differ."""
    rows = []
    for arm in (*MAIN, "two baselines", "filter, grpo", "filter, perl", "adaptive"):
        runs = [results["seeds"][seed][arm] for seed in seeds_with(results, arm)]
        if not runs:
            continue
        cells = [f"{statistics.mean(run['no_spread'] for run in runs):.2f}"]
        for steps in (slice(0, EARLY), slice(-EARLY, None)):
            shares = [
                statistics.mean(run["orders_differ"][steps]) for run in runs if run["orders_differ"]
            ]
            cells.append(f"{statistics.mean(shares):.2f}" if shares else "")
        rows.append([arm, *cells, f"{statistics.mean(run['permuted'] for run in runs):.2f}"])
    head = ["arm", "groups without spread", "orders differ, first steps", "last steps", "permuted"]
    return markdown(head, rows)


def tables(results: dict) -> dict[str, str]:
    """Name -> table in Markdown; docs/results.md holds each between two comments."""
    grpo_arm, perl_arm = MAIN
    return {
        "runs": run_table(results),
        "axis": axis_table(results),
        "axis, one image": axis_table(results, single_images),
        "seeds": seed_table(results),
        "training": training_table(results),
        "slots": slot_table(results, MAIN),
        "arms": arm_table(results, ["base", grpo_arm, perl_arm, *PARTS["arms"][0]], perl_arm),
        "augmentation": arm_table(results, ["no decay", "augmentation"], "no decay"),
        "filter and permutation": arm_table(
            results, [*MAIN, "filter, grpo", "filter, perl"], grpo_arm
        ),
        "tasks": task_table(results),
        "spread": spread_table(results),
        "mix": arm_table(results, [perl_arm, *PARTS["mix"][0]], perl_arm),
        "ratio": arm_table(results, [perl_arm, *PARTS["ratio"][0]], perl_arm),
        "filter": arm_table(results, ["filter, perl", *PARTS["filter"][0]], "filter, perl"),
        "uniform": arm_table(
            results.get("uniform", {"seeds": {}}),
            ["base", "neither", "filter", "permutation", "both"],
            "both",
        ),
        "danger": arm_table(results, ["weak", *PARTS["danger"][0]], "weak, perl"),
        "danger, against GRPO": arm_table(results, PARTS["danger"][0], "weak, grpo"),
        "danger, slots": slot_table(results, PARTS["danger"][0]),
    }


def insert(text: str, found: dict[str, str]) -> str:
    """The document, each table between its comments, `<!-- table NAME -->` and `<!-- end -->`."""
    for name, table in found.items():
        block = rf"(<!-- table {re.escape(name)} -->\n).*?(\n<!-- end -->)"
        text = re.sub(block, lambda m, table=table: m[1] + table + m[2], text, flags=re.S)
    return text


COLOURS = {"grpo": "#8a8a8a", "perl": "#3b6ea8"}


def plot_skew(results: dict, path: Path) -> None:
    """Worst order against the skew of the training questions."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2, 3.6), layout="constrained")
    axes = figure.subplots()
    for method, name in (("grpo", "GRPO"), ("perl", "PeRL")):
        places = [place for place in AXIS if seeds_with(results, f"{method} {place}")]
        found = []
        for place in places:
            arm = f"{method} {place}"
            found.append(interval(values_of(results, arm, worst, seeds_with(results, arm))))
        means, halves = [mean for mean, _ in found], [half for _, half in found]
        at = [AXIS[place] for place in places]
        axes.errorbar(at, means, halves, marker="o", capsize=3, label=name, color=COLOURS[method])
    axes.set_xticks(list(AXIS.values()), [place.removeprefix("skew ") for place in AXIS])
    axes.set(
        xlabel="share of questions for one image that ask for the first",
        ylabel="right in every order",
        title="test questions are uniform; mean and 95% interval over seeds",
    )
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=120)


def plot(results: dict, path: Path) -> None:
    """Accuracy by slot over training; the arms; Fig. 9 over the first steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.4), layout="constrained")
    by_slot, arms, advantage = figure.subplots(1, 3, width_ratios=(1, 1.3, 1))
    for arm, style in zip(MAIN, (":", "-")):
        runs = [results["seeds"][seed][arm] for seed in seeds_with(results, arm)]
        if not runs:
            continue
        bases = [results["seeds"][seed]["base"] for seed in seeds_with(results, arm)]
        steps = [0] + [point["step"] for point in runs[0]["curve"]]
        for k, slot in enumerate("12345"):
            first = statistics.mean(base["by_slot"][slot] for base in bases)
            later = [
                statistics.mean(point["by_slot"][slot] for point in points)
                for points in zip(*(found["curve"] for found in runs))
            ]
            label = f"slot {slot}" if arm == MAIN[1] else None
            by_slot.plot(steps, [first, *later], style, color=f"C{k}", label=label)
        draw_advantages(advantage, arm, [run["early_advantages"] for run in runs])
    by_slot.set(title="accuracy by slot: PeRL solid, GRPO dotted", xlabel="step", ylim=(0, 1.05))
    by_slot.legend(loc="lower right")

    names = [name for name in (*MAIN, *PARTS["arms"][0]) if seeds_with(results, name)]
    for y, name in enumerate(names):
        values = values_of(results, name, worst, seeds_with(results, name))
        arms.scatter(values, [y] * len(values), s=14, color="tab:grey")
        arms.scatter(statistics.mean(values), y, marker="|", s=260, color="tab:blue", linewidth=3)
    arms.set_yticks(range(len(names)), names)
    arms.invert_yaxis()
    arms.set(title="right in every order", xlabel="a dot a seed, a bar the mean")
    advantage.set_title(f"advantages of the first {EARLY} steps (Fig. 9)")
    advantage.legend()
    figure.savefig(path, dpi=120)


def write(file: Path) -> None:
    """The tables and pictures of docs/, from results.json."""
    results, docs = load_results(file), file.parent
    for document in (docs / "results.md", docs.parent / "README.md"):
        if document.exists():
            document.write_text(insert(document.read_text(), tables(results)))
    plot(results, docs / "results.png")
    plot_skew(results, docs / "skew.png")


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    p.add_argument("--out", default="runs/paper", help="where the runs are written")
    p.add_argument("--results", default="docs/results.json", help="where their figures are kept")
    p.add_argument("--write", action="store_true", help="tables and pictures alone, no run")
    p.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)  # one run, for `launch`
    args = p.parse_args()
    out, results = ROOT / args.out, ROOT / args.results
    if args.arm:
        arm, seed = ARMS[args.arm], args.seeds[0]
        model, test = base_of(out, seed, arm.base), questions_of(out, seed, arm.skew)
        questions, folder = kept(arm, seed, out), run_folder(out, seed, args.arm)
        test = test.with_name("test.jsonl")
        return run(lambda: train(arm, seed, model, questions, test, folder))

    start = time.perf_counter()
    if not args.write:
        run_all(out, results, args.only, args.seeds)
    write(results)
    found = tables(load_results(results))
    print("\n\n".join(f"{name}\n\n{table}" for name, table in found.items()))
    print(f"\n{(time.perf_counter() - start) / 60:.1f} minutes; figures in {args.results}")


if __name__ == "__main__":
    main()
