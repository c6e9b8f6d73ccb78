"""Rows of other projects as raw rows of ours; data/mark.py then marks them.

    verl      parquet: prompt (messages), images, reward_model.ground_truth, extra_info
    easyr1    parquet: problem, images, answer
    trl       parquet or json: prompt (a text or messages), image or images, solution or answer
    swift     json or jsonl: messages or query/response, images, solution
    llava     json: conversations or conversation (from/value or role/content), image or images

Each mapping is the smallest faithful one; a row that has no exact counterpart is left out and
counted: several turns, a number of placeholders that is not that of the images, another dialect
of placeholders, an answer that is a sentence. No image order is invented: placeholders are put in
front only where the format itself does (TRL with a text as prompt, ms-swift).

The column `change_needed` of PeRL's release says whether its authors' label wants another answer
after a permutation. Where it is false, the question is permutable if no word names an image,
else false with the reason; where it is true, it is declared permutable, and data/mark.py must
find what is named. The release's answer to it, flipping A and B, is not used.

    python data/convert.py FORMAT IN --out DIR [--image-dir DIR] [--split train]

IN: a file (.parquet, .json, .jsonl), a folder of them, or a hub id. Writes DIR/FORMAT.jsonl and
DIR/images/.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.hub import Pictures, Skip, Writer, bytes_of, progress, table, undecoded
from data.mark import mark, separated
from perl.permute import MARK, DataError

HOLE = "<image>"
MAX_WORDS = 5  # ours: a longer answer is a sentence, which no rule can grade


@dataclass(frozen=True)
class Raw:
    """A question as its format has it. `in_front`: the format puts images before the text that
    has no placeholder for them.
    """

    pictures: list
    question: str
    answer: object
    in_front: bool = False


# --- One function a format: a row -> Raw. Raises Skip, or KeyError for a missing field -----------


def verl(row: dict) -> Raw:
    """The question without the instruction that is baked into the prompt, where `extra_info` has
    it. A prompt's own instruction is taken off as far as it is known.
    """
    info = row.get("extra_info") or {}
    question = without_instruction(only_question(row["prompt"]))
    bare = info.get("question")
    if bare and bare.count(HOLE) == question.count(HOLE):
        question = bare
    return Raw(pictures_of(row.get("images")), question, row["reward_model"]["ground_truth"])


def easyr1(row: dict) -> Raw:
    return Raw(pictures_of(row.get("images")), row["problem"], row["answer"])


def trl(row: dict) -> Raw:
    """Content blocks say where the images stand. In a text nothing does: TRL puts them before it
    and reads no placeholder.
    """
    pictures = pictures_of(row.get("images"))
    if row.get("image") is not None:
        pictures = [row["image"]]
    prompt = row["prompt"]
    content = prompt if isinstance(prompt, str) else only_content(prompt)
    if isinstance(content, str) and HOLE in content:
        raise Skip("<image> in a text, which TRL does not read: use content blocks")
    answer = row["solution"] if row.get("solution") is not None else row["answer"]
    return Raw(pictures, text_of(content), answer, in_front=isinstance(content, str))


def swift(row: dict) -> Raw:
    """ms-swift puts placeholders that are missing before the first message."""
    if "messages" in row:
        messages = row["messages"]
        question = only_question(messages)
        said = [m["content"] for m in messages if m["role"] == "assistant"]
    elif row.get("history"):
        raise Skip("several turns")
    else:
        question, said = row["query"], [row.get("response")]
    answer = row["solution"] if row.get("solution") is not None else said[0] if said else None
    return Raw(pictures_of(row.get("images")), without_instruction(question), answer, in_front=True)


def pictures_of(images: object) -> list:
    """A list of pictures; a format's single one too."""
    if images is None:
        return []
    return [images] if isinstance(images, str | dict) else list(images)


def llava(row: dict) -> Raw:
    conversation = row.get("conversation") or row["conversations"]
    roles = {"human": "user", "gpt": "assistant"}
    messages = []
    for message in conversation:
        role = message.get("from") or message["role"]
        content = message["value"] if message.get("value") is not None else message["content"]
        messages.append({"role": roles.get(role, role), "content": content})
    pictures = pictures_of(row.get("images"))
    if row.get("image") is not None:
        pictures = pictures_of(row["image"])
    said = [m["content"] for m in messages if m["role"] == "assistant"]
    if not said:
        raise Skip("no answer")
    return Raw(pictures, only_question(messages), said[0])


