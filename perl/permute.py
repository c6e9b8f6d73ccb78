"""Permute the images of a question so that what was true stays true: PeRL's Eq. (1).

    x = (images, question), answer y
    sigma: slot j of the permuted sample shows old image sigma[j] (0-based)

    x^ = (images in the order sigma, the question with every name of an image renamed)
    y^ = S(x, x^) y + (1 - S(x, x^)) Lambda(y, sigma)                                        (1)

S is 1 where the answer names no image, so that it stays; Lambda renames the images that it names.
With q = sigma^-1, old image i stands in slot q[i]: whatever named slot i must now name slot q[i].

Which words name an image is not guessed here. The data
say it, once, with marks (data/mark.py writes them):

    The [[1|left]] image shows a dog.    "left" names the image in slot 1; the model reads "left"
    Image [[2|2]]                        an answer that names the image in slot 2
    [[3|B]]                              with one stem image, option B is the image in slot 3

So permuting is arithmetic: a mark [[k|word]] becomes [[q(k)|the word of its form for that slot]],
and nothing else changes. It is exact, it can be undone, and works for every row that `load` takes.

Where we differ: the paper asks GPT-4o for S and for the new answer; here the marks decide both.
The release edits no text and flips A and B instead, which is wrong for "the left image shows a
dog" when both do; and it draws one sigma for each number of images, for ever.

    python perl/permute.py MARKED.jsonl [--sigma 1,0] [--n-s 1] [--seed 0] [--out OUT.jsonl]

Standard library only; the file works when it is copied alone.
"""

import argparse
import json
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import factorial
from pathlib import Path


class DataError(ValueError):
    """A data file cannot be used: one sentence with file, line and field."""


@dataclass(frozen=True)
class Sample:
    """One question about several images. `question`
    and `answer` hold marks; `plain` takes them off.
    """

    id: str
    images: tuple[str, ...]  # file names, one for each `<image>` in the question, in order
    question: str
    answer: str
    permute: bool = False  # may the movable images stand in any order? Absent in a file: no
    stem: int = 0  # that many leading images never move
    task: str = ""  # the kind of question, for reports
    info: Mapping = field(default_factory=dict, compare=False)  # all other fields of the row
    where: str = field(default="", compare=False)  # file and line it was read from, for messages
    why: str = field(default="", compare=False)  # why it is not permutable, where that is known


# --- Marks: the words that name images ---

MARK = re.compile(r"\[\[([1-9]\d*)\|([^\[\]|]+)\]\]")  # [[slot|word]], the slot 1-based

ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth "
    "fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
).split()
CARDINALS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
).split()
NUMERALS = (
    "1st 2nd 3rd 4th 5th 6th 7th 8th 9th 10th 11th 12th 13th 14th 15th 16th 17th 18th 19th 20th"
).split()
ROMANS = "i ii iii iv v vi vii viii ix x xi xii xiii xiv xv xvi xvii xviii xix xx".split()
CHINESE = "一 二 三 四 五 六 七 八 九 十 十一 十二 十三 十四 十五 十六 十七 十八 十九 二十".split()

# A form is a way to name slots: one word for each. Three kinds of forms, by where their first
# word stands.
FORMS: dict[str, list[list[str]]] = {
    # The k-th word names the k-th image; with a stem, of all images or of those after the stem.
    "counting": [
        [str(k) for k in range(1, 1000)],  # as many as there are images
        list("abcdefghijklmnopqrstuvwxyz"),
        ORDINALS,
        NUMERALS,
        CARDINALS,
        ROMANS,
        CHINESE,
        "甲 乙 丙 丁 戊 己 庚 辛 壬 癸".split(),
        "① ② ③ ④ ⑤ ⑥ ⑦ ⑧ ⑨ ⑩".split(),
    ],
    # A row of exactly as many images.
    "sides": [
        "left right".split(),
        "leftmost rightmost".split(),
        "left-hand right-hand".split(),
        "lefthand righthand".split(),
        "top bottom".split(),
        "upper lower".split(),
        "initial final".split(),
        "左 右".split(),
        "左边 右边".split(),
        "左侧 右侧".split(),
        "上 下".split(),
        "首 末".split(),
        "left middle right".split(),
        "top middle bottom".split(),
        "左 中 右".split(),
        "左边 中间 右边".split(),
    ],
    # The k-th word names the k-th image from the end, of two or more.
    "from the end": [
        ["last", *(f"{nth} to last" for nth in ORDINALS[1:])],
        "ultimate penultimate antepenultimate preantepenultimate".split(),
        ["最后一", *(f"倒数第{k}" for k in CHINESE[1:])],
    ],
}


