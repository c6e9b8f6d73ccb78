"""The embedded task is what it says it is: true answers, exact permutations, a base that loads."""

import json
import random
import re
import string

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from transformers import AutoModelForImageTextToText, AutoProcessor

from data import digits
from perl.permute import Sample, load, permute, plain
from perl.rollout import prompt_text

PLACES = ["first", "second", "third", "fourth", "fifth"]


def truth(text, shown):
    """The answer, worked out from the question as a reader would, without the generator."""
    d = int(found[1]) if (found := re.search(r" shows? a (\d)", text)) else None
    if "Sort the images" in text:
        return ",".join(str(i + 1) for i in sorted(range(len(shown)), key=shown.__getitem__))
    if text.endswith("Which digit is this?"):
        return str(shown[0])
    if "How many" in text:
        return str(shown.count(d))
    if "Which image" in text:
        assert shown.count(d) == 1
        return "ABCDE"[shown.index(d)] if text.startswith("A.") else f"Image {shown.index(d) + 1}"
    if "digit is even" in text:
        verdict = shown[0] in (0, 2, 4, 6, 8)
    elif "All images" in text:
        verdict = set(shown) == {d}
    elif "At least one" in text:
        verdict = d in shown
    else:
        place = re.search(r"The (\w+) image", text)[1]
        verdict = (
            shown[{"left": 0, "right": 1}[place] if len(shown) == 2 else PLACES.index(place)] == d
        )
    return re.search(rf"\((\w)\) {verdict}", text)[1]


def number(path):
    """Which of scikit-learn's digits an image file shows."""
    return int(re.search(r"digit-(\d{4})\.png", str(path))[1])


@pytest.fixture(scope="module")
def real():
    return load_digits()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("digits")
    digits.build(out, seed=0, warmup=False)
    return out


@settings(max_examples=300)
@given(st.sampled_from(list(digits.KINDS)), st.randoms(use_true_random=False))
def test_permuted_question_is_the_one_the_generator_would_have_written(kind, rng):
    ask, shown, arguments = digits.draw(kind, rng)
    question = ask(shown, *arguments)
    assert question.text.count("<image>") == len(shown)
    assert plain(question.answer) == truth(plain(question.text), shown)
    if not question.permute:
        return
    sigma = rng.sample(range(len(shown)), len(shown))  # slot j shows old image sigma[j]
    if ask is digits.ask_statement:  # the statement follows its image
        arguments = (sigma.index(arguments[0]), *arguments[1:])
    moved = [shown[i] for i in sigma]
    names = tuple(f"{i}.png" for i in range(len(shown)))
    permuted = permute(Sample("q", names, question.text, question.answer, True), sigma)
    expected = ask(moved, *arguments)
    assert tuple(str(image) for image in permuted.images) == tuple(names[i] for i in sigma)
    assert (permuted.question, permuted.answer) == (expected.text, expected.answer)
    assert plain(permuted.answer) == truth(plain(permuted.question), moved)


@pytest.mark.parametrize("kind", ["options", "index"])
def test_answers_are_uniform_over_slots(kind):
    rng, n, counts = random.Random(0), 4, [0] * 4
    while sum(counts) < 2000:
        _, shown, (d,) = digits.draw(kind, rng)
        if len(shown) == n:
            counts[shown.index(d)] += 1
    deviation = (2000 * 1 / 4 * 3 / 4) ** 0.5
    assert all(abs(count - 500) < 4 * deviation for count in counts)


def test_hasty_teacher_is_right_about_the_first_image_and_wrong_only_elsewhere():
    rng = random.Random(1)
    for kind in ("options", "index"):
        for _ in range(200):
            ask, shown, (d,) = digits.draw(kind, rng)
            question = ask(shown, d)
            assert (question.hasty == plain(question.answer)) == (shown[0] == d)
    for _ in range(200):
        ask, shown, arguments = digits.draw("references", rng)
        question = ask(shown, *arguments)
        assert question.hasty == ask(shown, 0, *arguments[1:]).answer


