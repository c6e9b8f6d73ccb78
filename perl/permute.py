"""Permute the images of a question so that what was true stays true: Eq. (1) of PeRL (arXiv 2506.14907), exactly.

Slot j of the permuted sample shows old image sigma[j] (0-based); q = sigma^-1: old image i now stands in slot q[i].
Recognise, rewrite, mask, refuse the rest: FORMS lists words for slots, WAYS the ways to name an image with them; the
form stays, the slot changes. With every name masked as "@", a position word that is left, or a wording of REFUSE, may
mean an image in a way unknown here: Refused, with the reason. Each result is permuted back and compared.
Deviations: the paper asks GPT-4o which answers follow their image, here the data says it (ORDERS). The release edits no
text, flips A/B instead (wrong for "the left image shows a dog" when both do), and draws one sigma for ever.

    python perl/permute.py IN.jsonl [--sigma 1,0] [--n-s 1] [--seed 0] [--out OUT.jsonl]
"""
import argparse
import json
import random
import re
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import factorial
from pathlib import Path

ORDERS = {"invariant": "only images move", "options": "the letter follows its image", "index": "the answer is an image",
          "references": "the text names images", "sequence": "the answer orders images", "fixed": "never permuted"}

class DataError(ValueError):
    """A data file cannot be used: one sentence with file, line and field."""

class Refused(ValueError):
    """The sample cannot be permuted exactly; `reason` says why."""
    reason = property(str)

@dataclass(frozen=True)
class Sample:
    """One question; `question` holds one `<image>` per image, in order; `stem` leading images never move."""
    id: str
    images: tuple[str, ...]
    question: str
    answer: str
    order: str = "fixed"
    stem: int = 0
    where: str = field(default="", compare=False)  # file and line it was read from, for error messages

@dataclass(frozen=True)
class Copy:
    """One member of a group. `refused`: why it is identical ("" when permuted, or when the coin said no)."""
    sample: Sample
    sigma: tuple[int, ...]
    refused: str = ""

# --- words for slots: a form has one word per slot
ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth"
FORMS = [row.split() for row in (
    ORDINALS, "1st 2nd 3rd 4th 5th 6th 7th 8th 9th 10th", "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20",
    "one two three four five six seven eight nine ten", "A B C D E F G H", "a b c d e f g h", "I II III IV V VI VII",
    "一 二 三 四 五 六 七 八 九 十", "甲 乙 丙 丁", "① ② ③ ④ ⑤")]
FROM_END = ["last|second to last|third to last|fourth to last".split("|"), "最后一 倒数第二 倒数第三 倒数第四".split()]
ROWS = {2: "left right|leftmost rightmost|left-hand right-hand|lefthand righthand|top bottom|initial final|左 右",
        3: "left middle right|左 中 右"}

@lru_cache
def _vocabulary(n: int) -> dict[str, tuple]:
    """word -> its form, n words long ("" where it has none), and its slot"""
    forms = [(form + [""] * n)[:n] for form in FORMS + [row.split() for row in ROWS.get(n, "").split("|")]]
    forms += [([""] * n + form[:n][::-1])[-n:] for form in FROM_END if n > 2]
    return {word: (form, slot) for form in forms for slot, word in enumerate(form) if word}

# --- the ways to name an image: the one group of a way holds the words that say which
NOUN = r"(?i:image|picture|photo(?:graph)?|pic|img)s?(?![a-z])"
SIDE = "left-hand|right-hand|leftmost|rightmost|lefthand|righthand|left|right|top|bottom|middle|central|upper|lower"
ORDINAL = f"{'|'.join(FORMS[0] + FORMS[1])}|last|initial|final|penultimate"
PLACE, HAN = rf"(?i:(?:second|third|fourth) to last|{ORDINAL}|{SIDE})(?! to)", r"(?:[一二三四五六七八九十]|[1-9](?!\d))"
NUMBER = (rf"(?:(?i:{'|'.join(FORMS[3])})\b|[1-9]\d?(?![\w%]|[.,:]\w|[-–~～至到]| ?(?i:[kmg]b|px)\b)|[A-H]\b|[IVX]+\b"
          r"|(?<=\()[a-h](?=\)))")
