"""The embedded task: questions about several real handwritten digits, and a tiny Qwen2.5-VL that can almost answer them.

Two things are made here, in minutes, from nothing that has to be downloaded:

1. Questions (`train.jsonl`, `test.jsonl`, `images/*.png`).  The images are scikit-learn's 1,797 real handwritten digits;
   the digits of the two files are disjoint.  Every kind of question of the data schema has one pure function below, from
   the digits in the slots to the text and the answer, so that "what should the answer be once the images have moved?" has
   a definite reply: the function called on the moved digits.
2. A base model (`base/`, Hugging Face format).  Reinforcement learning starts from a model that answers in the right form,
   is often right, and has habits.  So a Qwen2.5-VL of 1M parameters is built from its configuration, with a tokenizer made
   from the task's own text, and warmed up by supervised training in two phases:
   a careful teacher (format, reading digits, looking an image up), then, briefly, a hasty one.

The hasty teacher writes the same thoughts, but too often ends with what the first image suggests: "A", "Image 1", the truth
about the first image; and when it counts, it stops before the last image.  How often depends on the digit asked for
(`HASTE`).  A model can only learn this as a positional bias: of its answers that are wrong because of the order of the images,
most become right when the images are moved.  Both tails of `HASTE` leave room: the right answer is never certain and never
impossible, so sampling finds it.

    python data/digits.py [--out runs/digits] [--seed 0] [--no-warmup]
"""

import argparse
import hashlib
import json
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import (GenerationConfig, PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration,
                          Qwen2_5_VLProcessor, Qwen2VLImageProcessorPil, Qwen2VLVideoProcessor)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from perl.rollout import INSTRUCTION, prompt_text  # noqa: E402

# The settings of `make demo` and of train.py without arguments.
TRAIN = {"steps": 40, "prompts": 24, "n_s": 1, "n": 6, "lr": 1e-4, "beta": 0.01, "updates": 2, "max_tokens": 48}

# How many questions of each kind: in train.jsonl, in test.jsonl, and how often in the warm-up.
KINDS = {"options": (400, 80, 4), "references": (300, 40, 3), "invariant": (300, 40, 3), "index": (150, 40, 2),
         "sequence": (0, 20, 0), "single": (100, 20, 1)}
TEST_DIGITS = 360
HASTE = [0.25, 0.75] * 5  # how often the hasty teacher jumps to its answer when asked about the digit 0, 1, ..., 9


@dataclass(frozen=True)
class Question:
    order: str  # how the answer follows the images, see the README's data schema
    text: str  # with one <image> per slot
    answer: str
    thought: str  # what a careful teacher writes inside <think> </think>
    hasty: str  # the answer of a teacher who barely looks beyond the first image
    haste: float = 0.0  # how often the hasty teacher gives it


LETTERS, ORDINALS = "ABCDE", ("first", "second", "third", "fourth", "fifth")


def slot_names(n):
    return ("left", "right") if n == 2 else ORDINALS[:n]


def looked_up(names, digits, d):
    """The thought of a careful teacher who looks for d: slot, digit read, does it match ("A 3 no B 7 yes C 1 no")."""
    return " ".join(f"{name} {digit} {'yes' if digit == d else 'no'}" for name, digit in zip(names, digits))


def images(n):
    return "<image> " * n


def true_or_false(claim, verdict, true_first):
    """A claim with its two lettered options; returns the text and the function from a verdict to its letter."""
    options = ("True", "False") if true_first else ("False", "True")
    letter = {options[0] == "True": "A", options[1] == "True": "B"}
    return f"{claim} True or false?\n(A) {options[0]}\n(B) {options[1]}", letter


def ask_options(digits, d):
    """Which of the lettered images shows d? Exactly one does."""
    names = LETTERS[:len(digits)]
    text = "\n".join(f"{name}. <image>" for name in names) + f"\nWhich image shows a {d}?"
    return Question("options", text, names[digits.index(d)], looked_up(names, digits, d), "A", HASTE[d])


def ask_index(digits, d):
    """The same without letters: the answer names the image."""
    text = f"{images(len(digits))}Which image shows a {d}?"
    thought = looked_up(slot_names(len(digits)), digits, d)
    return Question("index", text, f"Image {digits.index(d) + 1}", thought, "Image 1", HASTE[d])


