"""The paper's multi-image source, TIGER-Lab/Mantis-Instruct, as marked rows (Fig. 3a).

The paper trains on 22K questions of it: a rule filter, GPT-4o (rephrasing, an order label), and
the 10-rollout filter. This is the first stage, and the label where a rule can give it:

    nlvr2                 two images and a statement, true or false
    dreamsim              which of two images is more like the reference
    iconqa                options that are images, or texts about one image
    imagecode             ten images and a description of one
    contrastive_caption   "Which image is the caption describing?", one row a turn
    all other configs     rows of a single turn with a short answer, by data/mark.py

Each of the five has a recipe that knows its template: `permute`, `stem` and the marks of what is
constant come from it, those of the free part (a statement, a caption) from data/mark.py. A row
whose names are not certain is kept, not permutable, with the reason in `why`.

The paper does not say what its rule filter drops. Ours keeps 2 to 10 images (--min-images,
--max-images; a single image is for data/mmk12.py, but iconqa has it), one turn, and answers that
a rule can grade: of at most 5 words (--max-words). Counts by reason are printed at the end.

    python data/mantis.py nlvr2 dreamsim iconqa imagecode contrastive_caption --out DATA

writes DATA/CONFIG.jsonl and DATA/images/. --source is the hub id, or a folder with its layout:
CONFIG/train-*.parquet, CONFIG/train_images.zip, README.md.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.hub import Skip, Writer, Zips, has_part, part, progress, table
from data.mark import Reason, Unclear, judge, names, separated
from perl.permute import MARK, DataError, names_a_file_twice

SOURCE = "TIGER-Lab/Mantis-Instruct"  # branch main; apache-2.0, its sources keep theirs
COLUMNS = ("id", "images", "conversation")


# --- Recipes: (text, answer, number of images) -> fields of a row ------------------------------
# They raise Unclear where a row has to stay as it is, Skip where it can't be used.


def nlvr2(text: str, answer: str, n: int) -> dict:
    """A statement about two images; the letter of True or False stays.

    >>> nlvr2("<image> <image> Here is a statement describing these 2 images: The left image "
    ...       "shows a dog. Is it true or false? \\nOptions:\\n(A) True\\n(B) False", "A", 2)
    {'question': '<image> <image> Here is a statement describing these 2 images: The [[1|left]] \
image shows a dog. Is it true or false? \\nOptions:\\n(A) True\\n(B) False', 'answer': 'A'}
    """
    template = re.fullmatch(
        r"(.*Here is a statement describing (?:them|these 2 images|2 images): )"
        r"(.*)( Is it true or false\?.*)",
        text,
        re.DOTALL,
    )
    if not template or answer not in ("A", "B"):
        raise Skip("another template")
    before, statement, after = template.groups()
    return {"question": before + names(statement, n) + after, "answer": answer}


def dreamsim(text: str, answer: str, n: int) -> dict:
    """Which of two images is more like the reference? It stands first where it is a placeholder
    ("If <image> is the reference image"), else a number names it.

    >>> dreamsim("<image> <image> <image> If image 2 is the reference image, which image of the "
    ...          "other two is more similar to the reference image?", "Image 3.", 3)["answer"]
    'Image [[3|3]]'
    """
    if n != 3 or "is the reference image" not in text:
        raise Skip("another template")
    stem = 1 if "<image> is the reference image" in text else 0
    assumed = re.search(r"Assume reference image is image ([1-3])", text)
    if stem and assumed and assumed[1] != "1":
        raise Skip("another template")
    if "Options:" not in text:
        named = re.fullmatch(
            r"Image ([1-3])(?: is more similar to the reference image)?\.?"
            r"|The image that is more similar[\w ]* is image ([1-3])\.?",
            answer,
        )
        if not named:
            raise Skip("the answer names no image")
        slot = named[1] or named[2]
        answer = f"Image [[{slot}|{slot}]]"
    # All of the text is the template's: it names images by number alone.
    question = re.sub(r"\b([Ii]mage) ([1-3])\b", r"\1 [[\2|\2]]", text)
    return {"question": question, "answer": answer, "stem": stem}


def iconqa(text: str, answer: str, n: int) -> dict:
    """Options that are images; or one image, with options that are texts, or none."""
    if n == 1:
        raise Unclear(Reason.ONE_IMAGE)
    return picture_options(text, answer, n)


def picture_options(text: str, answer: str, n: int) -> dict:
    """Lettered options that are images, after the stem: the letter follows its image.

    >>> picture_options("<image>What is next?\\nA. <image>\\nB. <image>", "B", 3)
    {'question': '<image>What is next?\\nA. <image>\\nB. <image>', 'answer': '[[3|B]]', 'stem': 1}
    """
    options = re.findall(r"^([A-J])\. <image>$", text, re.MULTILINE)
    if options != list("ABCDEFGHIJ"[: len(options)]) or answer not in options:
        raise Skip("another template")
    stem = n - len(options)
    question = text[: re.search(r"^A\. <image>$", text, re.MULTILINE).start()]
    if question.count("<image>") != stem or MARK.search(names(question, n, stem)):
        raise Unclear(Reason.DOUBT, "options are images, and an image is named by its place")
    slot = stem + options.index(answer) + 1
    return {"question": text, "answer": f"[[{slot}|{answer}]]", "stem": stem}


def imagecode(text: str, answer: str, n: int) -> dict:
    """Ten images and a description of one: a number, or the letter of an option."""
    if re.search(r"^A\. <image>$", text, re.MULTILINE):
        return picture_options(text, answer, n)
    number = re.fullmatch(r"Image (\d+)", answer)
    if not number or not 1 <= int(number[1]) <= n:
        raise Skip("the answer names no image")
    if MARK.search(names(text, n)):  # "the man in picture C of the poster"
        raise Unclear(Reason.DOUBT, "the description may name an image by its place")
    return {"question": text, "answer": f"Image [[{number[1]}|{number[1]}]]"}


def single_turn(text: str, answer: str, n: int) -> dict:
    """Any other row: what data/mark.py is certain of."""
    verdict = judge(text, answer, n, declared=False)
    return {"question": verdict.question, "answer": verdict.answer, "stem": verdict.stem}


WHICH = "Which image is the caption describing?"
ORDINALS = {
    "first": "first initial opening foremost lead starting premiere",
    "second": "second secondary",
    "third": "third tertiary",
    **{word: word for word in ("fourth", "fifth", "sixth", "seventh", "eighth")},
}


def contrastive_caption(text: str, answer: str, n: int) -> dict:
    """Which image has this caption? The answer is written as an ordinal or a number; one that
    counts from the end or from another image ("The image following the first") is left out.

    >>> contrastive_caption(f"<image> <image> {WHICH}\\nA dog.", "The opening image", 2)["answer"]
    'The [[1|first]] image'
    """
    caption = text.partition(WHICH)[2]
    if MARK.search(names(caption, n)):
        raise Unclear(Reason.DOUBT, "the caption names an image by its place")
    number = re.fullmatch(r"Image (\d+)", answer)
    if number and 1 <= int(number[1]) <= n:
        return {"question": text, "answer": f"Image [[{number[1]}|{number[1]}]]"}
    place = re.fullmatch(r"The (\w+) image(?: in sequence)?", answer)
    for slot, (ordinal, synonyms) in enumerate(ORDINALS.items(), start=1):
        if place and place[1] in synonyms.split() and slot <= n:
            return {"question": text, "answer": f"The [[{slot}|{ordinal}]] image"}
    raise Skip("the answer is no plain number or ordinal: from the end, or from another image")


RECIPES: dict[str, Callable[[str, str, int], dict]] = {
    "nlvr2": nlvr2,
    "dreamsim": dreamsim,
    "iconqa": iconqa,
    "imagecode": imagecode,
    "contrastive_caption": contrastive_caption,
}


# --- Rows ---------------------------------------------------------------------------------------


def turns_of(conversation: Sequence[dict]) -> list[tuple[str, str]]:
    """(question, answer) of each turn. Raises Skip where the two do not take turns."""
    roles = [message["role"] for message in conversation]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise Skip("a conversation that does not take turns")
    texts = [message["content"] or "" for message in conversation]
    return list(zip(texts[::2], texts[1::2]))


def questions_of(config: str, turns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The turns that become rows, each a question of its own: the only one, or, of
    contrastive_caption, those that ask for an image, with the images of the first.
    """
    if config != "contrastive_caption":
        if len(turns) > 1:
            raise Skip("several turns")
        return list(turns)

    lead = re.search(r"(?:Here (?:is|are) \d+ images?: ?)?(?:<image>[ ,]*)+", turns[0][0])
    if not lead or any("<image>" in question for question, _ in turns[1:]):
        raise Skip("not one <image> for each image")
    asked = []
    for question, answer in turns:
        caption = question.replace(lead[0], "").partition(WHICH)[2].strip()
        if caption:
            asked.append((f"{lead[0].strip(' ,')} {WHICH}\n{caption}", answer))
    if not asked:
        raise Skip("no turn asks which image")
    return asked


