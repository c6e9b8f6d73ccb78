"""data/mark.py: raw rows to marked rows. The table is fixtures/mark_cases.jsonl, a case a line:
what a row must become, or the reason why it is not permutable. Part of it was written by people
who had not read the rules."""

import doctest
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data import mark
from data.mark import Reason, Unclear, names
from perl.permute import Sample, load, permute, plain

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests/fixtures"
CASES = [json.loads(line) for line in (FIXTURES / "mark_cases.jsonl").read_text().splitlines()]
NLVR2 = [
    json.loads(line)["sentence"] for line in (FIXTURES / "nlvr2_200.jsonl").read_text().splitlines()
]
TRUE_OR_FALSE = " True or false?\n(A) True\n(B) False"


def row(question: str, answer: str = "x", n: int = 2, **fields) -> dict:
    """A declared row; its placeholders stand in front unless the question holds them."""
    if "<image>" not in question:
        question = "<image>" * n + " " + question
    return {
        "images": [f"{k}.png" for k in range(n)],
        "question": question,
        "answer": answer,
        "permute": True,
    } | fields


def undeclared(*arguments, **fields) -> dict:
    return {name: value for name, value in row(*arguments, **fields).items() if name != "permute"}


def test_doctests():
    assert doctest.testmod(mark).failed == 0


# --- The table ---


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_case(case):
    verdict = mark.mark(case["row"])
    if "reason" in case:
        assert not verdict.permute and verdict.reason == Reason[case["reason"]]
        assert (verdict.question, verdict.answer) == (
            case["row"]["question"],
            case["row"]["answer"],
        )
    else:
        assert (verdict.question, verdict.answer) == (case["marked"], case["answer"])


@pytest.mark.parametrize(
    "case", [case for case in CASES if "marked" in case], ids=lambda case: case["name"]
)
def test_plain_text_is_the_raw_text_but_for_sets(case):
    verdict = mark.mark(case["row"])
    if not verdict.written_out:
        assert plain(verdict.question) == case["row"]["question"]
    if not verdict.set_answer:
        assert plain(verdict.answer) == case["row"]["answer"]


def test_every_marked_case_loads_and_permutes_in_every_order(tmp_path):
    marked = []
    for k, case in enumerate(CASES):
        if case.get("reason") != "PLACEHOLDERS":
            marked.append(
                mark.result_of({"id": str(k)} | case["row"], tmp_path / "in", tmp_path / "out").row
            )
    (tmp_path / "out").write_text("".join(json.dumps(line) + "\n" for line in marked))
    for x in load(tmp_path / "out", check_images=False):
        for tail in itertools.islice(itertools.permutations(range(x.stem, len(x.images))), 24):
            if x.permute:
                permute(x, (*range(x.stem), *tail))


def test_without_a_declaration_a_row_is_certain_or_false():
    """What comes out true has the marks of the declared row; what must be refused never does."""
    certain = 0
    for case in CASES:
        if case.get("reason") == "DECLARED":
            continue
        raw = {
            name: value for name, value in case["row"].items() if name not in ("permute", "stem")
        }
        verdict = mark.mark(raw)
        certain += verdict.permute
        if verdict.permute:
            assert (verdict.question, verdict.answer) == (case.get("marked"), case.get("answer")), (
                case["name"]
            )
    assert certain > 50


# --- Rules ---


@pytest.mark.parametrize("way", mark.WAYS, ids=lambda way: way.name)
def test_the_example_of_a_way_is_found_by_it(way):
    m = re.search(way.pattern, way.example.lower())
    assert m and m.lastgroup == way.name


@pytest.mark.parametrize("refusal", mark.REFUSALS, ids=lambda refusal: refusal.example)
def test_the_example_of_a_refusal_is_refused_by_it(refusal):
    assert re.search(refusal.pattern, refusal.example, re.M)


@pytest.mark.parametrize("form", mark.CERTAIN, ids=lambda form: form.example)
def test_the_example_of_a_certain_form_has_it(form):
    assert re.fullmatch(form.pattern, " ".join(form.example.lower().split()))


# --- NLVR2: real sentences ---


def test_nlvr2_sentences_are_exact_or_refused():
    changed = refused = 0
    for sentence in NLVR2:
        raw = row(f"<image> <image> {sentence}{TRUE_OR_FALSE}", "A")
        verdict = mark.mark(raw)
        if not verdict.permute:
            refused += 1
            continue
        x = Sample("x", ("a", "b"), verdict.question, verdict.answer, True)
        y = permute(x, (1, 0))
        assert permute(y, (1, 0)) == x and y.answer == "A"
        low = f" {sentence.lower()}"
        named = any(
            words in low
            for words in ("left image", "right image", "image on the left", "image on the right")
        )
        assert (plain(y.question) != raw["question"]) >= named
        changed += plain(y.question) != raw["question"]
    assert refused / len(NLVR2) < 0.05
    assert 0.25 < changed / len(NLVR2) < 0.37  # 31% of the rows of the data set name a side