def test_files_follow_the_schema_and_tell_the_truth(built, real):
    used = {}
    for name, column in (("train", 0), ("test", 1)):
        rows = [json.loads(line) for line in (built / f"{name}.jsonl").read_text().splitlines()]
        assert (
            len(rows)
            == len({row["id"] for row in rows})
            == sum(n[column] for n in digits.KINDS.values())
        )
        for row, sample in zip(rows, load(built / f"{name}.jsonl")):
            assert set(row) == {"id", "images", "question", "answer", "permute", "task"}
            assert len(set(row["images"])) == len(row["images"])
            shown = [int(real.target[number(path)]) for path in row["images"]]
            assert (
                plain(row["answer"]) == plain(sample.answer) == truth(plain(row["question"]), shown)
            )
        used[name] = {path for row in rows for path in row["images"]}
        assert all((built / path).is_file() for path in used[name])
        assert {row["task"] for row in rows if row["permute"]} == {
            "options",
            "references",
            "invariant",
            "index",
        }
        assert {row["task"] for row in rows if not row["permute"]} == {"single"}
    assert not used["train"] & used["test"]


def test_base_loads_and_reads_one_token_per_image(built, real):
    processor = AutoProcessor.from_pretrained(built / "base")
    model = AutoModelForImageTextToText.from_pretrained(built / "base")
    sample = next(s for s in load(built / "test.jsonl") if len(s.images) == 3)
    pictures = [Image.open(path) for path in sample.images]
    inputs = processor(
        text=[prompt_text(processor, sample.question)], images=pictures, return_tensors="pt"
    )
    ids = inputs["input_ids"]
    assert (ids == model.config.image_token_id).sum() == 3
    with torch.no_grad():
        logits = model(**inputs).logits
    assert logits.shape[:2] == ids.shape and logits.isfinite().all()
    # the warm-up's shortcut: with one token an image, all three rows of M-RoPE count 0, 1, 2, ...
    positions, _ = model.model.get_rope_index(
        ids, mm_token_type_ids=inputs["mm_token_type_ids"], image_grid_thw=inputs["image_grid_thw"]
    )
    assert torch.equal(positions, torch.arange(ids.shape[1]).expand(3, 1, -1))
    # and its pixels: what the processor makes of the PNG files is what the model was trained on
    drawn = [digits.digit_image(real.images[number(path)]) for path in sample.images]
    again = processor.image_processor(drawn, return_tensors="pt")["pixel_values"]
    assert torch.equal(inputs["pixel_values"], again)


def test_tokenizer_takes_any_text_and_keeps_the_think_tags(built):
    tokenizer = AutoProcessor.from_pretrained(built / "base").tokenizer
    for text in (
        string.printable,
        "Where is the café? 第二张图",
        digits.response("A 3 no B 7 yes", "B"),
    ):
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text
    assert len(tokenizer.encode("<think></think>")) == 2
    assert tokenizer.tokenize("A 3 no B 7 yes") == ["A", "Ġ3", "Ġno", "ĠB", "Ġ7", "Ġyes"]
    for special in digits.SPECIAL:
        assert len(tokenizer.encode(special)) == 1
        assert tokenizer.decode(tokenizer.encode(f"{special}x"), skip_special_tokens=True) == "x"


def test_build_is_cached_until_its_arguments_change(built, tmp_path):
    first = (built / "base" / "model.safetensors").stat().st_mtime_ns
    digits.build(built, seed=0, warmup=False)
    assert (built / "base" / "model.safetensors").stat().st_mtime_ns == first
    digits.build(tmp_path, seed=0, warmup=False)
    same = [path.relative_to(built) for path in built.rglob("*") if path.is_file()]
    assert all((built / path).read_bytes() == (tmp_path / path).read_bytes() for path in same)
    digits.build(tmp_path, seed=1, warmup=False)
    assert (built / "train.jsonl").read_bytes() != (tmp_path / "train.jsonl").read_bytes()


def test_warm_up_is_deterministic_and_learns():
    def trained(steps):
        torch.manual_seed(0)
        processor = digits.make_processor()
        model = digits.make_model(processor)
        bank = digits.split_digits(0)["train"]
        careful, hasty = {"steps": steps, "lr": 2e-3}, {"steps": 1, "lr": 1e-4}
        losses = digits.warm_up(model, processor, bank, 0, careful, hasty, batch=8)
        return model.state_dict(), losses

    (once, losses), (twice, _) = trained(20), trained(20)
    assert all(torch.equal(once[name], twice[name]) for name in once)
    assert losses[-1] < 0.8 * losses[0]
