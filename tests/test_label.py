"""Labels by a language model: what is accepted and what is refused, and a real server (vLLM's,
with the demo's base) that is asked, killed and asked again."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from conftest import ROOT

from data.label import Cache, Refused, accepted, is_open, label_in, main, rephrased
from perl.permute import load, permute, plain, sample_of

TWO, THREE = ["a.png", "b.png"], ["a.png", "b.png", "c.png"]


def row(question, answer="yes", images=TWO, **more):
    holes = "" if "<image>" in question else "<image> " * len(images)
    return {"id": "x", "images": images, "question": holes + question, "answer": answer, **more}


def true(question, answer="yes", stem=0, images=TWO):
    """A label as a model gives it: the row's text with marks."""
    marked = row(question, answer, images)
    text = {"question": marked["question"], "answer": marked["answer"]}
    return {"permute": True, "stem": stem, **text}


# --- Good labels ---

GOOD = [
    (row("Is the left image red?"), true("Is the [[1|left]] image red?")),
    (row("Which is darker, image 1 or image 2?", "image 2"),
     true("Which is darker, image [[1|1]] or image [[2|2]]?", "image [[2|2]]")),
    (row("Does B show the same dog as A?"), true("Does [[2|B]] show the same dog as [[1|A]]?")),
    (row("<image> Which one fits?\nA. <image>\nB. <image>", "B", THREE),
     true("<image> Which one fits?\nA. <image>\nB. <image>", "[[3|B]]", 1, THREE)),
    (row("What is the same in them?", "a dog"), true("What is the same in them?", "a dog")),
    (row("Which images show a cat?", "{1, 3}", THREE), true("Which images show a cat?", "{[[1|1]], [[3|3]]}", 0, THREE)),
]  # fmt: skip


@pytest.mark.parametrize("raw, label", GOOD)
def test_a_good_label_is_accepted(raw, label):
    found = accepted(raw, label)
    assert found["permute"] and found["question"] == label["question"]
    assert found.get("stem", 0) == label["stem"] and "why" not in found


def test_a_label_that_says_no():
    found = accepted(row("What happens next?"), {"permute": False, "reason": "story"})
    assert not found["permute"] and found["why"] == "labelled: story"


# --- Wrong labels, a kind a line ---

