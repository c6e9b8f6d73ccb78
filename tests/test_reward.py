"""The reward: what is right, what is wrong, and that no response can stop it.

The cases named after mathruler and math-verify are faults
measured in mathruler 0.1.0 and math-verify 0.9.0."""

import doctest
import json
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rewards
import rewards.boxed as boxed_module
from rewards.boxed import (
    ACCURACY_WEIGHT,
    CALCULATOR,
    FORMAT_WEIGHT,
    accuracy,
    boxed,
    format_ok,
    reward,
)

ROOT = Path(__file__).resolve().parents[1]
PICTURES = {"A": "Image 2", "B": "5", "C": "Image 3", "D": "5"}


def box(text):
    return rf"\boxed{{{text}}}"


RIGHT = {
    "letter": [
        ("A", "A"),
        ("(A)", "A"),
        ("[A]", "A"),
        ("A.", "A"),
        ("A)", "A"),
        (r"\text{A}", "A"),
        ("$A$", "A"),
        (r"\textbf{(A)}", "A"),
        ("Option A", "A"),
        ("A. 5", "A"),
        ("A: Image 2", "A"),
        ("（A）", "A"),
        ("【A】", "A"),
        ("选项A", "A"),
        ("F", "F"),
        ("A", "(A)"),
        ("A", "A. 5"),
        ("5", "A. 5"),
        ("E", "E"),
    ],
    "index": [
        ("Image 2", "2"),
        ("2", "Image 2"),
        ("the second image", "Image 2"),
        ("second image", "image 2"),
        ("image two", "Image 2"),
        ("第二张图", "2"),
        ("2", "第二张图"),
        ("第2张图片", "Image 2"),
        ("图2", "the second image"),
        ("2nd image", "Image 2"),
        (r"\text{Image 2}", "Image 2"),
        ("(2)", "Image 2"),
        ("Left image", "The left image"),
        ("left", "The left image"),
        ("the left one", "The left image"),
        ("the last picture", "last image"),
        ("Image 1 and 3", "1 and 3"),
        ("1, 3", "1 and 3"),
        ("2, 3", "Images 2 and 3"),
        ("Image 2 and image 3", "Images 2 and 3"),
        ("Images 1 and 3", "1, 3"),
        ("图1和图3", "1,3"),
        ("第一张和第三张", "1,3"),
        ("#2", "2"),
        ("Picture C", "C"),
        ("图B", "B"),
        ("选B", "B"),
    ],
    "order": [
        ("2,1,4,3", "2,1,4,3"),
        ("2→1→4→3", "2,1,4,3"),
        ("C, A, B, D", "CABD"),
        ("(3,1,2)", "[3,1,2]"),
        ("(1,2)", "1,2"),
        ("B, C", "BC"),
        (r"2\rightarrow 1", "2,1"),
        ("(2)(1)", "2,1"),
        ("2，1", "2,1"),
        ("Image 2, Image 1", "2,1"),
        ("C A B D", "CABD"),
        ("A, C", "AC"),
        ("(C)(A)(B)", "C, A, B"),
        ("2->1", "2,1"),
        ("(1, 200)", "(1,200)"),
        ("1, 2, and 3", "1,2,3"),
        ("2,1,3", "2-1-3"),
        ("C-A-B", "CAB"),
        ("(2)-(1)-(3)", "2-1-3"),
        ("2/1/3", "2-1-3"),
        ("2 - 1 - 3", "2-1-3"),
        ("[2-1-3]", "2-1-3"),
        ("2 – 3", "2-3"),
        ("(10-20)", "10 - 20"),
        ("A - B - C", "ABC"),
    ],
    "truth": [
        ("yes", "True"),
        ("TRUE", "true"),
        ("False.", "false"),
        (r"\text{No}", "no"),
        ("是", "yes"),
    ],
    "number": [
        (r"\frac{1}{2}", "0.5"),
        ("1/2", r"\frac12"),
        ("0.333333", "1/3"),
        ("x=5", "5"),
        ("1,234", "1234"),
        ("1{,}234", "1234"),
        (r"2\sqrt{3}", r"\sqrt{12}"),
        ("2x+2", "2(x+1)"),
        ("(x+1)(x+2)", "x^2+3x+2"),
        ("1 1/2", "1.5"),
        (r"-1\frac{1}{2}", "-3/2"),
        (r"3\times 10^{5}", "300000"),
        ("2。", "2"),
        ("３", "3"),
        ("4/2", "2"),
        ("2.0", "2"),
        ("0.0", "0"),
        ("$5", "5"),
        ("£5", "5"),
        ("−5", "-5"),
        ("5²", "25"),
        ("x^{2}", "x²"),
        ("x^{2}3", "3x^2"),
    ],
    "unit": [
        ("5 cm", "5"),
        ("5 m", "5"),
        (r"5\text{ cm}", "5 cm"),
        ("5", "5cm"),
        ("5 m", r"5\mathrm{m}"),
        (r"60^\circ", "60"),
        ("60°", r"60^{\circ}"),
        ("60 degrees", "60°"),
        ("3厘米", "3"),
        ("12 cm²", "12 cm^{2}"),
        ("12 cm^2", r"12\text{ cm}^{2}"),
    ],
    "percent": [
        ("50%", "50"),
        ("50", "50%"),
        ("50%", "0.5"),
        (r"50\%", "50%"),
        ("50 percent", "50%"),
        (r"\frac{1}{2}", "50%"),
        ("0.5%", "0.005"),
    ],
    "set": [
        (r"\{5, 3\}", r"\{5,3\}"),
        (r"\{3,5\}", r"\{5,3\}"),
        ("3,5", r"\{5,3\}"),
        ("3 and 1", "{1, 3}"),
        ("C and A", "{A, C}"),
        ("CA", "{A, C}"),
        ("Images 1 and 3", "{1, 3}"),
        ("{Image 3, Image 1}", "{Image 1, Image 3}"),
        ("[0,0.5)", r"[0,\frac{1}{2})"),
        ("(1/2, 3)", "(0.5, 3)"),
    ],
    "text": [
        ("dog", "Dog"),
        ("a  red cat.", "a red cat"),
        ("y = 2x+1", "y=2x+1"),
        ("None", "None"),
        ("cat, dog", "cat, dog"),
    ],
}
WRONG = {
    "mathruler: letters are symbols": [
        ("B+A-B", "A"),
        ("A*1", "A"),
        ("A+0", "A"),
        ("2A-A", "A"),
        ("0*B+A", "A"),
        ("a", "A"),
        ("i", "I"),
        ("e", "E"),
    ],
    "the other side": [
        ("right", "The left image"),
        ("the first image", "last image"),
        ("3 and 1", "1 and 3"),
        ("1", "1 and 3"),
    ],
    "two letters": [
        ("A or B", "A"),
        ("A: B", "A"),
        ("A. or B", "A"),
        ("A, B", "A"),
        ("AB", "A"),
        ("A/B", "A"),
        ("A", "B"),
    ],
    "index": [
        ("3", "Image 2"),
        ("Image 2 or 3", "Image 2"),
        ("Image 12", "1,2"),
        ("the third image", "2"),
        ("", "2"),
    ],
    "order": [
        ("2,1", "1,2"),
        ("2,1,4,3", "2→1→3→4"),
        ("1,1", "1,2"),
        ("1,2,2", "1,2"),
        ("12", "1,2"),
        ("1,2", "12"),
        ("1", "1,2"),
        ("ABDC", "CABD"),
        ("(C)", "(C), (A)"),
        (r"\{1,2\}", "1,2"),
    ],
    "another set": [
        ("1", "{1, 3}"),
        ("1, 2, 3", "{1, 3}"),
        ("1, 1", "{1, 3}"),
        ("1, 3, 3", "{1, 3}"),
        ("A", "{A, C}"),
    ],
    "math-verify: decimal comma": [("1.2", "1,2"), ("1,2", "1.2")],
    "math-verify: words beside a number": [
        ("3 or 5", "5"),
        ("image 3 then Image 2", "2"),
        ("3 apples and 7 pears", "7"),
    ],
    "math-verify: a sum instead of a product": [
        ("5 4", "9"),
        ("5(4)", "9"),
        ("(5)(4)", "9"),
        ("2^3^2", "64"),
        ("30 30", "60"),
    ],
    "number": [
        ("-5", "5"),
        ("0.33", "1/3"),
        ("5²", "52"),
        (r"\pi", "3.14"),
        ("1 2", "12"),
        ("1/0", "1/0+1"),
        ("y=5", "x=5"),
    ],
    "unit and percent": [
        ("5 m", "5 cm"),
        ("12 cm", "12 cm²"),
        ("12 cm³", "12 cm²"),
        ("5 percent", "0.5"),
        ("0.5%", "0.5"),
        ("5%", "0.5"),
        ("0.5", "0.5%"),
    ],
    "interval": [("[0,1]", "(0,1)"), ("[0,1]", "[0,1)"), (r"\{3,3\}", r"\{3,5\}")],
    "an order, score, range or date is no difference": [
        ("2-3-1", "2-1-3"),
        ("-2", "2-1-3"),
        ("B-C-A", "B-A-C"),
        ("2/3/1", "2/1/3"),
        ("(2)-(3)-(1)", "(2)-(1)-(3)"),
        ("4-2", "3-1"),
        ("2", "3-1"),
        ("-2", "10-12"),
        ("2020-2021", "2019-2020"),
        ("2008", "2024-01-15"),
        ("5 - 3", "2"),
        ("(5-3)", "2"),
        ("3 - 1 - 2", "0"),
        ("(10-12)", "-2"),
    ],
    "a variable is no number": [
        ("3", "2x"),
        ("2x", "3"),
        ("5/2", "x+1"),
        ("9/4", "x^2"),
        (r"\theta", "0.5"),
        (r"10\theta", "5"),
        ("x", "y"),
    ],
    "too large": [(r"999999999999999^{20}*170000000*(1+\sqrt{-1})", "3")],
    "truth": [("no", "True"), ("T", "True"), ("true or false", "true")],
    "text": [("god", "dog"), ("cat, dog", "cat and dog"), ("dog, cat", "cat, dog"), ("", "dog")],
}
HOSTILE = {
    "open braces": r"\boxed{" + "{" * 100_000,
    "closed braces": box("{" * 50_000 + "}" * 50_000),
    "boxes": r"\boxed{" * 20_000,
    "spaces after box": r"\boxed" + " " * 100_000,
    "backslashes": box("\\" * 100_001),
    "power tower": box("9^{9^{9^9}}"),
    "bare tower": box("9^9^9^9"),
    "tower of twos": box("2^2^2^2^2^2^2"),
    "braced twos": box("2^{2}^{2}^{2}^{2}^{2}^{2}"),
    "tower of tens": box("10^{10^{10}}"),
    "left tower": box("((9^{99})^{99})^{99}"),
    "parenthesised tower": box("9^(9^(9^9))"),
    "factorial": box("(10^{9})!"),
    "sine of a tower": box(r"\sin(((9^{99})^{99})^{99})"),
    "power": box("2^{999999999}"),
    "digits": box("9" * 100_000),
    "few digits": box("9" * 300),
    "parentheses": box("(" * 100_000 + ")" * 100_000),
    "forty": box("(" * 39 + "1" + ")" * 39),
    "twelve braces": box("{" * 12 + "1" + "}" * 12),
    "fractions": box(r"\frac{" * 5000 + "1" + "}{1}" * 5000),
    "small fractions": box(r"\frac{" * 12 + "1" + "}{1}" * 12),
    "roots": box(r"\sqrt{" * 20 + "2" + "}" * 20),
    "sum of roots": box("+".join(rf"\sqrt{{{p}}}" for p in (2, 3, 5, 7, 11, 13, 17, 19))),
    "sine": box(r"\sin(10^{99})"),
    "large sine": box(r"\sin(((999999999999999)^{14})^{14})"),
    "tangents": box(r"\tan" * 30 + "1"),
    "polynomial": box("(a+b+c+d+e+f)^{99}"),
    "commas": box("," * 400),
    "list": box("1," * 190 + "1"),
    "letters": box("A. " * 130),
    "negative tower": box("9^{-9^{9^9}}"),
    "tower below": box(r"\frac{1}{9^{9^9}}"),
    "great root": box(r"\sqrt[9999999]{99}"),
    "sum": box(r"\sum_{n=1}^{10^9} n"),
    "product": box("9^{99}*" * 12 + "7"),
    "wide exponent": box("(x+y)^{99}(x-y)^{99}"),
    "matrix": box(r"\begin{pmatrix}" + r"1&2\\" * 40 + r"\end{pmatrix}"),
    "superscripts": box("5" + "²" * 390),
    "images": box("the image " * 39),
    "no end": "x" * 1_000_000 + r"\boxed{" + "y" * 1_000_000,
    "text": box(r"\text{" * 60 + "}" * 60),
    "sets": box(r"\{" * 20 + "1,2" + r"\}" * 20),
    "dollars": box("$" * 400),
    "control": box("\x00\x01\ud800\u202e"),
    "thoughts": "<think>" * 100_000,
    "blank": box(" " * 390),
}
GOLDS = [
    ("5", None),
    ("A", None),
    ("A", PICTURES),
    ("2,1", None),
    (r"\{3,5\}", None),
    ("x+1", None),
    ("True", None),
    ("dog", None),
]


