"""Difficulty filter: mean accuracy over 10 rollouts, resampled to a balanced spread (Fig. 3).

A question the model always solves, or never, gives a group without spread and no gradient. So
before training each question is answered 10 times and scored with its raw accuracy: the shaped
reward would count good form as a tenth of an answer. Fig. 3b shows the histograms before and
after (means 0.78 and 0.38), but not the rule between them. Ours, without replacement:

    keep_b = min(have_b, round(target_b N)),   b = 0, 0.1, .. 1,

where target is by default the published "after". N is as large as it can be while the share of
every bin stays within one percentage point of its target. A bin without questions is left out of
the target, and what a bin lacks is reported. The published "after" is thin at 1, where nothing is
left to learn, but keeps 12% at 0; so do we, and `--keep 0.1 0.9` drops both ends. Questions with
one image and with many follow one rule.

    python perl/filter.py IN.jsonl --model DIR --out OUT.jsonl [--keep 0.1 0.9]

(or under torchrun: the ranks share the work). Scores are appended to OUT.scores.jsonl as they
come: a run cut off goes on where it stopped, another target samples nothing.
evals/filter_plot.py draws Fig. 3b.
"""

import argparse
import hashlib
import json
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import rewards
from perl.permute import DataError, Sample, load, plain
from perl.permute import rows as rows_of
from perl.rollout import (
    Engine,
    add_engine_arguments,
    at_least,
    check_images,
    encode,
    gather,
    join_torchrun,
    prepare,
    run,
    seed_for,
)
from rewards.boxed import options

# Fig. 3b, per cent of questions kept at mean accuracy 0, 0.1, .. 1, read off the figure (+-0.3).
PAPER_AFTER = (12.0, 10.8, 11.5, 12.1, 14.9, 17.4, 6.2, 4.7, 3.8, 2.9, 3.3)
CHUNK = 128  # questions a rank samples at a time; a kill loses those that are not finished


# --- Resampling, as functions of scores ---


def bin_of(score: float) -> int:
    """The nearest of 0, 0.1, .. 1, in tenths; halves go up."""
    return int(score * 10 + 0.5)


def histogram(scores: Sequence[float]) -> list[int]:
    """Questions in each of the 11 bins 0, 0.1, .. 1 of mean accuracy."""
    counts = [0] * 11
    for score in scores:
        counts[bin_of(score)] += 1
    return counts


def quotas(have: Sequence[int], target: Sequence[float], tolerance: float = 0.01) -> list[int]:
    """How many questions of each bin to keep. `have`:
    questions in each bin; `target`: a weight for each.
    """
    wanted = [t if h else 0.0 for t, h in zip(target, have)]  # an empty bin is left out
    total = sum(wanted)
    if total == 0:
        return [0] * len(have)

    share = [t / total for t in wanted]
    for N in range(sum(have), 0, -1):
        keep = [min(h, round(s * N)) for h, s in zip(have, share)]
        kept = sum(keep)
        if not kept:
            continue
        off = [abs(k / kept - s) for k, s in zip(keep, share)]
        if max(off) <= tolerance:
            return keep
    return [0] * len(have)


def resample(
    scores: Sequence[float], target: Sequence[float] = PAPER_AFTER, seed: int = 0
) -> list[int]:
    """Indices of the questions to keep, ascending:
    `quotas` of each bin, drawn without replacement.
    """
    rng = random.Random(f"filter/{seed}")
    bins: list[list[int]] = [[] for _ in range(11)]
    for i, score in enumerate(scores):
        bins[bin_of(score)].append(i)
    kept = []
    for members, k in zip(bins, quotas(histogram(scores), target)):
        kept += rng.sample(members, k)
    return sorted(kept)


def within(scores: Sequence[float], low: float, high: float) -> list[int]:
    """Instead, indices of the questions in a plain band of mean accuracy."""
    return [i for i, score in enumerate(scores) if low <= score <= high]


def mean(scores: Sequence[float]) -> float:
    return sum(scores) / max(1, len(scores))


def report(before: Sequence[float], after: Sequence[float], target: Sequence[float] | None) -> str:
    """Fig. 3b as text: questions there, kept, and missing, that is, short of the target's share
    of those kept, in each bin.
    """
    head = "accuracy   there   share    kept   share"
    lines = [head + "  target missing" if target else head]
    for b, (had, kept) in enumerate(zip(histogram(before), histogram(after))):
        there, stays = had / len(before), kept / max(1, len(after))
        line = f"{b / 10:8.1f} {had:7d} {there:7.1%} {kept:7d} {stays:7.1%}"
        if target:
            share = target[b] / sum(target)
            missing = max(0, round(share * len(after)) - kept)
            line += f" {share:7.1%} {missing:7d}"
        lines.append(line)
    means = f"    mean {len(before):7d} {mean(before):7.2f} {len(after):7d} {mean(after):7.2f}"
    return "\n".join([*lines, means])


# --- Scores on disk ---


def digest(x: Sample) -> str:
    """What a score depends on in a question: after an edit it is scored again. The data may move
    as a whole, so images count by their paths below their common folder.
    """
    root = os.path.commonpath([os.path.dirname(name) for name in x.images]) or "."
    names = [os.path.relpath(name, root) for name in x.images]
    asked = [plain(x.question), plain(x.answer), *names]
    return hashlib.sha256(repr(asked).encode()).hexdigest()[:16]