WRONG = [
    ("text changed", row("Is the left image red?"), true("Is the [[1|left]] picture red?"), "the text was changed"),
    ("a space lost", row("Is the left  image red?"), true("Is the [[1|left]] image red?"), "the text was changed"),
    ("answer changed", row("Is it?", "yes"), true("Is it?", "Yes"), "the text was changed"),
    ("wrong slot", row("Is the left image red?"), true("Is the [[2|left]] image red?"), "a mark that cannot be moved"),
    ("no such slot", row("Is image 3 red?"), true("Is image [[3|3]] red?"), "a mark that cannot be moved"),
    ("torn mark", row("Is image [[1|1]?", "yes"), true("Is image [[1|1]?"), "a mark that cannot be moved"),
    ("unknown word", row("Is the upmost image red?"), true("Is the [[1|upmost]] image red?"), "a mark that cannot be moved"),
    ("half marked", row("Is image 1 redder than image 2? Is image 1 red?"),
     true("Is image [[1|1]] redder than image [[2|2]]? Is image 1 red?"), "marked once and once not"),
    ("half marked, the rules see it", row("Is the left image as red as the right image?"),
     true("Is the [[1|left]] image as red as the right image?"), "marked once and once not"),
    ("nothing marked", row("Is the left image red?"), true("Is the left image red?"), "the rules mark other words"),
    ("a thing inside marked", row("Which image shows two dogs?", "Image 2"),
     true("Which image shows [[2|two]] dogs?", "Image [[2|2]]"), "a mark on a word that names no image"),
    ("answer unmarked", row("Which image shows a dog?", "Image 2"), true("Which image shows a dog?", "Image 2"), "the rules mark other words"),
    ("option letter unmarked", row("<image> Which fits?\nA. <image>\nB. <image>", "B", THREE),
     true("<image> Which fits?\nA. <image>\nB. <image>", "B", 1, THREE), "the rules mark other words"),
    ("a story", row("What happens next?", "rain"), true("What happens next?", "rain"), "the rules refuse it: temporal or story wording"),
    ("a caption", row("<image> is a cat. <image> is a dog. Right?"), true("<image> is a cat. <image> is a dog. Right?"), "the rules refuse it"),
    ("a range", row("Do images 1 to 2 show dogs?", images=THREE), true("Do images [[1|1]] to [[2|2]] show dogs?", images=THREE), "a set or a range"),
    ("all is stem", row("Is it red?"), true("Is it red?", stem=1), "fewer than two images can move"),
    ("permute a word", row("Is it red?"), true("Is it red?") | {"permute": "true"}, "no label in the asked form"),
    ("stem a bool", row("Is it red?"), true("Is it red?") | {"stem": True}, "no label in the asked form"),
    ("no question", row("Is it red?"), {"permute": True, "stem": 0, "answer": "yes"}, "no label in the asked form"),
    ("no dict", row("Is it red?"), ["permute"], "no label in the asked form"),
    ("declared false", row("Is it red?", permute=False), true("Is it red?"), "the row is declared not permutable"),
    ("a lady", row("Which image shows the first lady?", "Image 2"), true("Which image shows the [[1|first]] lady?", "Image [[2|2]]"), "a mark on a word that names no image"),
    ("the other side", row("Has the left image more dogs than the right?"), true("Has the [[1|left]] image more dogs than the right?"), "marked once and once not"),
    ("the second", row("Is the dog of the first image bigger than that of the second?"), true("Is the dog of the [[1|first]] image bigger than that of the second?"), "marked once and once not"),
    ("last", row("Which image shows a dog?", "the last image", THREE), true("Which image shows a dog?", "the [[3|last]] image", 0, THREE), "from the end"),
    ("set unmarked", row("Which images show a cat?", "{1, 3}", THREE), true("Which images show a cat?", "{1, 3}", 0, THREE), "the rules mark other words"),
    ("one file twice", row("Are all images red?", "yes", ["a.png", "./a.png"]), true("Are all images red?", images=["a.png", "./a.png"]), "the rules refuse it"),
]  # fmt: skip


@pytest.mark.parametrize("raw, label, why", [case[1:] for case in WRONG], ids=[c[0] for c in WRONG])
def test_a_wrong_label_is_refused(raw, label, why):
    with pytest.raises(Refused) as refused:
        accepted(raw, label)
    assert why in str(refused.value)


# --- Rephrasing ---


def choice(question="Which one shows a dog?", right=2, reference=0, possible=True):
    return {"possible": possible, "right": right, "reference": reference, "question": question}


def test_an_open_question_becomes_multiple_choice():
    raw = row("Where is the dog that the first picture shows?", "in the last one", THREE)
    found = rephrased(raw, choice("Which one shows the same dog?", right=3, reference=1))
    assert found["question"] == "<image> Which one shows the same dog?\nA. <image>\nB. <image>"
    assert found["answer"] == "[[3|B]]" and found["stem"] == 1 and found["images"] == THREE
    x = sample_of(found | {"id": "x"})
    assert plain(permute(x, (0, 2, 1)).answer) == "A"
    assert found["asked_before"]["answer"] == "in the last one"
    moved = rephrased(raw, choice("Which one shows the same dog?", right=1, reference=2))
    assert moved["images"] == ["b.png", "a.png", "c.png"] and moved["answer"] == "[[2|A]]"
    alone = rephrased(row("Where is it?", images=THREE), choice())
    assert alone["answer"] == "[[2|B]]" and "stem" not in alone


