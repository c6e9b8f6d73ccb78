"""evals/orders.py: its figures on hand-made model output, and the models it can ask."""

import argparse
import io
import json
import math
import random
import re

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from evals.orders import (
    asked,
    conversation,
    evaluate,
    mapped_back,
    open_renderer,
    orders_of,
    picture,
    prompt_length,
    render,
    summarise,
)
from perl.permute import DataError, Sample, load, permute, plain, slot_of
from perl.rollout import encode, load_processor, prompt_text
from rewards.boxed import options

# --- Figures ---


def sample(n, answer="[[1|A]]", stem=0, question=None, permutable=True):
    letters = "".join(f"\n{chr(65 + k)}. <image>" for k in range(n - stem))
    text = question or "<image>" * stem + " Which image shows a 7?" + letters
    return Sample("x", tuple(f"{k}.png" for k in range(n)), text, answer, permutable, stem)


@pytest.mark.parametrize(
    "n, stem, count",
    [(2, 0, 2), (3, 0, 6), (4, 0, 24), (4, 1, 6), (5, 0, 24), (5, 1, 24), (8, 0, 24)],
)
def test_orders(n, stem, count):
    orders = orders_of(sample(n, "A", stem=stem), seed=0)
    assert len(orders) == len(set(orders)) == count and orders[0] == tuple(range(n))
    assert all(sorted(o) == list(range(n)) and o[:stem] == tuple(range(stem)) for o in orders)
    assert orders == orders_of(sample(n, "A", stem=stem), seed=0)


@pytest.mark.parametrize(
    "n, stem, most, count", [(4, 0, 2, 2), (2, 0, 2, 2), (2, 1, 2, 1), (8, 0, 3, 3)]
)
def test_fewer_orders(n, stem, most, count):
    orders = orders_of(sample(n, "A", stem=stem), 0, most)
    assert len(set(orders)) == count and orders[0] == tuple(range(n))


def test_what_is_not_permutable_is_asked_once():
    x = sample(3, permutable=False)
    assert asked(x, 0) == [((0, 1, 2), x)]
    assert len(asked(sample(3), 0)) == 6


def test_answers_are_mapped_back_to_the_given_order():
    x, sigma = sample(3, answer="[[3|C]]"), (2, 0, 1)
    y = permute(x, sigma)
    assert y.answer == "[[1|A]]" and slot_of(y, options(y.question)) == 1
    for said in ("A", "(A)", " A. ", "Option A", "\\text{A}"):  # one answer, however it is written
        # The image that stands first was the third.
        assert mapped_back(y, sigma, f"\\boxed{{{said}}}") == "c"
    assert mapped_back(y, sigma, "so \\boxed{ B }") == "a"
    assert mapped_back(y, sigma, "no box") is mapped_back(y, sigma, "\\boxed{ }") is None
    assert mapped_back(y, sigma, "\\boxed{Nonsense}") == "nonsense"
    count = sample(3, "2", question="<image><image><image> How many of the images show a 7?")
    assert (
        mapped_back(permute(count, sigma), sigma, "\\boxed{1}") == "1"
        and slot_of(count, {}) is None
    )
    index = sample(3, "Image [[3|3]]", question="<image><image><image> Which image shows a 7?")
    y = permute(index, sigma)
    assert y.answer == "Image [[1|1]]" and slot_of(y, options(y.question)) == 1
    for said in ("Image 2", "2", "the second image", "Second image."):
        assert mapped_back(y, sigma, f"\\boxed{{{said}}}") == "image 1"
    statement = Sample(
        "s",
        ("a", "b"),
        "<image><image> The [[1|left]] image is red.\n(A) True\n(B) False",
        "A",
        True,
    )
    named = Sample(
        "n",
        ("a", "b"),
        "<image><image> Which is red?\n(A) the [[2|right]] one\n(B) the [[1|left]] one",
        "A",
        True,
    )
    assert (
        slot_of(named, options(named.question)) == 2
        and slot_of(permute(named, (1, 0)), options(permute(named, (1, 0)).question)) == 1
        and slot_of(statement, options(statement.question)) is None
    )
    assert (
        mapped_back(permute(statement, (1, 0)), (1, 0), "\\boxed{True}")
        == mapped_back(statement, (0, 1), "\\boxed{A}")
        == "a"
    )


