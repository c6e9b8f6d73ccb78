"""Permuting the images of a question without changing what is true (Eq. 1 of PeRL). First working version."""
from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

ORDERS = ("invariant", "options", "index", "references", "sequence", "fixed")


class DataError(ValueError):
    """A line of the data set is unusable: one sentence with file, line and field."""


class Refused(ValueError):
    """The sample cannot be permuted exactly; `reason` says why."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Sample:
    """One question (DESIGN section 2). `images` in slot order, one `<image>` in `question` for each."""
    id: str
    images: tuple[str, ...]
    question: str
    answer: str
    order: str = "fixed"
    stem: int = 0


@dataclass(frozen=True)
class Copy:
    """A member of a group. `refused`: why an identical copy stands here ("" when permuted or the coin said no)."""
    sample: Sample
    sigma: tuple[int, ...]
    refused: str = ""


def inverse(sigma):
    """q = sigma^-1: old image i now stands in slot q[i]."""
    q = [0] * len(sigma)
    for slot, old in enumerate(sigma):
        q[old] = slot
    return tuple(q)


def alpha(step: int, total: int, alpha_0: float = 1.0) -> float:
    """The share of samples to permute at 0-based `step`: linear decay from alpha_0 to 0 at `total`."""
    return alpha_0 * max(0.0, 1.0 - step / total)


def options(question: str) -> dict[str, str]:
    """Lettered options, e.g. {"A": "True", "B": "False"}; {} when there are none."""
    marks = [(m[1] or m[2], m.start(), m.end()) for m in
             re.finditer(r"(?m)^[ \t]*(?:\(([A-Z])\)|([A-Z])[.:)．：、])[ \t]*(?=\S)", question)]
    found = {}
    for (letter, _, end), stop in zip(marks, [m[1] for m in marks[1:]] + [len(question)]):
        if letter == "A":
            found = {}
        if letter == chr(65 + len(found)):
            found[letter] = question[end:stop].split("\n")[0].strip()
    if found == {} or (len(found) == 1 and "(B)" in found["A"]):
        m = re.search(r"(?:^|[?:.!\n]\s*)(\(A\) .*?\(B\) [^\n]*)", question)
        parts = re.split(r"\s*\(([A-Z])\)\s+", " " + m[1])[1:] if m else []
        if parts[::2] == [chr(65 + k) for k in range(len(parts) // 2)]:
            found = {letter: text.strip() for letter, text in zip(parts[::2], parts[1::2])}
    return found if len(found) > 1 else {}


_ORD = "first second third fourth fifth sixth seventh eighth ninth tenth".split()
_TOKEN = re.compile(r"(?i)\b(image|picture|photo|figure) (\d+)\b|\b(" + "|".join(_ORD) + r") (image|picture|photo)\b"
                    r"|\b(left|right) (image|picture|photo)\b|\b(?:image|picture|photo) on the (left|right)\b"
                    r"|第([一二三四五六七八九十])张")


def _rewrite(text, q):
    def say(m):
        for g, words in ((2, None), (3, _ORD), (5, ["left", "right"]), (7, ["left", "right"]), (8, "一二三四五六七八九十")):
            if m[g]:
                slot = int(m[2]) - 1 if g == 2 else list(words).index(m[g].lower())
                if slot >= len(q) or (words and len(words) == 2 and len(q) != 2):
                    raise Refused("names an image that is not there")
                new = str(q[slot] + 1) if g == 2 else words[q[slot]]
                new = new.capitalize() if m[g][0].isupper() else new
                a, b = m.span(g)
                return m[0][:a - m.start()] + new + m[0][b - m.start():]
    return _TOKEN.sub(say, text)


def _permute(x, sigma):
    q = inverse(sigma)
    images = tuple(x.images[old] for old in sigma)
    if x.order == "options":
        return replace(x, images=images, answer=chr(65 + q[ord(x.answer) - 65 + x.stem] - x.stem))
    if x.order == "invariant":
        return replace(x, images=images)
    question = _rewrite(x.question, q)
    if x.order == "index":
        answer = str(q[int(x.answer) - 1] + 1) if x.answer.isdigit() else _rewrite(x.answer, q)
    elif x.order == "sequence":
        answer = re.sub(r"\d", lambda m: str(q[int(m[0]) - 1] + 1),
                        re.sub("[A-Z]", lambda m: chr(65 + q[ord(m[0]) - 65]), x.answer))
    else:
        answer = _rewrite(x.answer, q)
    return replace(x, images=images, question=question, answer=answer)


def permute(x: Sample, sigma) -> Sample:
    """The permuted sample: slot j shows old image sigma[j]. Raises Refused."""
    sigma = tuple(sigma)
    identity = tuple(range(len(x.images)))
    if len(sigma) != len(identity):
        raise Refused(f"sigma has {len(sigma)} entries for {len(identity)} images")
    if sorted(sigma) != list(identity):
        raise Refused("sigma is no permutation")
    if sigma == identity:
        return x
    if x.order == "fixed":
        raise Refused("fixed")
    if sigma[:x.stem] != identity[:x.stem]:
        raise Refused("sigma moves a stem image")
    y = _permute(x, sigma)
    if _permute(y, inverse(sigma)) != x:
        raise Refused("the rewrite is not exact")
    return y


def copies(sample: Sample, n_s: int, alpha_t: float, seed: int, step: int) -> list[Copy]:
    """The original first, then n_s copies."""
    n = len(sample.images)
    identity, movable = tuple(range(n)), n - sample.stem
    same = Copy(sample, identity)
    why = "one image" if n < 2 else "fixed" if sample.order == "fixed" else "one movable image" if movable < 2 else ""
    if why:
        return [same] + [replace(same, refused=why)] * n_s
    if random.Random(f"{seed}/{step}/{sample.id}").random() >= alpha_t:
        return [same] * (n_s + 1)
    group, seen, orders = [same], {identity}, 1
    for k in range(2, movable + 1):
        orders *= k
    for i in range(1, n_s + 1):
        rng = random.Random(f"{seed}/{step}/{sample.id}/{i}")
        if len(seen) == orders:
            seen = {identity}
        sigma = identity
        while sigma in seen:
            tail = list(identity[sample.stem:])
            rng.shuffle(tail)
            sigma = identity[:sample.stem] + tuple(tail)
        seen.add(sigma)
        try:
            group.append(Copy(permute(sample, sigma), sigma))
        except Refused as refusal:
            group.append(replace(same, refused=refusal.reason))
    return group


def _read(path):
    """Yields (line number, raw dict)."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    found = False
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                found = True
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(f"{path.name}:{number}: not JSON: {error.msg}") from None
    if not found:
        raise DataError(f"{path}: the file is empty")


def load(path, check_images: bool = True) -> list[Sample]:
    """Samples of a JSONL file; image paths are resolved against the file's folder. Raises DataError."""
    out, seen = [], set()
    for number, raw in _read(path):
        where = f"{Path(path).name}:{number}"
        for field, kind in (("id", str), ("images", list), ("question", str), ("answer", str)):
            if not isinstance(raw.get(field), kind):
                raise DataError(f"{where}: {field}: missing or not a {kind.__name__}")
        x = Sample(raw["id"], tuple(str(Path(path).parent / i) for i in raw["images"]), raw["question"], raw["answer"],
                   raw.get("order", "fixed"), raw.get("stem", 0))
        if x.id in seen:
            raise DataError(f"{where}: id: {x.id!r} is there twice")
        if x.order not in ORDERS:
            raise DataError(f"{where}: order: {x.order!r} is none of {', '.join(ORDERS)}")
        if x.question.count("<image>") != len(x.images):
            raise DataError(f"{where}: images: {len(x.images)} for {x.question.count('<image>')} <image> in question")
        if check_images:
            for image in x.images:
                if not Path(image).is_file():
                    raise DataError(f"{where}: images: file {image} does not exist")
        seen.add(x.id)
        out.append(x)
    return out