def test_doctests():
    assert doctest.testmod(boxed_module).failed == 0


def cases(table):
    return [
        pytest.param(*case, id=f"{kind}: {case[0]} for {case[1]}")
        for kind, rows in table.items()
        for case in rows
    ]


@pytest.mark.parametrize("given_, gold", cases(RIGHT))
def test_right(given_, gold):
    assert accuracy(f"so {box(given_)}.", gold) == 1.0


@pytest.mark.parametrize("given_, gold", cases(WRONG))
def test_wrong(given_, gold):
    assert accuracy(f"so {box(given_)}.", gold) == 0.0


@pytest.mark.parametrize(
    "given_, gold, right",
    [
        ("A", "A", 1),
        ("A: Image 2", "A", 1),
        ("A: the second image", "A", 1),
        ("Image 2", "A", 1),
        ("A: Image 3", "A", 0),
        ("Image 3", "A", 0),
        ("5", "B", 0),
        ("B. 5", "B", 1),
        ("B", "A", 0),
        ("A", "Image 2", 1),
        ("Image 2", "Image 2", 1),
        ("C", "Image 2", 0),
        ("B: 5", "A", 0),
        ("A: 5", "A", 0),
        ("C: Image 2", "A", 0),
    ],
)
def test_options(given_, gold, right):
    assert accuracy(box(given_), gold, PICTURES) == right  # B and D share a text: it names neither