FORMATS: dict[str, Callable[[dict], Raw]] = {
    "verl": verl,
    "easyr1": easyr1,
    "trl": trl,
    "swift": swift,
    "llava": llava,
}

# Instructions that the projects' own examples write into the prompt; ours is added in training.
INSTRUCTION = re.compile(
    r"\s*(?:You FIRST think about the reasoning process"
    r"|Let's think step by step"
    r"|Please reason step by step"
    r"|Output the thinking process in <think>"
    r"|Please (?:first )?think .{0,80}<think>).*\Z",
    re.DOTALL,
)


def without_instruction(text: str) -> str:
    """The text up to an instruction about the form of the response.

    >>> without_instruction("<image>Find x. Please reason step by step, and box it.")
    '<image>Find x.'
    """
    return INSTRUCTION.sub("", text)


def only_content(messages: Sequence[dict]) -> str | list:
    """The content of the one user turn; a system turn is ours to write. Raises Skip."""
    asked = [message["content"] for message in messages if message["role"] == "user"]
    if len(asked) != 1:
        raise Skip("several turns" if asked else "no user turn")
    return asked[0]


def only_question(messages: Sequence[dict]) -> str:
    return text_of(only_content(messages))


def text_of(content: str | Sequence[dict]) -> str:
    """A message as text: a placeholder for each block that is an image."""
    if isinstance(content, str):
        return content
    words = []
    for block in content:
        if block["type"] in ("image", "image_url"):
            words.append(HOLE)
        elif block["type"] == "text":
            words.append(block["text"])
        else:
            raise Skip(f"a content block of type {block['type']!r}")
    return "".join(words)


# --- What all formats share ---


def answer_of(answer: object) -> str:
    """The words that are graded: out of a list of one, <answer> tags, a box, or `Answer: `.

    >>> answer_of(["<answer> 3 </answer>"]), answer_of("So \\\\boxed{B}."), answer_of("Answer: C")
    ('3', 'B', 'C')
    """
    if isinstance(answer, Sequence) and not isinstance(answer, str):
        if len(answer) != 1:
            raise Skip("not one accepted answer")
        answer = answer[0]
    if answer is None:
        raise Skip("no answer")
    text = str(answer).strip()
    tagged = re.search(r"<answer>\s*(.*?)\s*</answer>", text, re.DOTALL)
    if tagged:
        text = tagged[1]
    boxed = re.fullmatch(r".*\\boxed\{(.*)\}\s*\$?\.?", text, re.DOTALL)
    if boxed:
        text = boxed[1]
    text = text.removeprefix("Answer:").strip()
    if not text:
        raise Skip("no answer")
    if is_sentence(text):
        raise Skip(f"the answer is a sentence of more than {MAX_WORDS} words")
    return text


def is_sentence(text: str) -> bool:
    """More words than a name, an option or a quantity has; formulas hold none."""
    without_formulas = re.sub(r"\$.*?\$|\\[a-z]+|\{.*?\}", " ", text)
    if len(text) > 300:
        return True
    words = re.findall(r"[^\W\d_]{2,}", without_formulas)
    chinese = re.findall(r"[一-龥]", without_formulas)
    return len(words) > MAX_WORDS or len(chinese) > 4 * MAX_WORDS


DIALECTS = re.compile(
    r"<image[ _]?\d|\{image#\d|<\|image|<\|vision_start|<img|<ImageHere>|\[image\d"
)


def question_of(raw: Raw) -> str:
    """The question with one placeholder for each image. Raises Skip."""
    text, n = raw.question.strip(), len(raw.pictures)
    if not n:
        raise Skip("no image")
    if "<video>" in text or "<audio>" in text:
        raise Skip("video or audio")
    if DIALECTS.search(text):
        raise Skip("another dialect of placeholders")
    found = text.count(HOLE)
    if found < n and raw.in_front:
        text = f"{HOLE} " * (n - found) + text
    elif found != n:
        raise Skip("not one <image> for each image")
    return text


