"""Accuracy over image orders: does the model mean what it sees, or where it sees it?

Every question is asked greedily in every order of its images (all orders of up to four movable
images, else 24, or --orders, drawn with a seed, the given one among them), its answer remapped by
perl/permute.py. Over the orders of one question:

    given         right in the order of the file (all questions)
    mean, worst   of 1 for right and 0 for wrong over orders, and best (permutable questions)
    consistency   the same answer, right or wrong, in every order, mapped back to the given order;
                  no answer at all in some order is not the same answer
    by_slot       accuracy by the slot of the right image, over all orders (one image is named)
    by_task       accuracy by the rows' `task`, over all orders

The theory of the paper (appendix) is about worst and best: their gap should be smaller after PeRL
than after GRPO. The paper reports neither these nor a consistency figure.

Any vision-language model that vLLM loads can be asked. It gets the prompt of training through
`LLM.chat`: the model's own chat template decides how a turn is written (LLaVA's, for one, puts
all images before the text), vLLM expands the images. An image over --max-pixels is scaled down
before the model's processor sees it; Qwen's alone, in training, rounds such an image to its
patches in one step, not two, so there the prompts of large images differ by a few image tokens.

    python evals/orders.py --model DIR --data TEST.jsonl --out EVAL       (or under torchrun)

writes EVAL/orders.json, EVAL/orders.png and, for a closer look, EVAL/answers.jsonl.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import shorten

from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import rewards
from perl.permute import MARK, DataError, Sample, inverse, load, permute, plain, renamed, slot_of
from perl.rollout import (
    SLACK,
    add_engine_arguments,
    at_least,
    chat,
    check_control_tokens,
    gather,
    join_torchrun,
    open_image,
    reading,
    run,
    start,
    stop,
)
from rewards.boxed import accuracy, boxed, options

MAX_ORDERS = 24
CHUNK = 256  # prompts sampled at a time


# --- Orders and figures ---


def orders_of(sample: Sample, seed: int, most: int = MAX_ORDERS) -> list[tuple[int, ...]]:
    """The orders to ask, the given one first: all of them if they are at most `most`, else that
    many drawn with `seed`."""
    stem, moving = tuple(range(sample.stem)), range(sample.stem, len(sample.images))
    given = (*stem, *moving)
    if math.factorial(len(moving)) <= most:
        return [(*stem, *order) for order in itertools.permutations(moving)]
    rng, drawn = random.Random(f"orders/{seed}/{sample.id}"), {given: None}
    while len(drawn) < most:
        drawn[(*stem, *rng.sample(moving, len(moving)))] = None
    return list(drawn)


def asked(
    sample: Sample, seed: int, most: int = MAX_ORDERS
) -> list[tuple[tuple[int, ...], Sample]]:
    """(sigma, permuted sample) for every order to ask; only
    the given one of a question that is not permutable."""
    if not sample.permute:
        return [(tuple(range(len(sample.images))), sample)]
    return [(sigma, permute(sample, sigma)) for sigma in orders_of(sample, seed, most)]


def possible_answers(x: Sample) -> list[str]:
    """The answers that the one mark in the right answer
    can take, one for each slot its image can move to."""
    marks = list(MARK.finditer(x.answer))
    if len(marks) != 1:
        return []
    slot, word, n = int(marks[0][1]), marks[0][2], len(x.images)
    slots = range(x.stem + 1, n + 1) if slot > x.stem else [slot]
    words = [f"[[{to}|{renamed(slot, word, to, n, x.stem)}]]" for to in slots]
    return [MARK.sub(lambda _, said=said: said, x.answer) for said in words]


def mapped_back(permuted: Sample, sigma: Sequence[int], response: str) -> str | None:
    """What `response` to the permuted question answers in the given order, in lower case; None
    without an answer.

    Of the answers that the right one's mark can take, the one that the grader accepts is permuted
    back, however it is written; the letter of a text option is the same letter in every order;
    all else is its own words."""
    said = (boxed(response) or "").strip()
    if not said:
        return None
    choices = options(plain(permuted.question))
    for answer in possible_answers(permuted):
        if accuracy(response, plain(answer), choices):
            back = permute(dataclasses.replace(permuted, answer=answer), inverse(sigma))
            return plain(back.answer).casefold()
    for letter in choices:
        if accuracy(response, letter, choices):
            return letter.casefold()
    return said.casefold()


def summarise(records: Sequence[dict]) -> dict:
    """The figures of the docstring. A record: id, task, order (0: the given one), right, answer
    (mapped back), slot."""
    mean = lambda xs: sum(xs) / len(xs) if xs else None  # noqa: E731
    questions: dict[str, list[dict]] = {}
    for record in records:
        questions.setdefault(record["id"], []).append(record)
    several = [group for group in questions.values() if len(group) > 1]
    slots = sorted({r["slot"] for r in records if r["slot"]})
    tasks = sorted({r["task"] for r in records})
    return {
        "questions": len(questions),
        "permutable": len(several),
        "given": mean([r["right"] for r in records if r["order"] == 0]),
        "mean_over_orders": mean([mean([r["right"] for r in group]) for group in several]),
        "worst_order": mean([min(r["right"] for r in group) for group in several]),
        "best_order": mean([max(r["right"] for r in group) for group in several]),
        "consistency": mean(
            [
                float(len({r["answer"] for r in group}) == 1 and group[0]["answer"] is not None)
                for group in several
            ]
        ),
        "by_slot": {
            str(slot): mean([r["right"] for r in records if r["slot"] == slot]) for slot in slots
        },
        "by_task": {
            task: mean([r["right"] for r in records if r["task"] == task]) for task in tasks
        },
    }


def graded(accuracy_of: Callable, response: str, x: Sample) -> float:
    """The accuracy of a response to a question in the order in which it was asked."""
    return accuracy_of(response, plain(x.answer), options(plain(x.question)))


def evaluate(
    ask: Callable[[Sequence[Sample]], list[str]],
    samples: Sequence[Sample],
    seed: int,
    most: int,
    rank: int,
    world: int,
    grade: Callable[[str, Sample], float] | None = None,
) -> list[dict]:
    """Ask every question in up to `most` orders; the records of all
    ranks, on all ranks. Collective. `ask` answers samples with response
    texts, greedily: `answers` below, or an engine of training."""
    grade = grade or functools.partial(graded, accuracy)
    asks = [
        (x, k, sigma, y)
        for x in samples[rank::world]
        for k, (sigma, y) in enumerate(asked(x, seed, most))
    ]
    records = []
    with tqdm(total=len(asks), desc="asking", disable=rank != 0, dynamic_ncols=True) as bar:
        for first in range(0, len(asks), CHUNK):
            chunk = asks[first : first + CHUNK]
            responses = ask([y for *_, y in chunk])
            for (x, k, sigma, y), response in zip(chunk, responses, strict=True):
                right = grade(response, y)
                # Right answers are one answer.
                answer = plain(x.answer).casefold() if right else mapped_back(y, sigma, response)
                records.append(
                    {
                        "id": x.id,
                        "task": x.task,
                        "order": k,
                        "sigma": sigma,
                        "right": right,
                        "answer": answer,
                        "slot": slot_of(y, options(y.question)),
                        "response": response,
                    }
                )
            bar.update(len(chunk))
            bar.set_postfix(accuracy=f"{sum(r['right'] for r in records) / len(records):.3f}")
    return [record for part in gather(records, world) for record in part]


# --- Asking any model ---


@functools.lru_cache(maxsize=64)  # every order of a question shows the same images
def picture(path: str, max_pixels: int) -> Image.Image:
    """The image as the model's processor gets it: scaled down to at most `max_pixels`. Raises
    what open_image does."""
    pil = open_image(path)
    scale = math.sqrt(max_pixels / (pil.width * pil.height))
    return (
        pil
        if scale >= 1
        else pil.resize([max(1, int(scale * side)) for side in pil.size], Image.Resampling.BICUBIC)
    )


def conversation(sample: Sample, max_pixels: int) -> list[dict]:
    """The turn of training with the pictures in their slots, as `LLM.chat` takes it. DataError:
    one is unreadable."""
    [turn] = chat(sample.question)
    paths, content = iter(sample.images), []
    for part in turn["content"]:
        if part["type"] == "image":
            path = next(paths)
            with reading(sample, path):
                part = {"type": "image_pil", "image_pil": picture(path, max_pixels)}
        content.append(part)
    return [turn | {"content": content}]


def chat_settings(args) -> dict:
    """For vLLM: templates that take a turn as one string have its images in their slots too, not
    all in front."""
    return dict(interleave_mm_strings=True, trust_remote_code=args.trust_remote_code)


def render(renderer, turns: list[dict]) -> tuple[list[int], list]:
    """What vLLM makes of a conversation: the prompt's tokens with the images expanded, and the
    images' places in it."""
    from vllm.renderers import ChatParams

    # As `LLM.chat` does: the template writes all special tokens there are.
    tokens = renderer.default_chat_tok_params.with_kwargs(add_special_tokens=False)
    _, [prompt] = renderer.render_chat(
        [turns], ChatParams(chat_template_kwargs={"add_generation_prompt": True}), tokens
    )
    return prompt["prompt_token_ids"], prompt["mm_placeholders"]["image"]


