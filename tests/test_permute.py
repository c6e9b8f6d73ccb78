"""What perl/permute.py promises: exact inverses, images and answers that move together, fair and repeatable draws,
one clear sentence for bad data, and a command line that shows all of it. The wordings are in test_permute_fixtures.py."""
import itertools
import json
import subprocess
import sys
from collections import Counter
from math import factorial, sqrt
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perl.permute import DataError, Refused, Sample, alpha, copies, inverse, load, options, permute

ROOT = Path(__file__).resolve().parents[1]
NLVR2 = [json.loads(line)["sentence"] for line in (ROOT / "tests/fixtures/nlvr2_200.jsonl").read_text().splitlines()]
ORDINALS = "first second third fourth fifth sixth".split()
ONES = "one two three four five six".split()


def nlvr2(k: int, sentence: str) -> Sample:
    text = f"<image> <image> {sentence} True or false?\n(A) True\n(B) False"
    return Sample(f"nlvr2-{k}", ("a.png", "b.png"), text, "A", "references")


# ---- permutations
@st.composite
def samples(draw, orders=("references", "index", "options", "sequence", "invariant")):
    """A sample of 2-6 images with references in several forms, and an order of its movable images."""
    n = draw(st.integers(2, 6))
    order = draw(st.sampled_from(orders))
    stem = draw(st.integers(0, n - 2)) if order == "options" else 0
    i, j = draw(st.integers(0, n - 1)), draw(st.integers(0, n - 1))
    forms = [lambda k: f"image {k + 1}", lambda k: f"the {ORDINALS[k]} photo", lambda k: f"picture {'ABCDEF'[k]}",
             lambda k: f"image {ONES[k]}", lambda k: f"Figure ({k + 1})", lambda k: f"第{'一二三四五六'[k]}张图", lambda k: f"图{k + 1}"]
    if order == "references":  # next to "which image", these may be parts of one
        forms += [lambda k: f"#{k + 1}", lambda k: f"diagram {k + 1}"]
    form = draw(st.sampled_from(forms))
    images = tuple(f"{k}.png" for k in range(n))
    holes = "<image>" * n
    text = f"{holes}\nIs {form(i)} darker than {form(j)}?"
    question, answer = {
        "references": (text + "\n(A) yes\n(B) no", "B"),
        "index": (f"{holes}\nWhich image is like {form(j)}?", form(i)),
        "options": ("<image>" * stem + "Which one?" + "".join(f"\n{chr(65 + k)}. <image>" for k in range(n - stem)),
                    chr(65 + draw(st.integers(0, n - stem - 1)))),
        "sequence": (f"{holes}\nPut the images in order.", ",".join(str(k + 1) for k in draw(st.permutations(range(n))))),
        "invariant": (f"{holes}\nHow many images show a cat?", "2"),
    }[order]
    sigma = (*range(stem), *draw(st.permutations(range(stem, n))))
    return Sample("x", images, question, answer, order, stem), sigma


@given(samples())
@settings(max_examples=400)
def test_inverse_gives_the_sample_back(case):
    x, sigma = case
    assert permute(permute(x, sigma), inverse(sigma)) == x


@given(samples(), st.randoms())
@settings(max_examples=300)
def test_composition(case, rng):
    x, sigma = case
    tail = list(range(x.stem, len(sigma)))
    rng.shuffle(tail)
    tau = (*range(x.stem), *tail)
    assert permute(permute(x, sigma), tau) == permute(x, tuple(sigma[k] for k in tau))


@given(st.permutations(range(5)))
def test_inverse_is_the_inverse(sigma):
    assert [sigma[slot] for slot in inverse(sigma)] == list(range(5)) == [inverse(sigma)[slot] for slot in sigma]


@given(samples(orders=("options",)))
@settings(max_examples=200)
def test_the_letter_names_the_same_image(case):
    x, sigma = case
    y = permute(x, sigma)
    assert y.images[y.stem + ord(y.answer) - 65] == x.images[x.stem + ord(x.answer) - 65]
    assert y.images[:x.stem] == x.images[:x.stem] and y.question == x.question


