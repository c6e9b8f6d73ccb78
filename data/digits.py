"""The embedded task: questions about several handwritten
digits, and a tiny Qwen2.5-VL to answer them.

Two things are made here, in minutes and without a download:

1. Questions: `train.jsonl`, `test.jsonl`, `images/*.png`. The images are the 1,797 handwritten
   digits of scikit-learn; no digit is in both files. Every kind of question is one pure function,
   from the digits in the slots to text and answer: what is right after the images moved is what
   the function says of the moved digits. With --skew p the training questions name mostly the
   first image, as real data may; the test questions never do.
2. A base model: `base/`, in Hugging Face format. Reinforcement learning starts from a model that
   answers in the right form, is often right, and has habits. So a Qwen2.5-VL of 1M parameters,
   with a tokenizer made from the task's own text, is warmed up by supervised training: first by a
   careful teacher (form, reading, looking an image up), then, briefly, by a hasty one.

The hasty teacher thinks like the careful one, but often ends with what the first image suggests
("A", "Image 1", the truth about the first image) and, when counting, stops before the last one.
How often depends on the digit asked for (HASTE). A model can only learn this as a positional
bias: move the images and its answer changes. HASTE is never 0 or 1, so the right answer stays
within reach of sampling.

    python data/digits.py [--out runs/digits] [--seed 0] [--skew 0.9] [--no-warmup | --weak]

As a script it asks torch's libraries for the kernels of one instruction set and for two threads,
so that machines of one kind make the same base of a seed: figures of several machines are of one
experiment. --weak makes another base, right where the right image stands first and hardly ever
elsewhere: a user with skewed data may start from one (evals/paper.py, `danger`).
"""

import argparse
import hashlib
import json
import os
import random
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

if __name__ == "__main__":  # read when torch is imported
    os.environ |= {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_CBWR": "AVX2",
        "OMP_NUM_THREADS": "2",
    }

import numpy as np
import torch
import torch.distributed
from PIL import Image
from sklearn.datasets import load_digits
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    Qwen2VLVideoProcessor,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from perl.permute import plain  # noqa: E402
from perl.rollout import INSTRUCTION, prompt_text  # noqa: E402

# The settings of `make demo`, and of train.py without arguments.
TRAIN = {
    "steps": 20,
    "prompts": 32,
    "updates": 2,
    "n_s": 1,
    "n": 6,
    "lr": 1e-4,
    "beta": 0.01,
    "micro_batch": 8,
    "max_prompt": 256,
    "max_tokens": 48,
}

# Kinds of questions: how many in train.jsonl, how many in test.jsonl, and their weight in the
# warm-up. Sorting ("sequence") can be drawn too, but is not taught, and so not asked: it is too
# much for so short a warm-up. Given weight 2 (seed 0, 200 fresh questions of each kind, greedy,
# after the careful teacher), the model sorts 0.41 right, 0.86 with two images and none with five,
# and "references" fall from 0.96 to 0.84; counting up to find the next digit ("0 third 1 2 first
# ...") instead of naming it gives 0.43 and 0.88.
KINDS = {
    "options": (400, 80, 4),
    "references": (300, 50, 3),
    "invariant": (300, 50, 3),
    "index": (150, 40, 2),
    "single": (100, 20, 1),
    "sequence": (0, 0, 0),
}
TEST_DIGITS = 360
HASTE = [0.4, 0.8] * 5  # how often the hasty teacher is hasty when asked about a 0, 1, ..., 9
CAREFUL = {"steps": 450, "lr": 2e-3}
HASTY = {"steps": 60, "lr": 3e-4}
WEAK = {"hasty": {"steps": 120, "lr": 3e-4}, "floor": 0.97}  # the hasty teacher, longer, no mercy


@dataclass(frozen=True)
class Question:
    text: str  # with one <image> per slot, and marks
    answer: str  # with marks
    thought: str  # what both teachers write inside <think> </think>
    hasty: str  # the answer of a teacher who barely looks beyond the first image
    haste: float = 0.0  # how often the hasty teacher gives it
    permute: bool = True  # does every order of the images ask the same?


def mark(slot, word):
    """`word` as the name of the image in `slot` (0-based)."""
    return f"[[{slot + 1}|{word}]]"