def open_renderer(args, max_images: int):
    """vLLM's own reading of --model, without its weights, tried on one
    image: its renderer, and its context in tokens. Raises DataError
    where there is no model, or none that vLLM can ask about images."""
    from vllm import EngineArgs
    from vllm.exceptions import VLLMClientError
    from vllm.renderers import renderer_from_config

    if not args.model:
        raise DataError("--model is missing: a Hugging Face directory or hub id")
    try:
        limit = {"image": max_images}
        config = EngineArgs(
            args.model, limit_mm_per_prompt=limit, **chat_settings(args)
        ).create_engine_config()
        renderer = renderer_from_config(config)
        blank = {"type": "image_pil", "image_pil": Image.new("RGB", (224, 224))}
        render(renderer, [{"role": "user", "content": [blank, {"type": "text", "text": "What?"}]}])
    except (OSError, ValueError, TypeError, RuntimeError, AssertionError, VLLMClientError) as error:
        reason = shorten(str(error), 500)
        raise DataError(
            f"--model {args.model}: no model there that vLLM can ask about images ({reason})"
        ) from error
    folder = Path(args.model)
    if folder.is_dir() and not any(
        file.suffix in (".safetensors", ".bin", ".pt") for file in folder.iterdir()
    ):
        raise DataError(f"--model {args.model}: no weights (*.safetensors) there")
    return renderer, config.model_config.max_model_len


