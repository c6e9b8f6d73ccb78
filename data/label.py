"""Labels by a language model, for what rules cannot decide: the paper's two GPT-4o steps.

    order        may the images stand in any order, and which words name them? -> `permute`, marks
    --rephrase   an open question whose answer is an image -> options that are images

    python data/label.py RAW.jsonl --base-url URL --model NAME --out MARKED.jsonl [--rephrase]

asks any server that speaks OpenAI's protocol (OpenAI, `vllm serve`, SGLang, ..); the key is in
OPENAI_API_KEY. Rows that data/mark.py decides are not asked about.

A label is a proposal. It is accepted only if

  1. taking the marks off gives the original text, character by character;
  2. every mark is one that perl/permute.py can move;
  3. equal phrases of word and noun are marked alike;
  4. the rules of data/mark.py do not contradict it: they would mark other words, or refuse the
     row for a story, for time, turns or captions. That they do not understand is no contradiction.

Else the row is not permutable, with the reason in `why`. The paper accepts every label.

Each reply is appended to MARKED.cache.jsonl under a digest of its request: a run that is killed
goes on and pays for nothing twice. --batch-file FILE writes the requests instead, for OpenAI's
Batch API or `vllm run-batch`; --batch-results FILE reads the replies. --compare asks about every
unmarked row of several images and prints how often label and rules agree.
"""

import argparse
import hashlib
import json
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.hub import jpeg_url
from data.mark import (
    FROM_END,
    NOUN,
    Reason,
    Unclear,
    mark,
    marked_spans,
    names,
    result_of,
    unmarked,
)
from perl.permute import MARK, DataError, check_marks, plain, rows, sample_of, vocabulary

# --- What the model is asked -------------------------------------------------------------------

ORDER_PROMPT = """\
You prepare questions about several images for training. The images of a question will be shown in
another order, in the same places of the text. Decide whether the question can stay the same
question, and mark every word that names an image by its place.

Answer permute = true if any order of the images asks the same question once the marked words are
renamed. Answer permute = false if the order itself means something: a story, before and after,
steps, frames of a video, a question about what comes next, or a text that describes each image
where it stands. If you are not certain, answer false.

If permute is true, copy question and answer character by character, and put each word that names
the image in slot k (counted from 1) into a mark [[k|word]]. Mark numbers, letters, ordinals and
sides: "The [[1|left]] image", "Image [[2|2]]", "the [[3|third]] picture". Do not mark words that
speak of something inside an image, such as "the dog on the left", and not the letter of an option
that is a text. stem is the number of leading images that must stay where they are: 1 for a
reference image that stands first and is followed by options that are images, else 0."""

REPHRASE_PROMPT = """\
You turn open questions about several images into multiple choice whose options are the images.
Say which image is the right answer, counted from 1, and which image, if any, is the reference
that the others are compared with (0 for none); the reference is no option. Rewrite the question so
that it asks for one of the options, in one sentence, without naming any image by number, letter or
side, and without a placeholder. Answer possible = false if the right answer is not one image."""

REASONS = ("story", "time", "steps", "captions", "uncertain")