def declared(change_needed: object, question: str, answer: str, images: Sequence[str]) -> dict:
    """What the release's column says: `permute`, and `why`."""
    needed = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(
        str(change_needed).lower()
    )
    if needed is None:
        return {}  # nothing said that is understood
    row = {"images": list(images), "question": question, "answer": answer, "permute": True}
    verdict = mark(row)
    if needed:
        if verdict.permute and not MARK.search(verdict.question + verdict.answer):
            return {"permute": False, "why": "labelled as changed, but no word names an image"}
        return {"permute": True}
    if verdict.permute and MARK.search(verdict.question + verdict.answer):
        return {"permute": False, "why": "labelled as unchanged, but a word names an image"}
    if not verdict.permute:
        return {"permute": False, "why": f"{verdict.reason}: {verdict.evidence!r}"}
    return {"permute": True}


def convert(
    format: str, row: dict, number: int, folders: Sequence[Path], pictures: Pictures
) -> dict:
    """One row as a raw row of ours. Raises Skip."""
    try:
        raw = FORMATS[format](row)
    except KeyError as error:
        raise Skip(f"no field {error}") from None
    except (TypeError, AttributeError):
        raise Skip("a field of another type") from None
    if not isinstance(raw.question, str):
        raise Skip("no question")
    question, answer = question_of(raw), answer_of(raw.answer)
    images = [pictures.put(bytes_of(picture, folders)) for picture in raw.pictures]
    info = row.get("extra_info") if isinstance(row.get("extra_info"), dict) else {}
    change_needed = row.get("change_needed", info.get("change_needed"))
    name = row.get("id") or row.get("problem_id") or number
    found = {"id": f"{format}/{number}/{name}" if name != number else f"{format}/{number}"}
    found |= {"images": images, "question": separated(question), "answer": separated(answer)}
    return found | declared(change_needed, question, answer, images)


# --- Files ---


def rows_of(source: str, split: str) -> Iterator[dict]:
    """The rows of a file, a folder of files, or a data set on the hub. Raises DataError."""
    path = Path(source)
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.suffix in (".parquet", ".json", ".jsonl"))
        if not files:
            raise DataError(f"{source}: no .parquet, .json or .jsonl file in it")
        for file in files:
            yield from rows_of(str(file), split)
    elif not path.exists():
        yield from table(source, None, split, ())
    elif path.suffix == ".parquet":
        yield from parquet(path)
    elif path.suffix == ".json":
        found = parsed(text_in(path), str(path))
        if not isinstance(found, list):
            raise DataError(f"{path}: it is no list of rows")
        yield from found
    elif path.suffix == ".jsonl":
        for number, line in enumerate(text_in(path).split("\n"), start=1):
            if line.strip():
                yield parsed(line, f"{path}:{number}")
    else:
        raise DataError(f"{path}: not .parquet, .json or .jsonl")


def text_in(path: Path) -> str:
    """The text of a file, without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no text in UTF-8 ({error})") from None


def parquet(path: Path):
    """The rows of a parquet file. Raises DataError for one that is none."""
    import datasets
    import pyarrow
    import pyarrow.parquet

    try:
        if not pyarrow.parquet.read_metadata(path).num_rows:
            return []
        return undecoded(datasets.Dataset.from_parquet(str(path)))
    except (datasets.exceptions.DatasetGenerationError, pyarrow.ArrowInvalid) as error:
        raise DataError(f"{path}: it is no parquet file ({error.__cause__ or error})") from None


def parsed(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: no JSON ({error})") from None


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("format", choices=FORMATS)
    p.add_argument("source", metavar="IN", help="a file, a folder of files, or a hub id")
    p.add_argument("--out", required=True, metavar="DIR")
    p.add_argument("--split", default="train", help="of a data set on the hub")
    p.add_argument("--image-dir", help="where image paths begin; else beside IN, then here")
    p.add_argument("--limit", type=int, help="read at most that many rows")
    args = p.parse_args(argv)

    path = Path(args.source)
    folders = [Path(args.image_dir)] if args.image_dir else []
    folders.append(path if path.is_dir() else path.parent)
    try:
        writer = Writer(Path(args.out), args.format)
    except OSError as error:
        sys.exit(f"convert.py: {error}")
    try:
        for number, row in enumerate(progress(rows_of(args.source, args.split), args.format)):
            if number == args.limit:
                break
            try:
                if not isinstance(row, dict):
                    raise Skip("a row that is no object")
                writer.write(convert(args.format, row, number, folders, writer.pictures))
            except Skip as why:
                writer.skip(why)
    except (DataError, OSError) as error:
        sys.exit(f"convert.py: {error}")
    finally:
        writer.close()
    if not writer.kept:
        sys.exit(f"convert.py: no row of {args.source} could be used: is it {args.format}?")


if __name__ == "__main__":
    main()
