"""perl/permute.py: a mark names the same picture before and after;
orders are undone and composed; draws are fair and repeatable; bad
rows get one sentence; the command line shows all of it."""

import itertools
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from math import factorial, sqrt
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perl.permute import (
    FORMS,
    MARK,
    DataError,
    Sample,
    alpha,
    copies,
    inverse,
    load,
    mistake,
    permute,
    plain,
    vocabulary,
)
from rewards.boxed import accuracy

ROOT = Path(__file__).resolve().parents[1]


# --- Forms ---


@pytest.mark.parametrize("n", range(1, 31))
def test_no_word_stands_in_two_forms_at_one_slot(n):
    """Where a word could be read in two ways, it is read in one: every mark of a form leads back
    to that form."""
    for stem in range(n):
        known = vocabulary(n, stem)
        for (slot, word), form in known.items():
            assert form[slot] == word
            assert all(known[to, said] is form for to, said in form.items())


@pytest.mark.parametrize("n", range(1, 13))
def test_a_form_has_a_word_for_every_slot_its_image_can_move_to(n):
    for stem in range(n):
        for (slot, _), form in vocabulary(n, stem).items():
            reach = range(stem + 1, n + 1) if slot > stem else [slot]
            assert all(to in form for to in reach)


def test_counting_forms_exist_for_all_images_and_for_those_after_the_stem():
    known = vocabulary(4, 1)
    assert known[3, "3"][2] == "2" and known[3, "b"][2] == "a"  # "image 3", and option B of a, b, c
    assert known[1, "1"] == {1: "1", 2: "2", 3: "3", 4: "4"}


def test_sides_and_words_from_the_end_count_all_images():
    assert vocabulary(2, 0)[1, "left"] == {1: "left", 2: "right"}
    assert vocabulary(3, 0)[3, "last"][1] == "third to last"
    assert not any(word in ("left", "last") for _, word in vocabulary(1, 0))


# --- Eq. (1) ---


@st.composite
def marked_samples(draw):
    """A sample of 2-8 images in which every form that there
    is names images, in any capitals; and two orders."""
    n = draw(st.integers(2, 8))
    stem = draw(st.integers(0, n - 2))
    good = [key for key in vocabulary(n, stem) if not mistake(*key, n, stem)]
    said = draw(st.lists(st.sampled_from(good), min_size=1, max_size=6))
    marks = []
    for slot, word in said:
        capitals = draw(st.sampled_from([word, word.upper(), word[0].upper() + word[1:]]))
        marks.append(f"[[{slot}|{word if mistake(slot, capitals, n, stem) else capitals}]]")
    question = "<image>" * n + " Is " + " like ".join(marks) + "? 1, left and [x] stay."
    images = tuple(f"{k}.png" for k in range(n))
    x = Sample("x", images, question, draw(st.sampled_from(["yes", marks[0]])), True, stem)
    orders = st.permutations(range(stem, n)).map(lambda tail: (*range(stem), *tail))
    return x, draw(orders), draw(orders)


@given(marked_samples())
@settings(max_examples=400)
def test_every_mark_names_the_same_picture_before_and_after(case):
    x, sigma, _ = case
    y = permute(x, sigma)
    for before, after in ((x.question, y.question), (x.answer, y.answer)):
        old, new = MARK.findall(before), MARK.findall(after)
        assert [x.images[int(slot) - 1] for slot, _ in old] == [
            y.images[int(slot) - 1] for slot, _ in new
        ]
        assert [mistake(int(slot), word, len(x.images), x.stem) for slot, word in new] == [
            ""
        ] * len(new)


@given(marked_samples())
@settings(max_examples=200)
def test_the_word_is_of_the_same_form_and_capitals(case):
    x, sigma, _ = case
    known = vocabulary(len(x.images), x.stem)
    marks = zip(MARK.findall(x.question), MARK.findall(permute(x, sigma).question), strict=True)
    for (slot, word), (to, said) in marks:
        assert known[int(slot), word.lower()] is known[int(to), said.lower()]
        assert word.isupper() == said.isupper() and word[0].isupper() == said[0].isupper()