def cleaned(answer: str) -> str:
    """An answer without the words around it.

    >>> cleaned("Answer: B"), cleaned("C: strum the string"), cleaned("Image 3")
    ('B', 'C', 'Image 3')
    """
    answer = answer.strip().removeprefix("Answer:").strip()
    if re.fullmatch(r"(?:\w+ ){0,3}\w+\.", answer):
        answer = answer.rstrip(".")
    letter = re.match(r"\(?([A-J])(?:\)|:|\.)(?: |$)", answer)
    return letter[1] if letter else answer


def fields_of(recipe: Callable, text: str, answer: str, n: int, max_words: int) -> dict:
    """What the recipe says of a question: its text, answer, `permute`, and `stem` or `why`."""
    if text.count("<image>") != n:
        raise Skip("not one <image> for each image")
    if re.search(r"\[\[\d+\|", text + answer):
        text, answer = separated(text), separated(answer)
        return {"question": text, "answer": answer, "permute": False, "why": str(Reason.BRACKETS)}
    try:
        fields = recipe(text, answer, n)
        found = fields | {"permute": True}
        if not found.get("stem"):
            found.pop("stem", None)
    except Unclear as why:
        found = {"question": text, "answer": answer, "permute": False, "why": str(why)}
    if len(MARK.sub(r"\2", found["answer"]).split()) > max_words:
        raise Skip(f"an answer of more than {max_words} words")
    if not found["answer"]:
        raise Skip("no answer")
    return found