def an_object(properties: dict) -> dict:
    """A JSON schema as OpenAI's strict mode wants it: every property required, no other."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


ORDER_SCHEMA = an_object(
    {
        "label": {
            "anyOf": [
                an_object(
                    {
                        "permute": {"type": "boolean", "enum": [False]},
                        "reason": {"type": "string", "enum": list(REASONS)},
                    }
                ),
                an_object(
                    {
                        "permute": {"type": "boolean", "enum": [True]},
                        "stem": {"type": "integer", "enum": [0, 1, 2]},
                        "answer": {"type": "string"},
                        "question": {"type": "string"},
                    }
                ),
            ]
        }
    }
)
REPHRASE_SCHEMA = an_object(
    {
        "possible": {"type": "boolean"},
        "right": {"type": "integer", "enum": list(range(1, 17))},
        "reference": {"type": "integer", "enum": list(range(17))},
        "question": {"type": "string"},
    }
)


@dataclass(frozen=True)
class Request:
    """One question to the server; `key` names it in the cache."""

    body: dict

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.body, sort_keys=True).encode()).hexdigest()[:32]


def request(row: dict, folder: Path, args, attempt: int) -> Request:
    """What is asked about a row. A further attempt differs in its seed alone."""
    text = f"{len(row['images'])} images.\nQuestion: {row['question']}\nAnswer: {row['answer']}"
    content: str | list = text
    if args.rephrase:
        content = [{"type": "text", "text": text}]
        for name in row["images"]:
            url = {"url": jpeg_url(folder / name, side=512, quality=90), "detail": "low"}
            content.append({"type": "image_url", "image_url": url})
    schema = REPHRASE_SCHEMA if args.rephrase else ORDER_SCHEMA
    body = {
        "model": args.model,
        "messages": [
            {"role": "system", "content": REPHRASE_PROMPT if args.rephrase else ORDER_PROMPT},
            {"role": "user", "content": content},
        ],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "label", "schema": schema, "strict": True},
        },
        "max_completion_tokens": args.max_tokens,
        "temperature": 0.0 if attempt == 0 else 1.0,
        "seed": attempt,
    }
    return Request(body)


# --- Is a label right? --------------------------------------------------------------------------


class Refused(ValueError):
    """A label that is not accepted, and why."""


CONTRADICTS = (Reason.TIME, Reason.TURNS, Reason.CAPTION, Reason.EQUAL, Reason.ONE_IMAGE)


def accepted(row: dict, label: dict, folder: Path = Path()) -> dict:
    """The row with an order label taken over. Raises Refused for a label that is not right."""
    check_form(label)
    if not label["permute"]:
        return row | {"permute": False, "why": f"labelled: {label['reason']}"}
    if row.get("permute") is False and not row.get("why", "").startswith(UNDECIDED):
        raise Refused("the row is declared not permutable")
    n, stem = len(row["images"]), label["stem"]
    if plain(label["question"]) != row["question"] or plain(label["answer"]) != row["answer"]:
        raise Refused("the text was changed")
    if n - stem < 2:
        raise Refused(str(Reason.ONE_IMAGE))
    try:
        check_marks("question", label["question"], n, stem)
        check_marks("answer", label["answer"], n, stem)
    except DataError as error:
        raise Refused(f"a mark that cannot be moved: {error}") from None
    for text in (label["question"], label["answer"]):
        half = marked_unlike(text) or unmarked_sibling(text, n, stem)
        if half:
            raise Refused(f"marked once and once not: {half!r}")
        other = marks_no_image(text)
        if other:
            raise Refused(f"a mark on a word that names no image: {other!r}")
    if FROM_END.search(plain(label["answer"])) and MARK.search(label["answer"]):
        raise Refused(str(Reason.FROM_END))
    check_rules(row, label, folder)
    found = row | {"question": label["question"], "answer": label["answer"], "permute": True}
    found.pop("why", None)
    return found | ({"stem": stem} if stem else {})


def check_form(label: object) -> None:
    """Raises Refused for a reply without the fields of the schema, or with others' types."""
    if not isinstance(label, dict) or type(label.get("permute")) is not bool:
        raise Refused("no label in the asked form")
    kinds = (
        {"reason": str} if not label["permute"] else {"stem": int, "question": str, "answer": str}
    )
    for name, kind in kinds.items():
        if type(label.get(name)) is not kind:
            raise Refused("no label in the asked form")


def unmarked_sibling(text: str, n: int, stem: int) -> str:
    """A word of a marked word's own form that stands after "the" without a mark: "the [[1|left]]
    image has more than the right"; "" if there is none. Numbers and letters alone say too little.
    """
    bare, spans = plain(text), marked_spans(text)
    for m in MARK.finditer(text):
        form = vocabulary(n, stem).get((int(m[1]), m[2].lower()), {})
        for word in form.values():
            if not re.fullmatch(r"[a-z]{2,}", word):
                continue
            for other in re.finditer(rf"\bthe {word}\b", bare.lower()):
                if (other.start() + 4, other.end()) not in spans:
                    return other[0]
    return ""


