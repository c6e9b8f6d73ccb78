"""data/infer.py: the kind of a sample read off its text, measured on every fixture, and the command lines that use it."""

import itertools
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from test_permute_fixtures import EXACT, GIVEN_UP, LOOK_ALIKE, REFUSED, sample

from data.infer import infer
from perl.permute import Refused, Sample, permute

ROOT = Path(__file__).resolve().parents[1]
NLVR2 = [json.loads(line) for line in (ROOT / "tests/fixtures/nlvr2_200.jsonl").read_text().splitlines()]

# The templates of Mantis-Instruct: kind, stem, number of images, question, answer. "fixed": nothing is certain.
TEMPLATES = [
    ("options", 1, 4, "<image>Which one is different?\nA. <image>\nB. <image>\nC. <image>", "C"),
    ("options", 0, 3, "Which image matches: a red kite?\nA. <image>\nB. <image>\nC. <image>", "B"),
    ("index", 0, 4, "<image><image><image><image>\nWhich image is the caption describing?\nA dog on a sofa.", "The third image"),
    ("index", 0, 3, "Here are there images: <image> <image> <image>. If image 2 is the reference image, which image of the other two "
     "is more similar to the reference image?", "Image 3 is more similar to the reference image."),
    ("references", 0, 3, "Here are there images: <image> <image> <image>. If image 2 is the reference image, which image of the other "
     "two is more similar to the reference image?\nOptions:\n(A) Image 3\n(B) Image 1", "A"),
    ("references", 0, 2, "<image> <image> Here is a statement describing these 2 images: The left image shows two dogs. Is it true or "
     "false? \nOptions:\n(A) True\n(B) False", "A"),
    ("invariant", 0, 2, "<image> <image> Here is a statement describing these 2 images: There are three cups. Is it true or false? "
     "\nOptions:\n(A) True\n(B) False", "B"),
    ("references", 0, 3, "<image><image><image>\nWhat do you see in the second image?", "A cat."),
    ("sequence", 0, 4, "<image><image><image><image>\nPut the images in the right order.", "2,1,4,3"),
    ("sequence", 0, 3, "<image><image><image>\nSort the images by size.", "CAB"),
    ("invariant", 0, 3, "<image><image><image>\nHow many of the images show a bus?", "2"),
    ("fixed", 0, 2, "<image><image>\nWhat did the man do after he sat down?\n(A) ate\n(B) slept", "A"),
    ("fixed", 0, 2, "<image><image>\nWhat has changed?", "The car is gone."),
    ("fixed", 0, 2, "<image><image>\nIs the dog asleep?", "yes"),
    ("fixed", 0, 2, "<image><image>\nDo both images show the dog on the left?", "yes"),
    ("fixed", 0, 1, "<image>\nWhich image shows a dog?", "Image 1"),
]


def acts_alike(x: Sample, kind: str, stem: int) -> bool:
    """Does a kind do to a sample what its own kind does, or refuse, under every order?"""
    guess = replace(x, order=kind, stem=stem)
    for tail in itertools.islice(itertools.permutations(range(stem, len(x.images))), 24):
        sigma = (*range(stem), *tail)
        try:
            y = permute(guess, sigma)
        except Refused:
            continue
        try:
            if replace(y, order=x.order, stem=x.stem) != permute(x, sigma):
                return False
        except Refused:
            return False
    return True


def labelled() -> list[Sample]:
    """Every fixture with its true kind; what must be refused is "fixed", as is a sample with nothing to go by."""
    rows = [sample(kind, text, answer, len(sigma)) for kind, text, answer, sigma, *_ in EXACT]
    rows += [sample(kind, text, answer, len(sigma)) for kind, text, answer, sigma in GIVEN_UP]
    rows += [sample("references", text, "x", 2) for text in LOOK_ALIKE]
    rows += [sample("references", f"{row['sentence']} True or false?\n(A) True\n(B) False", "A", 2) for row in NLVR2]
    rows = [replace(x, question=x.question.replace("<image_1>", "<image>").replace("<image_2>", "<image>", 1))
            if "<image>" not in x.question else x for x in rows]
    rows += [Sample("x", tuple(f"{k}.png" for k in range(n)), q, a, kind, stem) for kind, stem, n, q, a in TEMPLATES]
    return rows + [replace(sample("references", text, "x", n), order="fixed") for text, n in REFUSED]