AND = r"(?:[)\]]?(?:, ?(?:and |or )?| (?:and|or|&|vs\.?) |[和与或及、]|(?<=\))(?=\())(?:[Tt]he |第)?[(\[]?)"
PLACES, NUMBERS, HANS = (rf"{token}(?:{AND}{token})*" for token in (PLACE, NUMBER, HAN))
WAYS = (rf"(?<![-\w])(?<![Aa] (?=second))(?!(?:(?<=to the )|(?<=on the ))(?:{SIDE}){AND})(?P<place>{PLACES}) {NOUN}",
        rf"\b{NOUN} (?:on|to|at) (?:the )?(?P<side>(?i:{SIDE}))(?: hand)?(?: side)?\b(?! of)",
        rf"\b(?:{NOUN}|(?i:figures?\b|figs?\b\.?|panel\b))(?: number )?[ #_-]*[(\[]?(?P<number>{NUMBERS})[)\]]?",
        rf"(?P<han>最后一|倒数第{HAN}|第{HANS})(?:[张幅副个]?图[片像]?(?!书|形)|[张幅](?=$|[\s，。？?是有和哪里中的]))",
        rf"(?:(?<!地)图[片像]?|照片)[（(]?(?P<hanumber>{HAN}(?![样张])|[A-H](?!\w)|[①-⑤甲乙丙丁])",
        r"(?P<hanside>[左右中])(?:[边侧]的?)?[张幅]?(?:图[片像]?(?!书|形)|照片)")
BARE = rf"(?:[Tt]he )?[(\[]?(?P<bare>{PLACES}|{NUMBERS})[)\]]?(?: ones?)?[.。]?$"
NAMES, NAMES_IN_OPTIONS, NAMES_IN_ANSWER = (re.compile("|".join((*bare, *WAYS)), re.M) for bare in (
    (), (r"(?:(?<=^\([A-Z]\) )|(?<=^[A-Z]\. ))" + BARE,), (r"\A" + BARE,)))
BEFORE = [re.compile(rf"\b(?:{more}an?|one|each|every|any|no|another|which|two|three|\d) $")
          for more in ("", "the|this|its|")]
WORD = re.compile(
    r"(?<![a-z])(?!(?:and|or|vs|the)\b)(?:[a-z]+ to last|[a-z]+-hand|[a-z]+|\d+\w*)|最后一|倒数第.|(?!第)[①-⑤一-龥]", re.I)
AFTER = re.compile(  # what may follow "image 2", but no count of things
    r" ?[^\w\s]|\s*$|\s*\n|[一-龥]| (?:is|are|was|has|have|do|does|and|or|but|while|in|on|at|of|for|from|to|with|as|than|that|not"
    r"|can|shows?|depicts?|contains?|features?|match|agree|both|only|also|similar|like|\w+er|there|an?|the)\b", re.I)

def _rename(text: str, q: tuple, names: re.Pattern = NAMES) -> tuple[str, str]:
    """`text` with every name of old image i as slot q[i] says it; and in lower case, with "@" for every name."""
    words, out, masked, end = _vocabulary(len(q)), [], [], 0
    def say(word: re.Match) -> str:  # in its own form and capitals
        form, slot = words.get(word[0]) or words.get(word[0].lower()) or ([""] * len(q), 0)
        if not (new := form[q[slot]]):
            raise Refused(f"{word[0]!r} is none of the images for certain, or has no word for the new place")
        new = new[0].upper() + new[1:] if word[0][0].isupper() else new
        return new.upper() if word[0].isupper() and len(word[0]) > 1 else new
    for m in names.finditer(text):
        way, before = m.lastgroup, text[:m.start()].lower()
        if (BEFORE[way == "number"].search(before[-9:]) or way in ("number", "side") and not AFTER.match(text, m.end())
                or m[way] == "second" and re.search(r"\b(?:one|an?) image", before) and "first" not in before):
            raise Refused(f"{m[0]!r} may not be the name of an image")
        out += [text[end:m.start(way)], WORD.sub(say, m[way]), text[m.end(way):m.end()]]
        masked += [text[end:m.start()], "@"]
        end = m.end()
    return "".join(out) + text[end:], ("".join(masked) + text[end:]).lower()