@given(marked_samples())
@settings(max_examples=200)
def test_text_outside_marks_is_untouched(case):
    x, sigma, _ = case
    assert MARK.sub("@", permute(x, sigma).question) == MARK.sub("@", x.question)


@given(marked_samples())
@settings(max_examples=200)
def test_an_order_is_undone_by_its_inverse(case):
    x, sigma, _ = case
    assert permute(permute(x, sigma), inverse(sigma)) == x


@given(marked_samples())
@settings(max_examples=200)
def test_orders_compose(case):
    x, sigma, tau = case
    assert permute(permute(x, sigma), tau) == permute(x, tuple(sigma[k] for k in tau))


def test_an_answer_without_a_mark_stays():
    x = Sample(
        "x",
        ("a", "b"),
        "<image><image> Which?\n(A) the [[1|left]] one\n(B) the [[2|right]] one",
        "B",
        True,
    )
    y = permute(x, (1, 0))
    assert y.answer == "B" and plain(y.question).endswith("(A) the right one\n(B) the left one")


def test_a_letter_follows_its_image():
    x = Sample(
        "x",
        tuple("sabc"),
        "<image> Which?\nA. <image>\nB. <image>\nC. <image>",
        "[[3|B]]",
        True,
        stem=1,
    )
    assert plain(permute(x, (0, 3, 1, 2)).answer) == "C"


def test_the_names_are_read_independently():
    """The words "first".."fourth" and the digits of "image
    k", resolved by hand for all orders of four images."""
    words = "first second third fourth".split()
    for sigma in itertools.permutations(range(4)):
        for a, b in itertools.product(range(4), repeat=2):
            text = f"Is the [[{a + 1}|{words[a]}]] image darker than image [[{b + 1}|{b + 1}]]?"
            y = permute(Sample("x", tuple("abcd"), text, "yes", True), sigma)
            said = plain(y.question).rstrip("?").split()
            assert (
                y.images[words.index(said[2])] == "abcd"[a]
                and y.images[int(said[-1]) - 1] == "abcd"[b]
            )


@pytest.mark.parametrize("sigma", [(1, 0), (0, 1, 1), (0, 1, 3), (0, 1, 2, 3), (-1, 0, 1)])
def test_what_is_no_order_is_a_value_error(sigma):
    with pytest.raises(ValueError, match="no order of 3 images"):
        permute(Sample("x", tuple("abc"), "", "A", True), sigma)


def test_moving_the_stem_is_a_value_error():
    with pytest.raises(ValueError, match="moves the stem"):
        permute(Sample("x", tuple("abc"), "", "A", True, stem=1), (1, 0, 2))


def test_a_bad_mark_is_a_value_error():
    with pytest.raises(ValueError, match="names slot 2"):
        permute(Sample("x", tuple("ab"), "the [[1|right]] image", "A", True), (1, 0))


def natural_answers(word: str) -> list[str]:
    """How a person may write the name of an image that is `word` in its form."""
    if "\u4e00" <= word[-1] <= "\u9fff":
        return (
            [word, f"{word}图"]
            if word[0] in "左右上下中首末"
            else [word, f"第{word}张图", f"图{word}"]
        )
    if (
        len(word) == 1
        or word.isdigit()
        or set(word.lower()) <= set("ivx")
        or word.lower() in FORMS["counting"][4]
    ):
        return [word, f"Image {word}", f"({word})", f"\\text{{Image {word}}}"]
    return [word, f"the {word} image", f"The {word} image.", f"{word} picture"]


@pytest.mark.parametrize("capitals", [str.lower, str.upper], ids=["lower case", "capitals"])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_natural_answer_of_every_form_under_every_order_is_right(n, capitals):
    """A permuted right answer is as reachable as the given one: written as a person would, it is
    graded right, and the name of another image wrong."""
    for (slot, word), form in vocabulary(n, 0).items():
        for sigma in itertools.permutations(range(n)):
            y = permute(
                Sample("x", tuple("abcde"[:n]), "", f"Image [[{slot}|{capitals(word)}]]", True),
                sigma,
            )
            [(to, said)] = MARK.findall(y.answer)
            other = capitals(form[int(to) % n + 1])
            for gold in (plain(y.answer), said):
                assert all(accuracy(f"\\boxed{{{box}}}", gold) for box in natural_answers(said))
                assert not any(
                    accuracy(f"\\boxed{{{box}}}", gold) for box in natural_answers(other)
                )


