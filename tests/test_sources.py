"""The data sources: every config and format on fixtures in the hub's layout, through the real
`load_dataset` with the hub switched off; every row that comes out, under a permutation."""

import json
import os
import subprocess
import sys
from collections import Counter

import hub
import pytest
from conftest import ROOT

from data.convert import convert, declared
from data.hub import Pictures, Skip
from data.mantis import RECIPES, cleaned, fields_of, questions_of, single_turn
from perl.permute import load, permute, plain, sample_of

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def python(script: str, *words, **environment) -> subprocess.CompletedProcess:
    """A command of data/ in a process of its own."""
    return subprocess.run(
        [sys.executable, script, *map(str, words)],
        cwd=ROOT,
        env=os.environ | OFFLINE | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def rows(path) -> dict[str, dict]:
    return {row["id"]: row for row in map(json.loads, path.read_text().splitlines())}


@pytest.fixture(scope="module")
def mantis(tmp_path_factory):
    """(what mantis.py wrote, what it said) on the fixture of all six configs."""
    folder = tmp_path_factory.mktemp("mantis")
    hub.mantis(folder / "source")
    configs = hub.mantis_rows()
    done = python(
        "data/mantis.py", *configs, "--source", folder / "source", "--out", folder / "out"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "out", done.stderr


# --- Mantis-Instruct: row -> marked row -> permuted row ---

LIKE = "which image of the other two is more similar to the reference image?"
KNOWN = {  # id -> (permute, a part of the marked question, the marked answer)
    "nlvr2/t1": (True, "The [[1|left]] image shows a red square. Is it", "A"),
    "nlvr2/t2": (True, "There are two dogs. Is it true", "B"),
    "nlvr2/t3": (True, "The image on the [[2|right]] is darker. Is it", "B"),
    "nlvr2/doubt": (False, "The left dog sits.", "A"),
    "nlvr2/equal": (False, "<image> <image> Here", "A"),
    "nlvr2/bmp": (True, "images: Red. Is it", "A"),
    "dreamsim/mc": (True, f"If image [[2|2]] is the reference image, {LIKE}\nOptions:\n(A) Image [[3|3]]\n(B) Image [[1|1]]", "A"),
    "dreamsim/end": (True, "(A) Image [[1|1]]\n(B) Image [[2|2]]\n<image> <image> <image>", "B"),
    "dreamsim/stem": (True, "reference image is image [[1|1]] and the other two are image [[2|2]] and image [[3|3]])\nOptions:\n(A) Image [[2|2]]\n(B) Image [[3|3]]", "A"),
    "dreamsim/short": (True, "If image [[1|1]] is", "Image [[3|3]]"),
    "dreamsim/sentence": (True, "If image [[1|1]] is", "Image [[2|2]]"),
    "dreamsim/long": (True, "If image [[1|1]] is", "Image [[3|3]]"),
    "iconqa/choose": (True, "<image>Which one is next?\nA. <image>\nB. <image>", "[[3|B]]"),
    "iconqa/after": (True, "How do they go on?<image>\nA. <image>", "[[2|A]]"),
    "iconqa/text": (False, "<image>How many dots?\nA. 3\nB. 4", "A"),
    "iconqa/fill": (False, "<image>How many dots?", "7"),
    "iconqa/named": (False, "Is the second image next?", "A"),
    "imagecode/before": (True, "The man looks up.", "Image [[7|7]]"),
    "imagecode/after": (True, "A hand.", "Image [[10|10]]"),
    "imagecode/letters": (True, "A dog and then a cat.", "[[7|G]]"),
    "imagecode/frame": (False, "As in the next image.", "Image 2"),
    "imagecode/first": (False, "Darker than image 1.", "Image 3"),
    "contrastive_caption/turns/1": (True, "\nA dog.", "The [[3|third]] image"),
    "contrastive_caption/turns/2": (True, "Here are 3 images: <image> <image> <image> Which image is the caption describing?\nA cat.", "Image [[1|1]]"),
    "contrastive_caption/opening": (True, "\nA dog.", "The [[1|first]] image"),
    "contrastive_caption/sequence": (True, "\nA dog.", "The [[3|third]] image"),
    "contrastive_caption/named": (False, "As in the second image.", "Image 3"),
    "multi_vqa/which": (True, "Which image shows a dog?", "Image [[2|2]]"),
    "multi_vqa/count": (True, "How many images show a dog?", "2"),
    "multi_vqa/story": (False, "What happens next?", "rain"),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_a_row_of_mantis(mantis, name):
    permutable, part, answer = KNOWN[name]
    row = rows(mantis[0] / f"{name.split('/')[0]}.jsonl")[f"mantis/{name}"]
    assert row["permute"] == permutable and part in row["question"] and row["answer"] == answer
    assert permutable or row["why"]


def test_no_other_row_of_mantis_comes_out(mantis):
    written = set()
    for config in hub.mantis_rows():
        written |= set(rows(mantis[0] / f"{config}.jsonl"))
    assert written == {f"mantis/{name}" for name in KNOWN}


def test_every_row_of_mantis_is_counted(mantis):
    said = mantis[1]
    for reason in (
        "several turns",
        "a picture is missing in the zips",
        "not one <image> for each image",
        "another template",
        "the answer names no image",
        "the answer is no plain number or ordinal: from the end, or from another image",
        "no turn asks which image",
        "not 2 to 10 images",
        "an answer of more than 5 words",
        "no answer",
    ):
        assert f"left out: {reason}" in said, reason
    assert "not permutable: fewer than two images can move" in said
    counted = Counter()
    for line in said.splitlines():
        if line.strip()[:1].isdigit() and "left out" in line:
            counted["left out"] += int(line.split()[0])
    read = sum(len(found) for found in hub.mantis_rows().values())
    assert counted["left out"] + len(KNOWN) == read + 1  # one conversation gives two rows


def test_rows_of_mantis_load_and_permute(mantis):
    """The files pass `load`, with every picture there; a permutation moves answer and pictures."""
    for config in hub.mantis_rows():
        for x in load(mantis[0] / f"{config}.jsonl"):
            if x.permute:
                moving = list(range(x.stem, len(x.images)))
                y = permute(x, [*range(x.stem), *moving[::-1]])
                assert y.images == x.images[: x.stem] + x.images[x.stem :][::-1]
                assert "[[" not in plain(y.question) + plain(y.answer)
    [x] = [x for x in load(mantis[0] / "iconqa.jsonl") if x.id.endswith("choose")]
    assert plain(permute(x, (0, 2, 1)).answer) == "A"
    [x] = [x for x in load(mantis[0] / "dreamsim.jsonl") if x.id.endswith("stem")]
    moved = plain(permute(x, (0, 2, 1)).question)
    assert "(A) Image 3\n(B) Image 2" in moved and "reference image is image 1" in moved


def test_pictures_are_written_once_by_content(mantis):
    files = list((mantis[0] / "images").iterdir())
    assert len({file.read_bytes() for file in files}) == len(files)
    assert {file.suffix for file in files} == {".png", ".bmp"}


def test_marking_again_changes_nothing(mantis, tmp_path):
    for config in hub.mantis_rows():
        before = mantis[0] / f"{config}.jsonl"
        after = before.with_name(f"{config}-again.jsonl")
        done = python("data/mark.py", before, "--out", after)
        assert done.returncode == 0, done.stderr
        for name, row in rows(before).items():
            if row["permute"] and "[[" not in row["question"] + row["answer"]:
                continue  # a declared row without names: the rules look at it again
            assert rows(after)[name] == row
        after.unlink()


@pytest.mark.parametrize("config", RECIPES)
def test_a_recipe_refuses_what_looks_like_a_mark(config):
    text = "<image> <image> [[1|2]] is a matrix"
    found = fields_of(RECIPES[config], text, "A", 2, 5)
    assert not found["permute"] and "[ [1|2]]" in found["question"]


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda folder: folder / "nowhere", "neither a folder nor a hub id"),
        (lambda folder: "TIGER-Lab/Mantis-Instruct", "the hub cannot be reached"),
        (lambda folder: (folder / "nlvr2/train_images_1.zip").unlink(), "no file nlvr2/train_ima"),
        (lambda folder: (folder / "nlvr2/train_images_1.zip").write_text("x"), "it is no zip file"),
        (
            lambda folder: (folder / "nlvr2/train-00000-of-00001.parquet").write_text("x"),
            "config 'nlvr2', split 'train'",
        ),
    ],
)
def test_a_source_that_cannot_be_used(tmp_path, change, said):
    """One sentence that names it; the other configs are still written."""
    source = change(hub.mantis(tmp_path / "source"))
    if not isinstance(source, (str, os.PathLike)):
        source = tmp_path / "source"
    done = python("data/mantis.py", "nlvr2", "iconqa", "--source", source, "--out", tmp_path / "o")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if said in line and "mantis.py" in line][:1]
    assert len(line) < 500
    if source == tmp_path / "source":
        assert len(rows(tmp_path / "o" / "iconqa.jsonl")) == 5