# --- What may not be left over once every name is "@" ---
IMAGE = r"(?:@|(?:image|picture|photo(?:graph)?|pic|img|figure|fig)s?(?![a-z]))"
ONE = r"@|\b(?:one|an?|single|which) (?:\w+ )?(?:image|picture|photo)|一[张幅]"
TIME, POINT, PART = "temporal or story wording", "an image named by pointing", "a position of something else"
REFUSE = [(reason, re.compile(pattern, re.M)) for reason, pattern in (
    (TIME, r"\b(?:videos?|(?:first|last|second|next|following|these) frames?|(?:a|the|this) story|sequen\w+|chronolog\w+|timeline"
     r"|time-?lapse|over time|no longer|consecutive|success\w+|happen\w*|comes? next|before|after|earlier|later|then|changed?"
     r"|missing|in (?:\w+ )?order|disappear\w*)\b|先后|依次|顺序|变化|步|接下来|随后|之后|之前|故事|视频|帧"),
    ("several turns", r"^\s*(?:user|human|assistant|gpt|用户|助手) ?[:：]|<\||^\s*(?:q|question|example) ?[2-9]? ?[:.]"),
    (POINT, r"\b(?:previous|preceding|prior|subsequent|adjacent|former|latter|next to last)\b|[这那前后上下][一两二三四]?[张幅]"
     rf"|\b(?:this|that|next|following|above|below) (?:\w+ )?{IMAGE}|{IMAGE} (?:above|below|following|to the)\b"
     r"|第.个[？是有和]|[上下]图|[前后]者"),
    (PART, rf"{IMAGE}(?:[ #_,.$(]{{0,3}}\d(?! ?[kmg]b)| [b-h]\b| (?:label|mark|number|named)"
     r"| (?:in|of|from|on) (?:the |an? )?(?:\w+ )?(?:row|column|page|series))|#\d|@.?[-–].?\d|@ (?:pair|set|group|half|part)"
     rf"|\b(?:(?:{SIDE})[ -](?:(?!in|on|of|is|and|with|the|an?\b)[\w-]+ )?{IMAGE}|(?:{SIDE}),? (?:and |or )?(?:the )?@"
     rf"|the (?:{SIDE}) ones?\b|(?<!on )(?<!to )(?<!at )the (?:left|right)(?=$|[.,;:?!)]| (?:is|has|shows|contains|and)\b)"
     r"|(?:option|choice|candidate|animal|bird|person|room|step|day|painting|drawing|plot|slide|diagram|graph|chart|map|view"
     r"|panel) ?[(#]?\d|which (?:is|one)\b(?s:.*)^\(?[a-z][).] ?\d|a second(?s:.*)@)|(?s:@.*)\ba second"
     rf"|@ (?:to|through|and|or|&) \d|\((?:{SIDE}|{ORDINAL})\b|(?<!\ba )\b(?:{ORDINAL}|\d+th|\w+teenth|eleventh|twelfth)\b"
     r"(?! (?:row|column|person|place|half|floor|hand|class)\b)"),
    (PART, r"@[^\n]*(?:(?<![(\n])\b[b-h]\b(?![).:])|\b\d (?:is|has|shows?|contains?|depicts?)\b)"),
    ("a language other than English and Chinese", r"[\u3040-\u30ff\uac00-\ud7af\u0370-\u0eff]|(?:\b(?:der|das|und|ist|ein|nicht"
     r"|les|une|dans|est|los|las|una?|la|con|che|il|della|uma|het|een)\b.*){2}"))]
STILL = re.compile(  # directions and parts that need no image
    r"\b(?:(?:fac|look|point|head|turn|angl)\w+(?: directly)?|to the|towards?(?: the)?|their|his|her|its|all) (?:left|right)\b"
    r"|\b(?:left|right)[- ](?:arm|leg|hand|foot|eye|ear|wing|side|half|angle|triangle|of|next)\b|[左右][手脚臂腿转]|[朝向][左右]")
WHICH = re.compile(r"(?i)\bwhich(?: of)?(?: the| these| two| three| other)* (?:image|picture|photo)|哪[一几]?[张幅个]?图?")
OTHER = re.compile(rf"\bthe (?:other|remaining)\b(?: (?:\w+ )?{IMAGE}| ones?\b| (two|three))|另|其余|(\breference {IMAGE})")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MARK = re.compile(r"(?:^[ \t]*(?:\(([A-Z])\)|([A-Z])[.):．：、])|(?<=\s)\(([A-Z])\)(?=[ \t]))[ \t]*(?=\S)", re.M)
LEAD = re.compile(r"(?:^|[.?!。？！>]|(?i:images|pictures|photos|options)\W*|图片?\W*)\s*(?:\n\(?[A-Z][.):：、]?\s*)?$")
ROW_OF_IMAGES = r"(?:<image[_\d]*>(?:\W*(?:and|or|vs)?\s*|\s*\n\(?[A-Z][.):：、]?\s*))+"
GLUED = re.compile(r"[ \t]*(?:[:：=]|(?:is|was|shows|depicts|has)\b)")