def test_box():
    assert boxed(r"\boxed{1} \boxed{\frac{1}{\sqrt{2}}} end") == r"\frac{1}{\sqrt{2}}"
    assert boxed(r"\boxed{\{1, 2\}}") == r"\{1, 2\}" and boxed(r"\boxed {A}") == "A"
    assert boxed(r"\boxed{\}}") == r"\}"
    assert boxed("A}") is None
    assert (
        boxed("none")
        is boxed(r"\boxed A")
        is boxed(r"\fbox{A}")
        is boxed(r"\boxed{1} \boxed{2")
        is None
    )
    assert accuracy(box("B") + box("A"), "A") == 1.0 and accuracy(box("A") + box("B"), "A") == 0.0
    assert accuracy("no box", "None") == accuracy("A", "A") == accuracy(box(""), "") == 0.0


def test_format():
    good = r"<think>two dogs</think> so \boxed{A}"
    assert (
        format_ok(good) and format_ok(" \n" + good + "\n") and format_ok(r"<think></think>\boxed{}")
    )
    for bad in (
        "x" + good,
        good.replace("</think>", ""),
        good.replace("<think>", ""),
        "<think>a</think> A",
        "",
        good + good,
        r"<think>\boxed{A}</think>",
        r"</think><think>\boxed{A}",
        good + "</think>",
        r"<think>a</think>\boxed{A",
    ):
        assert not format_ok(bad), bad
    assert (
        reward(good, "A") == 1.0
        and reward(good, "B") == FORMAT_WEIGHT
        and reward(box("A"), "A") == ACCURACY_WEIGHT
    )
    assert reward("", "A") == 0.0


