"""The picture at the top of the README: one real
question of the digits task, as PeRL sees it in one step.

Permutes a question, samples 6 rollouts for each of the two orders, grades them and draws all of
it: images, text, the remapped answer (Eq. 1), rewards and merged advantages (Eqs. 4-5). It takes the
first question on more than two images whose text or answer changes and whose rewards differ
within both orders.

    python evals/picture.py --model runs/digits/base --data runs/demo/train.jsonl --out P.png
"""

import argparse
import sys
from pathlib import Path

from PIL import ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.digits import TRAIN
from perl.permute import MARK, DataError, load
from perl.rollout import Engine, join_torchrun, open_image, prepare, run
from perl.train import Group, parse_args, sample_groups

BLUE, ORANGE, GREY = "#3b6ea8", "#d9822b", "#8a8a8a"
PICTURES = ["#c0392b", "#1e8449", "#7d3c98", "#b9770e", "#2471a3"]  # a colour for each picture
STEPS = [
    ("data", "questions with\nseveral images"),
    ("filter.py", "balanced difficulty,\nby 10 rollouts (Fig. 3)"),
    ("permute.py", "new order of images,\nanswer remapped (Eq. 1)"),
    ("rollout.py", "n rollouts of\neach order, vLLM"),
    ("grpo.py", "rewards, one baseline\nover all orders (Eqs. 4-5)"),
    ("train.py", "Eq. 6, AdamW, FSDP2;\nnew weights to vLLM"),
]


def worth_drawing(group: Group) -> bool:
    """Whether the copy is worth a picture: moved, its text or answer changed, and right and wrong
    answers in each order."""
    original, copy = (c.sample for c in group.copies)
    changed = (original.question, original.answer) != (copy.question, copy.answer)
    return (
        changed
        and len(original.images) > 2
        and all(r.min() < 0.5 < r.max() for r in group.rewards.view(2, -1))
    )


def write_marked(figure, left: float, bottom: float, text: str, sigma: tuple[int, ...]) -> None:
    """One line of text with marks, each marked word in the colour of the picture it names."""
    pieces = MARK.split(text)  # words, slot, word, words, ..
    renderer = figure.canvas.get_renderer()
    for k in range(0, len(pieces), 3):
        written = [(pieces[k], "black", "normal")]
        if k + 2 < len(pieces):
            colour = PICTURES[sigma[int(pieces[k + 1]) - 1]]
            written.append((pieces[k + 2], colour, "bold"))
        for words, colour, weight in written:
            drawn = figure.text(left, bottom, words, fontsize=10, color=colour, weight=weight)
            width = drawn.get_window_extent(renderer).width
            left += width / (figure.dpi * figure.get_figwidth())


def draw(group: Group, path: str) -> None:
    """The pipeline on top, the two orders of a question
    below it, their rewards and advantages on the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    figure = Figure(figsize=(12, 5.4))
    FigureCanvasAgg(figure)
    top = figure.add_axes([0, 0.78, 1, 0.22], xlim=(0, len(STEPS)), ylim=(0, 1))
    for i, (name, what) in enumerate(STEPS):
        top.add_patch(
            FancyBboxPatch(
                (i + 0.07, 0.14), 0.8, 0.68, boxstyle="round,pad=0.02", fc="#eef3f8", ec=BLUE
            )
        )
        top.text(
            i + 0.47, 0.66, name, ha="center", va="center", fontsize=11, weight="bold", color=BLUE
        )
        top.text(i + 0.47, 0.35, what, ha="center", va="center", fontsize=8.5)
        if i:
            top.annotate(
                "",
                (i + 0.04, 0.48),
                (i - 0.09, 0.48),
                arrowprops={"arrowstyle": "->", "color": GREY},
            )
    n = len(group.rollouts) // 2
    for k, (copy, y) in enumerate(zip(group.copies, (0.42, 0.04))):
        x, colour = copy.sample, (BLUE, ORANGE)[k]
        said = f"permuted, sigma = {copy.sigma}" if k else "given order"
        figure.text(0.02, y + 0.31, said, fontsize=11, weight="bold", color=colour)
        for slot, image in enumerate(x.images):
            axes = figure.add_axes([0.02 + 0.068 * slot, y + 0.15, 0.062, 0.14])
            axes.imshow(ImageOps.invert(open_image(image)))
            axes.set(xticks=[], yticks=[])
            axes.set_xlabel(f"slot {slot + 1}", fontsize=7, labelpad=2)
            for side in axes.spines.values():
                side.set(color=PICTURES[copy.sigma[slot]], linewidth=3)
        question = " ".join(x.question.replace("<image>", "").split())
        write_marked(figure, 0.02, y + 0.06, question, copy.sigma)
        write_marked(figure, 0.02, y + 0.02, f"answer: {x.answer}", copy.sigma)
        mine = slice(k * n, (k + 1) * n)
        panels = (
            (0.47, group.rewards, "reward of 6 rollouts"),
            (0.74, group.advantages, "advantage, both orders merged"),
        )
        for left, values, title in panels:
            axes = figure.add_axes([left, y + 0.06, 0.24, 0.22])
            axes.bar(range(1, n + 1), values[mine].tolist(), color=colour)
            axes.axhline(0, color="black", linewidth=0.6)
            low = min(0.0, values.min().item()) * 1.3
            axes.set(ylim=(low, values.max().item() * 1.3), xticks=[])
            axes.set_title(title, fontsize=9, color=colour)
            axes.bar_label(axes.containers[0], fmt="%.2f", fontsize=8, padding=1)
    top.axis("off")
    figure.savefig(path, dpi=110)


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--model", required=True)
    p.add_argument("--data", required=True, help="JSONL of questions")
    p.add_argument("--out", required=True, help="the picture, PNG")
    own = p.parse_args()
    join_torchrun()
    flags = {k: TRAIN[k] for k in ("max_prompt", "max_tokens")} | {
        "model": own.model,
        "data": own.data,
        "n_s": 1,
        "n": 6,
    }
    args, samples = parse_args([], flags), load(own.data)
    processor, settings = prepare(args, samples)
    engine = Engine(settings)
    found = (
        g
        for s in range(0, len(samples), 32)
        for g in sample_groups(engine, processor, samples[s : s + 32], 0, 1.0, args)
    )
    group = next(filter(worth_drawing, found), None)
    engine.close()
    if group is None:
        raise DataError(f"{own.data}: no question with right and wrong answers in both orders")
    draw(group, own.out)


if __name__ == "__main__":
    run(main)