def test_figures_on_hand_made_output():
    def record(id, order, right, answer, slot=None, task="options"):
        return {
            "id": id,
            "task": task,
            "order": order,
            "right": float(right),
            "answer": answer,
            "slot": slot,
        }

    records = [
        record("a", 0, 1, "a", 1),
        record("a", 1, 0, "b", 2),  # right only where it stands first
        record("b", 0, 0, "b", 2),
        record("b", 1, 0, "b", 1),  # consistently wrong
        record("c", 0, 1, "a", 1),
        record("c", 1, 1, "a", 2),  # consistently right
        record("d", 0, 0, None, 1),
        record("d", 1, 0, None, 2),  # never answers: not the same answer
        record("e", 0, 1, "7", task="single"),  # can't be permuted: counts in `given` alone
        record("f", 0, 0, "a"),
        record("f", 1, 1, "b"),  # right only in the permuted order
    ]
    assert summarise(records) == {
        "questions": 6,
        "permutable": 5,
        "given": pytest.approx(3 / 6),
        "mean_over_orders": pytest.approx((0.5 + 0 + 1 + 0 + 0.5) / 5),
        "worst_order": pytest.approx(1 / 5),
        "best_order": pytest.approx(3 / 5),
        "consistency": pytest.approx(2 / 5),
        "by_slot": {"1": pytest.approx(2 / 4), "2": pytest.approx(1 / 4)},
        "by_task": {"single": 1.0, "options": pytest.approx(4 / 10)},
    }


def test_no_question_to_permute():
    figures = summarise(
        [{"id": "a", "task": "single", "order": 0, "right": 1.0, "answer": "7", "slot": None}]
    )
    assert figures["given"] == 1.0 and figures["worst_order"] is None and figures["by_slot"] == {}


@pytest.fixture
def alone(tmp_path):
    """A process group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("most", [2, 24])
def test_whoever_answers_is_evaluated(alone, most):
    """A model that looks at slots is right in one order
    in n; one that looks at images is right in all."""
    questions = [sample(n, answer=a) for n, a in ((2, "[[1|A]]"), (3, "[[2|B]]"), (4, "[[4|D]]"))]
    questions = [
        Sample(str(k), x.images, x.question, x.answer, True) for k, x in enumerate(questions)
    ]
    # The image that shows a 7.
    right = {x.id: x.images["ABCD".index(plain(x.answer))] for x in questions}
    counts = [min(most, math.factorial(len(x.images))) for x in questions]

    slots = summarise(evaluate(lambda asks: ["\\boxed{A}"] * len(asks), questions, 0, most, 0, 1))
    assert (
        slots["given"] == pytest.approx(1 / 3) and slots["worst_order"] == slots["consistency"] == 0
    )
    assert slots["by_slot"]["1"] == 1 and sum(slots["by_slot"].values()) == 1
    if most == 24:
        assert (
            slots["mean_over_orders"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
            and slots["best_order"] == 1
        )

    asks = []

    def by_image(xs):
        asks.extend(xs)
        return [f"\\boxed{{{'ABCD'[x.images.index(right[x.id])]}}}" for x in xs]

    images = summarise(evaluate(by_image, questions, 0, most, 0, 1))
    assert len(asks) == sum(counts) and len({(x.id, x.images) for x in asks}) == len(asks)
    assert images["given"] == images["worst_order"] == images["consistency"] == 1


@given(st.integers(1, 900), st.integers(1, 900), st.integers(1, 300_000))
def test_pictures_are_scaled_down_never_up(width, height, most):
    Image.new("L", (width, height)).save(file := io.BytesIO(), "BMP")
    pil = picture(file, most)
    assert pil.mode == "RGB" and pil.width * pil.height <= max(most, max(pil.size))
    if width * height <= most:
        assert pil.size == (width, height)
    elif min(pil.size) > 20:
        assert pil.width / pil.height == pytest.approx(width / height, rel=0.1)
        assert pil.width * pil.height > 0.85 * most


# --- Any model: tiny ones of other families, random weights, everything else as on the hub ---


def tokenizer(*special):
    """One token for each printable character, and the special ones."""
    letters = [
        pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(chr(c))[0][0]
        for c in (10, *range(32, 127))
    ]
    characters = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    characters.pre_tokenizer, characters.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=characters,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=list(special),
    )


def llama(words):
    """A text model that vLLM's CPU attention takes (head_dim 32), restless enough to answer each
    prompt in its own way."""
    return LlamaConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.3,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )


LLAVA = """{% for message in messages %}{{ message.role | upper + ': ' }}
{%- for part in message.content | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}
{%- for part in message.content | selectattr('type', 'equalto', 'text') %}{{ part.text }}{% endfor %}{{ ' ' }}{% endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""  # as published: all images, then the text


def llava(out):
    """CLIP and Llama."""
    words = tokenizer("<image>")
    crop = {"height": 28, "width": 28}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=crop),
        words,
        patch_size=14,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=LLAVA,
    )
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    image = words.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=llama(words),
            image_token_index=image,
            image_seq_length=4,
        )
    )
    model.save_pretrained(out)
    processor.save_pretrained(out)
    # The published checkpoints, and vLLM, still say vision_tower.vision_model.
    weights = load_file(out / "model.safetensors")
    weights = {
        re.sub(r"vision_tower\.(?!vision_model)", "vision_tower.vision_model.", name): w
        for name, w in weights.items()
    }
    save_file(weights, out / "model.safetensors", {"format": "pt"})


