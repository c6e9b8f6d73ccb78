"""The paper's benchmarks in the given order of the images, and over orders.

    python data/benchmarks.py all --out BENCH
    torchrun --nproc_per_node 8 evals/benchmarks.py --model MODEL --data BENCH --out EVAL

asks every set NAME.jsonl in BENCH, greedily, with the prompt of training and one engine, and writes

    EVAL/NAME.json          the figures of a set; what is there, from the same rows and settings,
    EVAL/NAME.answers.jsonl is not asked again: a run that is cut off goes on where it stopped
    EVAL/table.md, table.json, benchmarks.png

All rows are asked in the given order. A permutable row is also asked in other orders of its
images (--orders in all, drawn with --seed), and once more in the given one: a model's greedy
answer may change with the batch it is in, so a change of answer between orders says something only
beside the change between two asks of the same order (`same order twice`). Every figure has its
number of questions and a 95% interval (bootstrap over questions). Scores are rules, never a judge
(evals/scores.py).

    python evals/benchmarks.py --out EVAL --against EVAL2      # paired differences, no model
"""

import argparse
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from evals.orders import (
    answers,
    chat_settings,
    evaluate,
    longest_prompt,
    open_renderer,
    summarise,
)
from evals.scores import MEAN_OVER_TASKS, score
from perl.permute import DataError, Sample, load
from perl.rollout import (
    SLACK,
    add_engine_arguments,
    at_least,
    gather,
    join_torchrun,
    run,
    start,
    stop,
)

RESAMPLES = 2000  # of the bootstrap
HEAD = "rule-graded, no judge, our prompt"


# --- Asking ---


def ask_set(
    ask: Callable[[Sequence[Sample]], list[str]],
    samples: Sequence[Sample],
    args,
    rank: int,
    world: int,
) -> list[dict]:
    """The records of a set, of all ranks on all ranks: every row in the given order (order 0), a
    permutable one in others too, and once more in the given one (`again`). Collective.
    """
    records = evaluate(ask, samples, args.seed, args.orders, rank, world, score)
    several = {record["id"] for record in records if record["order"] > 0}
    twice = [x for x in samples if x.id in several]
    repeated = evaluate(ask, twice, args.seed, 1, rank, world, score)
    marked = [record | {"again": False} for record in records]
    return marked + [record | {"again": True} for record in repeated]


# --- Figures ---


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def interval(values: Sequence[float], seed: int) -> list[float]:
    """The 95% interval of the mean: bootstrap over questions."""
    import numpy as np

    rng = np.random.default_rng(seed)
    array = np.asarray(values, dtype=float)
    drawn = rng.integers(0, len(array), (RESAMPLES, len(array)))
    return [float(x) for x in np.quantile(array[drawn].mean(axis=1), (0.025, 0.975))]


def by_question(records: Sequence[dict]) -> dict[str, dict[str, float]]:
    """Figure -> question -> value: given over all questions, the others over those that were
    asked in several orders.
    """
    groups: dict[str, list[dict]] = {}
    for record in records:
        groups.setdefault(record["id"], []).append(record)
    names = ("given", "mean", "worst", "best", "consistency", "same order twice")
    found: dict[str, dict[str, float]] = {name: {} for name in names}
    for question, group in groups.items():
        orders = [record for record in group if not record["again"]]
        right = [record["right"] for record in orders]
        found["given"][question] = right[0]
        if len(orders) == 1:
            continue
        found["mean"][question] = mean(right)
        found["worst"][question] = min(right)
        found["best"][question] = max(right)
        said = [record["answer"] for record in orders]
        again = next(record["answer"] for record in group if record["again"])
        found["consistency"][question] = float(said[0] is not None and len(set(said)) == 1)
        found["same order twice"][question] = float(said[0] is not None and said[0] == again)
    return found


def figures(records: Sequence[dict], name: str, seed: int) -> dict:
    """The figures of a set, each with its number of questions and its interval."""
    found: dict[str, object] = {}
    for figure, values in by_question(records).items():
        if values:
            listed = list(values.values())
            found[figure] = {
                "value": mean(listed),
                "n": len(listed),
                "interval": interval(listed, seed),
            }
    asked_once = [record for record in records if not record["again"]]
    summary = summarise(asked_once)
    given = [record for record in asked_once if record["order"] == 0]
    tasks: dict[str, list[float]] = {}
    for record in given:
        tasks.setdefault(record["task"] or name, []).append(record["right"])
    found["by_task"] = {
        task: {"value": mean(right), "n": len(right)} for task, right in sorted(tasks.items())
    }
    found["by_slot"] = summary["by_slot"]
    over_tasks = name in MEAN_OVER_TASKS
    found["overall"] = {
        "rule": "mean over tasks" if over_tasks else "mean over rows",
        "value": mean([mean(right) for right in tasks.values()])
        if over_tasks
        else found["given"]["value"],
    }
    return found