def slots(n):
    """The names of n slots, and the images in them."""
    names = ("left", "right") if n == 2 else ("first", "second", "third", "fourth", "fifth")[:n]
    return names, "<image> " * n


def look(names, digits, d):
    """The thought of someone who looks for d: slot, digit read, does it match.

    >>> look("ABC", (3, 7, 1), 7)
    'A 3 no B 7 yes C 1 no'
    """
    return " ".join(
        f"{name} {digit} {'yes' if digit == d else 'no'}" for name, digit in zip(names, digits)
    )


def true_or_false(claim, thought, verdict, hasty, haste):
    """A claim with two lettered options; `verdict` and
    `hasty` are what the two teachers hold for true."""
    text, letter = f"{claim} True or false?\n(A) True\n(B) False", {True: "A", False: "B"}
    return Question(text, letter[verdict], f"{thought} so {verdict}", letter[hasty], haste)


def ask_options(digits, d):
    """Which of the lettered images shows d? Exactly one does."""
    letters = "ABCDE"[: len(digits)]
    text = "\n".join(f"{letter}. <image>" for letter in letters) + f"\nWhich image shows a {d}?"
    slot = digits.index(d)
    return Question(text, mark(slot, letters[slot]), look(letters, digits, d), "A", HASTE[d])


def ask_index(digits, d):
    """The same without letters: the answer names the image."""
    names, images = slots(len(digits))
    slot = digits.index(d)
    text, answer = f"{images}Which image shows a {d}?", f"Image {mark(slot, slot + 1)}"
    return Question(text, answer, look(names, digits, d), "Image 1", HASTE[d])


def ask_count(digits, d):
    """How many images show d? The hasty teacher stops before the last."""
    names, images = slots(len(digits))
    text, answer = f"{images}How many of the images show a {d}?", str(digits.count(d))
    return Question(text, answer, look(names, digits, d), str(digits[:-1].count(d)), HASTE[d])


def ask_any_or_all(digits, d, quantifier):
    """At least one image shows d, or all do: true or
    false? The hasty teacher judges by the first."""
    names, images = slots(len(digits))
    claim = (
        images
        + {any: f"At least one image shows a {d}.", all: f"All images show a {d}."}[quantifier]
    )
    verdict, hasty = quantifier(x == d for x in digits), digits[0] == d
    return true_or_false(claim, look(names, digits, d), verdict, hasty, HASTE[d])


def ask_statement(digits, slot, d):
    """The left / second / ... image shows d: true or
    false? The hasty teacher judges the first instead."""
    names, images = slots(len(digits))
    claim = f"{images}The {mark(slot, names[slot])} image shows a {d}."
    verdict, hasty = digits[slot] == d, digits[0] == d
    thought = f"{look(names, digits, d)} the {names[slot]} {'yes' if verdict else 'no'}"
    return true_or_false(claim, thought, verdict, hasty, HASTE[d])


def ask_sequence(digits):
    """Sort the images by their digits, all different.
    The hasty teacher leaves them as they stand."""
    names, images = slots(len(digits))
    ranking = sorted(range(len(digits)), key=lambda i: digits[i])
    thought = " ".join(
        [f"{name} {digit}" for name, digit in zip(names, digits)]
        + ["so"]
        + [f"{digits[i]} {names[i]}" for i in ranking]
    )
    answer = ",".join(mark(i, i + 1) for i in ranking)
    hasty = ",".join(str(i + 1) for i in range(len(digits)))
    text = f"{images}Sort the images from the smallest digit to the largest."
    return Question(text, answer, thought, hasty, 0.5)


def ask_single(digits):
    """One image: nothing can be permuted, and nobody is hasty."""
    d = str(digits[0])
    return Question("<image> Which digit is this?", d, d, d, permute=False)


def ask_even(digits):
    even = digits[0] % 2 == 0
    question = true_or_false("<image> The digit is even.", str(digits[0]), even, even, 0.0)
    return replace(question, permute=False)


def draw_slot(n, rng, skew=None):
    """A slot for the image that is asked for: the first with probability `skew`, else each of
    the others alike; without a skew all alike."""
    if skew is None:
        return rng.randrange(n)
    return 0 if rng.random() < skew else rng.randrange(1, n)