# --- Kinds ---

LABELS = [
    "{}. ",
    "({}) ",
    "{}) ",
    "[{}] ",
    "{}: ",
    "**{}.** ",
    "{} - ",
    "- {}: ",
    "Option {}: ",
    "【{}】",
    "（{}）",
    "{}、",
    "选项{}：",
]


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("letters", ["ABC", "abc"])
def test_an_option_layout_is_understood_or_refused(label, letters):
    texts = ["the first image", "the second image", "the third image"]
    options = "".join("\n" + label.format(letter) + text for letter, text in zip(letters, texts))
    verdict = mark.mark(row(f"Which image shows a cat?{options}", letters[1], 3))
    if verdict.permute:
        assert verdict.answer == letters[1] and verdict.question.count("[[") == 3


@pytest.mark.parametrize(
    "label", ["{}; ", "{} > ", "{} ~ ", "<{}> ", "{}/ ", "{}, ", '"{}" ', "{}#"]
)
@pytest.mark.parametrize("text", ["{}", "Image {}", "number {}"])
def test_a_layout_nobody_listed_is_refused(label, text):
    options = "".join(
        "\n" + label.format(letter) + text.format(k) for k, letter in enumerate("ABC", start=1)
    )
    verdict = mark.mark(row(f"Which image shows a cat?{options}", "B", 3))
    assert not verdict.permute or (verdict.answer == "B" and verdict.question.count("[[") == 3)


NUMBERS = [  # question, is the answer 2 an image?
    ("Which image shows a cat?", True),
    ("Which picture is the odd one out? Answer with the image number.", True),
    ("What is the number of the image that shows a cat?", True),
    ("Identify the image that shows a cat.", True),
    ("哪张图里有猫？", True),
    ("How many images show a cat?", False),
    ("What number appears in all images?", False),
    ("What is the number of images that show a bird?", False),
    ("Which digit do all images show?", False),
    ("图中一共有几只猫？", False),
]


@pytest.mark.parametrize("question, is_image", NUMBERS, ids=[question for question, _ in NUMBERS])
def test_a_number_is_an_image_only_where_an_image_is_asked_for(question, is_image):
    verdict = mark.mark(row(question, "2", 3))
    assert verdict.permute and verdict.answer == ("[[2|2]]" if is_image else "2")


def test_formulas_name_no_image():
    verdict = mark.mark(
        row("The points $A D$ and $B$ lie on one line in image 1. What is it?", n=3)
    )
    assert verdict.permute and verdict.question.count("[[") == 1


def test_a_lone_number_in_a_formula_right_after_a_noun_names_one():
    verdict = mark.mark(row("Figure $1$ is larger than Figure $2$."))
    assert verdict.question.endswith("Figure $[[1|1]]$ is larger than Figure $[[2|2]]$.")


def test_dollars_are_no_formula():
    verdict = mark.mark(row("The bike costs $5 in image 1 and $6 in image 2. Why?", "a sale"))
    assert verdict.permute and verdict.question.count("[[") == 2


CONTRADICTED = [
    ("What happens next?", Reason.TIME),
    ("The pictures tell a story. Who wins?", Reason.TIME),
    ("User: what is it?\nAssistant: a dog\nUser: and here?", Reason.TURNS),
    ("<image> shows a dog, <image> shows a cat. Are both asleep?", Reason.CAPTION),
]


@pytest.mark.parametrize(
    "question, reason", CONTRADICTED, ids=[question for question, _ in CONTRADICTED]
)
def test_the_text_may_contradict_the_declaration(question, reason):
    assert mark.mark(row(question)).reason == reason


def test_declared_false_stays_false():
    assert (
        mark.mark(row("How many images show a cat?", "1", permute=False)).reason == Reason.DECLARED
    )


ORDER_IS_MEANING = [
    ("Each image shows one digit. What number do the digits make?", "472"),
    ("All images show parts of an equation. What is x?", "14"),
    ("Both images show the same plant. Is it healthier now?", "no"),
    ("Do all images together spell a word?", "yes"),
    ("How many images show the dog after its walk?", "1"),
    ("Which image continues the pattern?", "Image 2"),
    ("Which image stands in the middle?", "Image 2"),
    ("两张图片显示同一个水杯。水少了吗？", "是"),
]


@pytest.mark.parametrize(
    "question, answer", ORDER_IS_MEANING, ids=[question for question, _ in ORDER_IS_MEANING]
)
def test_what_is_not_certain_is_false(question, answer):
    assert not mark.mark(undeclared(question, answer, 3)).permute


def test_from_the_end_is_no_answer():
    assert mark.mark(row("Which image shows a cat?", "The last image", 3)).reason == Reason.FROM_END