def cell(figure: dict | None) -> str:
    """A figure with its interval, in per cent."""
    if figure is None:
        return ""
    low, high = figure["interval"]
    return f"{100 * figure['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


COLUMNS = ("mean", "worst", "best", "consistency", "same order twice")


def table(results: dict[str, dict]) -> str:
    """All sets as Markdown: the given order on all rows, the rest on the permutable ones."""
    total = sum(found["given"]["n"] for found in results.values())
    lines = [
        f"Per cent, {HEAD}, {total} rows; in brackets 95% intervals over questions.",
        "",
        "| set | rows | overall | given order | permutable | " + " | ".join(COLUMNS) + " |",
        "|---" * (5 + len(COLUMNS)) + "|",
    ]
    for name, found in results.items():
        overall = f"{100 * found['overall']['value']:.1f} ({found['overall']['rule']})"
        permutable = found["mean"]["n"] if "mean" in found else 0
        cells = [name, str(found["given"]["n"]), overall, cell(found["given"]), str(permutable)]
        cells += [cell(found.get(column)) for column in COLUMNS]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results: dict[str, dict], path: Path) -> None:
    """Given against worst order, a set a row: how far a model falls when the images move."""
    from matplotlib.figure import Figure

    shown = {name: found for name, found in results.items() if "worst" in found}
    figure = Figure(figsize=(7, 1.2 + 0.5 * max(1, len(shown))), layout="constrained")
    axes = figure.subplots()
    for y, found in enumerate(shown.values()):
        worst, best = found["worst"]["value"], found["best"]["value"]
        axes.plot([worst, best], [y, y], color="#bbbbbb", linewidth=4, zorder=1)
        for key, colour, label in (
            ("worst", "#c0392b", "right in every order asked"),
            ("mean", "#3b6ea8", "mean over orders"),
        ):
            axes.scatter(found[key]["value"], y, color=colour, zorder=2, label="" if y else label)
    axes.set_yticks(range(len(shown)), [f"{name} ({shown[name]['mean']['n']})" for name in shown])
    axes.invert_yaxis()
    axes.set(
        xlim=(0, 1), xlabel="share of the permutable questions; grey: up to right in any order"
    )
    if shown:
        axes.legend(loc="upper center", bbox_to_anchor=(0.4, 1.35), ncols=2, frameon=False)
    figure.savefig(path, dpi=120)


# --- Two runs ---