IDEFICS = """<s>{% for message in messages %}{{ message.role | capitalize + ':' }}{% for part in message.content %}
{%- if part.type == 'image' %}{{ '<image>' }}{% else %}{{ part.text }}{% endif %}{% endfor %}{{ '<end_of_utterance>\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""


def idefics(out):
    """Idefics3 (as SmolVLM): its own vision model, pixel shuffle, several tokens around each
    image, <s> in the template."""
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    words = tokenizer(
        "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *tiles
    )
    pixels = Idefics3ImageProcessorPil(
        size={"longest_edge": 56}, max_image_size={"longest_edge": 56}
    )
    processor = Idefics3Processor(pixels, words, image_seq_len=4, chat_template=IDEFICS)
    vision = dict(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
    )
    image = words.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    model = Idefics3ForConditionalGeneration(
        Idefics3Config(
            vision_config=vision,
            text_config=llama(words),
            image_token_id=image,
            pad_token_id=words.pad_token_id,
            scale_factor=2,
        )
    )
    model.save_pretrained(out)
    processor.save_pretrained(out)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Three questions about pictures of three sizes: 9 asks."""
    out, rng = tmp_path_factory.mktemp("questions"), random.Random(0)
    for k in range(3):
        Image.frombytes("RGB", (40, 28 + 20 * k), rng.randbytes(120 * (28 + 20 * k))).save(
            out / f"{k}.png"
        )
    rows = [
        {
            "images": ["0.png", "1.png", "2.png"],
            "permute": True,
            "answer": "[[1|A]]",
            "question": "A. <image>\nB. <image>\nC. <image>\nWhich image shows a dog?",
        },
        {
            "images": ["0.png", "1.png"],
            "permute": True,
            "answer": "A",
            "question": "<image> <image> The [[1|left]] image shows a dog. True or false?\n(A) True\n(B) False",
        },
        {"images": ["2.png"], "answer": "7", "question": "<image> Which digit is this?"},
    ]
    (out / "q.jsonl").write_text(
        "".join(json.dumps({"id": str(k)} | row) + "\n" for k, row in enumerate(rows))
    )
    return out / "q.jsonl"


def greedy(folder, samples, max_tokens):
    """What transformers generates for the model's own chat template."""
    processor, model = (
        AutoProcessor.from_pretrained(folder),
        AutoModelForImageTextToText.from_pretrained(folder).eval(),
    )
    texts = []
    for x in samples:
        pictures = [Image.open(path).convert("RGB") for path in x.images]
        inputs = processor(
            text=[prompt_text(processor, x.question)],
            images=[pictures],
            return_tensors="pt",
            add_special_tokens=False,
        )
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=max_tokens)[
            0, inputs["input_ids"].shape[1] :
        ]
        texts.append(processor.tokenizer.decode(ids, skip_special_tokens=True))
    return texts


@pytest.mark.long
@pytest.mark.parametrize("family", [llava, idefics])
def test_any_model_is_asked_in_every_order(torchrun, questions, tmp_path, family):
    """Every question, in every order, is what transformers would read: the same greedy answers,
    of all models alike."""
    family(tmp_path / "model")
    torchrun(
        1,
        "evals/orders.py",
        "--model",
        tmp_path / "model",
        "--data",
        questions,
        "--out",
        tmp_path,
        "--max-tokens",
        "12",
    )
    records = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    asks = [(x.id, list(sigma), y) for x in load(questions) for sigma, y in asked(x, 0)]
    assert [(r["id"], r["sigma"]) for r in records] == [(id, sigma) for id, sigma, _ in asks]
    responses = [r["response"] for r in records]
    assert responses == greedy(tmp_path / "model", [y for *_, y in asks], 12)
    assert len(set(responses)) == 9  # the order of the images reaches the model
    assert json.loads((tmp_path / "orders.json").read_text())["questions"] == 3


def flags(model, **change):
    defaults = dict(
        model=str(model),
        max_prompt=8192,
        max_tokens=16,
        max_pixels=512 * 512,
        trust_remote_code=False,
    )
    return argparse.Namespace(**defaults | change)


def test_prompts_are_those_of_training(digits):
    args = flags(digits / "base")
    (renderer, context), samples = open_renderer(args, 5), load(digits / "test.jsonl")[:60]
    assert context == 4096 and {x.task for x in samples} > {"options", "references", "single"}
    processor, _ = load_processor(args.model, args.max_pixels)
    for x, prompt in zip(samples, encode(processor, samples)):
        ids, places = render(renderer, conversation(x, args.max_pixels))
        assert ids == prompt.ids.tolist() and len(places) == len(x.images)


