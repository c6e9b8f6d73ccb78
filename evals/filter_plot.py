"""Fig. 3b as a picture: the spread of difficulty before and after the filter.

python evals/filter_plot.py OUT.jsonl --out PLOT.png      # reads OUT.jsonl.scores.jsonl beside it
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from perl.filter import histogram, mean


def read(path: Path) -> list[float]:
    """The scores of a file of rows, the last of each id."""
    with open(path, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return list({row["id"]: row["accuracy"] for row in rows}.values())


def plot(before: Sequence[float], after: Sequence[float], path: str | Path) -> None:
    """Two bars for each of the 11 bins of mean accuracy, in per cent of the questions."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for offset, scores, name in ((-0.02, before, "before"), (0.02, after, "after")):
        shares = [100 * count / max(1, len(scores)) for count in histogram(scores)]
        label = f"{name}: {len(scores)} questions, mean {mean(scores):.2f}"
        axes.bar([b / 10 + offset for b in range(11)], shares, 0.04, label=label)
    axes.set(xlabel="mean accuracy over rollouts", ylabel="questions (%)")
    axes.set_title("Difficulty filter (Fig. 3b)")
    figure.legend(loc="outside lower center")
    figure.savefig(path, dpi=120)


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("kept", help="what perl/filter.py wrote")
    p.add_argument("--out", required=True, help="the picture, PNG")
    args = p.parse_args()
    plot(read(Path(f"{args.kept}.scores.jsonl")), read(Path(args.kept)), args.out)


if __name__ == "__main__":
    main()