@lru_cache
def vocabulary(n: int, stem: int) -> dict[tuple[int, str], dict[int, str]]:
    """(slot, word) -> the form of the word, for `n` images
    with `stem` that never move. Slots are 1-based here.

    A form is a dict from slot to word, with a word for every slot that an image can move to. A
    mark has one meaning: of two forms that have the same word at the same slot only the earlier
    counts, and forms over all images come before those over the images after the stem.
    """
    movable = range(stem + 1, n + 1)
    found: dict[tuple[int, str], dict[int, str]] = {}
    for form in forms_of(n, stem):
        moves = all(slot in form for slot in movable)
        usable = {slot: word for slot, word in form.items() if moves or slot <= stem}
        if not any(item in found for item in usable.items()):
            found |= dict.fromkeys(usable.items(), usable)
    return found


def forms_of(n: int, stem: int) -> list[dict[int, str]]:
    """Every form as a dict from slot to word, those over all images first."""
    forms = []
    for words in FORMS["counting"]:
        forms.append(dict(enumerate(words[:n], start=1)))
    for words in FORMS["sides"]:
        if len(words) == n:
            forms.append(dict(enumerate(words, start=1)))
    for words in FORMS["from the end"]:
        if n >= 2:
            forms.append(dict(zip(range(n, 0, -1), words)))
    for words in FORMS["counting"]:
        if stem:
            forms.append(dict(enumerate(words[: n - stem], start=stem + 1)))
    return forms


def with_capitals_of(old: str, word: str) -> str:
    """`word` in capitals, with one capital in front, or in lower case, as `old` is."""
    if old.isupper():
        return word.upper()
    if old[0].isupper():
        return word[0].upper() + word[1:]
    return word


def renamed(slot: int, word: str, to: int, n: int, stem: int) -> str:
    """What `word`, the name of the image in `slot`, is called in slot `to` (1-based), in its own
    form and capitals.
    """
    form = vocabulary(n, stem).get((slot, word.lower()))
    if form is None or to not in form:
        raise ValueError(
            mistake(slot, word, n, stem) or f"[[{slot}|{word}]]: no word for slot {to}"
        )
    return with_capitals_of(word, form[to])


def rename(text: str, q: Sequence[int], stem: int = 0) -> str:
    """Lambda of Eq. (1): each mark that named slot i names slot q[i] (0-based), in its own form.

    Raises ValueError where the word of a mark is no name of its slot.
    """

    def moved(mark: re.Match) -> str:
        slot, word = int(mark[1]), mark[2]
        if slot > len(q):
            raise ValueError(mistake(slot, word, len(q), stem))
        to = q[slot - 1] + 1
        return f"[[{to}|{renamed(slot, word, to, len(q), stem)}]]"

    return MARK.sub(moved, text)


def plain(text: str) -> str:
    """The text that the model reads and the grader grades: marks taken off, words kept.

    >>> plain("The [[1|left]] image shows a dog.")
    'The left image shows a dog.'
    """
    return MARK.sub(lambda mark: mark[2], text)


@lru_cache(maxsize=65536)
def mistake(slot: int, word: str, n: int, stem: int) -> str:
    """What is wrong with a mark, in one sentence; "" for a good one."""
    mark, known, low = f"[[{slot}|{word}]]", vocabulary(n, stem), word.lower()
    if slot > n:
        return f"{mark} names slot {slot} of {n} images"

    form = known.get((slot, low))
    if form is None:
        slots = sorted(k for k, other in known if other == low)
        if slots:
            return f"{mark}: {word!r} names slot {slots[0]}, not {slot}"
        for kind in FORMS.values():
            if any(low in words for words in kind):
                return f"{mark}: {word!r} has no word for every slot that the image can move to"
        return f"{mark}: {word!r} is in no form"

    reach = range(stem + 1, n + 1) if slot > stem else [slot]
    for to in reach:
        there = with_capitals_of(word, form[to])
        if with_capitals_of(there, form[slot]) != word:
            return f"{mark}: {word!r} must be in lower case, in capitals, or with one in front"
    return ""