@pytest.mark.parametrize(
    "label, why",
    [
        (choice(possible=False), "not one image"),
        (choice(right=4), "no such image"),
        (choice(right=1, reference=1), "no such image"),
        (choice("Which is darker than image 2?"), "names an image by its place"),
        (choice("Which is <image>?"), "holds a placeholder"),
        (choice("  "), "is empty"),
        (choice("Which [[1|1]]?"), "names an image by its place"),
    ],
)
def test_a_rephrasing_that_is_refused(label, why):
    with pytest.raises(Refused) as refused:
        rephrased(row("Where is it?", images=THREE), label)
    assert why in str(refused.value)


# --- What is asked about ---


@pytest.mark.parametrize(
    "raw, asked",
    [
        (row("What is the same in them?", "a dog"), True),
        (row("Which image shows a dog?", "Image 2"), False),  # the rules are certain
        (row("What happens next?", "rain"), False),  # a story, for certain
        (row("What is it?", "a dog", permute=False), False),  # somebody said no
        (row("Is [[1|A]] red?", permute=True), False),
        (row("What?", "a dog", permute=False, why="not declared, and no question form that is certain: 'x'"), True),
        (row("What?", "a dog", ["a.png"]), False),
    ],
)  # fmt: skip
def test_which_rows_are_asked_about(tmp_path, raw, asked):
    assert is_open(raw, tmp_path) == asked


@pytest.mark.parametrize(
    "text, finished, label",
    [
        ('{"label": {"permute": false, "reason": "story"}}', True, {"permute": False, "reason": "story"}),
        ('{"possible": false}', True, {"possible": False}),
        ('{"label": {"permute"', False, None),
        ('{"label": {"permute"', True, None),
        (None, True, None),
        ("[1]", True, None),
    ],
)  # fmt: skip
def test_a_reply(text, finished, label):
    assert label_in({"text": text, "finished": finished}) == label


def test_the_cache_forgets_a_torn_line_alone(tmp_path):
    cache = Cache(tmp_path / "c.jsonl")
    cache.add("a", "{}", True, {"in": 1, "out": 2})
    cache.file.write('{"key": "b", "te')
    cache.file.close()
    again = Cache(tmp_path / "c.jsonl")
    assert list(again.replies) == ["a"]
    again.add("c", None, False, {})
    assert list(Cache(tmp_path / "c.jsonl").replies) == ["a", "c"]


# --- A batch: no server at all ---


def test_a_batch_goes_out_and_comes_back(tmp_path, capsys):
    raw = [
        row(f"What is the same in them, question {k}?", "a dog") | {"id": str(k)} for k in range(4)
    ]
    raw.append(row("Which image shows a dog?", "Image 2") | {"id": "rule"})
    source, out, batch = (
        tmp_path / "raw.jsonl",
        tmp_path / "o" / "marked.jsonl",
        tmp_path / "b.jsonl",
    )
    source.write_text("".join(json.dumps(line) + "\n" for line in raw))
    words = [str(source), "--model", "m", "--out", str(out)]
    main([*words, "--batch-file", str(batch)])
    requests = [json.loads(line) for line in batch.read_text().splitlines()]
    assert len(requests) == 4 and {r["url"] for r in requests} == {"/v1/chat/completions"}
    assert all(r["body"]["response_format"]["json_schema"]["strict"] for r in requests)

    results = []
    for k, asked in enumerate(requests[:3]):
        label = {"permute": True, "stem": 0, "question": raw[k]["question"], "answer": "a dog"}
        if k == 1:
            label = {"permute": False, "reason": "story"}
        text = json.dumps({"label": label})
        choices = [{"message": {"content": text}, "finish_reason": "stop"}]
        body = {"choices": choices, "usage": {"prompt_tokens": 5, "completion_tokens": 7}}
        results.append({"custom_id": asked["custom_id"], "response": {"body": body}})
    results.append({"custom_id": requests[3]["custom_id"], "response": None, "error": "late"})
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in results))
    main([*words, "--batch-results", str(tmp_path / "r.jsonl")])
    found = {x.id: x for x in load(out, check_images=False)}
    assert [found[k].permute for k in "0123"] == [True, False, True, False]
    assert found["3"].why == "label refused: no reply in the batch"
    assert found["rule"].answer == "Image [[2|2]]"  # the rules' own
    assert found["0"].images[0].endswith("a.png")
    main([*words, "--batch-file", str(batch)])  # what has a reply is not asked again
    assert len(batch.read_text().splitlines()) == 1