def weights_digest(model: str) -> str:
    """Names, sizes and headers of a local model's weights: a model trained again has other ones."""
    found = hashlib.sha256()
    for file in sorted(Path(model or "").glob("*.safetensors")):
        size = file.stat().st_size
        with open(file, "rb") as weights:
            found.update(f"{file.name} {size} ".encode() + weights.read(1 << 20))
            weights.seek(max(0, size - (1 << 20)))
            found.update(weights.read())
    return found.hexdigest()[:16]


def mend(path: Path) -> None:
    """Cut off a last line of the scores that a kill has torn; its question is scored again."""
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def read_scores(path: Path, samples: Sequence[Sample], settings: dict) -> dict[str, float]:
    """id -> score on disk, of `samples` as they are now and made with `settings`."""
    if not path.exists():
        return {}
    now = {x.id: digest(x) for x in samples}
    scores = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        name = row["id"]
        same_question = row["question"] == now.get(name)
        if same_question and row["settings"] == settings:
            scores[name] = row["accuracy"]
    return scores


def score(
    samples: Sequence[Sample], args, grader, rank: int, world: int, path: Path, settings: dict
) -> None:
    """Sample this rank's share of `samples`, and append each score to `path`. Collective."""
    processor, engine_settings = prepare(args, samples)
    if args.check_images:
        check_images(samples, rank, world)
    engine = Engine(engine_settings)
    mine = samples[rank::world]
    done = []
    bar = tqdm(total=len(mine), desc="scoring", disable=rank != 0, dynamic_ncols=True)
    for start in range(0, len(mine), CHUNK):
        chunk = mine[start : start + CHUNK]
        prompts = encode(processor, chunk)
        seeds = [seed_for(args.seed, -1, x.id, 0) for x in chunk]  # step -1: before training
        groups = engine.generate(prompts, n=args.rollouts, seeds=seeds, temperature=1.0)
        for x, rollouts in zip(chunk, groups):
            choices = options(plain(x.question))
            answer = plain(x.answer)
            right = [grader.accuracy(o.text, answer, choices) for o in rollouts]
            done.append(mean(right))
            row = {
                "id": x.id,
                "accuracy": done[-1],
                "question": digest(x),
                "settings": settings,
            }
            with open(path, "a", encoding="utf-8") as file:  # a short write: ranks share the file
                file.write(json.dumps(row) + "\n")
        bar.update(len(chunk))
        bar.set_postfix(accuracy=f"{mean(done):.2f}")
    bar.close()
    engine.close()


# --- The command ---


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("data", help="JSONL of questions")
    p.add_argument("--out", required=True, help="JSONL: the questions kept, with their accuracy")
    p.add_argument("--rollouts", type=at_least(1), default=10)  # paper: section 3.1
    p.add_argument(
        "--target", help="JSON list of 11 weights for accuracy 0, 0.1, .. 1; else Fig. 3b"
    )
    p.add_argument("--keep", nargs=2, type=float, metavar=("LO", "HI"), help="a plain band instead")
    p.add_argument("--reward", metavar="FILE.py:FUNCTION", help="its `accuracy` is what counts")
    p.add_argument("--check-images", action=argparse.BooleanOptionalAction, default=True)
    p.add_argument("--seed", type=int, default=0)
    add_engine_arguments(p)
    return p.parse_args(argv)


def read_target(path: str | None) -> Sequence[float]:
    """The weights of --target; the paper's without. Raises DataError."""
    if not path:
        return PAPER_AFTER
    try:
        target = json.loads(Path(path).read_text(encoding="utf-8"))
        weights = [float(weight) for weight in target]
    except (OSError, TypeError, ValueError) as error:
        raise DataError(f"--target: {path}: {error}") from error
    usable = isinstance(target, list) and len(weights) == 11 and min(weights) >= 0
    finite = 0 < sum(weights) < float("inf")
    if not (usable and finite):
        raise DataError(
            f"--target: {path}: it must be a list of 11 weights, for accuracy 0, 0.1, .. 1"
        )
    return weights


def write_kept(data: str, out: Path, samples, scores, kept: Sequence[int]) -> None:
    """The kept rows as they were, with their accuracy; image paths are relative to `out`."""
    rows = [row for _, row in rows_of(data)]
    with open(out, "w", encoding="utf-8") as file:
        for i in kept:
            row = dict(rows[i])
            row["images"] = [os.path.relpath(image, out.parent) for image in samples[i].images]
            row["accuracy"] = scores[i]
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    grader = rewards.load(args.reward)
    target = read_target(args.target)
    rank, world, _ = join_torchrun(hours=24)
    samples = load(args.data)
    out = Path(args.out)
    path = Path(f"{args.out}.scores.jsonl")
    out.parent.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        mend(path)

    names = ("model", "rollouts", "max_tokens", "max_pixels", "seed", "reward")
    settings = {}
    for name in names:
        settings[name] = getattr(args, name)
    settings["weights"] = weights_digest(args.model)
    settings = gather(settings, world)[0]  # a model's folder may differ on another machine
    known = read_scores(path, samples, settings)
    missing = [x for x in samples if x.id not in known]
    if missing:
        score(missing, args, grader, rank, world, path, settings)
    if rank != 0:
        return

    known = read_scores(path, samples, settings)
    scores = [known[x.id] for x in samples]
    if args.keep:
        low, high = args.keep
        kept = within(scores, low, high)
        target = None
    else:
        kept = resample(scores, target, args.seed)
    write_kept(args.data, out, samples, scores, kept)
    after = [scores[i] for i in kept]
    print(report(scores, after, target))


if __name__ == "__main__":
    run(main)