# --- Draws ---


def four(k: int, permutable: bool = True) -> Sample:
    return Sample(
        f"s{k}", tuple("abcd"), "<image>" * 4 + " How many images show a cat?", "2", permutable
    )


@pytest.mark.parametrize("copy", [1, 2])
def test_sigma_is_uniform_over_the_other_23_orders_of_four(copy):
    counts = Counter(copies(four(k), 2, 1.0, 0, 0)[copy].sigma for k in range(23 * 400))
    assert (0, 1, 2, 3) not in counts and len(counts) == 23
    chi2 = sum((count - 400) ** 2 / 400 for count in counts.values())
    assert chi2 < 48.3  # 22 degrees of freedom, p = 0.001


@pytest.mark.parametrize("alpha_t", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_share_permuted_is_alpha(alpha_t):
    n = 4000
    share = sum(copies(four(k), 1, alpha_t, 7, 3)[1].sigma != (0, 1, 2, 3) for k in range(n)) / n
    assert abs(share - alpha_t) <= 4 * sqrt(alpha_t * (1 - alpha_t) / n)


@pytest.mark.parametrize("name", ["step", "seed", "id"])
def test_the_coin_falls_anew_for_every(name):
    """At alpha 1/2 one question is permuted in about
    half of the steps, not in all or none of them."""
    group = {
        "step": lambda k: copies(four(0), 1, 0.5, 0, k),
        "seed": lambda k: copies(four(0), 1, 0.5, k, 0),
        "id": lambda k: copies(four(k), 1, 0.5, 0, 0),
    }[name]
    moved = sum(group(k)[1].sigma != (0, 1, 2, 3) for k in range(400))
    assert 140 < moved < 260


def test_alpha_decays_linearly_to_zero():
    assert [alpha(t, 4) for t in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert alpha(1, 4, alpha_0=0.4) == pytest.approx(0.3)


@given(st.integers(2, 5), st.integers(0, 30), st.integers(0, 99), st.integers(0, 99))
@settings(max_examples=100)
def test_a_group_is_the_original_and_different_copies(n, n_s, seed, step):
    x = Sample("x", tuple("abcde"[:n]), "<image>" * n + " How many images show a cat?", "2", True)
    group = copies(x, n_s, 1.0, seed, step)
    assert group[0].sample == x and len(group) == n_s + 1
    sigmas = [copy.sigma for copy in group[1:]]
    assert tuple(range(n)) not in sigmas and len(set(sigmas)) == min(n_s, factorial(n) - 1)
    assert all(copy.sample == permute(x, copy.sigma) for copy in group)
    # A copy does not depend on how many follow.
    assert group == copies(x, n_s + 3, 1.0, seed, step)[: n_s + 1]


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_draws_are_the_same_on_any_number_of_ranks(ranks):
    xs = [four(k) for k in range(50)]
    alone = {x.id: copies(x, 2, 0.5, 1, 9) for x in xs}
    for rank in range(ranks):
        assert all(copies(x, 2, 0.5, 1, 9) == alone[x.id] for x in reversed(xs[rank::ranks]))


def test_a_stem_never_moves():
    x = Sample(
        "x",
        tuple("abcd"),
        "<image> like which?\nA. <image>\nB. <image>\nC. <image>",
        "[[3|B]]",
        True,
        1,
    )
    seen = {copies(x, 1, 1.0, seed, 0)[1].sigma for seed in range(200)}
    assert len(seen) == 5 and all(sigma[0] == 0 for sigma in seen)


@pytest.mark.parametrize(
    "x",
    [
        four(0, permutable=False),
        Sample("x", ("a",), "<image>", "A", True),
        replace(four(0), stem=3),
    ],
    ids=["not permutable", "one image", "one movable image"],
)
def test_what_cannot_be_permuted_gets_identical_copies(x):
    assert [copy.sample for copy in copies(x, 3, 1.0, 0, 0)] == [x] * 4


# --- Files ---

GOOD = {
    "id": "a",
    "images": ["a.png", "b.png"],
    "question": "<image> <image> The [[1|left]] image shows a dog.\n(A) True\n(B) False",
    "answer": "A",
    "permute": True,
}
THREE = GOOD | {"images": ["a.png", "b.png", "c.png"], "question": "<image><image><image> Which?"}


def write(folder: Path, *rows) -> Path:
    for name in ("a.png", "b.png", "c.png"):
        (folder / name).write_bytes(b"")
    path = folder / "train.jsonl"
    path.write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows),
        encoding="utf-8",
    )
    return path


