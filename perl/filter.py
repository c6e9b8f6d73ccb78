"""Difficulty filter: mean accuracy over 10 rollouts, then a resampling to a balanced spread of difficulty (Fig. 3).

A question the model always solves, or never, gives a group without spread and no gradient. So before training each question
is answered 10 times and scored with its raw accuracy: the shaped reward would count good form as half-solved. Fig. 3b shows
the histograms before and after (means 0.78 and 0.38), but not the rule between them. Ours, without replacement:

    keep_b = min(have_b, round(target_b N)),   b = 0, 0.1, .. 1,

with the largest N for which every bin stays within one percentage point of its target, by default the published "after".
Bins in which there is no question are left out of the target; what a bin lacks is reported. One image or many: one rule.

    python perl/filter.py IN.jsonl --model DIR --out OUT.jsonl [--keep 0.1 0.9]      (or under torchrun: ranks share the work)

Scores are appended to OUT.scores.jsonl as they come: a run cut off goes on where it stopped, another target samples nothing.
"""
import argparse
import hashlib
import json
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from perl.permute import DataError, Sample, load, plain
from perl.rollout import Engine, add_engine_arguments, at_least, encode, join_torchrun, prepare, run, seed_for
from rewards.boxed import accuracy, options

# Fig. 3b, per cent of questions kept at mean accuracy 0, 0.1, .. 1, read off the figure (+-0.3).
PAPER_AFTER = (12.0, 10.8, 11.5, 12.1, 14.9, 17.4, 6.2, 4.7, 3.8, 2.9, 3.3)
CHUNK = 32  # questions sampled at a time on a rank; an interruption loses those in flight, no score

def bin_of(score: float) -> int:
    """The nearest of 0, 0.1, .. 1, in tenths; halves go up."""
    return int(score * 10 + 0.5)

def histogram(scores: Sequence[float]) -> list[int]:
    """Questions in each of the 11 bins 0, 0.1, .. 1 of mean accuracy."""
    return [sum(bin_of(score) == b for score in scores) for b in range(11)]

def quotas(have: Sequence[int], target: Sequence[float], tolerance: float = 0.01) -> list[int]:
    """How many questions of each bin to keep. have: questions in each bin; target: non-negative weights, one a bin."""
    total = sum(t for t, h in zip(target, have) if h)
    share = [t / total if h and total else 0.0 for t, h in zip(target, have)]
    for N in range(sum(have), 0, -1):
        keep = [min(h, round(s * N)) for h, s in zip(have, share)]
        if any(keep) and all(abs(k / sum(keep) - s) <= tolerance for k, s in zip(keep, share)):
            return keep
    return [0] * len(have)

def resample(scores: Sequence[float], target: Sequence[float] = PAPER_AFTER, seed: int = 0) -> list[int]:
    """Indices of the questions to keep, ascending: `quotas` of each bin, drawn without replacement."""
    rng, keep = random.Random(f"filter/{seed}"), quotas(histogram(scores), target)
    bins = [[i for i, score in enumerate(scores) if bin_of(score) == b] for b in range(11)]
    return sorted(i for members, k in zip(bins, keep) for i in rng.sample(members, k))

def mean(scores: Sequence[float]) -> float:
    return sum(scores) / max(1, len(scores))

def mend(path: Path) -> None:
    """Cut off a last line of the scores that a kill has torn; its question is scored again."""
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)

def digest(x: Sample) -> str:
    """What a score depends on in a question: after an edit it is scored again."""
    root = os.path.commonpath([os.path.dirname(name) for name in x.images]) or "."  # the data may move as a whole
    names = [os.path.relpath(name, root) for name in x.images]
    return hashlib.sha256(repr([x.question, x.answer, *names]).encode()).hexdigest()[:16]

def read_scores(path: Path, samples: Sequence[Sample], settings: dict) -> dict[str, float]:
    """id -> score on disk, of `samples` as they are now and made with `settings`."""
    rows, now = map(json.loads, path.read_text().splitlines()) if path.exists() else (), {x.id: digest(x) for x in samples}
    return {r["id"]: r["accuracy"] for r in rows if r["settings"] == settings and r["question"] == now.get(r["id"])}

def score(samples: Sequence[Sample], args, rank: int, world: int, path: Path, settings: dict) -> None:
    """Sample this rank's share of `samples`, and append each score to `path`. Collective."""
    processor, limits = prepare(args, samples)
    engine = Engine(*limits)
    mine, scores = samples[rank::world], []
    with tqdm(total=len(mine), desc="scoring", disable=rank != 0, dynamic_ncols=True) as bar:
        for start in range(0, len(mine), CHUNK):
            chunk = mine[start : start + CHUNK]
            seeds = [seed_for(args.seed, -1, x.id, 0) for x in chunk]  # step -1: before training
            groups = engine.generate(encode(processor, chunk), n=args.rollouts, seeds=seeds, temperature=1.0)
            for x, rollouts in zip(chunk, groups):
                answer, choices = plain(x.answer), options(plain(x.question))
                scores.append(mean([accuracy(o.text, answer, choices) for o in rollouts]))
                with open(path, "a") as file:  # one short write a line: ranks can append to one file
                    row = {"id": x.id, "accuracy": scores[-1], "question": digest(x), "settings": settings}
                    file.write(json.dumps(row) + "\n")
            bar.update(len(chunk))
            bar.set_postfix(accuracy=f"{mean(scores):.2f}")
    engine.close()

