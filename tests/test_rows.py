"""Rows that real data has: they load, and their answers are graded as a reader would."""

import json

import pytest

from perl.permute import Sample, load, permute, plain
from rewards.boxed import accuracy, options


def load_row(tmp_path, **row) -> Sample:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "x"} | row) + "\n")
    [x] = load(tmp_path / "rows.jsonl", check_images=False)
    return x


def grade(x: Sample, box: str) -> float:
    return accuracy(f"\\boxed{{{box}}}", plain(x.answer), options(plain(x.question)))


TWO = {"images": ["a.png", "b.png"]}
ONE = {"images": ["a.png"]}
STATEMENTS = "<image><image> Which statements hold?\nA. red\nB. round\nC. small\nD. old"
POINTS = "<image> The figure marks two points.\nA. (1, 2)\nB. (4, 6)\nHow far apart are they?"
YES_NO = "<image><image> Do both images show a 7?\n(A) yes\n(B) no"
CASES = [  # name, row, right boxes, wrong boxes
    (
        "several letters",
        TWO | {"question": STATEMENTS, "answer": "AC"},
        ["CA", "A, C"],
        ["A", "AD"],
    ),
    ("all letters", TWO | {"question": STATEMENTS, "answer": "CABD"}, ["C,A,B,D"], ["ABCD"]),
    (
        "a letter in brackets",
        TWO | {"question": YES_NO, "answer": "(B)"},
        ["B", "no"],
        ["A", "yes"],
    ),
    ("an option's text", TWO | {"question": YES_NO, "answer": "no"}, ["B", "no"], ["A", "yes"]),
    ("lettered lines that are no options", ONE | {"question": POINTS, "answer": "5"}, ["5"], ["4"]),
]


@pytest.mark.parametrize("row, right, wrong", [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_a_row_loads_and_is_graded(tmp_path, row, right, wrong):
    x = load_row(tmp_path, **row)
    assert [grade(x, box) for box in right] == [1.0] * len(right)
    assert [grade(x, box) for box in wrong] == [0.0] * len(wrong)


def test_images_move_and_none_of_the_choices_stays(tmp_path):
    question = (
        "Which is a bird?\nA. <image>\nB. <image>\nC. <image>\nD. None of the choices provided"
    )
    images = ["a.png", "b.png", "c.png"]
    x = load_row(tmp_path, images=images, question=question, answer="D", permute=True)
    y = permute(x, (2, 0, 1))
    assert y.images != x.images and y.answer == "D" and grade(y, "D") == 1.0
    assert grade(y, "A") == 0.0