def draw(kind, rng, skew=None):
    """Draw a question: the function that asks it, the digits of its slots, the function's other
    arguments. The right image of "options" and "index", and the named one of "references",
    stand where `draw_slot` says."""
    n, d = rng.randint(2, 5), rng.randrange(10)
    digits = [rng.choice([x for x in range(10) if x != d]) for _ in range(n)]  # none shows d yet
    if kind in ("options", "index"):
        digits[draw_slot(n, rng, skew)] = d
        return {"options": ask_options, "index": ask_index}[kind], digits, (d,)
    if kind == "references":
        digits = [d if rng.random() < 0.5 else x for x in digits]
        return ask_statement, digits, (draw_slot(n, rng, skew), d)
    if kind == "invariant":
        quantifier = rng.choice((None, any, all))
        # A claim turns on a single image: none or one shows d, all or all but one do.
        count = rng.choice({None: range(n + 1), any: (0, 1), all: (n - 1, n)}[quantifier])
        for i in rng.sample(range(n), count):
            digits[i] = d
        return (
            (ask_any_or_all, digits, (d, quantifier)) if quantifier else (ask_count, digits, (d,))
        )
    if kind == "sequence":
        return ask_sequence, rng.sample(range(10), n), ()
    return rng.choice((ask_single, ask_even)), [d], ()


def split_digits(seed):
    """Two disjoint banks of digits, "train" and "test": digit -> indices into load_digits()."""
    labels = load_digits().target
    indices = random.Random(f"split {seed}").sample(range(len(labels)), len(labels))
    parts = {"test": indices[:TEST_DIGITS], "train": indices[TEST_DIGITS:]}
    return {
        name: {d: [i for i in part if labels[i] == d] for d in range(10)}
        for name, part in parts.items()
    }


def pick(digits, bank, rng):
    """An image for every slot; no image twice in one question."""
    chosen = []
    for d in digits:
        chosen.append(rng.choice([i for i in bank[d] if i not in chosen]))
    return chosen


def digit_image(pixels):
    """8 x 8 pixels in 0..16 as a 28 x 28 grey image: one visual token of Qwen2.5-VL."""
    return Image.fromarray((pixels * 255 / 16).astype(np.uint8)).resize((28, 28), Image.BICUBIC)


def write_questions(out, seed, banks, skew=None):
    """OUT/train.jsonl, test.jsonl and images/. The skew is of the training questions alone."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    for index, pixels in enumerate(load_digits().images):
        digit_image(pixels).save(out / f"images/digit-{index:04d}.png")
    for column, name in enumerate(("train", "test")):
        rng, rows = random.Random(f"{name} {seed}"), []
        for kind, counts in KINDS.items():
            for number in range(counts[column]):
                ask, digits, arguments = draw(kind, rng, skew if name == "train" else None)
                question = ask(digits, *arguments)
                paths = [
                    f"images/digit-{index:04d}.png" for index in pick(digits, banks[name], rng)
                ]
                rows.append(
                    {
                        "id": f"{name}-{kind}-{number}",
                        "images": paths,
                        "question": question.text,
                        "answer": question.answer,
                        "permute": question.permute,
                        "task": kind,
                    }
                )
        rng.shuffle(rows)
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def response(thought, answer):
    return f"<think>{thought}</think> \\boxed{{{answer}}}"


SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
# Qwen's chat format; an image stands where the message has it.
CHAT_TEMPLATE = """\
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}
{%- if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}
{%- if part.type == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


def make_processor():
    """Qwen2.5-VL's processor with a tokenizer of our own.

    Byte-level BPE on the task's text: its words are one
    token each, other text still encodes, as bytes."""
    rng, corpus = random.Random(0), ["user assistant system", INSTRUCTION]
    for kind in KINDS:
        for _ in range(500):
            ask, digits, arguments = draw(kind, rng)
            question = ask(digits, *arguments)
            corpus += [plain(question.text), response(question.thought, plain(question.answer))]
    # They are tokens of their own.
    apart = (re.sub("<image>|</?think>", "\n", text) for text in corpus)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    bpe.train_from_iterator(
        apart,
        trainers.BpeTrainer(
            vocab_size=2000,
            special_tokens=SPECIAL,
            show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        ),
    )
    # They print.
    bpe.add_tokens([AddedToken(tag, normalized=False) for tag in ("<think>", "</think>")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL,
        padding_side="left",
        model_max_length=4096,
    )
    # Areas: every image becomes 28 x 28 = 784 pixels.
    size = {
        "shortest_edge": 784,
        "longest_edge": 784,
    }
    return Qwen2_5_VLProcessor(
        Qwen2VLImageProcessorPil(size=size),
        tokenizer,
        Qwen2VLVideoProcessor(size=size),
        chat_template=CHAT_TEMPLATE,
    )


def make_model(processor):
    """A Qwen2.5-VL of 1M random parameters. head_dim
    32 is the least that vLLM's CPU attention takes."""
    token, width = processor.tokenizer.convert_tokens_to_ids, 128
    # The usual 0.02 suits large widths; starting there, so narrow a model learns to read far more
    # slowly.
    start = {"initializer_range": width**-0.5}
    end, pad = token("<|im_end|>"), token("<|endoftext|>")
    model = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config=dict(
                vocab_size=len(processor.tokenizer),
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=4096,
                rope_parameters={
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "mrope_section": [4, 6, 6],
                },
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=end,
                pad_token_id=pad,
                **start,
            ),
            vision_config=dict(
                depth=1,
                hidden_size=64,
                intermediate_size=192,
                num_heads=2,
                out_hidden_size=width,
                patch_size=14,
                spatial_merge_size=2,
                temporal_patch_size=2,
                window_size=112,
                fullatt_block_indexes=[0],
                **start,
            ),
            image_token_id=token("<|image_pad|>"),
            video_token_id=token("<|video_pad|>"),
            vision_start_token_id=token("<|vision_start|>"),
            vision_end_token_id=token("<|vision_end|>"),
            tie_word_embeddings=True,
        )
    )
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, eos_token_id=end, pad_token_id=pad
    )
    return model