def _refuse_leftovers(masked: str, n: int, order: str) -> None:
    for reason, pattern in REFUSE:
        if (reason != TIME or order not in ("options", "sequence")) and (m := pattern.search(masked)):
            raise Refused(f"{reason}: {' '.join(m[0].split())[:40]!r}")
    for m in OTHER.finditer(masked):  # "one image ... the other image" is safe, and of two only
        if not (re.search(rf"\bone\b|{ONE}", masked[:m.start()]) and (n == 2 or m[1]) or m[2] and "@" in masked):
            raise Refused(f"{POINT}: {m[0]!r}")
    for sentence in re.split(r"(?<=[.?!])\s|\n", STILL.sub("", masked)):
        m = re.search(r"\b(?:left|right)(?:most|-?hand)?\b|[左右]", sentence)
        if m and not re.search(ONE, sentence[:m.start()]):
            raise Refused(f"a side that may be an image: {sentence[:m.end()][-30:]!r}")

# --- the sample
def inverse(sigma) -> tuple[int, ...]:
    """q = sigma^-1: old image i stands in slot q[i]."""
    return tuple(sorted(range(len(sigma)), key=lambda slot: sigma[slot]))

def options(question: str) -> dict[str, str]:
    """The lettered options of a question, e.g. {"A": "True", "B": "False"}; {} when it has none."""
    marks = list(MARK.finditer(question))
    ends = [m.start() for m in marks[1:]] + [len(question)]
    found = {m[m.lastindex]: question[m.end():end].split("\n")[0].rstrip() for m, end in zip(marks, ends)}
    opens = len(marks) > 1 and re.search(r"(^|[?:.!>\n])\s*$", question[:marks[0].start()])
    return found if opens and "".join(found) == LETTERS[:len(marks)] else {}

def _holes(text: str, n: int, moved: list) -> list:
    """Spans of the placeholders, with labels that only repeat the slot; Refused when words belong to one image."""
    holes = [m.span() for m in re.finditer("<image>", text)] or [
        m.span() for k in range(n) if (m := re.search(f"<image_{k + 1}>", text))]
    if len(holes) != n:
        raise Refused(f"{len(holes)} placeholders for {n} images")
    labels = [re.compile(rf"\s*\n\s*Figure {k}[ \t]*(?:\n\s*|$)").match(text, b) for k, (_, b) in enumerate(holes, 1)]
    if all(labels):
        return [(a, m.end()) for (a, _), m in zip(holes, labels)]
    a, b = holes[moved[0]][0], holes[moved[-1]][1]
    if not (LEAD.search(text[:a]) and re.fullmatch(ROW_OF_IMAGES, text[a:b])) or GLUED.match(text, b):
        raise Refused("words, a label or a caption, are glued to a placeholder")
    return holes

def _answer(x: Sample, q: tuple, asks: bool) -> tuple[str, str]:
    """The answer renamed, and masked; Refused when it has to name images and does not."""
    if x.order == "sequence":
        words, marks = _vocabulary(len(q)), re.findall("[A-Z0-9]", re.sub(NOUN, "", x.answer))
        if not 1 < len(marks) == len(words.keys() & marks) or not re.fullmatch(rf"(?:\W|_|{NOUN}|[A-Z0-9])*", x.answer):
            raise Refused("it is no order of the images")
        new = {mark: words[mark][0][q[words[mark][1]]] for mark in marks}
        return re.sub(rf"{NOUN}|[A-Z0-9]", lambda m: new.get(m[0], m[0]), x.answer), "@"
    answer, masked = _rename(x.answer, q, NAMES_IN_ANSWER if asks else NAMES)
    if x.order == "index" and "@" not in masked:
        raise Refused("it names no image")
    return answer, masked