def marks_no_image(text: str) -> str:
    """A marked ordinal or side before a noun that is none of an image, "the [[1|first]] lady"; ""
    if there is none.
    """
    for m in MARK.finditer(text):
        if not re.fullmatch(r"[a-z]{3,}|\d+(?:st|nd|rd|th)", m[2].lower()):
            continue
        after = re.match(r"[ -]([a-z]+)", plain(text[m.end() :]).lower())
        before = re.search(
            rf"(?:{NOUN}) (?:(?:on|to|at|in|number) )?(?:the )?$", plain(text[: m.start()]).lower()
        )
        if after and not before and not re.fullmatch(rf"{NOUN}|{FUNCTION_WORD}", after[1]):
            return f"{m[2]} {after[1]}"
    return ""


FUNCTION_WORD = (
    "(?:ones?|and|or|than|to|of|is|are|was|has|have|does|do|shows?|contains?|but|in|on|with|from"
    "|hand|side|for|as|not|also|than|while|vs|patient|panel|figure|diagram|option|view|scene)"
)


def marked_unlike(text: str) -> str:
    """A phrase of word and noun ("left image", "image 2") that is marked at one place and stands
    without a mark, or with another slot, at another; "" if there is none.
    """
    bare = plain(text)
    slots = dict(zip(sorted(marked_spans(text)), (int(m[1]) for m in MARK.finditer(text))))
    for (start, end), slot in slots.items():
        after = re.match(rf"\W{{0,2}}(?:{NOUN})\b", bare[end:].lower())
        before = re.search(rf"(?:{NOUN})\W{{0,2}}$", bare[:start].lower())
        low = end + (after.end() if after else 0)
        high = start - (len(before[0]) if before else 0)
        if not (after or before):
            continue
        phrase = bare[high:low]
        for other in re.finditer(rf"(?<!\w){re.escape(phrase)}(?!\w)", bare, re.IGNORECASE):
            span = (other.start() + start - high, other.start() + end - high)
            if slots.get(span) != slot:
                return phrase
    return ""


def check_rules(row: dict, label: dict, folder: Path) -> None:
    """Raises Refused where the rules contradict the label."""
    stem = {"stem": label["stem"]} if label["stem"] else {}
    raw = {name: row[name] for name in ("images", "question", "answer")}
    verdict = mark(raw | stem | {"permute": True}, folder)
    if verdict.reason in CONTRADICTS:
        raise Refused(f"the rules refuse it: {verdict.reason}")
    if verdict.permute and verdict.written_out:
        raise Refused("a set or a range of images, which has no single word")
    if verdict.permute:
        for name, ours in (("question", verdict.question), ("answer", verdict.answer)):
            if plain(ours) == row[name] and ours != label[name]:
                raise Refused(f"the rules mark other words in the {name}")
    missed = unmarked(label["question"], label["answer"], len(row["images"]))
    if missed:
        raise Refused(f"the rules see a name without a mark: {missed[0]!r}")


def rephrased(row: dict, label: dict, folder: Path = Path()) -> dict:
    """The row as multiple choice whose options are images: the reference first, the others in
    their order, the letter of the right one as the answer. Raises Refused.
    """
    if not label["possible"]:
        raise Refused("the right answer is not one image")
    n, right, reference = len(row["images"]), label["right"], label["reference"]
    if right > n or reference > n or right == reference:
        raise Refused("no such image")
    options = [k for k in range(1, n + 1) if k != reference]
    if len(options) < 2:
        raise Refused(str(Reason.ONE_IMAGE))
    text = " ".join(label["question"].split())
    if not text or "<image>" in text:
        raise Refused("the question holds a placeholder, or is empty")
    try:
        if MARK.search(text) or MARK.search(names(text, n)):
            raise Refused("the question names an image by its place")
    except Unclear as why:
        raise Refused(f"the question may name an image: {why}") from None

    stem = 1 if reference else 0
    letters = "ABCDEFGHIJKLMNOP"[: len(options)]
    lines = ["<image> " * stem + text] + [f"{letter}. <image>" for letter in letters]
    place = options.index(right)
    order = [reference] * stem + options
    answer = f"[[{stem + place + 1}|{letters[place]}]]"
    found = row | {
        "images": [row["images"][k - 1] for k in order],
        "question": "\n".join(lines),
        "answer": answer,
        "permute": True,
        "asked_before": {"question": row["question"], "answer": row["answer"]},
    }
    found.pop("why", None)
    return found | ({"stem": 1} if stem else {})