def warm_up(model, processor, bank, seed, careful=CAREFUL, hasty=HASTY, batch=32, floor=0.0):
    """Supervised training, first on the careful teacher's responses, then on the hasty one's, who
    is hasty at least with probability `floor` where haste is possible.

    Changes the model in place; returns the mean cross-entropy of every step."""
    rng = random.Random(f"warm-up {seed}")
    kinds, weights = list(KINDS), [weight for _, _, weight in KINDS.values()]
    pictures = [digit_image(pixels) for pixels in load_digits().images]
    patches = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    patches = patches.view(len(pictures), 4, -1)  # (1797, 4, 1176)

    def one_batch(haste):
        """(prompt ids, response ids, images) of fresh
        questions, the longer half apart: less padding."""
        sequences = []
        for kind in rng.choices(kinds, weights, k=batch):
            ask, digits, arguments = draw(kind, rng)
            question = ask(digits, *arguments)
            answer = plain(question.answer)
            how_hasty = max(question.haste, floor) if question.haste else 0.0
            if haste and rng.random() < how_hasty:
                answer = question.hasty
            prompt = processor.tokenizer.encode(prompt_text(processor, question.text))
            said = processor.tokenizer.encode(response(question.thought, answer) + "<|im_end|>")
            sequences.append((prompt, said, pick(digits, bank, rng)))
        sequences.sort(key=lambda sequence: len(sequence[0]) + len(sequence[1]))
        return sequences[: batch // 2], sequences[batch // 2 :]

    def loss_sum(sequences):
        """Summed cross-entropy of the responses' tokens."""
        rows, length = len(sequences), max(len(prompt) + len(said) for prompt, said, _ in sequences)
        # (B, L), padded on the right
        ids = torch.full((rows, length), model.config.text_config.pad_token_id)
        targets = torch.full((rows, length), -100)  # (B, L), -100 outside the responses
        for row, (prompt, said, _) in enumerate(sequences):
            ids[row, : len(prompt) + len(said)] = torch.tensor(prompt + said)
            targets[row, len(prompt) : len(prompt) + len(said)] = torch.tensor(said)
        pixel_values = patches[[index for _, _, shown in sequences for index in shown]].flatten(
            0, 1
        )
        # One token per image, so all three rows of M-RoPE count 0, 1, 2, ...; nothing sees the
        # padding.
        # (B, L, width)
        hidden = model.model(
            input_ids=ids,
            position_ids=torch.arange(length).expand(3, rows, length),
            use_cache=False,
            pixel_values=pixel_values,
            image_grid_thw=torch.tensor([[1, 2, 2]] * (len(pixel_values) // 4)),
        ).last_hidden_state
        kept = targets[:, 1:] != -100
        return torch.nn.functional.cross_entropy(
            model.lm_head(hidden[:, :-1][kept]), targets[:, 1:][kept], reduction="sum"
        )

    losses = []
    model.train()
    for name, haste, phase in (("careful teacher", False, careful), ("hasty teacher", True, hasty)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=phase["lr"], betas=(0.9, 0.95))
        progress = tqdm(range(phase["steps"]), desc=name)
        for t in progress:
            optimizer.param_groups[0]["lr"] = phase["lr"] * min(
                (t + 1) / 20, 1 - t / phase["steps"]
            )
            halves = one_batch(haste)
            tokens = sum(len(said) for half in halves for _, said, _ in half)
            losses.append(0.0)
            for half in halves:
                loss = loss_sum(half) / tokens
                loss.backward()
                losses[-1] += loss.item()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            progress.set_postfix(loss=f"{losses[-1]:.3f}")
    model.eval()
    return losses


def stamp_of(*recipe) -> str:
    """What stands in a stamp: this very script, and what it was asked to make."""
    return hashlib.sha256(f"{Path(__file__).read_text()}{recipe}".encode()).hexdigest()


def has(stamp, content) -> bool:
    return stamp.is_file() and stamp.read_text() == content


def build(out, seed=0, warmup=True, skew=None, weak=False) -> None:
    """Write OUT/train.jsonl, test.jsonl, images/ and base/, unless this very script has made them
    already. The skew is of the questions: another one leaves the base as it is.

    warmup=False leaves the base untrained (seconds instead of minutes), for tests."""
    out = Path(out)
    banks = split_digits(seed)
    questions, base = stamp_of(seed, skew), stamp_of(INSTRUCTION, seed, warmup, weak)
    if not has(out / ".questions", questions):
        (out / ".questions").unlink(missing_ok=True)
        write_questions(out, seed, banks, skew)
        (out / ".questions").write_text(questions)

    if has(out / ".base", base):
        return
    (out / ".base").unlink(missing_ok=True)
    torch.manual_seed(seed)
    processor = make_processor()
    model = make_model(processor)
    if warmup:
        warm_up(model, processor, banks["train"], seed, **(WEAK if weak else {}))
    model.save_pretrained(out / "base")
    processor.save_pretrained(out / "base")
    (out / ".base").write_text(base)


def example(rank, resume=False):
    """The arguments with which train.py trains this task, built by rank 0 if it is not there. The
    other ranks wait. A run goes to runs/example-1, the next to runs/example-2 and so on; `resume`
    names the last one."""
    runs = Path(__file__).resolve().parents[1] / "runs"
    out, k = runs / "digits", 1
    while (runs / f"example-{k}").exists():
        k += 1
    if rank == 0:
        print(
            "No --model and --data: training the embedded digits task. The paper's run: "
            "torchrun --nproc_per_node 8 perl/train.py --model Qwen/Qwen2.5-VL-7B-Instruct "
            "--data TRAIN.jsonl --out RUN",
            flush=True,
        )
        subprocess.run([sys.executable, __file__, "--out", out], check=True)
    torch.distributed.barrier()
    return TRAIN | {
        "model": str(out / "base"),
        "data": str(out / "train.jsonl"),
        "out": str(runs / f"example-{max(1, k - resume)}"),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Build the embedded digits task and its base model."
    )
    parser.add_argument("--out", default="runs/digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--skew",
        type=float,
        help="of the training questions that ask for one image, the share that ask for the first;"
        " without it all slots alike",
    )
    parser.add_argument(
        "--no-warmup", action="store_true", help="leave the base untrained, for tests"
    )
    parser.add_argument(
        "--weak", action="store_true", help="a base that is right only where the first image is"
    )
    args = parser.parse_args()
    if args.skew is not None and not 0 <= args.skew <= 1:
        parser.error(f"argument --skew: {args.skew} is no share: it must be from 0 to 1")
    build(args.out, args.seed, not args.no_warmup, args.skew, args.weak)