def report(before: Sequence[float], after: Sequence[float], target: Sequence[float] | None) -> str:
    """Fig. 3b as text: questions there, kept, and missing, that is, short of the target's share of those kept, in each bin."""
    lines = ["accuracy   there   share    kept   share" + ("  target missing" if target else "")]
    shares = [t / sum(target) for t in target] if target else [0.0] * 11
    for b, (had, kept, share) in enumerate(zip(histogram(before), histogram(after), shares)):
        note = f" {share:7.1%} {max(0, round(share * len(after)) - kept):7d}" if target else ""
        lines.append(f"{b / 10:8.1f} {had:7d} {had / len(before):7.1%} {kept:7d} {kept / max(1, len(after)):7.1%}{note}")
    return "\n".join([*lines, f"    mean {len(before):7d} {mean(before):7.2f} {len(after):7d} {mean(after):7.2f}"])

def plot(before: Sequence[float], after: Sequence[float], path: str) -> None:
    """Fig. 3b as a picture."""
    from matplotlib.figure import Figure
    axes = (figure := Figure(figsize=(6, 3.2), layout="constrained")).subplots()
    for offset, scores, name in ((-0.02, before, "before"), (0.02, after, "after")):
        shares = [100 * count / max(1, len(scores)) for count in histogram(scores)]
        axes.bar([b / 10 + offset for b in range(11)], shares, 0.04, label=f"{name}: {len(scores)} questions, mean {mean(scores):.2f}")
    axes.set(xlabel="mean accuracy over rollouts", ylabel="questions (%)", title="Difficulty filter (Fig. 3b)")
    figure.legend(loc="outside lower center")
    figure.savefig(path, dpi=120)

def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", help="JSONL of questions")
    p.add_argument("--out", required=True, help="JSONL of the questions kept, each with its accuracy")
    p.add_argument("--rollouts", type=int, default=10)  # paper: section 3.1
    p.add_argument("--target", help="JSON file: a list of 11 weights for mean accuracy 0, 0.1, .. 1; default: Fig. 3b")
    p.add_argument("--keep", nargs=2, type=float, metavar=("LO", "HI"), help="a plain band instead of a target")
    p.add_argument("--plot", help="where to draw Fig. 3b")
    p.add_argument("--seed", type=int, default=0)
    add_engine_arguments(p)
    args, (rank, world, _) = p.parse_args(argv), join_torchrun()
    samples = load(args.data)
    at_least(args, rollouts=1)
    try:
        target = json.loads(Path(args.target).read_text()) if args.target else PAPER_AFTER
        if not (len(target) == 11 and min(target) >= 0 < sum(target) < float("inf")):
            raise ValueError("a target is a JSON list of 11 weights, for mean accuracy 0, 0.1, .. 1")
    except (OSError, TypeError, ValueError) as error:
        raise DataError(f"--target: {args.target}: {error}") from error
    out, path = Path(args.out), Path(f"{args.out}.scores.jsonl")
    out.parent.mkdir(parents=True, exist_ok=True)
    settings = {key: getattr(args, key) for key in ("model", "rollouts", "max_tokens", "max_pixels", "seed")}
    settings["weights"] = max((f.stat().st_mtime_ns for f in Path(args.model or "").glob("*.safetensors")), default=0)  # retrained?
    if rank == 0:
        mend(path)
    dist.broadcast_object_list(agreed := [settings])  # a model's folder may have other times on another machine
    [settings] = agreed
    known = read_scores(path, samples, settings)
    if missing := [x for x in samples if x.id not in known]:
        score(missing, args, rank, world, path, settings)
    if rank == 0:
        known = read_scores(path, samples, settings)
        scores = [known[x.id] for x in samples]
        kept = [i for i, s in enumerate(scores) if args.keep[0] <= s <= args.keep[1]] if args.keep else resample(scores, target, args.seed)
        rows = [json.loads(line) for line in Path(args.data).read_text(encoding="utf-8-sig").split("\n") if line.strip()]
        with open(out, "w", encoding="utf-8") as file:
            for i in kept:
                images = [os.path.relpath(image, out.parent) for image in samples[i].images]
                file.write(json.dumps(rows[i] | {"images": images, "accuracy": scores[i]}, ensure_ascii=False) + "\n")
        print(report(scores, after := [scores[i] for i in kept], None if args.keep else target))
        if args.plot:
            plot(scores, after, args.plot)

if __name__ == "__main__":
    run(main)