def _permute(x: Sample, sigma: tuple) -> Sample:
    """`permute` without the round trip."""
    n, q, choices, text, answer, rest = len(sigma), inverse(sigma), options(x.question), x.question, x.answer, ""
    for a, b in (holes := _holes(text, n, [slot for slot, old in enumerate(sigma) if slot != old])):
        text = text[:a] + "\1".ljust(b - a, "\0") + text[b:]  # nothing is named in there
    asks = x.order == "index" or bool(WHICH.search(text)) and not re.search(r"(?i)\bhow m|\bnumber of\b|多少|几", text)
    question, masked = _rename(text, q, NAMES_IN_OPTIONS if asks else NAMES)
    question = re.sub("\1\0*", lambda m, spans=iter(holes): x.question[slice(*next(spans))], question)
    if x.order != "options" and "<image>" in choices.values():
        raise Refused("the options are images: order must be options")
    if x.order == "options":  # the letter follows its image
        if answer not in LETTERS[:n - x.stem] or re.search(rf"{NOUN} [A-H]\b", text):
            raise Refused("the answer is no letter of an image, or the question names a letter")
        answer = LETTERS[q[LETTERS.index(answer) + x.stem] - x.stem]
    elif answer not in choices:  # else its option was renamed, and the letter stays
        if x.order == "references" and re.fullmatch("[A-Z]", answer):
            raise Refused("a letter answer, but no options")
        answer, rest = _answer(x, q, asks)
    elif x.order == "sequence" or x.order == "index" and "@" not in masked:
        raise Refused("the options name no image")
    if x.order == "invariant" and "@" in masked + rest:
        raise Refused("an invariant sample names an image by its position")
    _refuse_leftovers(masked + "\n" + rest, n, x.order)
    return replace(x, images=tuple(x.images[old] for old in sigma), question=question, answer=answer)

def permute(sample: Sample, sigma) -> Sample:
    """The sample with old image sigma[j] in slot j, and every name of an image renamed. Raises Refused."""
    sigma, identity, stem = tuple(sigma), tuple(range(len(sample.images))), sample.stem
    if sigma == identity:
        return sample
    for bad, reason in ((sorted(sigma) != list(identity), f"sigma {sigma} is no order of {len(identity)} images"),
                        (sample.order == "fixed", "fixed"), (sigma[:stem] != identity[:stem], "sigma moves an image of the stem")):
        if bad:
            raise Refused(reason)
    y = _permute(sample, sigma)
    if (y.question, y.answer) != (sample.question, sample.answer) and _permute(y, inverse(sigma)) != sample:
        raise Refused("the rewrite could not be undone exactly")
    return y

def alpha(step: int, total: int, alpha_0: float = 1.0) -> float:
    """alpha_t, the share of samples permuted at 0-based `step`: linear decay from alpha_0 to 0 at `total`."""
    return alpha_0 * max(0.0, 1.0 - step / total)

def _copy(x: Sample, sigma: tuple) -> Copy:
    try:
        return Copy(permute(x, sigma), sigma)
    except Refused as refusal:
        return Copy(x, tuple(range(len(x.images))), refusal.reason)

def copies(sample: Sample, n_s: int, alpha_t: float, seed: int, step: int) -> list[Copy]:
    """The group of Algorithm 1: the original, then n_s copies, permuted if the coin falls below alpha_t. sigma is uniform over
    the other orders of the movable images, and new while there are any. Nothing but the arguments decides."""
    identity, n = tuple(range(len(sample.images))), len(sample.images)
    movable, group = identity[sample.stem:], [Copy(sample, identity)]
    why = "one image" if n < 2 else "fixed" if sample.order == "fixed" else "one movable image" * (len(movable) < 2)
    if why or random.Random(f"{seed}/{step}/{sample.id}").random() >= alpha_t:
        return group + [Copy(sample, identity, why)] * n_s
    for copy in range(n_s):
        if copy % (factorial(len(movable)) - 1) == 0:  # every order is used: start over
            drawn = {movable}
        rng = random.Random(f"{seed}/{step}/{sample.id}/{copy + 1}")
        while (tail := tuple(rng.sample(movable, len(movable)))) in drawn:
            pass
        drawn.add(tail)
        group.append(_copy(sample, identity[:sample.stem] + tail))
    return group

