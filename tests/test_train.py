"""perl/train.py and perl/rollout.py as they run: torchrun,
FSDP2 and vLLM, on two ranks and a tiny model."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

import rewards
from perl.grpo import advantages
from perl.permute import DataError, Sample, load, plain
from perl.rollout import Rollout, encode, load_processor, prepare, prompt_text, rollout_of
from perl.train import (
    Log,
    check,
    parse_args,
    questions_of,
    reward_metrics,
    sample_groups,
    share_of_rank,
)
from rewards.boxed import format_ok


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- Which questions a step draws ---


def test_an_epoch_shows_every_question_once():
    samples = [Sample(str(i), ("a.png",), "<image>?", "1") for i in range(50)]
    args = parse_args(["--prompts", "16"])
    steps = [questions_of(samples, step, args) for step in range(6)]
    for epoch in (steps[:3], steps[3:]):
        ids = [x.id for questions in epoch for x in questions]
        assert len(ids) == 48 == len(set(ids))
    assert [x.id for x in steps[0]] != [x.id for x in steps[3]]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_mini_batches_do_not_depend_on_ranks(world):
    questions = [Sample(str(i), ("a.png",), "<image>?", "1") for i in range(16)]
    shares = [share_of_rank(questions, rank, world, 2) for rank in range(world)]
    size = 8 // world
    for u in range(2):
        together = {x.id for share in shares for x in share[u * size : (u + 1) * size]}
        assert together == {str(i) for i in range(8 * u, 8 * u + 8)}


def test_each_rollout_is_graded_by_the_answer_of_its_own_order(digits):
    """The one place where permutation, answer, reward and advantage meet: an engine that always
    says A is right exactly where the right image stands first."""
    says_a = Rollout("<think></think> \\boxed{A}", (5, 6), (-1.0, -1.0), True)
    engine = SimpleNamespace(generate=lambda prompts, n, **_: [[says_a] * n for _ in prompts])
    questions = [x for x in load(digits / "train.jsonl") if x.task == "options"][:8]
    args, (processor, _) = (
        parse_args(["--n-s", "2", "--n", "3"]),
        load_processor(str(digits / "base"), 784),
    )
    groups = sample_groups(engine, processor, questions, 0, 1.0, args)
    for x, group in zip(questions, groups, strict=True):
        for k, copy in enumerate(group.copies):
            # Where the right image stands now.
            letter = "ABCDE"[copy.sigma.index("ABCDE".index(plain(x.answer)))]
            assert group.accuracy[3 * k : 3 * k + 3].tolist() == [float(letter == "A")] * 3
            assert tuple(image.key for image in group.rows[k].images) == copy.sample.images
        assert torch.equal(group.advantages, advantages(group.rewards[None])[0])
    assert any(group.advantages.abs().max() > 0 for group in groups)


def grader_of(reward, accuracy):
    return rewards.Reward(lambda *_: reward, lambda *_: accuracy)


def sampled_with(digits, step, n_s=1, alpha_t=1.0, grader=rewards.BOXED):
    """The groups of eight questions at a step, and the seeds that the engine was given."""
    seeds = []
    says_a = Rollout("<think></think> \\boxed{A}", (5, 6), (-1.0, -1.0), True)

    def generate(prompts, n, seeds, **_):
        given.extend(seeds)
        return [[says_a] * n for _ in prompts]

    given = seeds
    args = parse_args(["--n-s", str(n_s), "--n", "3"])
    processor, _ = load_processor(str(digits / "base"), 784)
    questions = load(digits / "train.jsonl")[:8]
    engine = SimpleNamespace(generate=generate)
    return sample_groups(engine, processor, questions, step, alpha_t, args, grader), seeds


def test_every_step_question_and_order_is_sampled_with_a_seed_of_its_own(digits):
    """Also where the coin leaves a question unpermuted: two copies with one seed would be one sample."""
    seeds = []
    for step in range(3):
        seeds += sampled_with(digits, step, n_s=2, alpha_t=0.5)[1]
    assert len(seeds) == len(set(seeds)) == 3 * 8 * 3


@pytest.mark.parametrize(
    "end, prefill", [("", ""), ("<think>", "<think>"), ("<think>\n", "<think>")]
)
def test_a_template_may_begin_the_response(digits, end, prefill):
    """What it wrote counts as the response's: the format reward can be earned."""
    processor, _ = load_processor(str(digits / "base"), 784)
    processor.chat_template += "{% if add_generation_prompt %}" + end + "{% endif %}"
    [prompt] = encode(processor, load(digits / "train.jsonl")[:1])
    output = SimpleNamespace(
        text="2</think> \\boxed{A}",
        token_ids=[1],
        logprobs=SimpleNamespace(logprobs=[0.0]),
        finish_reason="stop",
    )
    assert prompt.prefill == prefill
    assert format_ok(rollout_of(output, prompt.prefill).text) == bool(prefill)