def read_answers(folder: Path, name: str) -> list[dict]:
    with open(folder / f"{name}.answers.jsonl", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def compare(ours: Path, theirs: Path, seed: int) -> str:
    """Paired differences, ours minus theirs, on the questions that both were asked. Raises
    DataError where they share no set.
    """
    names = sorted(
        file.name.removesuffix(".answers.jsonl")
        for file in ours.glob("*.answers.jsonl")
        if (theirs / file.name).exists()
    )
    if not names:
        raise DataError(f"{ours} and {theirs}: no set (NAME.answers.jsonl) is in both")
    columns = ("given", "mean", "worst", "consistency")
    lines = [
        f"Differences in points, {ours.name} minus {theirs.name}, the same questions; {HEAD}.",
        "",
        "| set | rows | " + " | ".join(columns) + " |",
        "|---" * (2 + len(columns)) + "|",
    ]
    for name in names:
        mine = by_question(read_answers(ours, name))
        other = by_question(read_answers(theirs, name))
        cells = [name, str(len(mine["given"].keys() & other["given"].keys()))]
        for column in columns:
            both = sorted(mine[column].keys() & other[column].keys())
            if not both:
                cells.append("")
                continue
            apart = [mine[column][k] - other[column][k] for k in both]
            low, high = interval(apart, seed)
            told = "" if low <= 0 <= high else ", told apart"
            cells.append(f"{100 * mean(apart):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]{told}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


# --- The script ---


def settings_of(args, file: Path) -> dict:
    """What the figures of a set depend on."""
    names = ("model", "seed", "orders", "max_tokens", "max_prompt", "max_pixels")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    found = {name: getattr(args, name) for name in names} | {"rows": digest}
    if Path(args.model).exists():  # RUN/model is a link: a later checkpoint is another model
        found["model"] = str(Path(args.model).resolve())
    return found


def finished(out: Path, name: str, settings: dict) -> dict | None:
    """The figures of a set that was asked before with the same settings; None."""
    file = out / f"{name}.json"
    if not file.exists():
        return None
    found = json.loads(file.read_text())
    return found["figures"] if found["settings"] == settings else None


def write_set(out: Path, name: str, records: list[dict], settings: dict, args) -> dict:
    """The answers, then the figures: a set with figures has all its answers."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    (out / f"{name}.answers.jsonl").write_text("".join(lines), encoding="utf-8")
    found = figures(records, name, args.seed)
    aside = out / f"{name}.tmp"
    aside.write_text(json.dumps({"settings": settings, "figures": found}, indent=1) + "\n")
    aside.replace(out / f"{name}.json")
    return found


def write_tables(out: Path, results: dict[str, dict]) -> None:
    (out / "table.md").write_text(table(results) + "\n")
    (out / "table.json").write_text(json.dumps(results, indent=1) + "\n")
    plot(results, out / "benchmarks.png")


def openable(args, files: Sequence[Path], rank: int, world: int) -> tuple[dict, int, int, list]:
    """(samples of each set, longest prompt, most images, sets that cannot be asked): rows, prompts
    and pictures are checked before weights are loaded. Collective.
    """
    sets, failed, longest, most = {}, [], 1, 1
    for file in files:
        try:
            samples = load(file)
            images = max(len(x.images) for x in samples)
            renderer, context = open_renderer(args, images)
            longest = max(longest, longest_prompt(renderer, context, samples, args, rank, world))
        except DataError as error:
            failed.append(file.stem)
            if rank == 0:
                print(f"benchmarks.py: {file.stem}: {error}", file=sys.stderr, flush=True)
            continue
        sets[file.stem], most = samples, max(most, images)
    return sets, longest, most, failed


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", help="folder of NAME.jsonl, from data/benchmarks.py")
    p.add_argument("--out", required=True, help="folder for the results")
    p.add_argument("--only", nargs="+", metavar="NAME", help="these sets; else all in --data")
    p.add_argument(
        "--orders", type=at_least(1), default=6, help="of a permutable question, at most"
    )
    p.add_argument("--seed", type=int, default=0, help="of orders and intervals")
    p.add_argument("--against", metavar="EVAL2", help="compare --out with it; asks nothing")
    p.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the Python code that some models bring along",
    )
    add_engine_arguments(p)
    return p.parse_args(argv)


def files_of(args) -> list[Path]:
    """The sets to ask. Raises DataError for one that is not there."""
    folder = Path(args.data or "")
    if not args.model:
        raise DataError("--model: which model is to be asked?")
    if not args.data or not folder.is_dir():
        raise DataError(f"--data {args.data}: no folder; data/benchmarks.py writes one")
    files = sorted(folder.glob("*.jsonl"))
    for name in args.only or ():
        if not (folder / f"{name}.jsonl").is_file():
            raise DataError(f"--only {name}: no {name}.jsonl in {folder}")
    chosen = [file for file in files if not args.only or file.stem in args.only]
    if not chosen:
        raise DataError(f"--data {folder}: no NAME.jsonl in it")
    return chosen


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    out = Path(args.out)
    if args.against:
        text = compare(out, Path(args.against), args.seed)
        (out / "against.md").write_text(text + "\n")
        return print(text)

    rank, world, _ = join_torchrun(hours=24)
    files = files_of(args)
    if rank == 0:
        out.mkdir(parents=True, exist_ok=True)
    settings = {file.stem: settings_of(args, file) for file in files}
    done = {name: finished(out, name, settings[name]) for name in settings}
    [done, *_] = gather(done, world)  # rank 0's word for all
    results = {name: found for name, found in done.items() if found}

    left = [file for file in files if file.stem not in results]
    sets, longest, most, failed = openable(args, left, rank, world)
    if sets:
        engine = (args.model, longest + SLACK, args.max_tokens, most, args.gpu_memory)
        llm = start(*engine, **chat_settings(args))
        for name, samples in sets.items():
            ask = functools.partial(answers, llm, args)
            if rank == 0:
                print(f"{name}: {len(samples)} rows", file=sys.stderr, flush=True)
            records = ask_set(ask, samples, args, rank, world)
            if rank == 0:
                results[name] = write_set(out, name, records, settings[name], args)
        stop(llm)
    if rank == 0:
        ordered = {file.stem: results[file.stem] for file in files if file.stem in results}
        if ordered:
            write_tables(out, ordered)
            print(table(ordered))
    if failed:
        raise DataError(f"not asked: {', '.join(failed)}; the other sets are done")


if __name__ == "__main__":
    run(main)