@given(st.permutations(range(6)), st.integers(0, 5), st.sampled_from("dow"))
@settings(max_examples=200)
def test_the_answer_names_the_same_image(sigma, gold, form):
    words = {"d": [f"Image {k + 1}" for k in range(6)], "o": [f"The {word} image" for word in ORDINALS],
             "w": [f"图{k}" for k in "一二三四五六"]}[form]
    x = Sample("x", tuple("abcdef"), "Which image shows a cat? " + "<image>" * 6, words[gold], "index")
    y = permute(x, sigma)
    assert y.images[words.index(y.answer)] == x.images[gold]


@given(st.permutations(range(5)), st.permutations(range(5)))
@settings(max_examples=200)
def test_a_sequence_lists_the_same_images(sigma, story):
    x = Sample("x", tuple("abcde"), "<image>" * 5 + "In what order?", "→".join(str(k + 1) for k in story), "sequence")
    y = permute(x, sigma)
    assert [y.images[int(k) - 1] for k in y.answer.split("→")] == [x.images[k] for k in story]


def test_the_images_a_text_names_are_the_same():
    """References resolved by an independent reading: the words "first".."fourth" and the digits of "image k"."""
    text = "<image><image><image><image> Is the {} image darker than image {}, or is image {} like the {} image?"
    for sigma in itertools.permutations(range(4)):
        for a, b in itertools.product(range(4), repeat=2):
            c, d = sigma[a], sigma[b]
            x = Sample("x", tuple("abcd"), text.format(ORDINALS[a], b + 1, c + 1, ORDINALS[d]), "yes", "references")
            y = permute(x, sigma)
            words = y.question.replace(",", "").split()
            slots = [ORDINALS.index(words[w]) if words[w] in ORDINALS else int(words[w]) - 1 for w in (3, 8, 12, 15)]
            assert [y.images[s] for s in slots] == [x.images[k] for k in (a, b, c, d)]


@pytest.mark.parametrize("n", [2, 3, 4])
def test_a_set_names_the_same_images_or_is_refused(n):
    """Ranges and the first or last k under all orders of n images, read by hand: said exactly when it is a range, or an end."""
    ranges = {f"images {a + 1} {to} {b + 1}": set(range(a, b + 1)) for b in range(n) for a in range(b) for to in ("to", "through")}
    ends = {f"the {end} {ONES[k - 1]} images": set(range(k) if end == "first" else range(n - k, n))
            for k in range(2, n + 1) for end in ("first", "last")}
    for texts in (ranges, ends):
        for text, named in texts.items():
            x = Sample("x", tuple("abcd"[:n]), "<image>" * n + f" Do {text} match?", "yes", "references")
            for sigma in itertools.permutations(range(n)):
                want = {inverse(sigma)[k] for k in named}
                sayable = want in texts.values()
                try:
                    y = permute(x, sigma)
                except Refused:
                    assert not sayable
                else:
                    said = y.question.removeprefix("<image>" * n + " Do ").removesuffix(" match?")
                    assert texts[said] == want and {y.images[k] for k in want} == {x.images[k] for k in named}


def test_identity_returns_an_equal_sample_of_every_kind():
    for order in ("invariant", "options", "index", "references", "sequence", "fixed"):
        x = Sample("x", ("a", "b"), "<image><image> The previous image", "A", order)
        assert permute(x, (0, 1)) == x


@pytest.mark.parametrize("sample, sigma, word", [
    (Sample("x", ("a", "b"), "<image><image>", "A", "fixed"), (1, 0), "fixed"),
    (Sample("x", ("a", "b"), "<image><image> both", "A", "invariant"), (1, 0, 2), "no order of 2 images"),
    (Sample("x", ("a", "b"), "<image><image> both", "A", "invariant"), (1, 1), "no order of 2 images"),
    (Sample("x", tuple("sbc"), "<image> Which one?\nA. <image>\nB. <image>", "B", "options"), (0, 2, 1), "not the images"),  # no stem
    (Sample("x", tuple("ab"), "<image> <image> Which is brighter?\nA. the first image\nB. the second image", "A", "options"), (1, 0),
     "not the images"),
    (Sample("x", tuple("ab"), "Which?\nA. <image>\nB. <image>\nC. neither", "B", "options"), (1, 0), "not the images"),
    (Sample("x", ("a", "b", "c"), "<image><image><image>", "A", "options", 1), (1, 0, 2), "stem"),
    (Sample("x", ("a", "b"), "<image><image> the left image", "A", "invariant"), (1, 0), "position"),
    (Sample("x", ("a", "b"), "<image> both images", "A", "invariant"), (1, 0), "1 placeholders for 2 images"),
    (Sample("x", ("a", "b"), "<image><image> Is image A like image B?", "A", "references"), (1, 0), "no options"),
])
def test_refusals_of_the_sample(sample, sigma, word):
    with pytest.raises(Refused, match=word):
        permute(sample, sigma)