@pytest.mark.parametrize("reward, accuracy", [(0.25, 0.75), (0, 1), (False, True)])
def test_metrics_tell_accuracy_from_reward(digits, reward, accuracy):
    """Whole numbers and truth values, as a user's reward may return them, too."""
    groups, _ = sampled_with(digits, 0, grader=grader_of(reward, accuracy))
    metrics = reward_metrics(groups, 1)
    assert (metrics["reward"], metrics["accuracy"], metrics["format"]) == (reward, accuracy, 1.0)
    assert metrics["no_spread"] == 1.0 and metrics["distinct_answers"] == 1.0


def test_no_mark_reaches_a_prompt_or_a_grader(digits):
    seen = []

    def see(response, answer, options):
        seen.extend([answer, *options.values()])
        return 0.0

    groups, _ = sampled_with(digits, 0, grader=rewards.Reward(see, see))
    processor, _ = load_processor(str(digits / "base"), 784)
    for group in groups:
        for copy, row in zip(group.copies, group.rows):
            assert "[[" not in processor.tokenizer.decode(row.prompt_ids)
            seen.append(prompt_text(processor, copy.sample.question))
    assert seen and not any("[[" in text for text in seen)
    assert any(
        "[[" in copy.sample.question + copy.sample.answer for g in groups for copy in g.copies
    )


# --- Equivalences ---


def updated(torchrun, digits, tmp_path, ranks, *flags):
    """Weights before and after two updates, and their metrics."""
    out = tmp_path / "updated.pt"
    torchrun(ranks, "tests/workers/update.py", digits, out, *flags)
    return torch.load(out), json.loads(out.with_suffix(".json").read_text())


