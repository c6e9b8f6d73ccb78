"""Infer how the answer of a question follows its images, by rule: the label that the paper asks GPT-4o for.

PeRL permutes a sample only where it knows what a permutation does to the answer: the `order` of a row (ORDERS in
perl/permute.py) and its `stem`. Data sets rarely say it. The rules below read it off the question, the options and the
answer, and give the words that decided as evidence. Two things must agree: a rule proposes a kind, and permute.py must
accept a rotation of the images under that kind, that is, resolve every name and find no wording it refuses. What no rule
is certain of is "fixed", which is never permuted: a missed permutation costs little, a wrong label a whole group.

    python data/infer.py IN.jsonl --out LABELLED.jsonl        rows that state their `order` stay as they are

The same rules serve `python perl/permute.py IN.jsonl --infer`, which shows the permuted rows.
"""

import argparse
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from perl.permute import WHICH_HAN, DataError, Refused, Sample, load, options, permute

# "both images", "each picture", "how many of the photos": the text speaks of the images as a set
SET = re.compile(
    r"(?i)\b(?:both|all|each|every|either|neither|none|any|at least \w+|how many|the (?:two|three|four|\d)|(?:these|those)(?: \w+)?)"
    r"(?: of)?(?: the| these)? (?:images?|pictures?|photos?|photographs?)\b|[两每各]一?[张幅]|所有.{0,2}图|几[张幅]"
)
ASKS = re.compile(  # in a text that speaks of images, "which figure" may ask for a digit
    r"(?i)\b(?:which|what)\b[^.?!\n]{0,30}\b(?:(?:image|picture|photo(?:graph)?)s?\b|(?:figure|panel|diagram)s?\b(?!(?s:.*)\bimage))"
    rf"|{WHICH_HAN}")
# of a difference, the answer may go from one image to the other without naming them; what it says must be short and plain
DIRECTED = re.compile(
    r"(?i)differ|compar|between|chang|edit|transform|\badd|remov|appear|increas|decreas|区别|不同|变|增|减"
    r"|\b(?:get|becom|ris(?:e|ing)|fall|drop|sink|grow|shrink|los[ei]|gain|improv|progress|advanc|burn|melt|zoom|climb|approach)\w*\b"
    r"|\b(?:order|sort|arrang|rank|sequen|tempor|direction|ratio|quotient|divid|subtract|concatenat|combin|spell|togeth)\w*|\bform\b"
    r"|\b(?:across|over|through(?:out)?) (?:the|all|both|these|those)\b|\bfrom \w+ to \w+|\beach time\b|\b(?:minus|next|than)\b"
    r"|\bmore\b|[顺次]序|排|比|越来越|拼|商")
PLAIN = re.compile(r"(?i)[A-Z]|\d+|yes|no|true|false|是|否|有|没有|对|错|[一二三四五六七八九十两]")
IN_ORDER = re.compile(r"(?i)\b(?:order|sequence|arrange|sort|rank)\b|顺序|排序|排列")


def proposals(x: Sample) -> Iterator[tuple[str, int, str]]:
    """(order, stem, evidence) for each rule that speaks, the strongest first."""
    n, choices = len(x.images), options(x.question)
    pictures = [letter for letter, text in choices.items() if text == "<image>"]
    if pictures:  # no other rule applies to a question with images among its options
        if len(pictures) == len(choices) and x.answer in pictures:
            yield "options", n - len(pictures), "every lettered option is an image"
        return
    if not choices and (m := IN_ORDER.search(x.question)) and re.fullmatch(r"[\W\dA-Za-z]+", x.answer):
        if sorted(re.findall(r"[1-9]|\b[A-H](?![a-z])|(?<=[A-H])[A-H]", x.answer)) in (list("123456789"[:n]), list("ABCDEFGH"[:n])):
            yield "sequence", 0, f"asked for an order ({m[0]!r}), the answer lists all {n} images"
    if not choices and (m := ASKS.search(x.question)):
        yield "index", 0, f"asked {m[0]!r}, answered {x.answer[:30]!r}"
    yield "references", 0, "the text names an image by its position"
    if (m := SET.search(x.question)) and not DIRECTED.search(x.question) and PLAIN.fullmatch(x.answer.rstrip(".。")):
        yield "invariant", 0, f"{m[0]!r}, and no image by its position"


def rotations(n: int, stem: int) -> Iterator[tuple[int, ...]]:
    """The rotations of the images after the stem, but for the identity."""
    movable = tuple(range(stem, n))
    for shift in range(1, len(movable)):
        yield (*range(stem), *movable[shift:], *movable[:shift])


def infer(sample: Sample) -> dict:
    """{"order", "stem", "evidence"} of a sample; "fixed", with the reason as evidence, where no rule is certain."""
    why = "one image" if len(sample.images) < 2 else "no rule applies"
    for order, stem, evidence in proposals(sample):
        guess, moved = replace(sample, order=order, stem=stem), []
        for sigma in rotations(len(sample.images), stem):
            try:
                moved.append(permute(guess, sigma))
            except Refused as refusal:
                why = refusal.reason
        named = any((y.question, y.answer) != (sample.question, sample.answer) for y in moved)
        # a kind that renames must have renamed something: else nothing in the sample speaks for it
        if moved and (named or order in ("invariant", "options")):
            return {"order": order, "stem": stem, "evidence": evidence}
        if order == "references" and not moved:  # names an image in a way that permute.py refuses: no set, then
            break
    return {"order": "fixed", "stem": 0, "evidence": why}


def rows_of(path) -> list[dict]:
    """The objects of a file that `load` took."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8-sig").split("\n") if line.strip()]


def load_inferred(path, check_images: bool = True, absolute: bool = True) -> list[Sample]:
    """`load`, with the kind inferred, and `evidence` for it, where a line has no `order`."""
    samples = load(path, check_images, absolute)
    return [x if "order" in row else replace(x, **infer(x)) for x, row in zip(samples, rows_of(path), strict=True)]


def main(argv=None) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", metavar="IN.jsonl")
    p.add_argument("--out", required=True, help="JSONL: the rows with `order`, `stem` and `evidence`")
    args = p.parse_args(argv)
    try:
        samples = load_inferred(args.data, check_images=False)
    except DataError as error:
        sys.exit(str(error))
    (out := Path(args.out)).parent.mkdir(parents=True, exist_ok=True)
    here, rows = os.path.relpath(Path(args.data).parent, out.parent), rows_of(args.data)  # image paths are relative to the file
    with open(out, "w", encoding="utf-8") as file:
        for x, row in zip(samples, rows, strict=True):
            label = {"order": x.order, "stem": x.stem, "evidence": x.evidence} if x.evidence else {}
            images = {"images": [os.path.normpath(os.path.join(here, name)) for name in row["images"]]}
            file.write(json.dumps(row | images | label, ensure_ascii=False) + "\n")
    counts = Counter(x.order for x in samples if x.evidence)
    print(f"inferred {counts.total()} of {len(rows)}", *(f"{k} {v}" for k, v in sorted(counts.items())), sep="\n", file=sys.stderr)


if __name__ == "__main__":
    main()