# ---- NLVR2: real sentences
def test_nlvr2_sentences_are_exact_or_refused():
    changed = refused = 0
    for k, sentence in enumerate(NLVR2):
        x = nlvr2(k, sentence)
        try:
            y = permute(x, (1, 0))
        except Refused:
            refused += 1
            continue
        assert permute(y, (1, 0)) == x and y.answer == x.answer
        sides = [word in f" {sentence.lower()}" for word in ("left image", "right image", "image on the left", "image on the right")]
        assert (y.question != x.question) >= any(sides)
        changed += y.question != x.question
    assert refused / len(NLVR2) < 0.05
    assert 0.25 < changed / len(NLVR2) < 0.37                   # 31% of the rows of the data set name a side


# ---- draws
def four(k: int, order: str = "invariant") -> Sample:
    return Sample(f"s{k}", tuple("abcd"), "<image>" * 4 + " How many images show a cat?", "2", order)


def test_sigma_is_uniform_over_the_other_23_orders_of_four():
    draws = 23 * 400
    for copy in (1, 2):
        counts = Counter(copies(four(k), 2, 1.0, 0, 0)[copy].sigma for k in range(draws))
        assert (0, 1, 2, 3) not in counts and len(counts) == 23
        chi2 = sum((count - 400) ** 2 / 400 for count in counts.values())
        assert chi2 < 48.3                                      # 22 degrees of freedom, p = 0.001


def test_with_its_coin_sigma_is_uniform_over_all_24_orders():
    counts = Counter(copies(four(k), 1, 23 / 24, 0, 0)[1].sigma for k in range(24 * 400))
    assert len(counts) == 24 and sum((count - 400) ** 2 / 400 for count in counts.values()) < 49.8  # 23 degrees of freedom