def ask_count(digits, d):
    """How many show d? The hasty teacher stops before the last image."""
    text = f"{images(len(digits))}How many of the images show a {d}?"
    thought = looked_up(slot_names(len(digits)), digits, d)
    return Question("invariant", text, str(digits.count(d)), thought, str(digits[:-1].count(d)), HASTE[d])


def ask_any_or_all(digits, d, quantifier, true_first):
    """At least one image shows d; all images show d. Order-free, with a letter as the answer."""
    claim = {any: f"At least one image shows a {d}.", all: f"All images show a {d}."}[quantifier]
    verdict, hasty = quantifier(x == d for x in digits), digits[0] == d
    text, letter = true_or_false(images(len(digits)) + claim, verdict, true_first)
    thought = f"{looked_up(slot_names(len(digits)), digits, d)} so {verdict}"
    return Question("invariant", text, letter[verdict], thought, letter[hasty], HASTE[d])


def ask_statement(digits, slot, d, true_first):
    """The left / second / ... image shows d. The hasty teacher judges the first image instead."""
    names = slot_names(len(digits))
    verdict, hasty = digits[slot] == d, digits[0] == d
    text, letter = true_or_false(f"{images(len(digits))}The {names[slot]} image shows a {d}.", verdict, true_first)
    thought = f"{looked_up(names, digits, d)} so {verdict}"
    return Question("references", text, letter[verdict], thought, letter[hasty], HASTE[d])


def ask_sequence(digits):
    """Sort the images by their digits, all different. The answer lists image numbers; the hasty one keeps the order."""
    names = slot_names(len(digits))
    ranking = sorted(range(len(digits)), key=lambda i: digits[i])
    read = " ".join(f"{name} {digit}" for name, digit in zip(names, digits))
    thought = f"{read} so {' '.join(f'{digits[i]} {names[i]}' for i in ranking)}"
    text = f"{images(len(digits))}Sort the images from the smallest digit to the largest."
    identity = ",".join(str(i + 1) for i in range(len(digits)))
    return Question("sequence", text, ",".join(str(i + 1) for i in ranking), thought, identity, 0.5)


def ask_single(digits):
    """One image: nothing can be permuted, and nothing is hasty."""
    (d,) = digits
    return Question("fixed", "<image> Which digit is this?", str(d), str(d), str(d))


def ask_even(digits, true_first):
    (d,) = digits
    text, letter = true_or_false("<image> The digit is even.", d % 2 == 0, true_first)
    return Question("fixed", text, letter[d % 2 == 0], f"{d} so {d % 2 == 0}", letter[d % 2 == 0])


def draw(kind, rng):
    """Draw one question of a kind: the digits its slots must show, the asking function and its further arguments.

    Slots are uniform: the image that decides the answer stands equally often everywhere."""
    n, d, coin = rng.randint(2, 5), rng.randrange(10), rng.random() < 0.5
    others = [x for x in range(10) if x != d]
    digits = [rng.choice(others) for _ in range(n)]  # none shows d yet
    if kind in ("options", "index"):
        digits[rng.randrange(n)] = d
        return (ask_options if kind == "options" else ask_index), digits, (d,)
    if kind == "references":
        slot = rng.randrange(n)
        digits = [d if rng.random() < 0.5 else x for x in digits]
        return ask_statement, digits, (slot, d, coin)
    if kind == "invariant":
        count = rng.randint(0, n)
        if rng.random() < 0.5:
            for i in rng.sample(range(n), count):
                digits[i] = d
            return ask_count, digits, (d,)
        quantifier = rng.choice((any, all))
        exact, near = (0, 1) if quantifier is any else (n, n - 1)  # the claim turns on a single image
        for i in rng.sample(range(n), rng.choice((exact, near))):
            digits[i] = d
        return ask_any_or_all, digits, (d, quantifier, coin)
    if kind == "sequence":
        return ask_sequence, rng.sample(range(10), n), ()
    return (ask_single, [d], ()) if rng.random() < 0.5 else (ask_even, [d], (coin,))


def split_digits(seed):
    """Indices into load_digits(): {"train": {digit: [...]}, "test": {digit: [...]}}, disjoint, the same on every machine."""
    labels = load_digits().target
    indices = random.Random(f"split {seed}").sample(range(len(labels)), len(labels))
    parts = {"test": indices[:TEST_DIGITS], "train": indices[TEST_DIGITS:]}
    return {name: {d: [i for i in part if labels[i] == d] for d in range(10)} for name, part in parts.items()}