def test_a_set_of_images_is_written_in_braces():
    verdict = mark.mark(row("Which images show a cat?", "Images 1 and 3", 3))
    assert verdict.answer == "{[[1|1]], [[3|3]]}" and verdict.set_answer


def test_equal_contents_are_found(tmp_path):
    (tmp_path / "0.png").write_bytes(b"same")
    (tmp_path / "1.png").write_bytes(b"same")
    raw = row("Both images show a dog.")
    assert mark.mark(raw, tmp_path).reason == Reason.EQUAL
    (tmp_path / "1.png").write_bytes(b"else")
    assert mark.mark(raw, tmp_path).permute


def test_equal_names_are_found():
    assert (
        mark.mark(row("Both images show a dog.", images=["a.png", "./a.png"])).reason
        == Reason.EQUAL
    )


def test_a_text_that_looks_like_a_mark_is_kept_apart():
    verdict = mark.mark(row("What is the rank of [[1|2],[3|4]]?"))
    assert verdict.reason == Reason.BRACKETS and plain(verdict.question) == verdict.question


@pytest.mark.parametrize(
    "kind, question, answer, marked",
    [
        ("options", "<image><image> which one barks?", "B", "[[2|B]]"),
        ("index", "Which panel is darker?", "2", "[[2|2]]"),
        ("sequence", "Tell the order of events.", "2,1", "[[2|2]],[[1|1]]"),
        ("references", "What is in image 2?", "a cat", "a cat"),
        ("invariant", "Two dogs play.", "yes", "yes"),
        ("fixed", "What is in image 2?", "a cat", None),
    ],
)
def test_rows_of_the_first_version_are_converted(kind, question, answer, marked):
    verdict = mark.mark(undeclared(question, answer, order=kind))
    assert verdict.permute == (marked is not None) and (marked is None or verdict.answer == marked)


def test_names_marks_every_name_and_refuses_unknown_ones():
    assert (
        names("The left image shows what happens before dawn.", 2)
        == "The [[1|left]] image shows what happens before dawn."
    )
    with pytest.raises(Unclear, match="a side that may be an image"):
        names("The dog on the left is black.", 2)


# --- The command line ---


def run(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "data/mark.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def write(path: Path, *rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in rows)
    )
    return path


def test_every_row_comes_out(tmp_path):
    raw = [
        row("The left image shows a dog." + TRUE_OR_FALSE, "A", id="a", accuracy=0.5),
        row("The dog on the left is black.", id="b"),
        row("Which images show a cat?", "1 and 2", 3, id="c"),
    ]
    done = run(
        write(tmp_path / "in/raw.jsonl", *raw), "--out", tmp_path / "out/marked.jsonl", "--explain"
    )
    a, b, c = [
        json.loads(line) for line in (tmp_path / "out/marked.jsonl").read_text().splitlines()
    ]
    assert a["question"] == "<image><image> The [[1|left]] image shows a dog." + TRUE_OR_FALSE
    assert (a["permute"], a["accuracy"], a["images"][0]) == (True, 0.5, "../in/0.png")
    assert (
        b["permute"] is False
        and b["why"].startswith(Reason.SIDE)
        and b["question"] == raw[1]["question"]
    )
    assert c["answer"] == "{[[1|1]], [[2|2]]}"
    assert "permutable 2 of 3" in done.stderr and f"1 false: {Reason.SIDE}" in done.stderr
    assert "1 answers brought to the form of a set" in done.stderr
    assert [line.split("\t")[:2] for line in done.stdout.splitlines()] == [
        ["a", "true"],
        ["b", "false"],
        ["c", "true"],
    ]


def test_what_it_writes_is_not_marked_again(tmp_path):
    raw = write(
        tmp_path / "raw.jsonl", row("What is in image 1, and what in image 2?", "a cat", id="a")
    )
    run(raw, "--out", tmp_path / "marked.jsonl")
    run(tmp_path / "marked.jsonl", "--out", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_text() == (tmp_path / "marked.jsonl").read_text()


def test_a_name_that_somebodys_marks_miss_is_reported(tmp_path):
    half = row("Is image [[1|1]] darker than image 2?", "yes", id="half")
    done = run(write(tmp_path / "raw.jsonl", half), "--out", tmp_path / "marked.jsonl")
    assert "half: its marks miss what looks like a name: 2" in done.stderr


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("{", "raw.jsonl:1: no JSON"),
        (row("x", images="a.png"), "raw.jsonl:1: images: must be"),
        ("[" * 10**5, "too deep"),
    ],
    ids=["no JSON", "no images", "nested too deep"],
)
def test_a_bad_row_is_one_sentence(tmp_path, line, sentence):
    done = run(write(tmp_path / "raw.jsonl", line), "--out", tmp_path / "marked.jsonl")
    assert done.returncode == 1 and sentence in done.stderr and done.stderr.count("\n") == 1