# --- Eq. (1) ---


def inverse(sigma: Sequence[int]) -> tuple[int, ...]:
    """q = sigma^-1: old image i stands in slot q[i]."""
    return tuple(sorted(range(len(sigma)), key=sigma.__getitem__))


def permute(x: Sample, sigma: Sequence[int]) -> Sample:
    """The sample with old image sigma[j] in slot j, and every name of an image renamed.

    Raises ValueError where sigma is no order of the images, or moves
    the stem. It does not ask whether another order keeps the
    question's meaning: `x.permute` says that, and `copies` obeys it.
    """
    identity = tuple(range(len(x.images)))
    if tuple(sorted(sigma)) != identity:
        raise ValueError(f"sigma {tuple(sigma)} is no order of {len(x.images)} images")
    if tuple(sigma[: x.stem]) != identity[: x.stem]:
        raise ValueError(f"sigma {tuple(sigma)} moves the stem, the first {x.stem} images")

    q = inverse(sigma)
    images = tuple(x.images[old] for old in sigma)
    question = rename(x.question, q, x.stem)
    S = MARK.search(x.answer) is None  # S(x, x^): the answer names no image
    y = x.answer if S else rename(x.answer, q, x.stem)  # Eq. (1)
    return replace(x, images=images, question=question, answer=y)


def slot_of(x: Sample, options: Mapping[str, str]) -> int | None:
    """The 1-based slot of the right image: of the one mark in the answer, else of the one mark in
    the text of the option that the answer names; None without one. A bias for some slots shows
    as accuracy that depends on it. `options`: letter -> text, marks and all.
    """
    marks = MARK.findall(x.answer)
    if not marks:
        marks = MARK.findall(options.get(x.answer.strip("(). "), ""))
    return int(marks[0][0]) if len(marks) == 1 else None


# --- Algorithm 1: the decay, and the group of a question ---


def alpha(step: int, total: int, alpha_0: float = 1.0) -> float:
    """alpha_t, the probability of permuting a question at 0-based `step`: linear decay from
    alpha_0 to 0 at `total`.
    """
    return alpha_0 * max(0.0, 1.0 - step / total)


@dataclass(frozen=True)
class Copy:
    """One member of a group: the sample in one order of its images."""

    sample: Sample
    sigma: tuple[int, ...]


def copies(x: Sample, n_s: int, alpha_t: float, seed: int, step: int) -> list[Copy]:
    """The group of Algorithm 1: the original, then n_s
    copies, all permuted if the coin falls below alpha_t.

    sigma is uniform over the other orders of the movable images, and new while there are any. A
    question that is not permuted gets n_s identical copies, as in the release, so that a group
    always has n_s + 1 members. Coin and orders are functions of (seed, step, id, copy) alone:
    equal on any number of ranks, and after a resume.
    """
    identity = tuple(range(len(x.images)))
    original = Copy(x, identity)
    movable = identity[x.stem :]
    if not x.permute or len(movable) < 2:
        return [original] * (n_s + 1)
    if alpha_t < 1.0 and random.Random(f"{seed}/{step}/{x.id}").random() >= alpha_t:  # the coin
        return [original] * (n_s + 1)

    if len(movable) == 2:  # there is one other order
        sigma = identity[: x.stem] + movable[::-1]
        return [original] + [Copy(permute(x, sigma), sigma)] * n_s

    group = [original]
    used = {movable}
    for copy in range(1, n_s + 1):
        if len(used) == factorial(len(movable)):  # every order is used: start over
            used = {movable}
        tail = movable
        rng = random.Random(f"{seed}/{step}/{x.id}/{copy}")
        while tail in used:
            tail = tuple(rng.sample(movable, len(movable)))
        used.add(tail)
        sigma = identity[: x.stem] + tail
        group.append(Copy(permute(x, sigma), sigma))
    return group