def pick(digits, bank, rng):
    """One image index per digit, no image twice in a question."""
    chosen = []
    for d in digits:
        chosen.append(rng.choice([i for i in bank[d] if i not in chosen]))
    return chosen


def digit_image(pixels):
    """8 x 8 pixels in 0..16 to a 28 x 28 grey image: one visual token of Qwen2.5-VL."""
    return Image.fromarray((pixels * 255 / 16).astype(np.uint8)).resize((28, 28), Image.BICUBIC)


def write_questions(out, seed, banks):
    (out / "images").mkdir(parents=True, exist_ok=True)
    for index, pixels in enumerate(load_digits().images):
        digit_image(pixels).save(out / f"images/digit-{index:04d}.png")
    for column, name in enumerate(("train", "test")):
        rng, rows = random.Random(f"{name} {seed}"), []
        for kind, counts in KINDS.items():
            for number in range(counts[column]):
                ask, digits, arguments = draw(kind, rng)
                question = ask(digits, *arguments)
                paths = [f"images/digit-{i:04d}.png" for i in pick(digits, banks[name], rng)]
                rows.append({"id": f"{name}-{kind}-{number}", "images": paths, "question": question.text,
                             "answer": question.answer, "order": question.order, "stem": 0})
        rng.shuffle(rows)
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


# Qwen's chat format; images arrive in their places between the words.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


def response(thought, answer):
    return f"<think>{thought}</think> \\boxed{{{answer}}}"


def make_tokenizer():
    """Byte-level BPE on the task's own text: each of its words becomes one token, any other text still encodes as bytes."""
    rng, corpus = random.Random(0), ["user assistant system", INSTRUCTION]
    for kind in KINDS:
        for _ in range(500):
            ask, digits, arguments = draw(kind, rng)
            question = ask(digits, *arguments)
            corpus.append(question.text.replace("<image>", "\n") + "\n" + response(question.thought, question.answer))
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator((text.replace("<think>", "\n").replace("</think>", "\n") for text in corpus),
                            trainers.BpeTrainer(vocab_size=2000, special_tokens=SPECIAL, initial_alphabet=alphabet,
                                                show_progress=False))
    bpe.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                                   additional_special_tokens=SPECIAL, padding_side="left", model_max_length=4096)


def make_processor():
    tokenizer = make_tokenizer()
    size = {"shortest_edge": 784, "longest_edge": 784}  # areas: every image becomes 784 = 28 * 28 pixels
    return Qwen2_5_VLProcessor(Qwen2VLImageProcessorPil(size=size), tokenizer, Qwen2VLVideoProcessor(size=size),
                               chat_template=CHAT_TEMPLATE)


def make_model(processor):
    """A Qwen2.5-VL of about 1M parameters, random weights. head_dim 32 is the least that vLLM's CPU attention takes."""
    token = processor.tokenizer.convert_tokens_to_ids
    width = 128
    config = Qwen2_5_VLConfig(
        text_config=dict(vocab_size=len(processor.tokenizer), hidden_size=width, intermediate_size=2 * width,
                         num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=4096,
                         rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
                         tie_word_embeddings=True, bos_token_id=None, eos_token_id=token("<|im_end|>"),
                         pad_token_id=token("<|endoftext|>")),
        vision_config=dict(depth=1, hidden_size=64, intermediate_size=192, num_heads=2, out_hidden_size=width,
                           patch_size=14, spatial_merge_size=2, temporal_patch_size=2, window_size=112,
                           fullatt_block_indexes=[0]),
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, eos_token_id=token("<|im_end|>"),
                                               pad_token_id=token("<|endoftext|>"))
    return model


CAREFUL = dict(steps=900, lr=1e-3)
HASTY = dict(steps=100, lr=3e-4)