# --- Which rows are asked about -----------------------------------------------------------------

UNDECIDED = tuple(
    str(reason)
    for reason in (
        *(Reason.UNCERTAIN, Reason.DOUBT, Reason.PART, Reason.SIDE, Reason.POINTING),
        *(Reason.MIXED, Reason.LANGUAGE, Reason.OPTIONS, Reason.ANSWER, Reason.NO_WORD),
    )
)


def is_open(row: dict, folder: Path) -> bool:
    """Do the rules leave this row undecided? What is marked or declared, but for a `why` of the
    rules' doubt, is decided.
    """
    if len(row["images"]) < 2 or MARK.search(row["question"] + row["answer"]):
        return False
    if "permute" in row:
        return row["permute"] is False and row.get("why", "").startswith(UNDECIDED)
    verdict = mark(row, folder)
    return not verdict.permute and str(verdict.reason) in UNDECIDED


# --- Asking -------------------------------------------------------------------------------------


class Cache:
    """Replies by the key of their request, each appended as it comes, and the tokens `used`."""

    def __init__(self, path: Path):
        self.path = path
        self.replies: dict[str, dict] = {}
        self.used: Counter[str] = Counter()
        self.writing = threading.Lock()
        if path.exists():
            lines = path.read_text(encoding="utf-8").split("\n")
            whole = lines[:-1]  # a kill may have torn the last line
            if lines[-1]:
                path.write_text("".join(line + "\n" for line in whole), encoding="utf-8")
            for line in whole:
                reply = json.loads(line)
                self.replies[reply["key"]] = reply
                self.used.update(reply["usage"])
        self.file = open(path, "a", encoding="utf-8")

    def add(self, key: str, text: str | None, finished: bool, usage: dict) -> None:
        reply = {"key": key, "text": text, "finished": finished, "usage": usage}
        with self.writing:
            self.replies[key] = reply
            self.used.update(usage)
            self.file.write(json.dumps(reply, ensure_ascii=False) + "\n")
            self.file.flush()


def label_in(reply: dict) -> dict | None:
    """The label of a reply; None for one that is cut off or no JSON."""
    if not reply["finished"]:
        return None
    try:
        label = json.loads(reply["text"])
    except (TypeError, ValueError):
        return None
    if not isinstance(label, dict):
        return None
    return label.get("label", label)


ATTEMPTS = 3  # of a reply that is cut off, or no JSON


class Asker:
    """Asks the server, at most once for each request."""

    def __init__(self, args, cache: Cache):
        import openai

        self.args, self.cache = args, cache
        key = os.environ.get("OPENAI_API_KEY", "none")
        self.client = openai.OpenAI(
            base_url=args.base_url, api_key=key, max_retries=args.retries, timeout=600
        )

    def __call__(self, row: dict, folder: Path) -> dict | str:
        """The label of a row, or why there is none. Raises SystemExit, one sentence, where no
        request can succeed.
        """
        import openai

        for attempt in range(ATTEMPTS):
            asked = request(row, folder, self.args, attempt)
            if asked.key not in self.cache.replies:
                try:
                    completion = self.client.chat.completions.create(**asked.body)
                except openai.BadRequestError as error:
                    return f"the server refused it: {sentence(error)}"
                except openai.APIConnectionError:
                    raise SystemExit(f"no server answers at {self.args.base_url}") from None
                except openai.APIStatusError as error:
                    raise SystemExit(f"{self.args.base_url}: {sentence(error)}") from None
                choice, usage = completion.choices[0], completion.usage
                spent = {"in": usage.prompt_tokens, "out": usage.completion_tokens}
                finished = choice.finish_reason == "stop"
                self.cache.add(asked.key, choice.message.content, finished, spent)
            label = label_in(self.cache.replies[asked.key])
            if label is not None:
                return label
        return "no whole reply in JSON"


def sentence(error) -> str:
    """A server's error as one line."""
    body = error.body if isinstance(error.body, dict) else {}
    return " ".join(str(body.get("message") or error).split())[:300]