@pytest.mark.parametrize("n_s, beta", [(1, 0.1), (0, 0.0)])
def test_one_rank_equals_two(torchrun, digits, tmp_path, n_s, beta):
    """Same fixed rollouts, same global batch: same
    weights, whatever the ranks and the micro-batches."""
    flags = ["--n-s", n_s, "--beta", beta]
    one, metrics = updated(torchrun, digits, tmp_path, 1, *flags)
    two, metrics_two = updated(torchrun, digits, tmp_path, 2, *flags, "--micro-batch", 2)
    moved = max((one["after"][k] - one["before"][k]).abs().max().item() for k in one["after"])
    assert moved > 1e-4  # the update is not nothing
    for name, weight in one["after"].items():
        assert (weight - two["after"][name]).abs().max() < 1e-5, name
    for name, value in metrics.items():
        assert metrics_two[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name
    assert (
        0 < metrics["tis_weight"] < 2
        and metrics["entropy"] > 0
        and (metrics["kl"] > 0) == (beta > 0)
    )


@pytest.mark.long
def test_copies_of_the_weights_change_nothing(torchrun, digits, tmp_path):
    """--replicate: four ranks as one copy, as two copies of two ranks, as four."""
    flat, metrics = updated(torchrun, digits, tmp_path, 4)
    moved = [(flat["after"][k] - flat["before"][k]).abs().max().item() for k in flat["after"]]
    assert max(moved) > 1e-4
    for replicate in (2, 4):
        hybrid, theirs = updated(torchrun, digits, tmp_path, 4, "--replicate", replicate)
        for name, weight in flat["after"].items():
            assert (weight - hybrid["after"][name]).abs().max() < 1e-6, (replicate, name)
        for name, value in metrics.items():
            assert theirs[name] == pytest.approx(value, rel=1e-4, abs=1e-6), (replicate, name)


def test_sync_is_exact_and_caches_are_dropped(torchrun, digits, tmp_path):
    torchrun(2, "tests/workers/sync.py", digits, tmp_path / "gaps.json")
    gaps = json.loads((tmp_path / "gaps.json").read_text())
    for name in ("fresh", "temperature 0.7", "all moved, synced", "vision moved, synced"):
        assert gaps[name] <= 1e-4, gaps
    # The controls: a sync forgotten, or an image embedding kept, shows.
    assert gaps["all moved, no sync"] > 1e-1, gaps
    assert gaps["vision moved, no sync"] > 1e-3, gaps
    assert gaps["reproducible"] == 1.0 and gaps["banned sampled"] == 0.0, gaps
    assert gaps["parameters left NaN"] == 0.0  # a sync writes all that a level-2 sleep drops
    assert gaps["more tokens than a batch holds"] > 8192 and gaps["all sampled"] == 1.0


# --- The script ---

METRICS = """step alpha reward accuracy format no_spread permuted response_length cut_off advantages kl clip_share tis_weight
loss entropy logp_gap_mean logp_gap_max grad_norm skipped distinct_answers seconds_sampling seconds_sync seconds_reference seconds_update
tokens_per_second""".split()


def test_two_ranks_train_and_the_model_loads(torchrun, digits, tmp_path):
    run = tmp_path / "run"
    flags = "--prompts 8 --updates 2 --steps 2 --max-prompt 200 --max-tokens 12 --lr 1e-3".split()
    (digits / "eight.jsonl").write_text(
        "\n".join((digits / "test.jsonl").read_text().splitlines()[:8])
    )
    flags += ["--eval", digits / "eight.jsonl", "--eval-every", "2"]
    done = torchrun(
        2,
        "perl/train.py",
        "--model",
        digits / "base",
        "--data",
        digits / "train.jsonl",
        "--out",
        run,
        *flags,
    )
    rows = read(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1] and [row["alpha"] for row in rows] == [1.0, 0.5]
    for row in rows:
        slots = {name for name in row if name.startswith("eval_slot_")}
        assert set(row) - slots - {"orders_differ"} == set(METRICS) | (
            {"eval_given", "eval_permuted"} if row["step"] == 1 else set()
        )
        assert bool(slots) == (row["step"] == 1)
        assert 1 <= row["distinct_answers"] <= 6
        assert row["logp_gap_max"] <= 1e-4 and sum(row["advantages"]) == 8 * 12
    # Two sample rollouts a step.
    assert done.stderr.count("| answer ") + done.stdout.count("| answer ") == 4
    assert [row["step"] for row in read(run / "rollouts.jsonl")] == [0, 0, 1, 1]
    config = json.loads((run / "config.json").read_text())
    assert list((run / "tb").iterdir()) and config["n"] == 6
    assert {"torch", "transformers", "vllm", "python"} < set(config["versions"])
    chosen = {"use_v2_model_runner", "async_scheduling", "cudagraph_mode"}
    assert set(config["vllm"]) == chosen and None not in config["vllm"].values()

    AutoProcessor.from_pretrained(run / "model")
    trained = AutoModelForImageTextToText.from_pretrained(run / "model")
    base = AutoModelForImageTextToText.from_pretrained(digits / "base")
    assert any(not torch.equal(p, q) for p, q in zip(trained.parameters(), base.parameters()))


def test_a_sampler_that_is_another_policy_is_named(digits, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("perl.train.versions", dict)  # vLLM is not loaded here
    args = parse_args(["--data", str(digits / "train.jsonl")])
    log = Log(args, tmp_path, first=0, total=2, world=1, choices={})
    metrics = {"reward": 0.5, "accuracy": 0.5, "no_spread": 0.0, "skipped": 0}
    log.write(metrics | {"step": 0, "logp_gap_mean": 0.02}, [], tqdm(disable=True))
    assert "same policy" not in capsys.readouterr().out
    log.write(metrics | {"step": 1, "logp_gap_mean": 0.6}, [], tqdm(disable=True))
    said = capsys.readouterr().out
    assert "step 1: sampler and trainer are not the same policy" in said and "0.60" in said


# --- A user's mistakes: one sentence, exit code 1, no traceback, before any model is loaded ---


def broken(digits, **change):
    """A file of 8 good questions whose third is
    changed; the change may be a function of the row."""
    rows = read(digits / "train.jsonl")[:8]
    for row in rows:
        row["images"] = [str(digits / path) for path in row["images"]]
    options = next(row for row in read(digits / "train.jsonl") if row["task"] == "options")
    rows[2] = (
        options
        | {"images": [str(digits / path) for path in options["images"]], "id": "third"}
        | change
    )
    if "<|image_pad|>" in rows[2]["question"]:
        rows[2]["images"] = rows[0]["images"][:1]
    return "\n".join(json.dumps(row) for row in rows)


MISTAKES = {
    "missing image": (
        dict(images=["nowhere.png", "nowhere.png"], question="<image> <image>?"),
        [":3", "images", "nowhere.png"],
    ),
    "count of <image>": (
        dict(question="<image> Which image shows a 7?"),
        [":3", "question", "<image>"],
    ),
    "a mark that is none": (dict(answer="[[1|cat]]"), [":3", "answer", "'cat' is in no form"]),
    "no image": (dict(images=[], question="Which?"), [":3", "images"]),
    "unreadable image": (
        dict(images=[__file__], question="<image> What?", answer="7"),
        [":3", "images", "readable"],
    ),
    "an image token in the text": (
        dict(images=[], question="<image> <|image_pad|>", answer="7"),
        [":3", "question", "'<|image_pad|>', a control token of the model"],
    ),
}


@pytest.mark.parametrize("change, words", MISTAKES.values(), ids=MISTAKES.keys())
def test_bad_questions(digits, tmp_path, change, words):
    (tmp_path / "bad.jsonl").write_text(broken(digits, **change))
    refuses(words, "--model", digits / "base", "--data", tmp_path / "bad.jsonl", "--prompts", "8")


def refuses(words, *flags, world=1):
    args = parse_args([str(f) for f in flags])
    with pytest.raises(DataError) as error:
        samples = load(args.data)
        check(args, samples, world)
        prepare(args, samples)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value), (
        error.value
    )


def test_bad_set_ups(digits, tmp_path):
    model, data = ("--model", digits / "base"), ("--data", digits / "train.jsonl", "--prompts", "8")
    (tmp_path / "empty.jsonl").write_text("")
    refuses(["empty.jsonl", "empty"], *model, "--data", tmp_path / "empty.jsonl")
    refuses(["--model is missing"], *data)
    refuses(["--model", str(tmp_path)], "--model", tmp_path, *data)
    bare = tmp_path / "bare"
    shutil.copytree(digits / "base", bare, ignore=shutil.ignore_patterns("*.safetensors"))
    refuses(["--model", "weights"], "--model", bare, *data)
    (bare / "processor_config.json").unlink()
    # Whatever is left is no model that sees images.
    refuses(["--model", "processor"], "--model", bare, *data)
    refuses(["train.jsonl:1", "question", "--max-prompt 20"], *model, *data, "--max-prompt", "20")
    refuses(["context of 4096", "--max-tokens 4080"], *model, *data, "--max-tokens", "4080")
    refuses(["--prompts 8", "multiple of 16"], *model, *data, "--updates", "2", world=8)
    refuses(
        ["--replicate 3", "4 ranks"], *model, *data, "--replicate", "3", "--updates", "1", world=4
    )
    refuses(["fewer", "--prompts"], *model, *data, "--prompts", "100000")
    refuses(["--out", "is a file"], *model, *data, "--out", tmp_path / "empty.jsonl")

    run = tmp_path / "run"
    run.mkdir()
    # Of a run that was killed before its first checkpoint: nothing to go on with.
    (run / "config.json").write_text("{}")
    flags = [str(f) for f in (*model, *data, "--out", run)]
    check(parse_args([*flags, "--resume"]), load(digits / "train.jsonl"), 1)
    (run / "step-000020").mkdir()
    refuses(["holds a run already"], *flags)
    refuses(["--resume with another model: None became"], *flags, "--resume")


COUNTS = "prompts updates rollouts micro-batch epochs steps save-every eval-every max-tokens max-pixels".split()


@pytest.mark.parametrize(
    "flag, value",
    [*[(name, "0") for name in COUNTS], ("temperature", "0"), ("n-s", "-1"), ("lr", "nan")],
)
def test_a_number_out_of_range(capsys, flag, value):
    with pytest.raises(SystemExit):
        parse_args([f"--{flag}", value])
    assert f"{value} must be at least" in capsys.readouterr().err


def test_a_mistake_ends_in_one_sentence(digits, tmp_path):
    """The command itself: exit code 1, one line on stderr, no traceback, no model loaded."""
    (tmp_path / "bad.jsonl").write_text(broken(digits, answer="[[1|cat]]"))
    command = [
        sys.executable,
        "perl/train.py",
        "--model",
        digits / "base",
        "--data",
        tmp_path / "bad.jsonl",
        "--out",
        tmp_path / "run",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    said = [
        line for line in done.stderr.splitlines() if "Warning" not in line and "warn" not in line
    ]
    assert (
        done.returncode == 1
        and len(said) == 1
        and said[0].startswith("train.py: bad.jsonl:3: answer:")
    ), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