def warm_up(model, processor, bank, seed, careful=CAREFUL, hasty=HASTY, batch=64):
    """Supervised training, first with the careful teacher's responses, then with the hasty one's.

    Changes the model in place; returns the mean cross-entropy of every step."""
    rng = random.Random(f"warm-up {seed}")
    pixels = load_digits().images
    patches = processor.image_processor([digit_image(x) for x in pixels], return_tensors="pt")["pixel_values"]
    patches = patches.view(len(pixels), 4, -1)  # (1797, 4, 1176)
    kinds, weights = list(KINDS), [weight for _, _, weight in KINDS.values()]

    def one_batch(haste):
        """Questions with their responses, sorted by length and cut into pieces, so that little is spent on padding."""
        sequences = []
        for kind in rng.choices(kinds, weights, k=batch):
            ask, digits, arguments = draw(kind, rng)
            question = ask(digits, *arguments)
            answer = question.hasty if haste and rng.random() < question.haste else question.answer
            prompt = processor.tokenizer.encode(prompt_text(processor, question.text))
            reply = processor.tokenizer.encode(response(question.thought, answer) + "<|im_end|>")
            sequences.append((prompt, reply, pick(digits, bank, rng)))
        sequences.sort(key=lambda sequence: len(sequence[0]) + len(sequence[1]))
        return [sequences[i:i + batch // 4] for i in range(0, batch, batch // 4)]

    def loss_sum(sequences):
        """Summed cross-entropy of the replies' tokens."""
        rows, length = len(sequences), max(len(prompt) + len(reply) for prompt, reply, _ in sequences)
        ids = torch.full((rows, length), model.config.text_config.pad_token_id)  # (B, L), padded on the right
        targets = torch.full((rows, length), -100)
        for row, (prompt, reply, _) in enumerate(sequences):
            ids[row, :len(prompt) + len(reply)] = torch.tensor(prompt + reply)
            targets[row, len(prompt):len(prompt) + len(reply)] = torch.tensor(reply)
        pixel_values = patches[[index for _, _, shown in sequences for index in shown]].flatten(0, 1)
        grid = torch.tensor([[1, 2, 2]]).expand(len(pixel_values) // 4, 3)
        # An image is one token here, so M-RoPE's three rows are all 0, 1, 2, ...; padding stands behind and is never seen.
        position_ids = torch.arange(length).expand(3, rows, length)
        hidden = model.model(input_ids=ids, pixel_values=pixel_values, image_grid_thw=grid, position_ids=position_ids,
                             use_cache=False).last_hidden_state
        said = targets[:, 1:] != -100
        logits = model.lm_head(hidden[:, :-1][said])  # (tokens of the replies, V)
        return torch.nn.functional.cross_entropy(logits, targets[:, 1:][said], reduction="sum")

    losses = []
    model.train()
    for name, haste, phase in (("careful teacher", False, careful), ("hasty teacher", True, hasty)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=phase["lr"], weight_decay=0.01)
        progress = tqdm(range(phase["steps"]), desc=name)
        for t in progress:
            for group in optimizer.param_groups:  # a short rise, then a linear decay to 0
                group["lr"] = phase["lr"] * min((t + 1) / 20, 1 - t / phase["steps"])
            pieces = one_batch(haste)
            tokens = sum(len(reply) for piece in pieces for _, reply, _ in piece)
            losses.append(0.0)
            for piece in pieces:
                loss = loss_sum(piece) / tokens
                loss.backward()
                losses[-1] += loss.item()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            progress.set_postfix(loss=f"{losses[-1]:.3f}")
    model.eval()
    return losses


def build(out, seed=0, warmup=True) -> None:
    """Write OUT/train.jsonl, test.jsonl, images/ and base/; at once when they are there already, made by this very script.

    warmup=False leaves the base untrained (seconds instead of minutes), for tests."""
    out = Path(out)
    stamp = hashlib.sha256(f"{Path(__file__).read_text()}{INSTRUCTION}{seed}{warmup}".encode()).hexdigest()
    if (out / ".stamp").is_file() and (out / ".stamp").read_text() == stamp:
        return
    (out / ".stamp").unlink(missing_ok=True)
    banks = split_digits(seed)
    write_questions(out, seed, banks)
    torch.manual_seed(seed)
    processor = make_processor()
    model = make_model(processor)
    if warmup:
        warm_up(model, processor, banks["train"], seed)
    model.save_pretrained(out / "base")
    processor.save_pretrained(out / "base")
    (out / ".stamp").write_text(stamp)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the embedded digits task: questions, images, and a tiny base model.")
    parser.add_argument("--out", default="runs/digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-warmup", action="store_true", help="leave the base untrained, for tests")
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count())
    build(args.out, args.seed, not args.no_warmup)