def test_templates():
    for kind, stem, n, question, answer in TEMPLATES:
        x = Sample("x", tuple(f"{k}.png" for k in range(n)), question, answer)
        label = infer(x)
        assert (label["order"], label["stem"]) == (kind, stem), (question, label)
        assert label["evidence"]


def test_an_inferred_kind_is_right_or_fixed(capsys):
    """The confusion table of all fixtures. A kind other than "fixed" must do what the true kind does: the share that does
    is the precision, 1 here; the share of samples that get one is the coverage."""
    table, wrong, alike, inferred, movable = Counter(), [], 0, 0, 0
    for x in labelled():
        label = infer(replace(x, order="fixed", stem=0))
        table[x.order, label["order"]] += 1
        movable += x.order != "fixed"
        if label["order"] != "fixed":
            inferred += 1
            alike += (same := acts_alike(x, label["order"], label["stem"]))
            wrong += [] if same else [(x.question, x.answer, x.order, label)]
    kinds = sorted({kind for pair in table for kind in pair})
    with capsys.disabled():
        print("\ntrue \\ inferred".ljust(17), *(kind.rjust(11) for kind in kinds))
        for true in kinds:
            print(true.ljust(16), *(str(table[true, kind]).rjust(11) for kind in kinds))
        print(f"precision {alike}/{inferred}, coverage {inferred}/{movable}")
    assert not wrong
    assert inferred / movable > 0.5


def rows(folder: Path) -> Path:
    lines = [{"id": str(k), "images": [f"{j}.png" for j in range(n)], "question": q, "answer": a}
             for k, (kind, stem, n, q, a) in enumerate(TEMPLATES)]
    lines.append(lines[5] | {"id": "stated", "order": "fixed"})
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)


def test_command_line_labels_a_file(tmp_path):
    done = run("data/infer.py", rows(tmp_path), "--out", tmp_path / "out.jsonl")
    out = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["order"], row["stem"]) for row in out[:-1]] == [(kind, stem) for kind, stem, *_ in TEMPLATES]
    assert out[-1]["order"] == "fixed" and "evidence" not in out[-1]  # a stated kind stays
    assert done.returncode == 0 and f"inferred {len(TEMPLATES)} of {len(TEMPLATES) + 1}" in done.stderr
    done = run("data/infer.py", tmp_path / "none.jsonl", "--out", tmp_path / "out.jsonl")
    assert done.returncode == 1 and done.stderr.count("\n") == 1


def test_permute_shows_inferred_kinds(tmp_path):
    path = rows(tmp_path)
    done = run("perl/permute.py", path, "--infer")
    out = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["order"] for row in out[:-1]] == [kind for kind, *_ in TEMPLATES] and all(row["evidence"] for row in out[:-1])
    assert "order" not in out[-1] and out[-1]["refused"] == "fixed"
    assert out[0]["images"][0] == "0.png" and out[0]["images"][1:] != ["1.png", "2.png", "3.png"]  # the stem stays
    done = run("perl/permute.py", path)  # without the flag, what is not stated is fixed
    assert all(row["refused"] in ("fixed", "one image") for row in map(json.loads, done.stdout.splitlines()))


@pytest.mark.parametrize("question, answer", [
    ("What is the difference between these two images?", "a car was added"), ("Do the two images differ?\n(A) yes\n(B) no", "A"),
    ("What do both images show?", "the dog that barks, then the cat"), ("Which image shows a dog?", "a poodle"), ("Which image shows what happens next?", "Image 2"),
    ("Is image 2 like the other image?", "yes"), ("Put the images in order.", "1,2"), ("Which picture is it?", "x"),
])
def test_what_is_not_certain_is_fixed(question, answer):
    assert infer(sample("fixed", question, answer, 3))["order"] == "fixed"