# --- files
def _sample(row: dict) -> Sample:
    """One object of a file, checked."""
    if type(row) is not dict:
        raise DataError("not a JSON object")
    row = {"order": "fixed", "stem": 0} | row
    for name, kind in dict(id=str, images=list, question=str, answer=str, order=str, stem=int).items():
        if type(row.get(name)) is not kind:
            raise DataError(f"{name}: must be a {kind.__name__}" if name in row else f"{name}: missing")
    x = Sample(row["id"], tuple(row["images"]), row["question"], row["answer"], row["order"], row["stem"])
    n, holes, letters = len(x.images), x.question.count("<image>"), list(options(x.question))
    letters = (letters or list(LETTERS))[:n - x.stem] if x.order == "options" else letters
    for good, sentence in ((n and all(name and type(name) is str for name in x.images), "images: must be a list of file names"),
                           (x.order in ORDERS, f"order: {x.order!r} is none of {', '.join(ORDERS)}"),
                           (holes == n, f"question: {holes} <image> for {n} images"),
                           (0 <= x.stem < n, f"stem: {x.stem} is not between 0 and {n - 1}"),
                           (x.order == "sequence" or not letters or x.answer in letters, f"answer: {x.answer!r} is none of {', '.join(letters)}")):
        if not good:
            raise DataError(sentence)
    try:
        _answer(x, tuple(range(n)), True) if x.order in ("index", "sequence") and x.answer not in letters else None
    except Refused as refusal:
        raise DataError(f"answer: {x.answer!r}: {refusal.reason}") from None
    return x

def load(path, check_images: bool = True, absolute: bool = True) -> list[Sample]:
    """The samples of a JSONL file; `absolute`: images as openable paths, relative to the file. Raises DataError."""
    path, seen, out = Path(path), {}, []
    if not (text := path.read_text(encoding="utf-8") if path.is_file() else "").strip():
        raise DataError(f"{path}: " + ("the file is empty" if path.is_file() else "no such file"))
    for number, line in enumerate(text.split("\n"), 1):
        try:
            x = _sample(json.loads(line)) if line.strip() else None
            missing = [name for name in x.images if check_images and not (path.parent / name).is_file()] if x else []
            if x and x.id in seen or missing:
                raise DataError(f"images: file {missing[0]} does not exist" if missing else
                                f"id: {x.id!r} is already in {path.name}:{seen[x.id]}")
        except (DataError, json.JSONDecodeError) as error:
            raise DataError(f"{path.name}:{number}: {'' if type(error) is DataError else 'no JSON: '}{error}") from None
        if x:
            seen[x.id] = number
            images = tuple(str(path.parent / name) for name in x.images) if absolute else x.images
            out.append(replace(x, images=images, where=f"{path.name}:{number}"))
    return out

def main(argv=None) -> None:
    """What permutation does to a data set, before a GPU hour is spent: a line for each copy, a summary on stderr."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", metavar="IN.jsonl")
    p.add_argument("--sigma", help="one order for all, e.g. 1,0: slot j shows old image sigma[j]; default: drawn")
    p.add_argument("--n-s", type=int, default=1, help="permuted copies of a sample")  # paper: Table 2
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", help="default: standard output")
    args, rows, counts = p.parse_args(argv), [], Counter()
    try:
        sigma = tuple(map(int, args.sigma.split(","))) if args.sigma else None
        samples = load(args.data, check_images=False, absolute=False)
    except ValueError as error:
        sys.exit(str(error) if type(error) is DataError else f"--sigma: {args.sigma!r} is no list of slots such as 1,0")
    for x in samples:
        counts[f"kind {x.order}"] += 1
        for copy in [_copy(x, sigma)] if sigma else copies(x, args.n_s, 1.0, args.seed, 0)[1:]:
            y, refused = copy.sample, {"refused": copy.refused} if copy.refused else {}
            row = {"id": y.id, "sigma": copy.sigma, "images": y.images, "question": y.question, "answer": y.answer} | refused
            rows.append(json.dumps(row, ensure_ascii=False) + "\n")
            counts["refused: " + copy.refused.split(": ")[0] if copy.refused else "permuted"] += 1
    (open(args.out, "w", encoding="utf-8") if args.out else sys.stdout).writelines(rows)
    print(f"permuted {counts.pop('permuted', 0)} of {len(rows)}", *(f"{k} {v}" for k, v in sorted(counts.items())), sep="\n",
          file=sys.stderr)

if __name__ == "__main__":
    main()
