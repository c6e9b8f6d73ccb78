"""Accuracy over image orders: does the model mean what it sees, or where it sees it?

Every question is asked greedily in every order of its images (all orders of up to four movable images, else 24 drawn with
a seed, the given one always among them), its answer remapped by perl/permute.py. Over the orders of one question:

    given         right in the order of the file                       (all questions)
    mean / worst / best over orders: of 1 for right and 0 for wrong     (questions that can be permuted)
    consistency   the same answer, right or wrong, in every order, after mapping it back to the given order; no answer at
                  all in some order is not the same answer
    by_slot       accuracy by the slot in which the right image stood, over all orders (answers that name one image)

The theory of the paper (appendix) is about worst and best: their gap should be smaller after PeRL than after GRPO. The
paper reports neither these nor a consistency figure.

    python evals/orders.py --model DIR --data TEST.jsonl --out EVAL       (or under torchrun: ranks share the questions)

writes EVAL/orders.json, EVAL/orders.png and, for a closer look, EVAL/answers.jsonl.
"""

import argparse
import dataclasses
import itertools
import json
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from perl.grpo import accuracy, boxed
from perl.permute import DataError, Refused, Sample, inverse, load, options, permute
from perl.rollout import Engine, add_engine_arguments, encode, join_torchrun, prepare, run

MAX_ORDERS = 24
CHUNK = 256  # prompts sampled at a time


def orders_of(sample: Sample, seed: int) -> list[tuple[int, ...]]:
    """The orders to ask, the given one first: all of them up to MAX_ORDERS, else that many drawn with `seed`."""
    stem, moving = tuple(range(sample.stem)), range(sample.stem, len(sample.images))
    given = (*stem, *moving)
    if math.factorial(len(moving)) <= MAX_ORDERS:
        return [(*stem, *order) for order in itertools.permutations(moving)]
    rng, drawn = random.Random(f"orders/{seed}/{sample.id}"), {given: None}
    while len(drawn) < MAX_ORDERS:
        drawn[(*stem, *rng.sample(moving, len(moving)))] = None
    return list(drawn)


def asked(sample: Sample, seed: int) -> list[tuple[tuple[int, ...], Sample]]:
    """(sigma, permuted sample) for every order; only the given one where a permutation is refused."""
    try:
        return [(sigma, permute(sample, sigma)) for sigma in orders_of(sample, seed)]
    except Refused:
        return [(tuple(range(len(sample.images))), sample)]


def mapped_back(permuted: Sample, sigma: Sequence[int], answer: str | None) -> str | None:
    """What `answer`, given in the permuted order, says in the original one. An answer that names nothing stays itself."""
    if answer is None:
        return None
    try:
        answer = permute(dataclasses.replace(permuted, answer=answer.strip()), inverse(sigma)).answer
    except Refused:
        pass
    return answer.strip().casefold()


def slot_of(sample: Sample) -> int | None:
    """The 1-based slot of the one image the right answer names (for options: among the options); None without one."""
    if sample.order == "options":
        return "ABCDEFGHIJKLMNOPQRSTUVWXYZ".index(sample.answer) + 1
    if sample.order == "index":
        for slot in range(1, len(sample.images) + 1):
            if accuracy(f"\\boxed{{{slot}}}", sample.answer):
                return slot
    return None


def summarise(records: Sequence[dict]) -> dict:
    """The figures of the docstring. A record: id, kind, order (0: the given one), right, answer (mapped back), slot."""
    mean = lambda xs: sum(xs) / len(xs) if xs else None  # noqa: E731
    questions: dict[str, list[dict]] = {}
    for record in records:
        questions.setdefault(record["id"], []).append(record)
    several = [group for group in questions.values() if len(group) > 1]
    slots = sorted({r["slot"] for r in records if r["slot"]})
    kinds = sorted({r["kind"] for r in records})
    return {
        "questions": len(questions),
        "permutable": len(several),
        "given": mean([r["right"] for r in records if r["order"] == 0]),
        "mean_over_orders": mean([mean([r["right"] for r in group]) for group in several]),
        "worst_order": mean([min(r["right"] for r in group) for group in several]),
        "best_order": mean([max(r["right"] for r in group) for group in several]),
        "consistency": mean([
            float(len({r["answer"] for r in group}) == 1 and group[0]["answer"] is not None) for group in several
        ]),
        "by_slot": {str(slot): mean([r["right"] for r in records if r["slot"] == slot]) for slot in slots},
        "by_kind": {kind: mean([r["right"] for r in records if r["kind"] == kind]) for kind in kinds},
    }  # fmt: skip


def evaluate(engine: Engine, processor, samples: Sequence[Sample], seed: int, rank: int, world: int) -> list[dict]:
    """Ask every question in every order; the records of all ranks, on all ranks. Collective."""
    asks = [(x, k, sigma, y) for x in samples[rank::world] for k, (sigma, y) in enumerate(asked(x, seed))]
    records = []
    with tqdm(total=len(asks), desc="asking", disable=rank != 0, dynamic_ncols=True) as bar:
        for start in range(0, len(asks), CHUNK):
            chunk = asks[start : start + CHUNK]
            prompts = encode(processor, [y for *_, y in chunk])
            rollouts = engine.generate(prompts, n=1, seeds=[0] * len(chunk), temperature=0.0)
            for (x, k, sigma, y), (o,) in zip(chunk, rollouts):
                right = accuracy(o.text, y.answer, options(y.question))
                answer = mapped_back(y, sigma, boxed(o.text))
                records.append({"id": x.id, "kind": x.order, "order": k, "sigma": sigma, "right": right,
                                "answer": answer, "slot": slot_of(y), "response": o.text})  # fmt: skip
            bar.update(len(chunk))
            bar.set_postfix(accuracy=f"{sum(r['right'] for r in records) / len(records):.3f}")
    ranks = [None] * world
    dist.all_gather_object(ranks, records)
    return [record for part in ranks for record in part]


def plot(summary: dict, path: Path) -> None:
    """Accuracy over orders on the left, by the slot of the right image on the right."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
    names = ["given", "mean_over_orders", "worst_order", "best_order", "consistency"]
    left.bar([name.replace("_", "\n") for name in names], [summary[name] or 0.0 for name in names])
    left.set(ylim=(0, 1), ylabel="share of questions", title=f"{summary['questions']} questions")
    right.bar(list(summary["by_slot"]), list(summary["by_slot"].values()))
    right.set(xlabel="slot of the right image", title="accuracy by slot")
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", required=True, help="JSONL of questions")
    p.add_argument("--out", required=True, help="folder for the results")
    p.add_argument("--seed", type=int, default=0, help="draws the orders of questions that have more than 24")
    add_engine_arguments(p)
    args = p.parse_args(argv)

    rank, world, _ = join_torchrun()
    samples = load(args.data)
    processor, settings = prepare(args, samples)
    engine = Engine(*settings)
    records = evaluate(engine, processor, samples, args.seed, rank, world)
    engine.close()
    if rank == 0:
        out = Path(args.out)
        out.mkdir(parents=True, exist_ok=True)
        summary = summarise(records) | {"model": args.model, "data": args.data, "seed": args.seed}
        (out / "answers.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
        (out / "orders.json").write_text(json.dumps(summary, indent=1) + "\n")
        plot(summary, out / "orders.png")
        print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    run(main)