# --- Files ---

# `order` of the first version's rows
OLD_KINDS = ("invariant", "options", "index", "references", "sequence", "fixed")


def rows(path: str | Path) -> Iterator[tuple[str, dict]]:
    """("file:line", object) for each line of a JSONL file that is not blank. Raises DataError."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    found = False
    for number, line in enumerate(lines_of(path), start=1):
        if not line.strip():
            continue
        found = True
        where = f"{path.name}:{number}"
        try:
            row = json.loads(line)
        except RecursionError:
            raise DataError(f"{where}: no JSON that can be read: it is nested too deep") from None
        except ValueError as error:
            raise DataError(f"{where}: no JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: not a JSON object")
        yield where, row
    if not found:
        raise DataError(f"{path}: the file is empty")


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a text file, one at a time. Raises DataError where it is no UTF-8."""
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no text in UTF-8 ({error})") from None


FIELDS = {"id": str, "images": list, "question": str, "answer": str}
OPTIONAL = {"permute": bool, "stem": int, "task": str, "why": str}
TYPES = FIELDS | OPTIONAL


def check_types(row: dict) -> None:
    """Raises DataError where a field is missing or of
    another type, or the row is one of the first version's.
    """
    for name in FIELDS:
        if name not in row:
            raise DataError(f"{name}: missing")
    for name, kind in TYPES.items():
        if name in row and type(row[name]) is not kind:
            raise DataError(f"{name}: must be a {kind.__name__}")
    for name in row["images"]:
        if not isinstance(name, str) or not name:
            raise DataError("images: must be a list of file names")
    if row.get("order") in OLD_KINDS and "permute" not in row:
        raise DataError("order: a row of the first version; python data/mark.py converts it")


def sample_of(row: dict, where: str = "", folder: str = "") -> Sample:
    """One row, checked, as a sample; its image paths begin with `folder`. Raises DataError: a
    sentence that begins with the field. Of a row in which two images are one file, two orders are
    one prompt with two right answers.
    """
    check_types(row)
    question, answer, stem = row["question"], row["answer"], row.get("stem", 0)
    n = len(row["images"])
    holes = question.count("<image>")
    if n == 0:
        raise DataError("images: there are none")
    if holes != n:
        raise DataError(f"question: {holes} <image> for {n} images")
    if not 0 <= stem < n:
        raise DataError(f"stem: {stem} is not between 0 and {n - 1}")
    check_marks("question", question, n, stem)
    check_marks("answer", answer, n, stem)
    if not plain(answer).strip():
        raise DataError("answer: it is empty")

    permutable, why = row.get("permute", False), row.get("why", "")
    if permutable and names_a_file_twice(row["images"]):
        permutable, why = False, "two of its images are one file"
    return Sample(
        id=row["id"],
        images=paths_in(folder, row["images"]),
        question=question,
        answer=answer,
        permute=permutable,
        stem=stem,
        task=row.get("task", ""),
        info={name: value for name, value in row.items() if name not in TYPES},
        where=where,
        why=why,
    )


def paths_in(folder: str, names: Sequence[str]) -> tuple[str, ...]:
    """The names as paths that begin with `folder`, as they are where it is ""."""
    if not folder:
        return tuple(names)
    return tuple(os.path.normpath(os.path.join(folder, name)) for name in names)


def names_a_file_twice(names: Sequence[str]) -> bool:
    """Are two of the names one file: "a.png" and "./a.png"?"""
    if len({os.path.basename(name) for name in names}) == len(names):
        return False
    return len({os.path.normpath(name) for name in names}) < len(names)