def ask_all(asked: Sequence[dict], folder: Path, args, cache: Cache) -> list[dict | str]:
    """A label, or why there is none, for each row. After an error that ends the run nothing more
    is sent; replies that are on their way are kept.
    """
    from tqdm import tqdm

    asker = Asker(args, cache)
    pool = ThreadPoolExecutor(args.concurrency)
    futures = [pool.submit(asker, row, folder) for row in asked]
    found = []
    try:
        with tqdm(total=len(asked), desc="labels", dynamic_ncols=True) as bar:
            for future in futures:
                found.append(future.result())
                bar.set_postfix(tokens_in=cache.used["in"], tokens_out=cache.used["out"])
                bar.update()
    finally:
        pool.shutdown(cancel_futures=True)
    return found


def write_batch(asked: Sequence[dict], folder: Path, args, cache: Cache) -> int:
    """The first requests that have no reply yet, in the format of OpenAI's Batch API."""
    count = 0
    with open(args.batch_file, "w", encoding="utf-8") as file:
        for row in asked:
            one = request(row, folder, args, 0)
            if one.key in cache.replies:
                continue
            line = {"custom_id": one.key, "method": "POST", "url": "/v1/chat/completions"}
            file.write(json.dumps(line | {"body": one.body}, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_batch(path: str, cache: Cache) -> None:
    """Replies of a batch into the cache. Raises DataError for a file that holds none."""
    for where, line in rows(path):
        try:
            response = line["response"] or {}
            body = response.get("body") or {}
            if not body.get("choices"):
                continue  # an error of its own: asked again by the next batch
            choice, usage = body["choices"][0], body.get("usage") or {}
            spent = {"in": usage.get("prompt_tokens", 0), "out": usage.get("completion_tokens", 0)}
            if line["custom_id"] not in cache.replies:
                finished = choice["finish_reason"] == "stop"
                cache.add(line["custom_id"], choice["message"]["content"], finished, spent)
        except (KeyError, TypeError, IndexError):
            raise DataError(f"{where}: no result of a batch") from None


def labels_in_cache(asked: Sequence[dict], folder: Path, args, cache: Cache) -> list[dict | str]:
    found = []
    for row in asked:
        reply = cache.replies.get(request(row, folder, args, 0).key)
        label = label_in(reply) if reply else None
        found.append("no reply in the batch" if label is None else label)
    return found


# --- Rows in, rows out --------------------------------------------------------------------------


def taken_over(row: dict, label: dict | str, folder: Path, take: Callable) -> tuple[dict, str]:
    """The row after its label, and what became of it, as it is counted."""
    try:
        if isinstance(label, str):
            raise Refused(label)
        found = take(row, label, folder)
    except Refused as why:
        if take is rephrased:
            return row, f"not rephrased: {str(why).split(':')[0]}"
        false = row | {"permute": False, "why": f"label refused: {why}"}
        return false, f"label refused: {str(why).split(':')[0]}"
    except (KeyError, TypeError):
        return row | {"permute": False, "why": "label refused: no such form"}, "label refused"
    return found, "permutable" if found["permute"] else str(found["why"])


def agreement(asked: Sequence[dict], labels: Sequence[dict | str], folder: Path) -> str:
    """A table: on the rows that both decide, how often label and rules say the same, by what the
    rules say. A label is taken as it is, before any check.
    """
    counts: dict[str, Counter] = {}
    for row, label in zip(asked, labels):
        if isinstance(label, str) or "permute" not in label:
            continue
        raw = {name: row[name] for name in ("images", "question", "answer")}
        verdict = mark(raw, folder)
        if not verdict.permute and str(verdict.reason) in UNDECIDED:
            continue
        kind = "permutable" if verdict.permute else str(verdict.reason)
        counted = counts.setdefault(kind, Counter())
        counted["rows"] += 1
        counted["same"] += label["permute"] == verdict.permute
        if verdict.permute and label["permute"]:
            counted["both"] += 1
            same = (label["question"], label["answer"]) == (verdict.question, verdict.answer)
            counted["same marks"] += same
    lines = ["| rules | rows | label agrees | same marks |", "|---|---|---|---|"]
    for kind, counted in sorted(counts.items()):
        marks = f"{counted['same marks']} of {counted['both']}" if counted["both"] else ""
        lines.append(f"| {kind} | {counted['rows']} | {counted['same']} | {marks} |")
    return "\n".join(lines)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("data", metavar="RAW.jsonl")
    p.add_argument("--base-url", metavar="URL", help="of an OpenAI-compatible server")
    p.add_argument("--model", required=True, help="its name on the server; there is no default")
    p.add_argument("--out", required=True, metavar="MARKED.jsonl")
    p.add_argument("--rephrase", action="store_true", help="open questions to multiple choice")
    p.add_argument("--compare", action="store_true", help="ask about every row, print agreement")
    p.add_argument("--batch-file", metavar="FILE", help="write the requests and ask nobody")
    p.add_argument("--batch-results", metavar="FILE", help="read the replies and ask nobody")
    p.add_argument("--concurrency", type=int, default=32, help="requests at a time")
    p.add_argument("--retries", type=int, default=6, help="of a request that a server fails")
    p.add_argument("--max-tokens", type=int, default=1024, help="of a reply")
    args = p.parse_args(argv)
    if not (args.base_url or args.batch_file or args.batch_results):
        p.error("--base-url, --batch-file or --batch-results says whom to ask")
    return args


def read_rows(source: Path) -> list[dict]:
    """The rows of a file. Raises DataError for one that is none of ours."""
    read = []
    for where, row in rows(source):
        try:
            sample_of({"id": "", "answer": "x"} | row)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        read.append(row)
    return read


def is_asked(row: dict, folder: Path, compare: bool) -> bool:
    several = len(row["images"]) > 1 and not MARK.search(row["question"] + row["answer"])
    return several and (compare or is_open(row, folder))


def write_rows(
    read: Sequence[dict], labels: dict[int, dict | str], source: Path, out: Path, rephrase: bool
) -> Counter:
    """All rows in their order: as their label says, where there is one, else as the rules say.
    Returns what became of the labelled ones.
    """
    folder, take = source.parent, rephrased if rephrase else accepted
    counts: Counter[str] = Counter()
    aside = out.with_suffix(".tmp")
    with open(aside, "w", encoding="utf-8") as file:
        for k, row in enumerate(read):
            if k in labels and is_open(row, folder):
                found, what = taken_over(row, labels[k], folder, take)
                counts[what] += 1
                paths = [os.path.relpath(folder / name, out.parent) for name in found["images"]]
                found = found | {"images": paths}
            else:
                found = result_of(row, source, out).row
            file.write(json.dumps(found, ensure_ascii=False) + "\n")
    aside.replace(out)
    return counts


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    source, out = Path(args.data), Path(args.out)
    folder = source.parent
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        cache = Cache(out.with_suffix(".cache.jsonl"))
        read = read_rows(source)
        if args.batch_results:
            read_batch(args.batch_results, cache)
    except (DataError, OSError) as error:
        sys.exit(f"label.py: {error}")

    wanted = [k for k, row in enumerate(read) if is_asked(row, folder, args.compare)]
    asked = [read[k] for k in wanted]
    print(f"{len(read)} rows, {len(asked)} to be labelled", file=sys.stderr)
    if args.batch_file:
        count = write_batch(asked, folder, args, cache)
        print(f"{args.batch_file}: {count} requests", file=sys.stderr)
        return
    if args.batch_results:
        labels = labels_in_cache(asked, folder, args, cache)
    else:
        try:
            labels = ask_all(asked, folder, args, cache)
        except SystemExit as error:
            sys.exit(f"label.py: {error}; {len(cache.replies)} replies are kept in {cache.path}")

    counts = write_rows(read, dict(zip(wanted, labels)), source, out, args.rephrase)
    for what, count in counts.most_common():
        print(f"{count:8d} {what}", file=sys.stderr)
    if args.compare:
        print(agreement(asked, labels, folder))
    refused = [label for label in labels if isinstance(label, str) and "server refused" in label]
    if refused:
        said = f"label.py: {len(refused)} requests failed, the first: {refused[0]}"
        sys.exit(said) if len(refused) == len(labels) else print(said, file=sys.stderr)


if __name__ == "__main__":
    main()