@pytest.mark.parametrize("alpha_t", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_share_permuted_is_alpha(alpha_t):
    n = 4000
    share = sum(copies(four(k), 1, alpha_t, 7, 3)[1].sigma != (0, 1, 2, 3) for k in range(n)) / n
    assert abs(share - alpha_t) <= 4 * sqrt(alpha_t * (1 - alpha_t) / n)


def test_alpha_decays_linearly_to_zero():
    assert [alpha(t, 4) for t in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert alpha(1, 4, alpha_0=0.4) == pytest.approx(0.3)


@given(st.integers(2, 5), st.integers(0, 30), st.integers(0, 99), st.integers(0, 99))
@settings(max_examples=100)
def test_a_group_is_the_original_and_different_copies(n, n_s, seed, step):
    x = Sample("x", tuple("abcde"[:n]), "<image>" * n + " How many images show a cat?", "2", "invariant")
    group = copies(x, n_s, 1.0, seed, step)
    assert group[0].sample == x and len(group) == n_s + 1
    sigmas = [copy.sigma for copy in group[1:]]
    assert tuple(range(n)) not in sigmas and len(set(sigmas)) == min(n_s, factorial(n) - 1)
    assert all(copy.sample == permute(x, copy.sigma) for copy in group)
    assert group == copies(x, n_s, 1.0, seed, step)
    assert group[:2] == copies(x, n_s + 3, 1.0, seed, step)[:2] or n_s == 0   # a copy does not depend on how many follow


def test_draws_depend_on_nothing_but_their_names():
    xs = [four(k) for k in range(50)]
    alone = {x.id: copies(x, 2, 0.5, 1, 9) for x in xs}
    for ranks in (1, 2, 5):                                     # any split over ranks, any order, any start
        for rank in range(ranks):
            assert all(copies(x, 2, 0.5, 1, 9) == alone[x.id] for x in reversed(xs[rank::ranks]))
    assert len({copies(xs[0], 1, 1.0, 0, step)[1].sigma for step in range(40)}) > 10
    assert len({copies(xs[0], 1, 1.0, seed, 0)[1].sigma for seed in range(40)}) > 10


def test_a_stem_never_moves():
    x = Sample("x", tuple("abcd"), "<image> like which?\nA. <image>\nB. <image>\nC. <image>", "B", "options", 1)
    seen = {copies(x, 1, 1.0, seed, 0)[1].sigma for seed in range(200)}
    assert len(seen) == 5 and all(sigma[0] == 0 for sigma in seen)


def test_identical_copies_say_why():
    one = Sample("x", ("a",), "<image> What?", "cat", "invariant")
    story = Sample("x", ("a", "b"), "<image><image> What happens after image 1?", "cat", "references")
    assert [c.refused for c in copies(one, 2, 1.0, 0, 0)] == ["", "one image", "one image"]
    assert [c.refused for c in copies(four(0, "fixed"), 1, 1.0, 0, 0)] == ["", "fixed"]
    assert copies(story, 1, 1.0, 0, 0)[1].refused.startswith("temporal") and copies(story, 1, 1.0, 0, 0)[1].sample == story
    assert [c.refused for c in copies(four(0), 3, 0.0, 0, 0)] == [""] * 4


# ---- options
@pytest.mark.parametrize("question, expected", [
    ("Q?\n(A) True\n(B) False", {"A": "True", "B": "False"}), ("Q?\nA. cat\nB. a dog\nC. cow", {"A": "cat", "B": "a dog", "C": "cow"}),
    ("Q?\nA: cat\nB: dog", {"A": "cat", "B": "dog"}), ("Q? (A) True (B) False", {"A": "True", "B": "False"}),
    ("Q?\nA、猫\nB、狗", {"A": "猫", "B": "狗"}), ("<image>Q\nA. <image>\nB. <image>", {"A": "<image>", "B": "<image>"}),
    ("How many dogs?", {}), ("Are (A) and (B) alike?", {}), ("Q?\nB. cat\nC. dog", {}), ("A. cat", {}),
])
def test_options(question, expected):
    assert options(question) == expected


# ---- files and the command line
GOOD = {"id": "a", "images": ["a.png", "b.png"], "question": "<image> <image> The left image shows a dog.\n(A) True\n(B) False",
        "answer": "A", "order": "references"}


def write(folder: Path, *rows) -> Path:
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"")
    path = folder / "train.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_load(tmp_path):
    path = write(tmp_path, GOOD, "", GOOD | {"id": "b", "accuracy": 0.5, "stem": 1, "order": "fixed"})
    a, b = load(path)
    assert (a.id, a.order, a.stem, b.order, b.stem) == ("a", "references", 0, "fixed", 1)
    assert a.images == (str(tmp_path / "a.png"), str(tmp_path / "b.png"))
    (tmp_path / "a.png").unlink()
    assert load(path, check_images=False)[0] == a


@pytest.mark.parametrize("row, field", [
    ("{", "no JSON"), ("[1]", "not a JSON object"), *(({k: v for k, v in GOOD.items() if k != field}, f"{field}: missing")
                                                     for field in ("id", "images", "question", "answer")),
    (GOOD | {"id": 3}, "id: must be"), (GOOD | {"images": "a.png"}, "images: must be"), (GOOD | {"images": []}, "images: must be"),
    (GOOD | {"images": ["a.png", 1]}, "images: must be"), (GOOD | {"stem": "1"}, "stem: must be"), (GOOD | {"stem": True}, "stem: must be"),
    (GOOD | {"order": "shuffled"}, "order: 'shuffled'"), (GOOD | {"images": ["a.png"]}, "question: 2 <image> for 1 image"),
    (GOOD | {"stem": 2}, "stem: 2"), (GOOD | {"stem": -1}, "stem: -1"), (GOOD | {"images": ["a.png", "c.png"]}, "images: file c.png does not exist"),
    (GOOD | {"answer": "C"}, "answer: 'C'"), (GOOD | {"answer": "True"}, "answer: 'True'"),
    (GOOD | {"order": "options", "question": "<image> <image> which?", "answer": "C"}, "answer: 'C'"),
    (GOOD | {"order": "options", "stem": 1, "question": "<image> <image> which?", "answer": "B"}, "answer: 'B'"),
    (GOOD | {"order": "index", "question": "<image> <image> which?", "answer": "Image 3"}, "answer: 'Image 3'"),
    (GOOD | {"order": "index", "question": "<image> <image> which?", "answer": "a dog"}, "answer: 'a dog'"),
    (GOOD | {"order": "sequence", "question": "<image> <image> order?", "answer": "1,3"}, "answer: '1,3'"),
    (GOOD | {"order": "sequence", "question": "<image> <image> order?", "answer": "first a dog"}, "answer: 'first a dog'"),
    (GOOD | {"question": "<image> <image> \ud83d"}, "surrogates not allowed"), ('{"id": ' + "9" * 5000 + "}", "digits"),
])
def test_bad_lines_get_one_sentence(tmp_path, row, field):
    with pytest.raises(DataError) as error:
        load(write(tmp_path, GOOD | {"id": "good"}, row))
    assert str(error.value).startswith("train.jsonl:2: ") and field in str(error.value) and "\n" not in str(error.value)


def test_bad_files_get_one_sentence(tmp_path):
    with pytest.raises(DataError, match="train.jsonl:2: id: 'a' is already in train.jsonl:1"):
        load(write(tmp_path, GOOD, GOOD))
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="empty"):
        load(write(tmp_path, "", ""))
    (tmp_path / "latin.jsonl").write_bytes('{"id": "ä"}'.encode("latin-1"))
    with pytest.raises(DataError, match="latin.jsonl: no text in UTF-8"):
        load(tmp_path / "latin.jsonl")
    path = write(tmp_path, GOOD)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as some editors begin a file
    assert [x.id for x in load(path, check_images=False)] == ["a"]