@pytest.mark.parametrize("response", HOSTILE.values(), ids=HOSTILE)
def test_hostile_responses_are_wrong_and_return(response):
    done = []

    def grade():
        done.extend(reward(response, *gold) for gold in GOLDS)

    thread = threading.Thread(target=grade, daemon=True)
    thread.start()  # also: no signal.alarm, which needs the main thread
    thread.join(20)  # far above what was measured: only a hang takes this long
    assert len(done) == len(GOLDS) and set(done) == {0.0}


def test_four_threads_agree_with_one():
    rows = [(box(g), a) for rows in (RIGHT, WRONG) for kind in rows.values() for g, a in kind]
    expected, found = [accuracy(*row) for row in rows], {}

    def grade(i):
        found[i] = [accuracy(*row) for row in rows]

    threads = [threading.Thread(target=grade, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found.get(i) for i in range(4)] == [expected] * 4


@settings(max_examples=300)
@given(
    st.text(), st.text(), st.none() | st.dictionaries(st.sampled_from("ABCD"), st.text(max_size=9))
)
def test_total_on_any_text(response, gold, options):
    for text in (response, box(response), box(gold)):
        assert accuracy(text, gold, options) in (0.0, 1.0) and format_ok(text) in (True, False)


@settings(max_examples=300)
@given(
    st.text(r"019.^_{}()\,+-*/ =%xABfracsqti", max_size=30),
    st.sampled_from(["5", "A", "1,2", "x+1", r"\{1,2\}"]),
)
def test_total_on_mathematics(text, gold):
    assert accuracy(box(text), gold) in (0.0, 1.0)


GOLD = st.one_of(
    st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    st.integers(-999, 10**12).map(str),
    st.floats(0.01, 1e4).map("{:.3f}".format),
    st.permutations("ABCDE").map("".join),
    st.permutations("1234").map(", ".join),
    st.permutations("1234").map("→".join),
    st.builds("Image {}".format, st.integers(1, 20)),
    st.sampled_from(["true", "No", "the second image", "第三张图", "图4"]),
    st.builds(r"\frac{{{}}}{{{}}}".format, st.integers(1, 99), st.integers(1, 99)),
    st.integers(0, 100).map("{}%".format),
    st.lists(st.sampled_from("red dog on a mat".split()), min_size=1, max_size=5).map(" ".join),
)


@settings(max_examples=200)
@given(
    GOLD,
    GOLD,
    st.text().map(lambda s: s.translate({123: None, 125: None})),
    st.text().map(lambda s: s.translate({123: None})),
)
def test_gold_is_right_and_only_the_box_counts(gold, other, before, after):
    assert accuracy(box(gold), gold) == 1.0
    assert accuracy(before + box(other) + after, gold) == accuracy(box(other), gold)


UNSEEN = [
    json.loads(line) for line in (ROOT / "tests/fixtures/grades.jsonl").read_text().splitlines()
]


@pytest.mark.parametrize("case", UNSEEN, ids=[f"{c['box']} for {c['answer']}" for c in UNSEEN])
def test_pairs_by_somebody_who_had_not_read_the_grader(case):
    assert accuracy(box(case["box"]), case["answer"], case["options"]) == case["right"]


LETTERS = {"A": "red", "B": "round", "C": "small", "D": "old"}


@pytest.mark.parametrize(
    "given_, gold, right",
    [
        ("CA", "AC", 1),
        ("A and C", "AC", 1),
        ("A: red, C: small", "AC", 1),
        ("A", "AC", 0),
        ("A, B, C", "AC", 0),
        ("C, A, B, D", "CABD", 1),
        ("ABCD", "CABD", 0),
        ("(B)", "(B)", 1),
        ("round", "B", 1),
        ("B", "round", 1),
    ],
)
def test_several_letters_under_options_of_text(given_, gold, right):
    """A proper part of the options is a set; all of them are an order."""
    assert accuracy(box(given_), gold, LETTERS) == right


@pytest.mark.parametrize(
    "given_, gold",
    [
        (r"1\,234\,567", "1234567"),
        ("1\u2009234\u2009567", "1234567"),
        ("1.2e-3", "0.0012"),
        ("1.2E3", "1200"),
        (r"15 \text{ cm}^2", "15"),
        (r"15 \text{ cm}^{2}", "15 cm^2"),
        (r"x \le 2", r"x \leq 2"),
        (r"x \leqslant 2", "x <= 2"),
        (r"2 \ge x", r"x \leq 2"),
        (r"5 \text{ apples}", "5"),
        ("5", "5 apples"),
        ("3只", "3"),
    ],
)
def test_ways_to_write_a_quantity(given_, gold):
    assert accuracy(box(given_), gold) == 1.0


@pytest.mark.parametrize(
    "given_, gold",
    [
        ("1 234 567", "1,234,568"),
        ("1.2e-3", "0.012"),
        ("15 cm", "15 cm^2"),
        ("x < 2", r"x \leq 2"),
        (r"x \ge 2", r"x \leq 2"),
        ("5 apples and 7 pears", "5"),
        ("5 dozen", "5"),
        ("5 hundred", "5"),
        ("5 images", "5 apples"),
        ("5 pears", "5 apples"),
        ("3 or 5", "3"),
    ],
)
def test_near_quantities_are_wrong(given_, gold):
    assert accuracy(box(given_), gold) == 0.0


def test_memory_stays_flat_over_many_formulas():
    """math-verify's parser keeps every sentence that it has met: its process is replaced."""
    assert accuracy(box("x+x"), "2x") == 1.0
    first = CALCULATOR.child.pid
    CALCULATOR.asked = CALCULATOR.LIFE
    assert accuracy(box("x+y+x"), "2x+y") == 1.0
    assert CALCULATOR.child.pid != first and CALCULATOR.asked < 10


def test_a_term_that_takes_too_long_is_wrong_and_the_next_is_not(monkeypatch):
    monkeypatch.setattr(CALCULATOR, "SECONDS", 0.0)
    assert CALCULATOR.value("a+b+1") is None
    monkeypatch.setattr(CALCULATOR, "SECONDS", 1.5)
    assert CALCULATOR.value("a+b+1") is not None


REWARD = """
def brief(response, answer, options):
    return float(len(response) < 5)

def accuracy(response, answer, options):
    return 0.5
"""


def test_a_reward_of_the_user(tmp_path):
    (tmp_path / "mine.py").write_text(REWARD)
    grader = rewards.load(f"{tmp_path}/mine.py:brief")
    assert grader.reward("1234", "A", {}) == 1.0 and grader.accuracy("", "A", {}) == 0.5


def test_a_reward_without_accuracy_keeps_the_default(tmp_path):
    (tmp_path / "mine.py").write_text("def zero(response, answer, options):\n    return 0.0\n")
    assert rewards.load(f"{tmp_path}/mine.py:zero").accuracy(box("A"), "A", {}) == 1.0


@pytest.mark.parametrize("spec", ["none.py:f", "mine.py", "mine.py:other", ":f", "mine.py:"])
def test_a_missing_file_or_function_is_one_sentence(tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("f = 1\n")
    with pytest.raises(SystemExit) as end:
        rewards.load(spec)
    assert spec in str(end.value) and "\n" not in str(end.value)