def convert(config: str, args) -> None:
    """Write one config. Raises DataError for a source that cannot be used."""
    rows = table(args.source, config, args.split, COLUMNS)
    listed = f"{config}/{args.split}_images_zips.txt"
    if has_part(args.source, listed):
        found = part(args.source, listed).read_text().split()
        names_of_zips = [f"{config}/{Path(name).name}" for name in found]
    else:
        names_of_zips = [f"{config}/{args.split}_images.zip"]
    zips = Zips([part(args.source, name) for name in names_of_zips])

    recipe, writer = RECIPES.get(config, single_turn), Writer(Path(args.out), config)
    if args.limit:
        rows = rows.select(range(min(args.limit, len(rows))))
    for number, row in enumerate(progress(rows, config)):
        try:
            pictures = row["images"] or []
            least = 1 if config == "iconqa" else args.min_images
            if not least <= len(pictures) <= args.max_images:
                raise Skip(f"not {least} to {args.max_images} images")
            asked = questions_of(config, turns_of(row["conversation"]))
        except Skip as why:
            writer.skip(why)
            continue

        for turn, (text, answer) in enumerate(asked, start=1):
            try:
                found = fields_of(recipe, text, cleaned(answer), len(pictures), args.max_words)
                data = [picture.get("bytes") or zips.read(picture["path"]) for picture in pictures]
                images = [writer.pictures.put(each) for each in data]
            except Skip as why:
                writer.skip(why)
                continue
            if found["permute"] and names_a_file_twice(images):
                found |= {"permute": False, "why": str(Reason.EQUAL)}
            which = f"{row['id'] or number}" + (f"/{turn}" if len(asked) > 1 else "")
            writer.write(
                {"id": f"mantis/{config}/{which}", "images": images, **found, "task": config}
            )
    writer.close()


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("configs", nargs="+", metavar="CONFIG")
    p.add_argument("--source", default=SOURCE, help="hub id, or a folder with the same layout")
    p.add_argument("--split", default="train")
    p.add_argument("--out", required=True, metavar="DIR")
    p.add_argument("--limit", type=int, help="read at most that many rows of each config")
    p.add_argument("--min-images", type=int, default=2)  # ours; the paper names no bounds
    p.add_argument("--max-images", type=int, default=10)  # ours; imagecode has ten
    p.add_argument(
        "--max-words", type=int, default=5, help="of an answer"
    )  # ours: gradable by rule
    args = p.parse_args(argv)
    if args.limit is not None and args.limit < 1 or args.min_images > args.max_images:
        p.error("--limit must be positive, and --min-images at most --max-images")
    failed = []
    for config in args.configs:
        try:
            convert(config, args)
        except (DataError, OSError) as error:
            print(f"mantis.py: {error}", file=sys.stderr)
            failed.append(config)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