def prompt_length(renderer, context: int, sample: Sample, args) -> int:
    """Tokens of a sample's prompt. Raises DataError for an image that is unreadable or that the
    model's processor refuses, for a text with a control token of the model in it, and for a
    prompt over --max-prompt or the model's context."""
    from vllm.exceptions import VLLMClientError

    limit, turns = (
        min(args.max_prompt, context - args.max_tokens - SLACK),
        conversation(sample, args.max_pixels),
    )
    check_control_tokens(renderer.get_tokenizer(), sample)
    try:
        ids, _ = render(renderer, turns)
    # Too long as mere text; a picture the processor refuses.
    except (
        ValueError,
        VLLMClientError,
    ) as error:
        reason = shorten(str(error.__cause__ or error), 500)
        raise DataError(
            f"{sample.where}: question: vLLM makes no prompt of it ({reason})"
        ) from error
    if len(ids) > limit:
        raise DataError(
            f"{sample.where}: question: its prompt has {len(ids)} tokens, the limit is {limit} (--max-prompt "
            f"{args.max_prompt}; the model's context of {context} must also hold --max-tokens {args.max_tokens})"
        )
    return len(ids)


def longest_prompt(
    renderer, context: int, samples: Sequence[Sample], args, rank: int, world: int
) -> int:
    """The greatest `prompt_length`, read by all ranks together;
    what one of them finds wrong, all raise. Collective."""
    try:
        mine = max(
            (prompt_length(renderer, context, x, args) for x in samples[rank::world]), default=0
        )
    except DataError as error:
        mine = error
    ranks = gather(mine, world)
    for mistake in ranks:
        if isinstance(mistake, DataError):
            raise mistake
    return max(ranks)


def answers(llm, args, samples: Sequence[Sample]) -> list[str]:
    """The greedy response to every sample."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMClientError

    for sample in samples:
        greedy = SamplingParams(temperature=0.0, max_tokens=args.max_tokens)
        try:
            llm.enqueue_chat(conversation(sample, args.max_pixels), greedy, use_tqdm=False)
        # The given order was checked: this one is longer by more than SLACK.
        except VLLMClientError as error:
            raise DataError(f"{sample.where}: question: {error}") from error
    return [output.outputs[0].text for output in llm.wait_for_completion(use_tqdm=False)]


# --- The script ---


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
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", required=True, help="JSONL of questions")
    p.add_argument("--out", required=True, help="folder for the results")
    p.add_argument(
        "--orders",
        type=at_least(2),
        default=MAX_ORDERS,
        help="asked of a question, at most; one with more of them gets as many, drawn by --seed",
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--reward", metavar="FILE.py:FUNCTION", help="its `accuracy` is what counts")
    p.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the Python code that some models bring along",
    )
    add_engine_arguments(p)
    args = p.parse_args(argv)

    grader = rewards.load(args.reward)
    rank, world, _ = join_torchrun(hours=24)
    samples = load(args.data)
    most = max(len(x.images) for x in samples)
    longest = longest_prompt(*open_renderer(args, most), samples, args, rank, world)
    llm = start(
        args.model, longest + SLACK, args.max_tokens, most, args.gpu_memory, **chat_settings(args)
    )
    records = evaluate(
        functools.partial(answers, llm, args),
        samples,
        args.seed,
        args.orders,
        rank,
        world,
        functools.partial(graded, grader.accuracy),
    )
    stop(llm)
    if rank == 0:
        out = Path(args.out)
        out.mkdir(parents=True, exist_ok=True)
        summary = summarise(records) | {"model": args.model, "data": args.data, "seed": args.seed}
        (out / "answers.jsonl").write_text(
            "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
        )
        (out / "orders.json").write_text(json.dumps(summary, indent=1) + "\n")
        plot(summary, out / "orders.png")
        print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    run(main)
