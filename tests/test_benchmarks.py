"""The eight benchmarks: adapters on fixtures in the hub's layout, scores against hand-computed
cases, and the whole command with real vLLM."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import hub
import pytest
from conftest import ROOT
from test_sources import python, rows

from data.benchmarks import SETS, in_order, mv_math, row_of
from data.hub import Skip
from evals.benchmarks import by_question, compare, figures, finished, interval, plot, table
from evals.scores import SCORES, score
from perl.permute import Sample, load, permute, plain, sample_of


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """(folder with the eight sets, what the command said)."""
    folder = tmp_path_factory.mktemp("bench")
    source, out = hub.benchmarks(folder / "hub"), folder / "out"
    done = python("data/benchmarks.py", "all", "--source", source, "--out", out)
    assert done.returncode == 0, done.stderr[-3000:]
    return out, done.stderr


# --- Rows: id -> (permute, a part of the marked question, the marked answer) ---

KNOWN = {
    "mantis_eval/mantis_eval_0": (True, "\n(A) The [[1|first]] image\n(B) The [[2|second]] image", "A"),
    "mantis_eval/mantis_eval_1": (True, "<image> <image> Which image is darker?\n(A) The [[1|first]] image", "B"),
    "mantis_eval/mantis_eval_2": (False, "Are they the same?\n(A) Yes\n(B) No", "B"),
    "mantis_eval/mantis_eval_3": (False, "<image> <image> <image> How many squares", "3"),
    "mantis_eval/mantis_eval_4": (False, "What is the colour of both?", "Dark Red"),
    "mantis_eval/mantis_eval_5": (False, "<image> <image> <image> What happens next", "A"),
    "mantis_eval/mantis_eval_6": (True, "(A) 第[[1|一]]张图\n(B) 第[[2|二]]张图", "A"),
    "blink/val_Art_Style_1": (True, "use the [[1|first]] image as the reference image, and determine which one of the [[2|second]] or the [[3|third]] image", "A"),
    "blink/val_Jigsaw_1": (True, "Given the [[1|first]] image with the lower right corner missing, can you tell which one of the [[2|second]] image or the [[3|third]] image", "B"),
    "blink/val_Visual_Similarity_1": (True, "which one of the [[2|second]] or the [[3|third]] image is most similar to the [[1|first]] one?\nSelect from the following choices.\n(A) the [[2|second]] image", "B"),
    "blink/val_Forensic_Detection_1": (True, "(D) the [[4|fourth]] image", "D"),
    "blink/val_Semantic_Correspondence_1": (True, "on the [[1|first]] image, labeled with REF", "C"),
    "blink/val_Visual_Correspondence_1": (True, "shoot the [[2|second]] image", "A"),
    "blink/val_Functional_Correspondence_1": (True, "points on the [[2|second]] image", "B"),
    "blink/val_Multi-view_Reasoning_1": (False, "The first image is from the beginning", "A"),
    "blink/val_Counting_1": (False, "<image> How many blue floats", "B"),
    "mmiu/0": (True, "\n(A) the [[1|first]] image\n(B) the [[2|second]] image", "D"),
    "mmiu/1": (True, "Which image shows the same person as image [[1|1]]?\n(A) image [[2|2]]", "B"),
    "mmiu/2": (False, "What is the right order?", "A"),
    "mmiu/3": (True, "The [[1|left]] image shows a dog. True or false?\n(A) True", "A"),
    "mmiu/4": (False, "How did the camera move?", "B"),
    "mmiu/5": (False, "What comes next?", "A"),
    "mmiu/6": (False, "How many icons are there?", "A"),
    "mmiu/7": (True, "How many of the images show a happy face?\n(A) 1\n(B) 2", "B"),
    "mathvista/1": (False, "<image> What colour is it?\n(A) blue\n(B) red", "B"),
    "mathvista/2": (False, "How long is its side? (Unit: cm)", "5.6"),
    "mathvista/3": (False, "How many are there?", "12"),
    "mathvista/4": (False, "Which numbers?", "[1, 2]"),
    "mathvista/5": (False, "<image> 图中有几只？", "3"),
    "mathverse/1": (False, "<image> Find x.\nChoices:\n(A) 50°\n(B) 100°", "B"),
    "mathverse/5": (False, "<image> Answer the question in the image.", "B"),
    "mathverse/6": (False, "<image> Find the area.", "14"),
    "mathvision/1": (False, "<image> Which number should stand there?", "60"),
    "mathvision/2": (False, "<image> Which bike is most expensive?", "A"),
    "mathvision/3": (False, "\n(B) $\\frac{1}{2}$", "B"),
    "mathvision/4": (False, "<image> and  make?", "x^{2}"),
    "remi/0": (False, "in the image below <image> by the equations in <image> <image>.", "92"),
    "remi/1": (False, "between <image> and <image>?", "205"),
    "remi/4": (False, "<image> above <image>?", "93 %"),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_a_row_of_a_benchmark(bench, name):
    permutable, part, answer = KNOWN[name]
    row = rows(bench[0] / f"{name.split('/')[0]}.jsonl")[name]
    assert row["permute"] == permutable and row["answer"] == answer
    assert part in row["question"], row["question"]
    assert permutable or row["why"]


def test_every_set_loads_and_permutes(bench):
    """Every row passes `load`, with every picture there; reversed images are reversed names."""
    counted = {}
    for name in SETS:
        samples = load(bench[0] / f"{name}.jsonl")
        counted[name] = (len(samples), sum(x.permute for x in samples))
        for x in samples:
            if x.permute:
                moving = list(range(x.stem, len(x.images)))[::-1]
                y = permute(x, [*range(x.stem), *moving])
                assert "[[" not in plain(y.question) + plain(y.answer)
                assert permute(y, [*range(x.stem), *moving]) == x
    assert all(n >= 5 for n, _ in counted.values()), counted
    assert counted["mv_math"][1] >= 10 and counted["blink"][1] == 7


def test_what_a_score_needs_travels_with_the_row(bench):
    vista = rows(bench[0] / "mathvista.jsonl")["mathvista/2"]
    assert vista["precision"] == 1.0 and vista["score"] == "mathvista"
    assert rows(bench[0] / "mathverse.jsonl")["mathverse/1"]["task"] == "Text Dominant"
    assert rows(bench[0] / "mathvision.jsonl")["mathvision/3"]["choices"][1] == "$\\frac{1}{2}$"
    named = {
        row.get("score", "") for name in SETS for row in rows(bench[0] / f"{name}.jsonl").values()
    }
    assert named <= set(SCORES)


@pytest.mark.parametrize(
    "reason",
    [
        "a hidden answer",
        "an answer that is no letter",
        "an answer that is none of the choices",
        "a question of several steps, which no rule grades",
        "placeholders that are not one for each image, in order",
    ],
)
def test_what_cannot_be_asked_is_counted(bench, reason):
    assert f"left out: {reason}" in bench[1]


def test_zips_and_folders_and_bmp(bench):
    images = rows(bench[0] / "mmiu.jsonl")["mmiu/0"]["images"]
    assert len(set(images)) == 4 and images[3].endswith(".bmp")


# --- MV-MATH's real questions ---

REAL = json.loads(hub.MV_MATH.read_text(encoding="utf-8"))


class Anything:
    """Files and pictures for rows whose pictures are not here."""

    def read(self, picture):
        return picture

    def put(self, data):
        return f"images/{data}"


def real_rows():
    found = []
    for number, row in enumerate(REAL):
        try:
            found.append((row, row_of("mv_math", mv_math(row, number), Anything(), Anything())))
        except Skip:
            continue
    return found


def test_options_that_are_all_images_are_permutable():
    """Alone in their lines, that is: a caption below an option is of that picture."""
    seen = 0
    for raw, row in real_rows():
        lines = re.findall(r"^([A-H])\. <image>$", row["question"], re.M)
        tail = row["question"].split("\nA. <image>")[-1]
        bare = set(re.sub(r"[A-H]\. <image>", "", tail).split()) <= {"1", "15"}
        if len(lines) == len(raw["input_image"]) and bare and "respectively" not in raw["question"]:
            slot = "ABCDEFGH".index(raw["answer"]) + 1
            assert row["permute"] and row["answer"] == f"[[{slot}|{raw['answer']}]]", row
            seen += 1
    assert seen >= 25


def test_every_permutable_question_is_exact():
    """The letter follows its picture through a permutation and back, and nothing else changes."""
    permutable = [row for _, row in real_rows() if row["permute"]]
    assert len(permutable) >= 40
    for row in permutable:
        x = sample_of(row)
        sigma = [*range(x.stem), *list(range(x.stem, len(x.images)))[::-1]]
        y = permute(x, sigma)
        letter = re.fullmatch(r"\[\[(\d+)\|([A-H])\]\]", x.answer)
        assert letter and plain(y.question) == plain(x.question)
        moved = re.fullmatch(r"\[\[(\d+)\|([A-H])\]\]", y.answer)
        assert x.images[int(letter[1]) - 1] == y.images[int(moved[1]) - 1]
        assert permute(y, sigma) == x


@pytest.mark.parametrize(
    "text, n, becomes",
    [
        ("<image1> <image2>", 2, "<image> <image>"),
        ("<image_1> a <image 2>", 2, "<image> a <image>"),
        ("<image2> <image1>", 2, None),
        ("<image1> <image1>", 2, None),
        ("none", 1, None),
    ],
)
def test_placeholders_with_numbers(text, n, becomes):
    if becomes is None:
        with pytest.raises(Skip):
            in_order(text, n)
    else:
        assert in_order(text, n) == becomes


# --- Bad sources ---


@pytest.mark.parametrize(
    "name, change, said",
    [
        ("blink", lambda f: (f / "README.md").write_text("---\n---\n"), "blink"),
        ("mathverse", lambda f: (f / "testmini.parquet").unlink(), "testmini"),
        ("mv_math", lambda f: (f / "MV-MATH.json").write_text("{"), "no JSON"),
        ("mv_math", lambda f: (f / "MV-MATH.json").unlink(), "no file MV-MATH.json"),
        ("mmiu", lambda f: (f / "2D-spatial.zip").unlink(), "no file 2D-spatial.zip"),
        ("mmiu", lambda f: (f / "2D-spatial.zip").write_text("x"), "it is no zip file"),
    ],
)
def test_a_bad_source_is_one_sentence_and_the_others_are_written(tmp_path, name, change, said):
    source = hub.benchmarks(tmp_path / "hub")
    change(source / name)
    done = python("data/benchmarks.py", name, "remi", "--source", source, "--out", tmp_path / "out")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-2000:]
    [line] = [ln for ln in done.stderr.splitlines() if f"benchmarks.py: {name}:" in ln]
    assert said in line
    assert len(rows(tmp_path / "out" / "remi.jsonl")) == 6


def test_an_unknown_set(tmp_path):
    done = python("data/benchmarks.py", "nope", "--out", tmp_path)
    assert done.returncode == 2 and "invalid choice: 'nope'" in done.stderr


# --- Scores, by hand: (set, row, boxed answer, right) ---


def asked(name, answer, task="", question="<image> x?", **info):
    row = {"id": "x", "images": ["a"], "question": question, "answer": answer, "task": task}
    return sample_of(row | {"score": name} | info)


CHOICE = "<image> x?\n(A) red\n(B) dark blue"
INTEGER, FLOAT = {"answer_type": "integer"}, {"answer_type": "float", "precision": 1.0}
HAND = [
    *[("mathvista", "12", INTEGER, said, right) for said, right in (
        ("12", 1), ("12.0", 1), ("12.4", 1), ("13", 0), ("-12", 0), ("1,2", 1), ("12 cm", 1), ("twelve", 1), ("", 0))],
    *[("mathvista", "5.6", FLOAT, said, right) for said, right in (
        ("5.6", 1), ("5.60", 1), ("5.62", 1), ("5.66", 0), ("56", 0), ("5.5", 0), ("5.6 cm", 1), ("28/5", 1))],
    *[("mathvista", "[1, 2]", {"answer_type": "list"}, said, right) for said, right in (
        ("[1, 2]", 1), ("[2, 1]", 0), ("[1,2]", 1), ("1", 0))],
    *[("mathvision", "2.5", {}, said, right) for said, right in (
        ("2.5", 1), ("2.504", 1), ("2.509", 1), ("2.51", 0), ("5/2", 1), (r"\frac{5}{2}", 1), ("2", 0), ("25", 0), ("2,5", 0), ("x", 0))],
    *[("mathvision", "B", {"choices": ["2", "0.5"]}, said, right) for said, right in (
        ("B", 1), ("(B)", 1), ("A", 0), ("0.5", 1), ("1/2", 1), ("2", 0), ("b", 0), ("", 0))],
    *[("mathvision", "x^{2}", {}, said, right) for said, right in (("x^2", 1), ("x^{2}", 1), ("x", 0), ("2x", 0))],
    *[("remi", "205", {"task": "Clocks"}, said, right) for said, right in (
        ("205", 1), ("215", 1), ("195", 1), ("216", 0), ("3:25", 1), ("3:36", 0), ("x", 0))],
    *[("remi", "left, top left", {"task": "RefCoco"}, said, right) for said, right in (
        ("left", 1), ("Top Left", 1), ("top", 0), ("left, top left", 0))],
    *[("remi", "12.5", {"task": "GeomShape"}, said, right) for said, right in (("12.5", 1), ("12.8", 1), ("12.2", 1), ("12.9", 0), ("125", 0))],
    *[("remi", "93 %", {"task": "Charts"}, said, right) for said, right in (("93", 1), ("93%", 1), (r"93\%", 1), ("92.5", 1), ("91", 0), ("x", 0))],
    *[("remi", "Yes", {"task": "Isomorphism"}, said, right) for said, right in (("yes", 1), ("Yes.", 1), ("no", 0), ("", 0))],
    *[("words", "Dark Red", {}, said, right) for said, right in (
        ("dark red", 1), ("Dark Red.", 1), (r"\text{dark red}", 1), ("red", 0), ("dark  red", 1), ("darkred", 0), ("", 0))],
    *[("words", "3", {}, said, right) for said, right in (("3", 1), ("3.0", 1), ("4", 0), ("three", 1), ("13", 0))],
    *[("words", "B", {"question": CHOICE}, said, right) for said, right in (
        ("B", 1), ("(B)", 1), ("dark blue", 1), ("A", 0), ("b", 0), ("red", 0), ("C", 0), ("AB", 0))],
    *[("letter", "B", {"question": CHOICE}, said, right) for said, right in (
        ("B", 1), ("(B)", 1), ("B.", 1), ("(B) dark blue", 1), ("dark blue", 1), ("A", 0), ("b", 0), ("red", 0), ("blue", 0), ("2", 0),
        ("", 0), ("A or B", 0), ("B+A-B", 0), (r"\text{B}", 1), ("not A", 0), ("option B", 1), ("the answer", 0), ("BB", 0), ("C", 0), ("(A) dark blue", 0))],
    *[("alternatives", "1.2 or 1.5", {}, said, right) for said, right in (
        ("1.2", 1), ("1.5", 1), ("1.2 or 1.5", 1), ("1.3", 0), ("12", 0), ("1", 0), ("", 0))],
    *[("alternatives", "$8 \\pi$", {}, said, right) for said, right in (
        (r"8\pi", 1), (r"$8 \pi$", 1), ("8", 0), (r"\pi 8", 1), ("25.13", 0), (r"16\pi/2", 1), (r"80\pi", 0), ("", 0))],
    *[("alternatives", "102", {}, said, right) for said, right in (("102", 1), ("102.0", 1), ("120", 0), ("10", 0), ("102°", 1))],
]  # fmt: skip


@pytest.mark.parametrize("name, answer, info, said, right", HAND)
def test_a_score_by_hand(name, answer, info, said, right):
    response = f"<think>x</think> \\boxed{{{said}}}"
    assert score(response, asked(name, answer, **info)) == right
    assert score(f"no box {said}", asked(name, answer, **info)) == 0


def test_text_of_a_model_is_never_run():
    hostile = "__import__('os').system('touch /tmp/perl-was-run')"
    for name in SCORES:
        assert score(f"\\boxed{{{hostile}}}", asked(name, "12", **INTEGER)) == 0
    assert not os.path.exists("/tmp/perl-was-run")


# --- Figures ---


def record(name, order, right, answer, again=False, slot=1, task="t"):
    return {"id": name, "task": task, "order": order, "again": again, "right": right, "answer": answer, "slot": slot}  # fmt: skip


RECORDS = [
    record("a", 0, 1.0, "x"), record("a", 1, 0.0, "y"), record("a", 0, 1.0, "x", again=True),
    record("b", 0, 1.0, "x"), record("b", 1, 1.0, "x"), record("b", 0, 0.0, "z", again=True),
    record("c", 0, 0.0, None), record("c", 1, 0.0, None), record("c", 0, 0.0, None, again=True),
    record("d", 0, 1.0, "x", task="other"),
]  # fmt: skip


def test_figures_by_hand():
    found = figures(RECORDS, "blink", 0)
    assert found["given"]["value"] == 0.75 and found["given"]["n"] == 4
    values = {name: found[name]["value"] for name in ("mean", "worst", "best")}
    assert values == {"mean": 0.5, "worst": pytest.approx(1 / 3), "best": pytest.approx(2 / 3)}
    # c has no answer in any order: that is not the same answer.
    assert found["consistency"]["value"] == pytest.approx(1 / 3)
    assert found["same order twice"]["value"] == pytest.approx(1 / 3)
    assert found["overall"] == {"rule": "mean over rows", "value": 0.75}
    over_tasks = figures(RECORDS, "mmiu", 0)["overall"]
    assert over_tasks == {"rule": "mean over tasks", "value": pytest.approx((2 / 3 + 1) / 2)}


def test_intervals():
    low, high = interval([0.0, 1.0] * 200, 0)
    half = 1.96 * 0.5 / math.sqrt(400)
    assert low == pytest.approx(0.5 - half, abs=0.01) and high == pytest.approx(
        0.5 + half, abs=0.01
    )
    assert interval([1.0] * 5, 0) == [1.0, 1.0]
    assert interval([0.0, 1.0] * 20, 3) == interval([0.0, 1.0] * 20, 3)


def test_two_runs_are_compared_by_question(tmp_path):
    for name, flip in (("one", 0.0), ("two", 1.0)):
        (tmp_path / name).mkdir()
        lines = []
        for k in range(30):
            right = 1.0 if k % 2 else flip
            lines.append(record(str(k), 0, right, "x"))
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name / "blink.answers.jsonl").write_text(text)
    text = compare(tmp_path / "two", tmp_path / "one", 0)
    assert "| blink | 30 | +50.0 [" in text and "told apart" in text
    assert "+0.0 [+0.0, +0.0] |" in compare(tmp_path / "one", tmp_path / "one", 0)
    found = by_question(RECORDS)
    assert found["worst"] == {"a": 0.0, "b": 1.0, "c": 0.0}


def test_table_and_plot(tmp_path):
    results = {"blink": figures(RECORDS, "blink", 0), "remi": figures(RECORDS[-1:], "remi", 0)}
    text = table(results)
    assert "rule-graded, no judge, our prompt, 5 rows" in text
    assert "| blink | 4 | 75.0 (mean over rows) | 75.0 [" in text
    assert "| remi | 1 | 100.0 (mean over tasks) | 100.0 [100.0, 100.0] | 0 |  |  |" in text
    plot(results, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 5_000


def test_figures_of_other_settings_are_not_taken(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"settings": {"a": 1}, "figures": {"f": 1}}))
    assert finished(tmp_path, "x", {"a": 1}) == {"f": 1}
    assert finished(tmp_path, "x", {"a": 2}) is None and finished(tmp_path, "y", {}) is None


# --- The whole command ---


@pytest.mark.long
def test_all_eight_are_asked_killed_and_asked_again(bench, digits, torchrun, tmp_path):
    """Two ranks, real vLLM; a kill after the first sets leaves their figures."""
    data, out = bench[0], tmp_path / "EVAL"
    flags = ["--model", digits / "base", "--data", data, "--out", out, "--orders", "3"]
    flags += ["--max-prompt", "1500", "--max-tokens", "8"]
    launch = "-m torch.distributed.run --standalone --nproc_per_node 2 evals/benchmarks.py".split()
    words = [sys.executable, *launch, *map(str, flags)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(words, cwd=ROOT, env=environment, start_new_session=True)
    start = time.time()
    while len(list(out.glob("*.json"))) < 2:
        assert running.poll() is None and time.time() - start < 240
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    time.sleep(1)
    before = {file.name: file.stat().st_mtime_ns for file in out.glob("*.json")}
    assert 2 <= len(before) < 8

    (data / "torn.jsonl").write_text('{"id": 1}\n')
    done = torchrun(2, "evals/benchmarks.py", *flags, check=False)
    (data / "torn.jsonl").unlink()
    assert done.returncode != 0 and "not asked: torn" in done.stderr
    results = json.loads((out / "table.json").read_text())
    assert list(results) == sorted(SETS)
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    for name, found in results.items():
        samples = load(data / f"{name}.jsonl")
        assert found["given"]["n"] == len(samples)
        assert found.get("mean", {"n": 0})["n"] == sum(x.permute for x in samples)
        lines = (out / f"{name}.answers.jsonl").read_text().splitlines()
        again = [line for line in map(json.loads, lines) if line["again"]]
        assert len(again) == sum(x.permute for x in samples)
    assert (out / "benchmarks.png").stat().st_size > 5_000
    done = torchrun(1, "evals/benchmarks.py", "--out", out, "--against", out)
    assert "| mv_math |" in done.stdout and "told apart" not in done.stdout


def test_the_answers_of_a_sample_map_to_its_record():
    """A row that names no rule is graded as in training, in the order it was asked in."""
    x = Sample("x", ("a", "b"), "<image> <image> Which image shows a dog?", "Image [[2|2]]", True)
    y = permute(x, (1, 0))
    assert score("\\boxed{Image 1}", y) == 1 and score("\\boxed{Image 2}", y) == 0


# --- What docs/benchmarks.md says, and the tasks for lmms-eval ---


def published() -> list[dict]:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    block = text.split("```json\n")[1].split("\n```")[0]
    return [json.loads(row) for row in block.split("\n\n")]


@pytest.mark.parametrize("k", range(8))
def test_a_row_is_as_the_docs_say(bench, k):
    shown = published()[k]
    name = shown["id"].split("/")[0]
    assert name == list(SETS)[k]
    [x] = [x for x in load(bench[0] / f"{name}.jsonl") if x.id == shown["id"]]
    assert (x.question, x.answer, x.stem) == (
        shown["question"],
        shown["answer"],
        shown.get("stem", 0),
    )
    assert x.permute == ("permuted" in shown)
    if x.permute:
        y = permute(x, shown["sigma"])
        assert [plain(y.question), plain(y.answer)] == shown["permuted"]


def test_the_tasks_for_lmms_eval(bench, monkeypatch):
    """The functions that its two tasks name, without the library: `datasets` rows in, a prompt and
    a score out."""
    from datasets import Dataset

    monkeypatch.syspath_prepend(str(ROOT / "evals" / "harness"))
    monkeypatch.setenv("PERL_ROWS", str(bench[0] / "blink.jsonl"))
    import utils

    docs = Dataset.from_json(utils.ROWS)
    [turn] = utils.messages(docs[0])
    kinds = [part["type"] for part in turn["content"]]
    assert kinds.count("image") == len(docs[0]["images"]) and "boxed" in str(turn["content"][-1])
    assert "[[" not in utils.question(docs[0])
    assert utils.graded(docs[0], [f"\\boxed{{{docs[0]['answer']}}}"]) == {"accuracy": 1.0}

    turned = utils.turned_around(docs)
    assert len(turned) == 7
    [style] = [doc for doc in turned if doc["id"] == "blink/val_Art_Style_1"]
    assert "use the third image as the reference" in utils.question(style)
    assert utils.graded(style, ["\\boxed{A}"]) == {"accuracy": 1.0}
    for name in ("perl_given", "perl_permuted"):
        assert f"task: {name}" in (ROOT / "evals" / "harness" / f"{name}.yaml").read_text()