def test_a_config_split_or_column_that_is_not_there(tmp_path):
    source = hub.mantis(tmp_path / "source")
    done = python("data/mantis.py", "nope", "--source", source, "--out", tmp_path / "out")
    assert "BuilderConfig 'nope' not found" in done.stderr and done.returncode == 1
    words = ("--source", source, "--split", "val", "--out", tmp_path / "out")
    done = python("data/mantis.py", "nlvr2", *words)
    assert 'Unknown split "val"' in done.stderr and done.returncode == 1
    done = python("data/mmk12.py", "--source", source / "nlvr2", "--out", tmp_path / "out")
    assert "no column id, question, answer; it has image" in done.stderr
    assert done.returncode == 1 and "Traceback" not in done.stderr


def test_a_folder_is_read_as_it_is_now(tmp_path):
    """`datasets` keeps what it has read under the folder's name: other rows must not come back."""
    for k, name in enumerate(("first", "second")):
        source = hub.mmk12(tmp_path / name / "source")
        if k:
            row = {"id": "new", "question": "x?", "answer": "1", "subject": "s"}
            row["image"] = hub.image(hub.RED)
            features = {name: hub.TEXT for name in ("id", "question", "answer", "subject")}
            (source / "README.md").unlink()
            hub.put(
                source,
                "default",
                "train",
                "data/train-00000-of-00003.parquet",
                features | {"image": hub.Image()},
                [row],
            )
        done = python("data/mmk12.py", "--source", source, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
    assert list(rows(tmp_path / "second" / "mmk12.jsonl")) == ["mmk12/new"]


def test_limit_reads_so_many_rows(tmp_path):
    source = hub.mantis(tmp_path / "source")
    words = ("--source", source, "--out", tmp_path / "out", "--limit", "2")
    python("data/mantis.py", "nlvr2", *words)
    assert list(rows(tmp_path / "out" / "nlvr2.jsonl")) == ["mantis/nlvr2/t1", "mantis/nlvr2/t2"]


# --- MMK12 ---


def test_mmk12(tmp_path):
    done = python(
        "data/mmk12.py", "--source", hub.mmk12(tmp_path / "source"), "--out", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path / "out" / "mmk12.jsonl")
    assert [row["question"] for row in found.values()] == [
        "<image> As shown, $AB = 3$. Find $x$.",
        "<image>\nFind the area.",
        "<image> 如图，求 $x$。\nA、1\nB、2",
        "A. 1\nB. 2\nC. 3\nD. 4 <image> Which?",
        "<image> [ [1|2]] is a matrix. Its trace?",
    ]
    assert not any(row["permute"] for row in found.values())
    assert len(load(tmp_path / "out" / "mmk12.jsonl")) == 5
    assert "2 left out: no question or no answer" in done.stderr
    assert "1 left out: not one <image> for each image" in done.stderr


# --- Other projects' formats ---

FORMATS = ("verl", "easyr1", "trl", "swift", "llava")
CASES = [(format, k) for format in FORMATS for k in range(8)]


@pytest.mark.parametrize("format, k", CASES)
def test_a_row_of_another_format(tmp_path, format, k):
    row, expected = hub.formats(tmp_path)[format][k]
    pictures = Pictures(tmp_path / "out")
    if isinstance(expected, str):
        with pytest.raises(Skip) as why:
            convert(format, row, k, [tmp_path], pictures)
        assert str(why.value) == expected
        return
    found = convert(format, row, k, [tmp_path], pictures)
    assert (found["question"], found["answer"]) == expected
    assert all((tmp_path / "out" / name).is_file() for name in found["images"])


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_of_another_format(tmp_path, format):
    (tmp_path / "in").mkdir()
    cases = hub.formats(tmp_path / "in")[format]
    source = hub.write_format(tmp_path / "in", format, [row for row, _ in cases])
    out = tmp_path / "out"
    done = python("data/convert.py", format, source, "--out", out)
    assert done.returncode == 0, done.stderr
    expected = [(said[0], said[1]) for _, said in cases if not isinstance(said, str)]
    found = rows(out / f"{format}.jsonl").values()
    assert [(row["question"], row["answer"]) for row in found] == expected
    left_out = [said for _, said in cases if isinstance(said, str)]
    for reason in left_out:
        assert f"left out: {reason}" in done.stderr

    done = python("data/mark.py", out / f"{format}.jsonl", "--out", out / "marked.jsonl")
    assert done.returncode == 0 and len(load(out / "marked.jsonl")) == len(expected)


@pytest.mark.parametrize(
    "needed, question, answer, permute",
    [
        (False, "<image> <image> How many dogs are there?", "2", True),
        (False, "<image> <image> Is the left image red?", "yes", False),  # a name: not unchanged
        (False, "<image> <image> What happens next?", "rain", False),
        (True, "<image> <image> Is the left image red?", "yes", True),  # mark.py finds what moves
        (None, "<image> <image> How many dogs are there?", "2", None),
    ],
)
def test_the_column_of_the_release(needed, question, answer, permute):
    found = declared(needed, question, answer, ["a.png", "b.png"])
    assert found.get("permute") == permute
    assert ("why" in found) == (permute is False)


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("x.parquet", b"junk", "it is no parquet file"),
        ("x.json", b"{", "no JSON"),
        ("x.json", b"{}", "it is no list of rows"),
        ("x.jsonl", b'{"a": 1}\n{', "x.jsonl:2: no JSON"),
        ("x.csv", b"a,b", "not .parquet, .json or .jsonl"),
        ("x.jsonl", b'{"a": 1}\n', "no row of"),
    ],
)
def test_a_file_that_cannot_be_converted(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    done = python("data/convert.py", "easyr1", tmp_path / name, "--out", tmp_path / "out")
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr


# --- What docs/data.md says ---


def published(heading: str) -> list[dict]:
    """The rows of the block under a heading of docs/data.md."""
    text = (ROOT / "docs" / "data.md").read_text().split(f"## {heading}\n")[1]
    block = text.split("```json\n")[1].split("\n```")[0]
    return [json.loads(row) for row in block.split("\n\n")]


@pytest.mark.parametrize("k", range(8))
def test_a_template_is_as_the_docs_say(k):
    row = published("The templates of Mantis-Instruct")[k]
    config, sigma = row["config"], row["sigma"]
    [(text, answer)] = questions_of(config, [tuple(row["raw"])])
    recipe = RECIPES.get(config, single_turn)
    found = fields_of(recipe, text, cleaned(answer), len(sigma), 5)
    assert [found["question"], found["answer"]] == row["marked"]
    assert found.get("stem") == row.get("stem")
    x = sample_of({"id": "x", "images": [f"{slot}.png" for slot in sigma], **found})
    y = permute(x, sigma)
    assert [plain(y.question), plain(y.answer)] == row["permuted"]


def test_every_recipe_is_in_the_docs():
    rows = published("The templates of Mantis-Instruct")
    assert len(rows) == 8 and {row["config"] for row in rows} >= set(RECIPES)


@pytest.mark.parametrize("k", range(5))
def test_a_format_is_as_the_docs_say(tmp_path, k):
    hub.formats(tmp_path)  # its pictures
    row = published("Other projects' formats")[k]
    assert row["format"] == FORMATS[k]
    found = convert(row["format"], row["row"], 0, [tmp_path], Pictures(tmp_path / "out"))
    assert [found["question"], found["answer"]] == row["becomes"]


# --- The whole way ---


@pytest.mark.long
def test_from_the_source_to_two_steps_of_training(torchrun, digits, tmp_path):
    data = tmp_path / "DATA"
    configs = list(hub.mantis_rows())
    words = ("--source", hub.mantis(tmp_path / "mantis", copies=2), "--out", data)
    assert python("data/mantis.py", *configs, *words).returncode == 0
    words = ("--source", hub.mmk12(tmp_path / "mmk12"), "--out", data)
    assert python("data/mmk12.py", *words).returncode == 0
    everything = "".join((data / f"{name}.jsonl").read_text() for name in (*configs, "mmk12"))
    (data / "ALL.jsonl").write_text(everything)
    words = (data / "ALL.jsonl", "--out", data / "MARKED.jsonl")
    assert python("data/mark.py", *words).returncode == 0
    page = data / "page.html"
    assert python("data/look.py", data / "MARKED.jsonl", "--out", page).returncode == 0
    assert page.stat().st_size > 10_000

    limits = ("--model", digits / "base", "--max-prompt", "700", "--max-tokens", "8")
    train = data / "TRAIN.jsonl"
    torchrun(2, "perl/filter.py", data / "MARKED.jsonl", "--rollouts", "2", "--out", train, *limits)
    kept = load(train)
    assert len(kept) >= 32 and sum(x.permute for x in kept) >= 20
    run = tmp_path / "run"
    flags = "--steps 2 --prompts 16 --updates 2 --show 8".split()
    torchrun(2, "perl/train.py", "--data", train, "--out", run, *flags, *limits)
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 2 and steps[0]["permuted"] > 0.3
    assert all(step["logp_gap_max"] < 1e-4 for step in steps)
    words = (run / "rollouts.jsonl", "--out", tmp_path / "run.html")
    assert python("data/look.py", *words).returncode == 0