def test_load(tmp_path):
    row = GOOD | {
        "id": "b",
        "task": "dogs",
        "accuracy": 0.5,
        "stem": 1,
        "permute": False,
        "why": "a story",
    }
    a, b = load(write(tmp_path, GOOD, "", row))
    assert (a.permute, a.stem, a.task, a.info) == (True, 0, "", {})
    assert (b.permute, b.stem, b.task, b.info, b.why) == (
        False,
        1,
        "dogs",
        {"accuracy": 0.5},
        "a story",
    )
    assert a.images == (str(tmp_path / "a.png"), str(tmp_path / "b.png"))


def test_a_row_that_declares_nothing_is_not_permutable(tmp_path):
    row = {name: value for name, value in GOOD.items() if name != "permute"}
    assert not load(write(tmp_path, row))[0].permute


@pytest.mark.parametrize("second", ["a.png", "./a.png", "x/../a.png"])
def test_two_images_of_one_file_are_not_permutable(tmp_path, second):
    [x] = load(write(tmp_path, GOOD | {"images": ["a.png", second]}), check_images=False)
    assert not x.permute and x.why == "two of its images are one file"


BAD = [
    ("no JSON", "{", "no JSON"),
    ("a list", "[1]", "not a JSON object"),
    ("nested too deep", "[" * 100_000, "nested too deep"),
    ("a number too long", '{"id": ' + "9" * 5000 + "}", "digits"),
    *[
        (f"without {name}", {k: v for k, v in GOOD.items() if k != name}, f"{name}: missing")
        for name in ("id", "images", "question", "answer")
    ],
    ("id a number", GOOD | {"id": 3}, "id: must be"),
    ("images a name", GOOD | {"images": "a.png"}, "images: must be"),
    ("no images", GOOD | {"images": []}, "images: there are none"),
    ("a number among images", GOOD | {"images": ["a.png", 1]}, "images: must be"),
    ("stem a word", GOOD | {"stem": "1"}, "stem: must be"),
    ("stem true", GOOD | {"stem": True}, "stem: must be"),
    ("stem too large", GOOD | {"stem": 2}, "stem: 2"),
    ("stem negative", GOOD | {"stem": -1}, "stem: -1"),
    ("permute a word", GOOD | {"permute": "yes"}, "permute: must be"),
    ("too few images", GOOD | {"images": ["a.png"]}, "question: 2 <image> for 1 images"),
    ("a missing file", GOOD | {"images": ["a.png", "d.png"]}, "images: file d.png does not exist"),
    ("an empty answer", GOOD | {"answer": " "}, "answer: it is empty"),
    ("half an emoji", GOOD | {"question": "<image> <image> \ud83d"}, "surrogates not allowed"),
    (
        "an old row",
        {k: v for k, v in GOOD.items() if k != "permute"} | {"order": "references"},
        "data/mark.py",
    ),
    (
        "slot and word disagree",
        GOOD | {"question": "<image> <image> the [[1|right]] image"},
        "names slot 2, not 1",
    ),
    (
        "a slot that is not there",
        GOOD | {"answer": "[[3|3]]"},
        "answer: [[3|3]] names slot 3 of 2 images",
    ),
    ("a word in no form", GOOD | {"answer": "[[1|cat]]"}, "'cat' is in no form"),
    ("a side of three", THREE | {"answer": "[[1|leftmost]]"}, "has no word for every slot"),
    ("mixed capitals", GOOD | {"answer": "[[1|fIRST]]"}, "must be in lower case"),
    ("a capital that cannot come back", GOOD | {"answer": "[[2|Ii]]"}, "must be in lower case"),
    ("a torn mark", GOOD | {"question": "<image> <image> [[1|left image"}, "begins like a mark"),
    ("slot 0", GOOD | {"answer": "[[0|1]]"}, "begins like a mark"),
]