def run(folder: Path, *arguments) -> subprocess.CompletedProcess:
    """The file copied alone into a folder, as a user may do."""
    script = folder / "permute.py"
    script.write_bytes((ROOT / "perl/permute.py").read_bytes())
    return subprocess.run([sys.executable, "-I", str(script), *map(str, arguments)], capture_output=True, text=True, cwd=folder)


def test_command_line(tmp_path):
    path = write(tmp_path, GOOD, GOOD | {"id": "b", "order": "fixed"},
                 GOOD | {"id": "c", "images": ["x.png"], "question": "<image> What?", "answer": "cat", "order": "invariant"})
    done = run(tmp_path, path, "--sigma", "1,0")
    a, b, c = map(json.loads, done.stdout.splitlines())
    assert a == {"id": "a", "sigma": [1, 0], "images": ["b.png", "a.png"], "answer": "A",
                 "question": "<image> <image> The right image shows a dog.\n(A) True\n(B) False"}
    assert (b["refused"], b["images"], b["question"]) == ("fixed", GOOD["images"], GOOD["question"])
    assert "no order of 1 images" in c["refused"] and done.returncode == 0
    assert "permuted 1 of 3" in done.stderr and "references 1" in done.stderr and "fixed" in done.stderr

    assert "permuted 0 of 3" in run(tmp_path, path, "--sigma", "0,1").stderr  # as it was, is not permuted
    out = tmp_path / "out.jsonl"
    done = run(tmp_path, path, "--n-s", 3, "--seed", 5, "--out", out)
    assert done.stdout == "" and [json.loads(line)["id"] for line in out.read_text().splitlines()] == list("aaabbbccc")


@pytest.mark.parametrize("rows, arguments, message", [
    ([GOOD, "{"], (), "train.jsonl:2: no JSON"), ([GOOD], ("--sigma", "left"), "--sigma"), ([""], (), "empty"),
])
def test_command_line_mistakes_are_one_sentence(tmp_path, rows, arguments, message):
    done = run(tmp_path, write(tmp_path, *rows), *arguments)
    assert done.returncode == 1 and message in done.stderr and len(done.stderr.splitlines()) == 1 and not done.stdout