def check_marks(name: str, text: str, n: int, stem: int) -> None:
    """Raises DataError unless every mark in the field `name` is a good one and the text is one
    that can be encoded.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half an emoji is no text
            raise DataError(f"{name}: {error}") from None
    if "[[" not in text:
        return
    for mark in MARK.finditer(text):
        wrong = mistake(int(mark[1]), mark[2], n, stem)
        if wrong:
            raise DataError(f"{name}: {wrong}")
    torn = re.search(r"\[\[\d+\|.{0,20}", MARK.sub("", text))
    if torn:
        raise DataError(f"{name}: {torn[0]!r} begins like a mark and is none; '[ [' is no mark")


def load(path: str | Path, check_images: bool = True, absolute: bool = True) -> list[Sample]:
    """The samples of a JSONL file. `absolute`: images as paths that can be opened, not relative
    to the file.

    Raises DataError for the first row that cannot be used.
    """
    parent = Path(path).parent
    samples, seen = [], {}
    for where, row in rows(path):
        try:
            x = sample_of(row, where, str(parent) if absolute else "")
            for name in row["images"] if check_images else ():
                if not (parent / name).is_file():
                    raise DataError(f"images: file {name} does not exist")
            if x.id in seen:
                raise DataError(f"id: {x.id!r} is already in {seen[x.id]}")
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        seen[x.id] = where
        samples.append(x)
    return samples


# --- The command line: what permutation does to a data set, before a GPU hour is spent ---


def shown(x: Sample, sigma: Sequence[int], folder: str) -> dict:
    """A permuted sample as the model and the grader see it; image paths begin with `folder`."""
    return {
        "id": x.id,
        "sigma": list(sigma),
        "images": paths_in(folder, x.images),
        "question": plain(x.question),
        "answer": plain(x.answer),
    }


def reason_to_stay(x: Sample, sigma: Sequence[int] | None) -> str:
    """Why a sample comes out as it was given; "" where it is permuted."""
    if not x.permute:
        return x.why or "permute is not true"
    if len(x.images) - x.stem < 2:
        return "fewer than two images can move"
    if sigma is None:
        return ""
    if len(sigma) != len(x.images):
        return f"--sigma is of {len(sigma)} images"
    if tuple(sigma[: x.stem]) != tuple(range(x.stem)):
        return "--sigma moves the stem"
    return ""


def order_of(text: str | None) -> tuple[int, ...] | None:
    """The order of --sigma; None without one. Ends the program where it is none."""
    if text is None:
        return None
    numbers = text.split(",")
    if sorted(numbers) != sorted(map(str, range(len(numbers)))):
        sys.exit(f"permute.py: --sigma {text!r} is no order of slots such as 1,0")
    return tuple(int(number) for number in numbers)


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("data", metavar="MARKED.jsonl")
    p.add_argument(
        "--sigma",
        help="one order for all, e.g. 1,0: slot j shows old image sigma[j]; default: drawn",
    )
    # paper: Table 2
    p.add_argument("--n-s", type=int, default=1, help="permuted copies of a sample")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", help="default: standard output")
    args = p.parse_args(argv)

    sigma = order_of(args.sigma)
    try:
        samples = load(args.data, check_images=False, absolute=False)
    except DataError as error:
        sys.exit(f"permute.py: {error}")

    folder = ""  # from the file that is written to the file that was read
    out = sys.stdout
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        folder = os.path.relpath(Path(args.data).parent, Path(args.out).parent)
        folder = "" if folder == "." else folder
        out = open(args.out, "w", encoding="utf-8")

    permuted, written, stayed = 0, 0, Counter()
    for x in samples:
        why = reason_to_stay(x, sigma)
        identity = tuple(range(len(x.images)))
        if why:
            group = [Copy(x, identity)] * (1 if sigma else args.n_s)
            stayed[why] += len(group)
        elif sigma:
            group = [Copy(permute(x, sigma), sigma)]
        else:
            group = copies(x, args.n_s, 1.0, args.seed, 0)[1:]
        permuted += sum(copy.sigma != identity for copy in group)
        written += len(group)
        for copy in group:
            out.write(json.dumps(shown(copy.sample, copy.sigma, folder), ensure_ascii=False) + "\n")
    out.flush()

    print(f"permuted {permuted} of {written}", file=sys.stderr)
    for why, count in stayed.most_common():
        print(f"{count:8d} as given: {why}", file=sys.stderr)


if __name__ == "__main__":
    main()