@pytest.mark.parametrize("row, sentence", [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_bad_line_gets_one_sentence(tmp_path, row, sentence):
    with pytest.raises(DataError) as error:
        load(write(tmp_path, GOOD | {"id": "good"}, row))
    assert str(error.value).startswith("train.jsonl:2: ")
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_an_id_stands_once(tmp_path):
    with pytest.raises(DataError, match="train.jsonl:2: id: 'a' is already in train.jsonl:1"):
        load(write(tmp_path, GOOD, GOOD))


def test_no_file():
    with pytest.raises(DataError, match="no such file"):
        load("none.jsonl")


def test_an_empty_file(tmp_path):
    with pytest.raises(DataError, match="empty"):
        load(write(tmp_path, "", ""))


def test_another_encoding(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes('{"id": "ä"}'.encode("latin-1"))
    with pytest.raises(DataError, match="no text in UTF-8"):
        load(tmp_path / "latin.jsonl")


def test_a_byte_order_mark_as_some_editors_write_it(tmp_path):
    path = write(tmp_path, GOOD)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [x.id for x in load(path)] == ["a"]


# --- The command line ---


def run(folder: Path, *arguments) -> subprocess.CompletedProcess:
    """The file copied alone into a folder, as a user may do."""
    script = folder / "permute.py"
    script.write_bytes((ROOT / "perl/permute.py").read_bytes())
    command = [sys.executable, "-I", str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def test_command_line_with_one_order_for_all(tmp_path):
    single = {
        "id": "c",
        "images": ["x.png"],
        "question": "<image> What?",
        "answer": "cat",
        "permute": True,
    }
    path = write(tmp_path, GOOD, GOOD | {"id": "b", "permute": False}, single)
    done = run(tmp_path, path, "--sigma", "1,0")
    a, b, c = map(json.loads, done.stdout.splitlines())
    assert a == {
        "id": "a",
        "sigma": [1, 0],
        "images": ["b.png", "a.png"],
        "question": "<image> <image> The right image shows a dog.\n(A) True\n(B) False",
        "answer": "A",
    }
    assert (b["sigma"], b["images"], b["question"]) == (
        [0, 1],
        GOOD["images"],
        plain(GOOD["question"]),
    )
    assert c["sigma"] == [0] and done.returncode == 0
    assert "permuted 1 of 3" in done.stderr and "1 as given: permute is not true" in done.stderr


def test_command_line_draws_orders_and_writes_paths_for_its_file(tmp_path):
    out = tmp_path / "deep" / "out.jsonl"
    done = run(
        tmp_path, write(tmp_path, GOOD, THREE | {"id": "b"}), "--n-s", 3, "--seed", 5, "--out", out
    )
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert done.stdout == "" and [row["id"] for row in rows] == list("aaabbb")
    assert all((out.parent / name).is_file() for row in rows for name in row["images"])


def test_the_identity_is_not_called_permuted(tmp_path):
    assert "permuted 0 of 1" in run(tmp_path, write(tmp_path, GOOD), "--sigma", "0,1").stderr


MISTAKES = [
    ("no JSON", [GOOD, "{"], (), "train.jsonl:2: no JSON"),
    ("a word for an order", [GOOD], ("--sigma", "left"), "--sigma 'left'"),
    ("a slot twice", [GOOD], ("--sigma", "0,0"), "--sigma '0,0'"),
    ("an empty file", [""], (), "empty"),
]


@pytest.mark.parametrize(
    "rows, arguments, message", [case[1:] for case in MISTAKES], ids=[case[0] for case in MISTAKES]
)
def test_a_mistake_is_one_sentence(tmp_path, rows, arguments, message):
    done = run(tmp_path, write(tmp_path, *rows), *arguments)
    assert done.returncode == 1 and message in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not done.stdout


def test_forms_are_lists_of_words():
    assert {len(set(words)) == len(words) for kind in FORMS.values() for words in kind} == {True}