def test_templates_of_plain_text(questions, tmp_path):
    """Some templates take a turn as one string: the images still stand in their slots."""
    llava(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message.content }}{% endfor %}"
    )
    renderer, _ = open_renderer(flags(tmp_path), 3)
    ids, places = render(renderer, conversation(load(questions)[0], 512 * 512))
    text = renderer.get_tokenizer().decode(ids)
    assert (
        re.match(r"A\.\s+(<image>){4}\s+B\.\s+(<image>){4}\s+C\.\s+(<image>){4}\s+Which", text)
        and len(places) == 3
    )


def test_models_with_code_of_their_own(tmp_path):
    """It runs only where the user says so."""
    llava(tmp_path)
    code = "from transformers import LlavaConfig\nclass TheirConfig(LlavaConfig):\n    model_type = 'theirs'\n"
    (tmp_path / "theirs.py").write_text(code)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.TheirConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="trust"):
        open_renderer(flags(tmp_path), 1)
    assert open_renderer(flags(tmp_path, trust_remote_code=True), 1)[1] == 1024


# --- A user's mistakes ---


def test_models_that_cannot_be_asked(tmp_path):
    def refuses(folder, *words):
        with pytest.raises(DataError) as error:
            open_renderer(flags(folder), 1)
        assert all(word in str(error.value) for word in ("--model", *words)) and "\n" not in str(
            error.value
        ), error.value

    refuses("", "missing")
    (tmp_path / "empty").mkdir()
    refuses(tmp_path / "empty", str(tmp_path / "empty"))
    words = tokenizer()
    words.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    LlamaForCausalLM(llama(words)).save_pretrained(tmp_path / "blind")
    words.save_pretrained(tmp_path / "blind")
    refuses(tmp_path / "blind", "not a multimodal model")
    for name in ("weightless", "silent", "unprocessed"):
        llava(tmp_path / name)
    (tmp_path / "weightless" / "model.safetensors").unlink()
    refuses(tmp_path / "weightless", "no weights")
    (tmp_path / "silent" / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message.role }}{% endfor %}"
    )
    refuses(tmp_path / "silent", "about images")
    (tmp_path / "unprocessed" / "processor_config.json").unlink()
    refuses(tmp_path / "unprocessed", "processor")


def test_questions_that_cannot_be_asked(digits, tmp_path):
    renderer, context = open_renderer(flags(digits / "base"), 2)
    image = next(str(path) for path in sorted((digits / "images").iterdir()))
    (tmp_path / "cut.png").write_bytes(open(image, "rb").read()[:150])

    def refuses(words, question="<image> What?", path=image, **change):
        row = {"id": "a", "images": [path], "question": question, "answer": "7"}
        (tmp_path / "q.jsonl").write_text(json.dumps(row))
        [x] = load(tmp_path / "q.jsonl")
        with pytest.raises(DataError) as error:
            prompt_length(renderer, context, x, flags(digits / "base", **change))
        assert all(word in str(error.value) for word in ("q.jsonl:1", *words)) and "\n" not in str(
            error.value
        ), error.value

    refuses(["images", "cut.png", "readable"], path=str(tmp_path / "cut.png"))
    refuses(["question", "control token"], question="<|image_pad|> <image> What?")
    refuses(["question", "limit is 20", "--max-prompt 20"], max_prompt=20)
    refuses(["question", "context of 4096", "--max-tokens 4080"], max_tokens=4080)
    # Over the context before any image.
    refuses(["question", "4096"], question="<image> " + 5000 * "Which digit is this? ")
    Image.new("L", (1, 400)).save(tmp_path / "line.png")
    refuses(["question", "aspect ratio"], path=str(tmp_path / "line.png"))


def test_a_mistake_ends_in_one_sentence(torchrun, digits, questions, tmp_path):
    """The command itself, on two ranks, where only the second meets the mistake: exit code 1, the
    sentence, no traceback."""
    rows = questions.read_text().splitlines()
    (questions.parent / "bad.jsonl").write_text(
        "\n".join([rows[0], rows[1].replace("1.png", "q.jsonl")])
    )
    done = torchrun(
        2,
        "evals/orders.py",
        "--model",
        digits / "base",
        "--data",
        questions.parent / "bad.jsonl",
        "--out",
        tmp_path / "out",
        "--max-tokens",
        "8",
        check=False,
    )
    ours = done.stderr.split("elastic")[0]  # torchrun's own report follows
    assert (
        done.returncode == 1
        and "orders.py: bad.jsonl:2: images: " in ours
        and "Traceback" not in ours
    ), done.stderr
    assert not (tmp_path / "out").exists()