# --- A real server ---


@pytest.fixture(scope="module")
def server(digits):
    """vLLM's OpenAI server with the digits base: (address, what stops it)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = f"-m vllm.entrypoints.openai.api_server --model {digits / 'base'} --port {port}"
    words += " --served-model-name labeller --max-model-len 2048 --enforce-eager --dtype float32"
    words += " --gpu-memory-utilization 0.1"
    structured = '{"backend": "xgrammar", "disable_any_whitespace": true}'
    process = subprocess.Popen(
        [sys.executable, *words.split(), "--structured-outputs-config", structured],
        env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    os.set_blocking(process.stdout.fileno(), False)
    address, said = f"http://127.0.0.1:{port}", b""
    for _ in range(300):
        said += process.stdout.read() or b""
        try:
            urllib.request.urlopen(f"{address}/health", timeout=2)
            break
        except OSError:
            assert process.poll() is None, said[-3000:].decode()
            time.sleep(1)
    yield f"{address}/v1", process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def label(*words, timeout=400) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "data/label.py", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.mark.long
def test_a_real_server_is_asked_killed_and_asked_again(server, tmp_path):
    """64 rows; the run is killed in the middle; the next one repeats no request. A base that has
    only read digits gives labels that hardly ever are right: they are refused, and counted."""
    address, process = server
    raw = tmp_path / "raw.jsonl"
    lines = [row(f"What is alike in them ({k})?", "a dog") | {"id": str(k)} for k in range(64)]
    raw.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "marked.jsonl"
    words = [raw, "--base-url", address, "--model", "labeller", "--out", out]
    words += ["--max-tokens", "48", "--concurrency", "4"]

    running = subprocess.Popen([sys.executable, "data/label.py", *map(str, words)], cwd=ROOT)
    cache = tmp_path / "marked.cache.jsonl"
    while not cache.exists() or len(cache.read_text().splitlines()) < 10:
        assert running.poll() is None
        time.sleep(0.05)
    running.kill()
    running.wait()
    before = len(cache.read_text().split("\n")) - 1
    assert 10 <= before < 64 and not out.exists()

    done = label(*words)
    assert done.returncode == 0, done.stderr
    replies = [json.loads(line) for line in cache.read_text().splitlines()]
    keys = [reply["key"] for reply in replies]
    assert len(keys) == len(set(keys)) and len(keys) >= 64
    assert len(load(out, check_images=False)) == 64
    valid = [reply for reply in replies if reply["finished"]]
    assert all(json.loads(reply["text"])["label"]["permute"] in (True, False) for reply in valid)
    assert "64 to be labelled" in done.stderr

    again = label(*words)  # everything is in the cache
    assert again.returncode == 0 and cache.read_text().count("\n") == len(replies)

    wrong = label(raw, "--base-url", address, "--model", "nobody", "--out", tmp_path / "w.jsonl")
    assert wrong.returncode == 1 and "nobody" in wrong.stderr and "Traceback" not in wrong.stderr
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps(row("What is alike? " + "word " * 3000, "a dog")) + "\n")
    words = [long, "--base-url", address, "--model", "labeller", "--out", tmp_path / "l.jsonl"]
    too_long = label(*words)
    assert too_long.returncode == 1 and "the server refused it" in too_long.stderr
    [x] = load(tmp_path / "l.jsonl", check_images=False)
    assert x.why.startswith("label refused: the server refused it")

    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    words = [raw, "--base-url", address, "--model", "labeller", "--out", tmp_path / "gone.jsonl"]
    gone = label(*words, "--retries", "1")
    assert gone.returncode == 1 and f"no server answers at {address}" in gone.stderr
    assert "Traceback" not in gone.stderr
