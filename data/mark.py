"""Marks by rule: which words of a question name an image, in English and Chinese.

perl/permute.py renames what is marked and reads no language. This file does the reading, once,
into a file that can be looked at before a GPU hour is spent:

    raw      {"permute": true, "question": "<image> <image> The left image shows a dog. ..."}
    marked   {"permute": true, "question": "<image> <image> The [[1|left]] image shows a dog. ..."}

Every row comes out. `permute` is true where any order of the images asks the same question and
every name of an image is marked; else it is false and `why` says why, and the text is as it was.
The rules decide in three steps:

    recognise   WAYS: the ways to name an image with a word that says which; each gives a Name,
                with the slots it names
    doubt       a wording around a name that may mean something else; and REFUSALS, what may not
                be left of the text once every name is masked as "@": a position word that is left
                may be a name in a way unknown here
    mark        each word as [[slot|word]]; a set or a range ("images 2 to 4") has no single word
                for where it goes: it is written out ("images [[2|2]], [[3|3]] and [[4|4]]")

A row may declare `permute`. Declared true, every name is marked, or the row is false with the
reason. Declared false stays false. Without a declaration a row is true only for a question form
of CERTAIN, or where its options are images: never because no forbidden word was found, since
"Each image shows one digit. What number do they make?" has none. What is not certain is false: a
missed permutation costs little, a wrong label a whole group.

    python data/mark.py RAW.jsonl --out MARKED.jsonl [--explain]

Rows of the first version (`order`) are converted: fixed is false, all others were declared true.
Rows with marks are not marked again; a name that the rules see and the marks miss is reported.
The paper asks GPT-4o for this label.
"""

import argparse
import enum
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from perl.permute import (
    CARDINALS,
    CHINESE,
    MARK,
    NUMERALS,
    OLD_KINDS,
    ORDINALS,
    DataError,
    Sample,
    mistake,
    names_a_file_twice,
    plain,
    rows,
    sample_of,
    slot_of,
    vocabulary,
    with_capitals_of,
)


class Reason(enum.StrEnum):
    """Why a row is not permutable."""

    ONE_IMAGE = "fewer than two images can move"
    DECLARED = "declared false"
    EQUAL = "two of its images are equal"
    BRACKETS = "the text holds [[ digit |, which is no mark"
    PLACEHOLDERS = "not one <image> for each image"
    CAPTION = "words are glued to a placeholder"
    TIME = "temporal or story wording"
    TURNS = "several turns"
    POINTING = "an image named by pointing"
    PART = "a position that may be of something else"
    SIDE = "a side that may be an image"
    LANGUAGE = "a language other than English and Chinese"
    DOUBT = "words that may or may not name an image"
    MIXED = "images named in two ways: one may be a picture in an image"
    NO_WORD = "a name without a word for every slot"
    OPTIONS = "options that are not understood"
    ANSWER = "the answer has to name an image and does not"
    FROM_END = "the answer counts from the end"
    UNCERTAIN = "not declared, and no question form that is certain"


class Unclear(ValueError):
    """The text cannot be marked with certainty: a Reason, and the words that decided."""

    def __init__(self, reason: Reason, words: str = ""):
        self.reason = reason
        self.words = " ".join(words.translate({0: None, 1: None, 2: None}).split())[-60:]
        super().__init__(f"{reason}: {self.words!r}" if self.words else str(reason))


# --- Words that say which -----------------------------------------------------------------------
# Patterns are matched against the text in lower case.


def one_of(words: Sequence[str]) -> str:
    return "(?:" + "|".join(words) + ")"


def listing(token: str) -> str:
    """A list of tokens of one form: "1", "1 and 3", "1, 2 and 4", "(1)(3)"."""
    return rf"(?:{token})(?:{AND}(?:{token}))*"


NOUN = r"(?:image|picture|photo(?:graph)?|pic|img)s?(?![a-z])"  # "image", but no "imagery"
SOFT = (  # an image only in a text that does not speak of images besides
    r"(?:(?:figure|panel|diagram|graph|chart|map|plot|view|drawing|painting|animal|bird)s?\b"
    r"|figs?\b\.?|#(?=\d)|(?:option|choice|candidate)s?(?= [#(]?\d))"
)
SIDE = "(?:left|right)(?:-?hand|most)?|top|bottom|upper|lower|middle|central|center|centre"
NTH = one_of([*ORDINALS, *NUMERALS])  # "third", "3rd"
COUNT = one_of(CARDINALS)  # "three"
HAN = "(?:十[一二三四五六七八九]|二十|[一二三四五六七八九十])"  # 三, 十二
PICTURE = r"(?:图[片像]?(?![书形纸案])|照片)"  # 图, 图片, but no 图书

TO = (  # "2-4", "2 to 4", "second through third", 1到图3
    r"(?:(?:(?<=[\d①-⑥一-龥])|(?<=\b[a-h])) ?[-–—~～] ?"
    r"| (?:to|through|thru) (?:the )?(?!last)|[至到][图第]?)"
)
AND = (  # "1 and 3", "1, 3", "(1)(3)", 一和第三
    r"(?:[)\]$）]?(?:, ?(?:and |or )?| (?:and|or|&|vs\.?) |[和与或及、]|(?<=\))(?=\())(?:the |第"
    r"|图)?(?:[(\[（]|\$(?=\w{1,2}\$))?)"
)
# "first two", 前两
EDGE = rf"(?:first|last|initial|final) (?:{COUNT}|[2-9])\b|最?[前后][两三四五六七八九2-9]"
ORDINAL = (
    rf"{NTH}|last|initial|final|(?:(?:pre)?antepen|pen)?ultimate"
    rf"|(?:opening|starting|foremost|lead|premiere|end|secondary|tertiary)(?= {NOUN})"
)

SIDES = listing(rf"(?:{SIDE})(?! to)")  # "left and right"
NTHS = listing(rf"(?:{NTH} to last|{ORDINAL})(?! to)")  # "first, second and last"
HANS = listing(rf"[1-9]\d?(?![\d.%])|{HAN}(?!{HAN}|样)")  # 一和第三
HAN_NUMBERS = listing(  # what may follow 图: 1, A, ①, 甲, and 一 before a word that ends the name
    r"[1-9]\d?(?![\d.%]|[个只条张位名辆本块米])"
    rf"|{HAN}(?=$|所示|[至到\s，。、？！；：,.?;:!)）是有和与或及比里中的哪呢跟同更最上内])"
    r"|[a-h](?![a-z\d])|[①-⑩甲乙丙丁戊己庚辛]"
)
MARKS = listing("[①-⑩甲乙丙丁戊己庚辛]")
NUMBERS = "|".join(
    [
        listing(rf"{COUNT}\b"),
        listing(r"[1-9]\d?(?![\w%]|[.,:]\w|[-–—~～/至到]| ?(?:[kmg]b|px)\b)"),
        listing(r"[a-h]\b"),
        listing(r"[ivx]+\b"),
    ]
)
# Of a singular: "in image 2, 3 dogs sleep" holds no list.
ONE_NUMBER = NUMBERS.replace(", ?(?:and |or )?|", "")
RANGE = TO.join([rf"(?:\d\d?|[a-h]|[ivx]+|{COUNT})(?![\w%])"] * 2)  # "2 to 4"
# No list: "facing left and the right image".
PLACES = rf"{NTHS}|(?:(?<=the )|(?<=and )|(?<![a-z] )){SIDES}|(?:{SIDE})(?! to)"


@dataclass(frozen=True)
class Way:
    """A way to name images. The group that bears its name holds the words that say which."""

    name: str
    pattern: str
    example: str


WAYS = [
    Way(
        "place",
        rf"\b(?<!-)(?<!a (?=second))(?!(?:(?<=to the )|(?<=on the ))(?:{SIDE}){AND})"
        rf"(?P<place>{EDGE}|{NTH}{TO}{NTH}|{PLACES}) {NOUN}",
        "the first and third images",
    ),
    Way(
        "side",
        rf"\b{NOUN} (?:on|to|at) (?:the )?(?P<side>{SIDE})(?: hand)?(?: side)?\b(?! of)",
        "the image on the left",
    ),
    Way(
        "number",
        rf"(?<![\w&])(?:{NOUN}|{SOFT})(?: number| no\.?(?= ?[\d#]))?[ #_-]*[(\[$]?"
        rf"(?P<number>(?:(?<=s )|(?<=s\. )|(?<=s [#(]))(?:{RANGE}|{NUMBERS})|{ONE_NUMBER})[)\]$]?",
        "images 1, 2 and 4",
    ),
    Way(
        "one",  # see `compares`
        rf"(?<=the )(?P<one>{NTH}) one\b(?! of)",
        "than the second one",
    ),
    Way(
        "han",
        rf"(?P<han>最后一|{EDGE}|倒数第{HAN}|第{HANS}(?:{TO}{HANS})?)"
        rf"(?:[张幅副个]?{PICTURE}|[张幅]画(?![面家])|[张幅](?:$|(?=[\s，。？?是有和与哪里中的都比更])))",
        "第二张图",
    ),
    Way(
        "han_number",
        rf"(?<!地)(?:图[片像]?|照片) ?[（(]?"
        rf"(?P<han_number>{HAN_NUMBERS}{TO}{HAN_NUMBERS}(?=[里中]?[都均全各哪])|{HAN_NUMBERS})",
        "图1",
    ),
    Way(
        "han_letter",
        rf"(?<![a-z])(?P<han_letter>{listing('[a-h①-⑩甲乙丙丁](?=[、和与图两三四])')})"
        r"(?:[两三四]?[张幅])?图(?![书形案表纸画片])",
        "甲图",
    ),
    Way(
        "han_side",
        rf"(?<![\da-z朝向往其图左右上下])(?P<han_side>[左右][边侧]|中间|[左右中首末])的?(?:[那这]一?)?[张幅]?{PICTURE}",
        "左边的图",
    ),
]
NAME = re.compile("|".join(way.pattern for way in WAYS), re.M)

# All of an option or of an answer: "Left", "the second one", "(2)", "C", 第三张.
BARE = re.compile(
    rf"(?:the |选|第)?[(\[（]?(?P<bare>{PLACES}|{NUMBERS}|{HANS}|{MARKS})[)\]）]?(?: ones?"
    rf"|[张幅个]?(?:图片?)?)?[.。]?"
)

TOKEN = (  # one word of a name
    rf"(?:(?<![a-z])(?!(?:and|or|vs|the)\b)(?:{EDGE}|[a-z]+ to last|[a-z]+-hand|[a-z]+|\d+[a-z]*)"
    rf"|最后一|倒数第{HAN}"
    rf"|[左右][边侧]|中间|{HAN}|[①-⑩甲乙丙丁戊己庚辛左右中首末])"
)
WORD = re.compile(rf"{TOKEN}(?:{TO}{TOKEN})?")
JOIN = re.compile(TO)
FIRST_OR_LAST = re.compile(r"(first|initial|last|final|最?[前后]) ?(.+)")
SIZES = {word: k for k, word in enumerate(CARDINALS, 1)}
SIZES |= {word: k for k, word in enumerate("一二三四五六七八九", 1)} | {"两": 2}


@dataclass(frozen=True)
class Word:
    """Characters start:end of a text name the images in `slots` (1-based): one image, or a set or
    range of several.
    """

    start: int
    end: int
    slots: tuple[int, ...]
    said: str


@dataclass(frozen=True)
class Name:
    """A phrase that names images, e.g. "images 1 and 3" of a text, with its words."""

    start: int
    end: int
    way: str
    noun: str  # "ima", "fig", "#": what it calls them
    words: tuple[Word, ...]

    def moved(self, by: int) -> "Name":
        """The same name in a text that begins `by` characters earlier."""
        words = tuple(
            replace(word, start=word.start + by, end=word.end + by) for word in self.words
        )
        return replace(self, start=self.start + by, end=self.end + by, words=words)


# --- From a word to slots ---


def slot_named_by(word: str, n: int) -> int:
    """The slot that `word` names among n images. Raises
    Unclear where there is none, or more than one.
    """
    slots = {slot for slot, known in vocabulary(n, 0) if known == word}
    if len(slots) != 1:
        raise Unclear(Reason.NO_WORD, word)
    return slots.pop()


def slots_of(said: str, n: int) -> tuple[int, ...]:
    """The slots that a word, a range or a set names.

    >>> slots_of("2", 4), slots_of("2 to 4", 4), slots_of("last two", 4)
    ((2,), (2, 3, 4), (3, 4))
    """
    low = said.lower()
    edge = re.fullmatch(EDGE, low)
    if edge:
        end, size = FIRST_OR_LAST.fullmatch(low).groups()
        k = int(size) if size.isdigit() else SIZES[size]
        if k > n:
            raise Unclear(Reason.NO_WORD, said)
        first = end in ("first", "initial", "前", "最前")
        return tuple(range(1, k + 1)) if first else tuple(range(n - k + 1, n + 1))

    if low.endswith(" to last"):
        return (slot_named_by(low, n),)
    ends = JOIN.split(low)
    if len(ends) == 1:
        return (slot_named_by(low, n),)
    first, last = (slot_named_by(end, n) for end in ends)
    if first >= last:
        raise Unclear(Reason.NO_WORD, said)
    return tuple(range(first, last + 1))


def words_of(text: str, start: int, end: int, n: int) -> tuple[Word, ...]:
    """The words in text[start:end] that say which images."""
    phrase = text[start:end]
    found = []
    for m in WORD.finditer(phrase.lower()):
        said = phrase[m.start() : m.end()]
        found.append(Word(start + m.start(), start + m.end(), slots_of(said, n), said))
    if not found:
        raise Unclear(Reason.DOUBT, phrase)
    return tuple(found)


# --- Doubts about a name, by the words around it ---

# "an image 2".
AFTER_ANY = re.compile(
    r"\b(?:an?|one|each|every|any|no|another|which|two|three|\d|(the|this|its)) $"
)
BEFORE_HASH = re.compile(  # "#1" at the start, or after a word that an image may follow
    r"(?:^|[.?!,(:\n\0\1]|\b(?:in|is|and|or|of|than|between|to|vs|with|does|do|are|like"
    r"|compare))\s*$"
)
FOLLOWS_NUMBER = re.compile(  # what may follow "image 2"; "image 2 dogs" may count dogs
    r" ?[^\w\s]|\s*$|\s*\n|\s{2,}|[一-龥]"
    r"| (?:is|are|was|were|has|have|do|does|and|or|but|while|in|on|at|of|for|from|to|with|as|than"
    r"|that|not"
    r"|can|could|would|shows?|depicts?|contains?|features?|covers?|grows?|equals|differs?|looks?"
    r"|(?:show|look|fac|depict|contain|wear|hold|stand|sitt)ing|(?:wear|hold|stand|sit)s"
    r"|faces (?:left|right)|lack|share|more|less|closer|match|both|all|only|also"
    r"|similar|like|[a-z]+e[rd]|taken|there|an?|the|it|he|she|they|we|you)\b"
)
OF_SOME = re.compile(  # "the second image with a dog": the second of some
    r" (?:with(?! respect)|that|which|where|showing|containing|depicting|having|in which)\b"
)
IN_ORDER = re.compile(  # a set whose order matters
    r"respectively|increas|decreas|grow|bigger|trend|rotat|evol|mov(?:e|ing)|\bfrom .* to |分别"
    r"|[增减从由移]"
)
ONE_IMAGE = re.compile(rf"\b(?:each|every|both|an?|one|either) {NOUN}")
PRONOUN_I = re.compile(" (?:like|have|do|can|was|[a-z]+ed)")  # "the picture I like"
COMPARES = re.compile(
    r"\bcompar\w+ (?:with|to|against)\b|\bthan\b|\blike\b|\bas \w+ as\b|\bsimilar to\b"
    r"|\bdiffer\w* from\b"
)
COUNTED = re.compile(rf"\b(?:{COUNT}|several|many|few|some|\d+) (?:\w+ )?(?!{NOUN})\w+s\b")


def is_article(text: str, m: re.Match) -> bool:
    """ "in one image a dog sleeps": no image A."""
    start, end = m.span(m.lastgroup)
    return text[start:end] == "a" and text[start - 1] != "("


def compares(low: str, m: re.Match) -> bool:
    """Does "the second one" compare images? Its sentence names an image and compares, and the
    text counts no things.
    """
    start = max(low.rfind(stop, 0, m.start()) for stop in ".?!\n") + 1
    sentence = re.split(r"[.?!\n]", low[start:])[0]
    return bool(
        COMPARES.search(sentence)
        and re.search(rf"{NTH} {NOUN}", sentence)
        and not COUNTED.search(low)
    )


def is_doubtful(text: str, low: str, m: re.Match) -> bool:
    """May a match of NAME mean something else?"""
    way, said = m.lastgroup, m[m.lastgroup]
    start, end = m.span(way)
    before = low[: m.start()]
    any_before = AFTER_ANY.search(before[-9:])
    after_bracket = text[start - 1] == "("

    several = m[0].startswith(("images", "pictures", "photos", "figures")) and re.search(AND, said)
    if any_before and (way == "number" or not any_before[1]) and not (several and any_before[1]):
        return True
    if m[0].startswith("#") and not BEFORE_HASH.search(before[-9:]):
        return True
    if way in ("number", "side") and not FOLLOWS_NUMBER.match(low, m.end()):
        return True
    if is_set(said) and IN_ORDER.search(low):
        return True
    if way == "number" and re.fullmatch("[a-h]|[ivx]+", text[start:end]) and not after_bracket:
        return True
    if said == "i" and PRONOUN_I.match(low, end):
        return True
    if said == "second" and ONE_IMAGE.search(before) and "first" not in before:
        return True
    if way == "place" and not re.match(SIDE, said) and OF_SOME.match(low, m.end()):
        return True
    return way == "one" and not compares(low, m)


def is_set(said: str) -> bool:
    """ "first two", "2 to 4": several images by one word."""
    return bool(re.fullmatch(EDGE, said)) or bool(
        re.search(rf".{TO}.", said) and not said.endswith(" to last")
    )


# --- Names ---


def find_names(text: str, n: int, bare_spans: Sequence[tuple[int, int]] = ()) -> list[Name]:
    """The names of images in `text`, in order; in each of `bare_spans` (an option, an answer)
    also a mere word such as "2". Raises Unclear where words may or may not be one.
    """
    low = text.lower()
    if len(low) != len(text):
        raise Unclear(Reason.LANGUAGE)

    names = []
    for start, end in bare_spans:
        m = BARE.fullmatch(low, start, end)
        if m and not is_article(text, m):
            names.append(Name(start, end, "bare", "ima", words_of(text, *m.span("bare"), n)))
    bare = list(names)

    for m in NAME.finditer(low):
        if any(name.start <= m.start() < name.end for name in bare) or is_article(text, m):
            continue
        if is_doubtful(text, low, m):
            raise Unclear(Reason.DOUBT, m[0])
        soft = re.match(SOFT, m[0])
        noun = soft[0][:3] if soft else "ima"
        names.append(
            Name(m.start(), m.end(), m.lastgroup, noun, words_of(text, *m.span(m.lastgroup), n))
        )

    names.sort(key=lambda name: name.start)
    check_mixture(low, names)
    return names


def check_mixture(low: str, names: Sequence[Name]) -> None:
    """Raises Unclear where a text names images in two ways: "the first picture on the wall in
    image 2" names one.
    """
    nouns, sides = set(), set()
    for name in names:
        nouns |= {noun[:3] for noun in re.findall(NOUN, low[name.start : name.end])}
        sides.add(
            name.way == "han_side"
            or any(re.match(rf"(?:{SIDE})\b", word.said.lower()) for word in name.words)
        )
    if len(nouns) > 1 or len(sides) > 1:
        raise Unclear(Reason.MIXED)

    soft = {name.noun for name in names} - {"ima"}
    if not soft:
        return
    rest = masked(low, names)
    several = len({name.noun for name in names}) > 1
    speaks_of_images = soft - {"fig", "#"} and re.search(rf"\b{NOUN}", rest)
    if several or ONE_IMAGE.search(rest) or speaks_of_images:
        raise Unclear(Reason.PART, ", ".join(sorted(soft)))


def masked(low: str, names: Sequence[Name]) -> str:
    """The text with "@" for every name."""
    parts, end = [], 0
    for name in names:
        parts += [low[end : name.start], "@"]
        end = name.end
    return "".join(parts) + low[end:]


# --- What may not be left over once every name is "@" -------------------------------------------

IMAGE = r"(?:@|(?:image|picture|photo(?:graph)?|pic|img|figure|fig)s?(?![a-z]))"
AN_IMAGE = r"(?:@|\b(?:one|an?|single|which) (?:\w+ )?(?:image|picture|photo)|一[张幅])"
LEFT_RIGHT = r"(?:\b(?:left|right)(?:most|-?hand)?\b|[左右])"
STILL = (  # left and right as directions inside a picture
    r"\b(?:(?:fac|look|point|head|turn|angl)\w+(?: directly)?|to the|towards?(?: the)?|their|his"
    r"|her|its|all) (?:left|right)\b"
    r"|[左右][手脚臂腿转肺眼耳]|[朝向往][左右]"
    r"|\b(?:which \w+|is|are) (?:is|are|this|that|it) right\b"
    r"|\b(?:left|right)[- ](?:arm|leg|hand|foot|eye|ear|wing|paw|shoe|side|half|angle|triangle"
    r"|order|answer|of|next)\b"
)


@dataclass(frozen=True)
class Refusal:
    """A wording that may name an image in a way
    unknown here, or makes order part of the question.
    """

    reason: Reason
    pattern: str
    example: str


REFUSALS = [
    # Order is part of the question.
    Refusal(Reason.TIME, r"\bvideos?\b", "the video shows"),
    Refusal(
        Reason.TIME, r"\b(?:first|last|second|next|following|these) frames?\b", "the first frame"
    ),
    Refusal(Reason.TIME, r"\bframes? ?#?\d", "frame 2"),
    Refusal(
        Reason.TIME,
        r"\b(?:a|the|this) (?:(?:short|whole|little|funny|picture) )?story\b|\bnarrat\w+",
        "tell a short story",
    ),
    Refusal(
        Reason.TIME,
        r"\bnext\b(?! to)|\b(?:eventually|finally|afterwards?|meanwhile|previously)\b",
        "do next",
    ),
    Refusal(Reason.TIME, r"\bat the (?:end|start|beginning)\b(?! of)", "green at the end"),
    Refusal(Reason.TIME, r"\b(?:comic|timeline|consecutive|missing)\b", "a comic"),
    Refusal(Reason.TIME, r"\b(?:sequen|chronolog|success|happen|disappear)\w*", "the sequence"),
    Refusal(
        Reason.TIME, r"\btime-?lapse\b|\bover time\b|\bno longer\b|\bcomes? next\b", "over time"
    ),
    Refusal(Reason.TIME, r"\b(?:before|after|earlier|later|then|changed?)\b", "after that"),
    Refusal(Reason.TIME, r"\bin (?:\w+ ){0,2}order\b", "in the right order"),
    Refusal(
        Reason.TIME, r"先后|依次|顺序|变化|(?<![跑散])步|接下来|随后|之后|之前|故事|视频|帧", "之后"
    ),
    # Several turns.
    Refusal(
        Reason.TURNS,
        r"^\s*(?:user|human|assistant|gpt|用户|助手) ?[:：]|<\|(?!@)",
        "user: what is it?",
    ),
    Refusal(Reason.TURNS, r"^\s*(?:q|question|example) ?[2-9] ?[:.]", "question 2: what is it?"),
    Refusal(
        Reason.TURNS, r"(?s:\bq(?:uestion)? ?:.*\bq(?:uestion)? ?:)", "q: what? a: it. q: and now?"
    ),
    # An image named by where it stands beside another, by counting, or by what it shows.
    Refusal(
        Reason.POINTING, rf"{IMAGE},? (?:\w+ )?(?:between|next to|beside) @", "image between @"
    ),
    Refusal(
        Reason.POINTING,
        r"@,? (?:counting )?from (?:the )?(?:right|bottom|end|back|last)",
        "@ from the right",
    ),
    Refusal(
        Reason.POINTING,
        r"\bcount(?:ing|ed)? (?:backwards?|from)\b|从[后右下末][^，。？]?[往向到]",
        "counting backwards",
    ),
    Refusal(
        Reason.POINTING,
        r"截图|@有[^\s，。？]*的[图照]|头[两三四几][张幅]|[上下]方的?图",
        "上方的图",
    ),
    Refusal(
        Reason.POINTING,
        rf"{IMAGE} (?:at|in|with|on) (?:the |both )?(?:index|position|place|{NTH} place|ends?\b"
        rf"|start|beginning)",
        "image at the end",
    ),
    Refusal(
        Reason.POINTING,
        r"\b(?:topmost|bottommost|outer(?:most)?|inner(?:most)?|closing|(?:odd"
        r"|even)-numbered) (?:image|picture|photo)",
        "outer image",
    ),
    Refusal(
        Reason.POINTING,
        r"\b(?:half|row|column) of (?:the )?(?:image|picture|photo)s",
        "half of the images",
    ),
    Refusal(Reason.POINTING, r"(?<![a-z])[a-h甲乙丙丁\d]号图(?![书形案表纸画])|\d图", "2号图"),
    Refusal(
        Reason.POINTING,
        r"[①-⑩](?![^\n]*[①-⑩][^\n]*是)|(?<![a-z])[甲乙丙丁](?=[和与、中的比是有])",
        "①和",
    ),
    Refusal(
        Reason.POINTING, r"\A[^@]*(?:\brespectively\b|分别)[^@]*\Z", "how many dogs respectively"
    ),
    Refusal(
        Reason.POINTING,
        r"\b(?:previous|preceding|prior|subsequent|adjacent|former|latter|next to last)\b",
        "the previous one",
    ),
    Refusal(
        Reason.POINTING, r"[这那前后上下][一两二三四]?[张幅]|[前后]者|第.个[？是有和]", "前一张"
    ),
    Refusal(
        Reason.POINTING,
        rf"\b(?:this|that|next|following(?! (?:image|picture|photo)s)|above|below) (?:\w+ "
        rf")?{IMAGE}",
        "this image",
    ),
    Refusal(
        Reason.POINTING,
        rf"(?<!which ){IMAGE} (?:above|below|following|to the)\b",
        "the image above",
    ),
    Refusal(Reason.POINTING, r"(?<!以)[上下][面边]?的?图", "下面的图"),
    # A position, number or letter that may be of something else, or an image in a form of its own.
    Refusal(Reason.PART, rf"(?:@|\b{IMAGE})[ #_,.$(]{{0,3}}\d(?! ?[kmg]b)", "@, 3"),
    Refusal(Reason.PART, rf"(?:@|\b{IMAGE}) (?:[b-h]|[ivx]+|{COUNT})\b", "image ii"),
    Refusal(
        Reason.PART,
        rf"(?:@|\b{IMAGE}) (?:of )?(?:label|mark|number|named|lucky|no\.)",
        "image labeled 2",
    ),
    Refusal(
        Reason.PART,
        rf"(?:@|\b{IMAGE}) (?:in|of|from|on) (?:the |an? )?(?:\w+ )?(?:row|column|page|series"
        rf"|middle|center|centre)",
        "image in the middle",
    ),
    Refusal(Reason.PART, r"from @ to|@ ?(?:[-–/~～至到]|through|thru) ?[@\d]", "from @ to"),
    Refusal(Reason.PART, r"@(?: to| and| or| &|[、和与])? ?\d", "@ and 3"),
    Refusal(
        Reason.PART, r"@,? (?:and|or) (?:on |at )?(?:the )?(?:left|right)\b", "@ and on the left"
    ),
    Refusal(
        Reason.PART, r"@ (?:pair|set|group|half|part|(?:frame|album|booth|book)s?\b)", "@ pair"
    ),
    Refusal(Reason.PART, r"@[^\n]*(?<![(\n])\b[b-h]\b(?![).:])", "@ is like b"),
    Refusal(Reason.PART, r"@[^\n]*\b\d (?:is|has|shows?|contains?|depicts?)\b", "@ and then 2 is"),
    Refusal(
        Reason.PART,
        r"间的?图|图[片像]? ?[（(]?[\dⅰ-ⅹ]|图[二三五六七八九](?![角边面次元])|#\d",
        "中间的图",
    ),
    Refusal(
        Reason.PART, rf"第(?:\d+[张幅]|十{HAN})|@[^\n]*第{HAN}[张幅]|第{HAN}[张幅][^\n]*@", "第2张"
    ),
    Refusal(Reason.PART, r"@[^\n]*(?:[比和与或跟在] ?[a-h\d甲乙丙丁]|比[左右])", "@比2"),
    Refusal(
        Reason.PART,
        rf"\b(?:{SOFT}|person|room|step|day|slide|scene|\w*shot|scan|illustration|sketch) "
        rf"?[(#]?(?:\d|[b-h]\b)",
        "person 2",
    ),
    Refusal(Reason.PART, r"(?s:@.*)\ba second|\ba second(?s:.*)@", "@ and a second"),
    Refusal(Reason.PART, r"^\(?[1-9][.)] [^\n]*@", "1. @"),
    Refusal(Reason.PART, r"@, ?(?:\d+|[b-h])(?:,? (?:and|or) |, )", "@, 3 and 4"),
    Refusal(
        Reason.PART,
        r"(?<![(\n])(?<!letter )\b[a-h](?=\s*[?,;!])|\bwhich of (?:[a-h]|\d)\b",
        "like a?",
    ),
    Refusal(Reason.PART, r"\bonly (?:\d|[a-h])\b(?! \w)|\b(?:\d|[b-h]) only\b", "only 1"),
    Refusal(Reason.PART, r"\b(?:in|does|do|is|are) [b-h]\b|\bin a (?:there|is)\b", "in b"),
    Refusal(
        Reason.PART,
        r"@[^\n]*(?:,|\b(?:than|in|as|from|with|to|of|not|like|against|number|versus|vs\.?|and|or))"
        rf" (?:\d|[a-h]|(?!one\b){COUNT})(?=\s*(?:$|[:.,;?!)]))",
        "@ the same as in 2?",
    ),
    Refusal(
        Reason.PART, r"@[^\n]*\b(?:no|number)\.? ?\d|\b(?:no|number)\.? ?\d[^\n]*@", "@ and no 1"
    ),
    Refusal(
        Reason.PART,
        rf"\b(?:{SIDE})[ -](?:(?!in|on|of|is|and|with|the|an?\b)[\w-]+ )?{IMAGE}",
        "left outdoor image",
    ),
    Refusal(Reason.PART, rf"\bthe (?:{SIDE}) ones?\b", "the left one"),
    Refusal(Reason.PART, r"(?:than|like|similar to) [b-h]\b", "than b"),
    Refusal(
        Reason.PART, r"(?:that|those|ones?) (?:on|to|at|in) the (?:left|right)", "that on the right"
    ),
    Refusal(
        Reason.PART,
        r"(?<!on )(?<!to )(?<!at )the (?:left|right)(?=$|[.,;:?!)]| (?:is|has|shows|contains|and"
        r"|or)\b)",
        "the right.",
    ),
    Refusal(Reason.PART, r"\bwhich (?:is|one)\b(?s:.*)^\(?[a-z][).] ?\d", "which is it?\n(a) 1"),
    Refusal(
        Reason.PART,
        r"\b(?:is|does|do) (?:[a-h]|\d) (?:\w+er than|more|like|similar|the same)\b",
        "is a darker than",
    ),
    Refusal(Reason.PART, rf"\((?:{SIDE}|{ORDINAL})\b", "(left)"),
    Refusal(
        Reason.PART,
        rf"(?<!\ba )\b(?:{ORDINAL}|\d+th|\w+teenth|eleventh|twelfth)\b"
        r"(?! (?:row|column|person|place|half|floor|hand|class)\b)",
        "the first",
    ),
    Refusal(
        Reason.SIDE,
        rf"(?:^|[.?!]\s)(?=.*{LEFT_RIGHT})(?:{STILL}|(?!{AN_IMAGE}|{LEFT_RIGHT}"
        rf"|[.?!]\s)[^\n])*+{LEFT_RIGHT}",
        "the dog on the left",
    ),
    Refusal(
        Reason.LANGUAGE,
        r"[\u3040-\u30ff\uac00-\ud7af\u0400-\u0eff\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017f¿¡\u0307]|[α-ω]{3}",
        "första",
    ),
    Refusal(
        Reason.LANGUAGE,
        r"\b(?:bild|bilder|imagen|imagens|imagem|immagini?|afbeelding|l'image|image (?:de|du))\b"
        r"|\b(?:der|das|und|ist|les|une|est|los|una|il|het|een|della)\b",
        "das bild",
    ),
]
COMPILED = [(refusal.reason, re.compile(refusal.pattern, re.M)) for refusal in REFUSALS]

OTHER = re.compile(  # "the other image" is one of two; of more, nobody knows which
    rf"the (?:other|remaining)\b(?: (?:\w+ )?{IMAGE}| ones?\b| (two|three))|另|其余"
    rf"|((?:reference|query|source|original|edited) {IMAGE}|参考图|原图)"
)
BRACKETS = str.maketrans("（）．", "().")
# 这三张图 of three images: all of them.
THESE_HAN = re.compile("[这那]([两二三四五六七八九十])[张幅]")
TELLS_HOW = re.compile(  # how to answer names no image: "Answer with the image number."
    r"(?:please )?(?:answer|reply|respond|list|give)\b[^.?!\n@]*"
    r"\b(?:image|picture|photo)(?:'s)? (?:numbers?|index|indices)\b[^.?!\n@]*"
    r"|请[^。？！\n]*编号"
)


# A side that stands alone beside an image that is named: "more on the left image than on the
# right", ".. and the left a train". A direction is none: "the left image shows a dog facing right".
SIDE_ALONE = re.compile(
    r"(?:\b(?:than|and|but|while|whereas)|,)(?: [\w-]+){0,4}? (?:(?:on|in|at|to|of) )?"
    r"the (?:left|right)\b(?: side)?"
    r"(?= *(?:$|[.,;:!?)\n]|(?:does|do|did|is|are|was|were|has|have|had|shows?|contains?|only|just"
    r"|one|two|three|four|an?|the|there|than|and|but|while|with|on|in|at)\b))"
)
SIDE_WORD = re.compile(
    rf"\b(?:left|right)wards? {NOUN}|{NOUN} (?:to the )?(?:left|right) of (?:the other|another)\b"
)
DIRECTION = re.compile(
    r"\b(?:fac|look|turn|point|head|gaz|lean|tilt|mov|aim|direct|angl|walk|run|sit|stand|curv|bend"
    r"|stretch|extend|sway|oriented?|position|jut|hang|rest|point|roll|fly|swim|driv|park)\w*"
    r"(?: \w+){0,3} (?:to|toward|towards|at|on) the (?:left|right)\b(?: side)?"
)


def check_leftover(
    text: str, n: int, order_is_answer: bool = False, story_is_fine: bool = False
) -> None:
    """Raises Unclear where the masked text may name an image in a way unknown here, or makes
    order part of the question.

    order_is_answer: the answer moves with the images, so that a story asks the same whatever
    their order. story_is_fine: a recipe knows its template; of several turns, too.
    """
    for m in THESE_HAN.finditer(text):
        if SIZES.get(m[1]) == n:
            text = text.replace(m[0], " " * len(m[0]))
    text = TELLS_HOW.sub("", text).translate(BRACKETS)

    for reason, pattern in COMPILED:
        if reason == Reason.TIME and (order_is_answer or story_is_fine):
            continue
        if reason == Reason.TURNS and story_is_fine:
            continue
        m = pattern.search(text)
        if m:
            raise Unclear(reason, m[0])

    alone = SIDE_ALONE.search(DIRECTION.sub("", text)) if "@" in text else None
    alone = alone or SIDE_WORD.search(text)
    if alone:
        raise Unclear(Reason.SIDE, alone[0])

    for m in OTHER.finditer(text):
        one_before = re.search(rf"\bone\b|{AN_IMAGE}", text[: m.start()])
        two_images = n == 2 or m[2]  # or "the reference image", once one is named
        others_of_named = m[1] and "@" in text  # "the other two" beside a named one
        if not (one_before and two_images or others_of_named):
            raise Unclear(Reason.POINTING, m[0])


# --- Placeholders and formulas are hidden before names are looked for ---------------------------

HOLE, NOTHING, FORMULA = "\1", "\0", "\2"
HIDDEN_IMAGE = HOLE + NOTHING * (len("<image>") - 1)
LABEL = r"\n\(?[A-Z][.):、]?\s*"  # "\n(A) "
LEAD = re.compile(
    rf"(?:^|[.?!。？！>]|[（(]\s*[)）]|(?i:images|pictures|photos|options)\W*|图片?\W*)\s*(?:{LABEL})?$"
)
ROW_LEAD = (
    re.compile(  # may stand before a row of all images: "three patients: ", or a line of its own
        r"(?:(?<!this)(?<!shows)(?<![iwha]s)(?<=[a-z]s)[:：]\s*|[^\s:：]\s*\n\s*)$"
    )
)
UNLABELLED = re.compile(r"(?:<image>(?:[\s,、]|and)*)+")
ROW_OF_IMAGES = re.compile(rf"(?:<image>(?:\W*(?:and|or|vs)?\s*|\s*{LABEL})?)+")
GLUED = re.compile(r"[ \t]*(?:[:：=]|(?:is|was|shows|depicts|has)\b)")  # "<image> is the reference"
SLOT_LABEL = re.compile(
    rf"(?:{NOUN}|figure|fig\.?|panel|图片?) ?[-#(（]?(\w+)[)）]? ?[:：=] ?$"  # "Image 2: "
    rf"|(?:the )?({NTH}) {NOUN} ?[:：=] ?$"  # "The second image: "
    rf"|第({HAN})张图片? ?[:：] ?$"
)
MATH = re.compile(r"\$(?=\S)[^$\n]*?(?<=\S)\$(?!\d)|\\\(.*?\\\)|\\\[.*?\\\]")
NOUN_BEFORE = re.compile(rf"(?:{NOUN}|{SOFT}|图[片像]?)(?: number)? ?\Z")


def slot_label(before: str, k: int, n: int) -> int | None:
    """Where the label of placeholder `k` begins, if the
    text before it ends with one that repeats its slot.
    """
    m = SLOT_LABEL.search(before)
    if m is None:
        return None
    said = next(word for word in m.groups() if word)
    return m.start() if (k, said) in vocabulary(n, 0) else None


def hide_placeholders(text: str, n: int, stem: int) -> str:
    """The text with control characters in place of its placeholders. Raises Unclear where there
    is not one for each image, or where words belong to a single one: a caption must not stay
    behind when its image moves.
    """
    holes = [m.span() for m in re.finditer("<image>", text)]
    if len(holes) != n:
        raise Unclear(Reason.PLACEHOLDERS, f"{len(holes)} for {n}")

    figures = []  # "<image>\n\nFigure 2\n": a label that repeats the slot stays where it is
    labels = []  # "Image 2: <image>"
    for k, (start, end) in enumerate(holes, start=1):
        figures.append(re.compile(rf"\s*\n\s*Figure {k}[ \t]*(?:\n\s*|$)").match(text, end))
        labels.append(slot_label(text[:start].lower(), k, n))
    if all(figures):
        holes = [(start, m.end()) for (start, _), m in zip(holes, figures)]
    elif all(label is not None for label in labels):
        holes = [(label, end) for label, (_, end) in zip(labels, holes)]
    else:
        start, end = holes[stem][0], holes[-1][1]
        before = text[max(0, start - 30) : start]
        row = UNLABELLED.fullmatch(text, start, end) and stem == 0
        led = LEAD.search(before) or row and ROW_LEAD.search(before)
        if not led or not ROW_OF_IMAGES.fullmatch(text, start, end) or GLUED.match(text, end):
            raise Unclear(Reason.CAPTION, text[max(0, start - 20) : end + 20])

    for start, end in holes:
        text = text[:start] + HOLE + NOTHING * (end - start - 1) + text[end:]
    return text


def hide_formulas(text: str) -> str:
    """Text inside $...$ and \\(...\\) names no image, but for a lone number or letter right after
    a noun: "Figure $1$".
    """

    def hidden(m: re.Match) -> str:
        inside = m[0].strip("$\\()[] ")
        lone = re.fullmatch(r"[A-Za-z]|\d{1,2}", inside)
        if lone and NOUN_BEFORE.search(text[: m.start()].lower()):
            return m[0]
        if re.search(rf"{NOUN}|图", m[0].lower()):  # no formula: "costs $5 in image 1 and $6"
            return m[0]
        return FORMULA * len(m[0])

    return MATH.sub(hidden, text)


# --- Options ------------------------------------------------------------------------------------

CIRCLED = "①②③④⑤⑥⑦⑧ⒶⒷⒸⒹⒺⒻ"
SERIES = [
    "ABCDEFGHIJ",
    "abcdefghij",
    [str(k) for k in range(1, 11)],
    ["I", "II", "III", "IV", "V", "VI"],
    ["i", "ii", "iii", "iv", "v", "vi"],
    CIRCLED[:8],
    CIRCLED[8:],
    "甲乙丙丁",
    "一二三四五六",
]
OPENS = r"(?:[*_]{1,2}|<[a-z]+>|[-•#>|]\s*)*[(\[（【{<]?"  # "**(", "- ", "| "
TAGS = r"(?:[*_]{1,2}|</[a-z]+>)*"  # "**", "</b>"
CLOSES = rf"[)\]）】}}>]?{TAGS}"
DELIMITER = r"(?:[.):：、．，\])）】}=|]|\s[-–—→]\s|\t|\s*\n)"


LABEL_AFTER_IMAGE = re.compile(r"<image>[ \t]*\(?[A-Za-z1-9][).]?[ \t]*(?:\n|$)")  # "<image> A"


@dataclass(frozen=True)
class Option:
    """An option of a question: its label, and where label and text stand."""

    label: str
    label_start: int
    start: int
    end: int
    text: str = field(compare=False)


def find_label(text: str, label: str, start: int) -> re.Match | None:
    """The first place from `start` on where `label` stands as one: "(A)", "A.", "**A**", "A - ";
    its end is the text's.
    """
    escaped = re.escape(label)
    forms = [
        rf"[(\[（【{{]{escaped}[)\]）】}}]{TAGS}[.:：、)]?",  # "(A)", "[A]:"
        rf"<[a-z]+>{escaped}</[a-z]+>[.:：、)]?",  # "<b>A</b>"
        rf"{escaped}{CLOSES}{DELIMITER}{TAGS}",  # "A.", "A)", "A -", "**A.**"
        rf"(?i:option|choice|answer|选项?)\s?{escaped}\b[.:：、)]?",  # "Option A:"
        rf"(?<=\n){escaped}[ \t](?=\S)",  # "A " at the start of a line
    ]
    if not re.match(r"\w", label) or label in CIRCLED:
        forms.append(escaped)  # "①" needs no delimiter
    pattern = rf"(?<![\w$]){OPENS}(?:{'|'.join(forms)})[ \t]*"
    for m in re.compile(pattern).finditer(text, start):
        if not NOUN_BEFORE.search(text[: m.start()].lower()):  # "Figure 1" is a name
            return m
    return None


def find_options(text: str) -> list[Option]:
    """The options of a question in whatever layout, the labels of one series in a row; [] where
    there are none.

    >>> [option.text for option in find_options("Which?\\n(a) the left one\\n(b) the right one")]
    ['the left one', 'the right one']
    """
    best: list[Option] = []
    for series in SERIES:
        labels, start = [], 0
        for label in series:
            m = find_label(text, label, start)
            if m is None:
                break
            labels.append((label, m.start(), m.end()))
            start = m.end()
        if len(labels) < 2 or len(labels) <= len(best):
            continue
        ends = [begin for _, begin, _ in labels[1:]] + [len(text)]
        found = []
        for (label, label_start, begin), end in zip(labels, ends):
            said = text[begin:end].split("\n")[0].rstrip(" \t,;，；、|")
            found.append(Option(label, label_start, begin, begin + len(said), said))
        best = found
    return best


def without_labels(text: str, options: Sequence[Option]) -> str:
    """The text with blanks in place of the options' labels; ends of lines stay."""
    for option in options:
        blank = re.sub(r"[^\n]", " ", text[option.label_start : option.start])
        text = text[: option.label_start] + blank + text[option.start :]
    return text


def label_of(answer: str, options: Sequence[Option]) -> Option | None:
    """The option whose label the answer is: "B" or "(b)" of "(a) .. (b) .."."""
    said = answer.strip().strip("()[]（）【】.*: ").casefold()
    for option in options:
        if option.label.casefold() == said:
            return option
    return None


def lists_labels(text: str, answer: str) -> bool:
    """Does the text list labels up to `answer` ("A .. B", "1 .. 2") outside of names? Then the
    answer may be one.
    """
    said = answer.strip("()[]. ")
    for series in SERIES:
        if said.upper() in series or said in series:
            labels = list(series)
            upto = labels[: labels.index(said if said in labels else said.upper()) + 1]
            return len(upto) > 1 and all(
                re.search(rf"(?<!\w)(?i:{re.escape(x)})(?!\w)", text) for x in upto
            )
    return False


# --- The answer ---------------------------------------------------------------------------------

HOW_MANY = re.compile(
    r"(?i)\bhow m|\bnumber of\b(?! the (?:\w+ )?(?:image|picture|photo)\b)|多少|(?<!哪)几"
)
VALUE = re.compile(  # asks for a number that is none of an image: "what is the area", "which digit"
    r"(?i)\b(?:what|which|find|calculate|compute|determine) (?:(?:is|are|was|were) (?:the )?|the )?"
    r"(?:(?!has\b|have\b|one\b|shows?\b)\w+ ){0,2}"
    r"(?:number|digit|figure|value|sum|total|count|age|score|price|cost|time|hours?|minutes?|year"
    r"|degrees?|length|width"
    r"|height|area|perimeter|angle|radius|volume|speed|weight|distance|temperature|difference"
    r"|result|solution)\b"
    r"|数(?!一)|[度值积长高宽径]是|\b[a-z] ?=|\bwhat is [a-z]\b|[$\2]"
)
ASKS_LETTER = re.compile(
    r"(?i)\b(?:which|what) (?:\w+ )?(?:letter|character|initial|grade|note|vitamin|type)\b|哪个字母"
)
WHICH_HAN = "哪[一几两]?(?:[张幅]|个?图|个(?=[有是更最中里与和？?]))"  # no 哪个数字
WHICH = re.compile(
    rf"(?i)\b(?:which|what)(?: of)?(?: the| these| two| three| other)* (?:image|picture"
    rf"|photo)(?! (?:caption|title))"
    r"|\b(?:number|index|letter|position)(?: \([^)]*\))? of the (?:\w+ )?(?:image|picture"
    r"|photo)\b(?! caption)"
    r"|\b(?:identify|select|pick|choose|find|name|indicate|locate|determine|give|point out|tell me)"
    r" (?:the |an? |one )?(?:\w+ )?(?:image|picture|photo)(?:'s number)?\b(?! caption)"
    rf"|{TELLS_HOW.pattern}|\A(?!(?s:.*)\b{NOUN})(?s:.*)\bwhich (?:figure|panel)|{WHICH_HAN}"
)
ASKS_ORDER = re.compile(r"(?i)\b(?:order|sequence|arrange|sort|rank)\b|顺序|排序|排列|排")
# Marks and what may stand between them.
PURE_ORDER = re.compile(rf"(?:\W|_|(?i:{NOUN})|图|[A-H]|[1-9])*")
ORDER_MARK = re.compile(rf"(?i:{NOUN} ?)?([A-H]|[1-9])")
SEVERAL = re.compile(r"(?i)\bwhich (?:\w+ )?(?:image|picture|photo)s|哪[几两三]")  # asks for a set
FROM_END = re.compile(r"(?i)last|final|ultimate|最后|倒数|末")
LETTER = re.compile(  # a letter that a question names
    rf"(?i:(?:{NOUN}|(?:option|choice|candidate|answer)s?) \(?[A-H]\b)"
    rf"|(?<![(\n\w])[B-H]\b(?![.):．：、])"
    r"|\b(?:as|to|of|than|and|or|like|with) A(?! \w*[a-z]\b)"
)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def asks_for_image(text: str) -> bool:
    """Is a mere number or letter, as answer, the name of an image?"""
    return bool(WHICH.search(text)) and not HOW_MANY.search(text)


def is_order(text: str, answer: str) -> bool:
    """Is the answer an order of images, asked for as such?"""
    marks = re.findall("[A-H1-9]", answer)
    return (
        bool(ASKS_ORDER.search(text))
        and bool(PURE_ORDER.fullmatch(answer))
        and 1 < len(marks) == len(set(marks))
    )


def order_words(answer: str, n: int) -> tuple[Word, ...]:
    """The words of an answer that is an order: "2,1,3", "CAB", "Image 2, Image 1"."""
    found = []
    for m in ORDER_MARK.finditer(answer):
        start, end = m.span(1)
        found.append(Word(start, end, (slot_named_by(m[1].lower(), n),), m[1]))
    return tuple(found)


# --- Question forms that are certain without a declaration --------------------------------------

ALL = (  # the images as a set
    r"(?:both|all|each|every|any|either|neither|none|no|at least (?:one|two|three)|(?:exactly "
    r"|only )?one"
    r"|(?:all |both )?(?:of )?(?:the|these|those)(?: two| three| four| five"
    r"| \d)?)(?: (?:one )?of)?(?: the| these)?"
    r"(?: two| three| four| five| \d)? (?:image|picture|photo|photograph)s?"
)
SHOWS = r"(?:show|contain|have|depict|include|feature|display)s?"
PLAIN_WORDS = r"[^.?!\n@]+"


@dataclass(frozen=True)
class Certain:
    """A form of a whole question of which every order
    of the images asks the same, and of its answer.
    """

    pattern: str
    answer: str
    example: str


YES_NO = r"yes|no|true|false|[a-z]|是|否|有|没有|对|错"
NUMBER = r"\d+|[a-z]|zero|" + "|".join(CARDINALS) + "|[零一二三四五六七八九十两]"
CERTAIN = [
    Certain(
        rf"how many (?:of )?(?:the |these )?(?:\w+ )?(?:images|pictures|photos) (?:{SHOWS}|are "
        rf"of) {PLAIN_WORDS}\?",
        NUMBER,
        "How many of the images show a cat?",
    ),
    Certain(
        rf"(?:do|does) {ALL} (?:both |all )?{SHOWS} {PLAIN_WORDS}\?",
        YES_NO,
        "Do both images show a cat?",
    ),
    Certain(
        rf"(?:is|are) there (?:an? |any |at least \w+ )?{PLAIN_WORDS} in {ALL}\?",
        YES_NO,
        "Is there a cat in both images?",
    ),
    Certain(
        rf"{ALL} (?:both |all )?{SHOWS} {PLAIN_WORDS}\.(?: (?:is it )?true or false\?)?",
        YES_NO,
        "All images show a 7.",
    ),
    Certain(
        r"(?:in )?which (?:of the |of these )?(?:\w+ )?(?:image|picture|photo)s?\b[^.?!\n]*\?",
        r".*@.*|[a-z]",
        "Which image shows a cat?",
    ),
    Certain(
        r"which (?:image|picture|photo) (?:is|does|best matches) (?:the |this )?(?:caption"
        r"|description)\b[^.?!\n]*\?[^@]*",
        r".*@.*|[a-z]",
        "Which image is the caption describing?\nA dog on a sofa.",
    ),
    Certain(
        r"(?:[这]?[两三四五二]张|所有|每张|每一张)图[片像]?[里中]?[都全]?有[^。？\n]+[吗？?]+",
        YES_NO,
        "两张图都有猫吗？",
    ),
    Certain(r"(?:一共)?有?[几多少]+张图[片像]?[里中]?有[^。？\n]+？?", NUMBER, "有几张图里有猫？"),
    Certain(
        r"(?:请问)?哪[一]?张(?:图[片像]?|照片)?[里中]?[^。？\n]+[？?]",
        r".*@.*|[a-z]",
        "哪张图里有猫？",
    ),
]
NEUTRAL = re.compile(  # sentences that may stand beside a certain form
    r"(?:look at|consider|observe|study|examine) (?:the|these)(?: \w+)? (?:images|pictures"
    r"|photos)[.:]"
    r"|(?:here are|you (?:see|are given)|given)(?: the| these)?(?: \w+)? (?:images|pictures"
    r"|photos)[.:,]"
    rf"|(?:please )?(?:answer|choose|select|pick|reply|respond|give|list)\b[^.?!\n@]*[.:]"
    rf"|请[^。？！\n]*(?:回答|编号)。?|options:|choices:|{TELLS_HOW.pattern}\.?"
)
ORDERED = re.compile(  # words by which the answer may depend on the order, though nothing is named
    r"differ|compar|between|chang|edit|transform|\badd|remov|appear|increas|decreas|区别|不同|变|增|减"
    r"|\b(?:get|becom|ris(?:e|ing)|fall|drop|sink|grow|shrink|los[ei]|gain|improv|progress|advanc"
    r"|burn|melt|zoom|climb)\w*\b"
    r"|\b(?:order|sort|arrang|rank|sequen|tempor|direction|ratio|quotient|divid|subtract"
    r"|concatenat|combin|spell|togeth)\w*"
    r"|\bform\b|\b(?:across|over|through(?:out)?) (?:the|all|both|these|those)\b"
    r"|\bfrom \w+ to \w+|\beach time\b"
    r"|\b(?:minus|next|than|still|again|already|yet|now|anymore|continu\w*|complet\w*|series"
    r"|pattern|follow\w*|preced\w*"
    r"|start\w*|begin\w*|end\w*|finish\w*|result\w*|outcome|original|early|earli\w*|late|latest"
    r"|previous\w*|turn\w*)\b"
    r"|\b(?:position|place|index|slot|neighbou?r\w*|beside|adjacent|middle|cent(?:er|re)|left"
    r"|right|above|below|own)\b"
    r"|[顺次]序|排|比|越来越|拼|商|现在|还|又|已经|接着|下一|继续|位置|之间|旁边|中间"
)


def is_certain(question: str, answer: str) -> str:
    """The example of the CERTAIN form that a masked
    question and its masked answer have; "" for none.
    """
    text = re.sub(rf"[{HOLE}{NOTHING}]+", " ", question)
    text = NEUTRAL.sub(" ", text)
    text = " ".join(text.split())
    for form in CERTAIN:
        asks = form.pattern.startswith(("which", "(?:in )?which", "(?:请问)?哪"))
        if not re.fullmatch(form.pattern, text) or not re.fullmatch(
            form.answer, answer.strip(" .。")
        ):
            continue
        veto = ORDERED.search(text)
        if veto and not (asks and veto[0] in ("than", "differ", "compar")):
            continue
        return form.example
    return ""


# --- From names to marks ------------------------------------------------------------------------


def marks_of(
    text: str, words: Sequence[Word], n: int, stem: int, offset: int = 0
) -> tuple[str, int]:
    """`text` with its words marked, and how many sets were written out. `offset`: where `text`
    begins for the words.

    A set that holds all images needs no mark: it is the same set in every order.
    """
    parts, end, written_out = [], 0, 0
    for word in words:
        start, stop = word.start - offset, word.end - offset
        parts.append(text[end:start])
        end = stop
        if len(word.slots) == 1:
            parts.append(marked(word.slots[0], word.said, n, stem))
        elif len(word.slots) == n:
            parts.append(word.said)
        else:
            parts.append(set_written_out(word, n, stem))
            written_out += 1
    return "".join(parts) + text[end:], written_out


def marked(slot: int, said: str, n: int, stem: int) -> str:
    """One mark. Raises Unclear where the form has no word for a slot that the image can move to."""
    wrong = mistake(slot, said, n, stem)
    if wrong:
        raise Unclear(Reason.NO_WORD, said)
    return f"[[{slot}|{said}]]"


def set_written_out(word: Word, n: int, stem: int) -> str:
    """A range or a set, each of its images with a mark of its own.

    "2 to 4" is written as "[[2|2]], [[3|3]] and [[4|4]]", "first two" as "[[1|first]] and
    [[2|second]]", 前两 as 第[[1|一]]和第[[2|二]].
    """
    low = word.said.lower()
    chinese = bool(re.search("[一-龥]", low))
    if re.fullmatch(EDGE, low):
        form = dict(enumerate(CHINESE if chinese else ORDINALS, start=1))
        like = word.said
        before_first = before_each = "第" if chinese else ""
    else:
        first = JOIN.split(low)[0]
        form = vocabulary(n, stem).get((word.slots[0], first), {})
        like = word.said[: len(first)]
        before_first = ""
        before_each = "图" if "图" in low else "第" if "第" in low else ""

    each = []
    for slot in word.slots:
        if slot not in form:
            raise Unclear(Reason.NO_WORD, word.said)
        capitals = like if not each or len(like) == 1 else "a"
        each.append(marked(slot, with_capitals_of(capitals, form[slot]), n, stem))
    comma, last_comma = ("、", "和") if chinese else (", ", " and ")
    head = comma.join([before_first + each[0], *(before_each + item for item in each[1:-1])])
    return f"{head}{last_comma}{before_each}{each[-1]}"


def names(text: str, n_images: int, stem: int = 0) -> str:
    """`text` with every name of an image marked, for a recipe that knows its template otherwise.

    Raises Unclear where a name is in a way unknown here; a story or several turns are the
    recipe's to judge.
    """
    hidden = hide_formulas(text.replace("<image>", HIDDEN_IMAGE))
    found = find_names(hidden, n_images)
    check_leftover(masked(hidden.lower(), found), n_images, story_is_fine=True)
    return marks_of(text, [word for name in found for word in name.words], n_images, stem)[0]


# --- A row --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What became of a row."""

    permute: bool
    stem: int
    question: str
    answer: str
    reason: Reason | None = None  # why `permute` is false
    evidence: str = ""  # the words that decided
    written_out: int = 0  # sets and ranges that were written out
    set_answer: bool = False  # the answer was brought to the form of a set


def picture_options(options: Sequence[Option], n: int) -> int:
    """How many leading options are images; the rest, such as "None of these", must name none."""
    pictures = [option for option in options if option.text.startswith(HOLE)]
    if any(option.text.rstrip(" .,;") != HIDDEN_IMAGE for option in pictures):
        raise Unclear(Reason.OPTIONS, "more than an image in an option")
    if pictures != list(options[: len(pictures)]):
        raise Unclear(Reason.OPTIONS, "images among other options")
    if len(pictures) > n:
        raise Unclear(Reason.OPTIONS)
    return len(pictures)


def judge(
    question: str, answer: str, n: int, declared: bool, stem: int | None = None, kind: str = ""
) -> Verdict:
    """Marks for one question of n images. `kind`: its
    `order` in the first version, or "". Raises Unclear.
    """
    if set(question + answer) & {HOLE, NOTHING, FORMULA}:
        raise Unclear(Reason.PLACEHOLDERS, "control characters")
    options = find_options(hide_formulas(question).replace("<image>", HIDDEN_IMAGE))
    pictures = picture_options(options, n)
    if LABEL_AFTER_IMAGE.search(question):
        raise Unclear(Reason.CAPTION, "a label after an image")
    if pictures or kind == "options":
        return judge_pictures(question, answer, n, options, pictures, stem, declared)
    return judge_text(question, answer, n, options, stem or 0, declared, kind)


def judge_text(
    question: str,
    answer: str,
    n: int,
    options: Sequence[Option],
    stem: int,
    declared: bool,
    kind: str,
) -> Verdict:
    """A question whose options, if it has any, are words. Raises Unclear."""
    if n - stem < 2:
        raise Unclear(Reason.ONE_IMAGE)
    hidden = hide_placeholders(hide_formulas(question), n, stem)
    chosen = label_of(answer, options)
    if chosen:
        hidden = without_labels(hidden, options)
    asks = kind == "index" or asks_for_image(hidden)
    order = not options and (kind == "sequence" or is_order(hidden, answer))

    spans = [(option.start, option.end) for option in options] if asks else []
    found = find_names(hidden, n, spans)
    if chosen and not asks:
        check_bare_options(hidden, options)
    if asks and not order:
        answer_is_named = bool(re.search(rf"{NOUN}|[图张幅]", answer.lower()))
        check_options(hidden, found, options, chosen, answer_is_named)
    masked_question = masked(hidden.lower(), found)

    letters = re.findall(r"\w+", answer)
    of_options = bool(letters) and all(label_of(letter, options) for letter in letters)
    if options and of_options and not asks:  # "{A, C}" of options that are texts
        said = Said([], answer.lower())
    else:
        said = read_answer(masked_question, answer, n, asks, chosen, order)
    if kind == "index" and not (chosen or said.names):
        raise Unclear(Reason.ANSWER, answer)
    if kind == "invariant" and "@" in masked_question + said.masked:
        raise Unclear(Reason.DOUBT, "an invariant row of the first version names an image")
    rest = "" if chosen else said.masked
    check_leftover(f"{masked_question}\n{rest}", n, order_is_answer=order)

    evidence = "declared"
    if not declared:
        body = without_options(hidden, options, found)
        evidence = is_certain(body, said.masked)
        if not evidence:
            raise Unclear(Reason.UNCERTAIN, body[:60])
    asks_for_set = not order and bool(SEVERAL.search(hidden))
    return verdict_of(question, answer, n, stem, found, said, evidence, asks_for_set)


@dataclass(frozen=True)
class Said:
    """An answer as it was read: the names in it, and its text in lower case with "@" for each."""

    names: list[Name]
    masked: str


def read_answer(
    masked_question: str, answer: str, n: int, asks: bool, chosen: Option | None, order: bool
) -> Said:
    """The names of images in an answer: none in the label of an option, all in an order."""
    if chosen:
        return Said([], answer.lower())
    if order:
        return Said([Name(0, len(answer), "order", "ima", order_words(answer, n))], "@")
    braced = re.fullmatch(r"\{([^{}]*)\}", answer.strip())
    inside = braced[1].strip() if braced else answer
    found = names_in_answer(masked_question, inside, n, asks)
    said = masked(inside.lower(), found)
    if braced and not ONLY_NAMES.fullmatch(said):
        raise Unclear(Reason.ANSWER, answer)
    if not found and is_label_like(inside, masked_question):
        raise Unclear(Reason.ANSWER, answer)
    if braced:
        start = answer.index(inside)
        found = [name.moved(start) for name in found]
    return Said(found, said)


ONLY_NAMES = re.compile(r"@(?:[\s,;、和与及]|and|&|the|images?|pictures?|photos?|@)*")
LABELS = re.compile(  # "1, 3", "No. 2", "\\boxed{2}", "#2", "A and C"
    r"(?:\\boxed)?[\s{(\[]*(?:no\.?|nr\.?|number|#)?\s*(?:\d{1,2}|[a-h]|[①-⑩])[\s})\].]*"
    r"(?:(?:,|;|&|、|and|or)[\s{(\[]*(?:no\.?|#)?\s*(?:\d{1,2}|[a-h]|[①-⑩])[\s})\].]*)*",
    re.IGNORECASE,
)


def is_label_like(answer: str, masked_question: str) -> bool:
    """Of an answer in which no name was found: may it be one all the same, as a list of labels, or
    a label with something around it?
    """
    if HOW_MANY.search(masked_question) or VALUE.search(masked_question):
        return False
    plain_label = re.fullmatch(r"\(?(?:[A-Za-z]|\d{1,2}|[①-⑩])\)?\.?", answer)
    return bool(LABELS.fullmatch(answer)) and not plain_label


def verdict_of(
    question: str,
    answer: str,
    n: int,
    stem: int,
    found: Sequence[Name],
    said: Said,
    evidence: str,
    asks_for_set: bool,
) -> Verdict:
    """The marked row."""
    question_words = [word for name in found for word in name.words]
    answer_words = [word for name in said.names for word in name.words]
    marked_question, written_out = marks_of(question, question_words, n, stem)
    marked_answer, in_answer = marks_of(answer, answer_words, n, stem)

    only_names = bool(ONLY_NAMES.fullmatch(said.masked))
    in_braces = answer.strip().startswith("{")
    is_a_set = (
        only_names and bool(answer_words) and (asks_for_set and len(answer_words) > 1 or in_braces)
    )
    if is_a_set or in_answer:
        marked_answer = set_of(answer_words, n, stem)
    named = ", ".join(sorted({word.said for word in question_words + answer_words}))
    return Verdict(
        permute=True,
        stem=stem,
        question=marked_question,
        answer=marked_answer,
        evidence=f"{evidence}; names: {named}" if named else evidence,
        written_out=written_out + in_answer,
        set_answer=bool(is_a_set or in_answer),
    )


def without_options(hidden: str, options: Sequence[Option], found: Sequence[Name]) -> str:
    """The masked question up to its first option."""
    if not options:
        return masked(hidden.lower(), found)
    end = options[0].label_start
    return masked(hidden[:end].lower(), [name for name in found if name.end <= end])


def check_options(
    hidden: str,
    found: Sequence[Name],
    options: Sequence[Option],
    chosen: Option | None,
    answer_is_named: bool,
) -> None:
    """Of a question that asks for an image: raises Unclear where its options are in a layout, or
    of a kind, that is not understood. Else a letter would be taken for an image, or an option's
    image would stay unmarked.
    """
    if chosen:
        named = 0
        for option in options:
            if any(option.start <= name.start < option.end for name in found):
                named += 1
            elif not option.text or re.search(r"\d|\b(?:[a-h]|only)\b", option.text.lower()):
                raise Unclear(Reason.OPTIONS, option.text or option.label)
        if not named:
            raise Unclear(Reason.OPTIONS, "none of them names an image")
        return

    ends = [m.end() for m in re.finditer("[?？]", hidden)]
    if not ends:  # "Identify the image that shows a cat."
        ends = [re.compile(r"[^.\n]*").match(hidden, m.end()).end() for m in WHICH.finditer(hidden)]
    tail = (
        NEUTRAL.sub("", re.sub(f"[{HOLE}{NOTHING}]", "", hidden[ends[-1] :].lower()))
        if ends
        else ""
    )
    if not answer_is_named and re.search(r"\w", tail):
        raise Unclear(Reason.OPTIONS, tail)


def check_bare_options(hidden: str, options: Sequence[Option]) -> None:
    """Of a question that asks for no image: raises Unclear where its options are mere numbers,
    letters or orders, which may be of images all the same.
    """
    question = hidden[: options[0].label_start]
    if HOW_MANY.search(question) or VALUE.search(question) or ASKS_LETTER.search(question):
        return
    for option in options:
        if BARE.fullmatch(option.text.lower()) or PURE_ORDER.fullmatch(option.text):
            raise Unclear(Reason.OPTIONS, option.text)


def names_in_answer(masked_question: str, answer: str, n: int, asks: bool) -> list[Name]:
    """The names of images in an answer that is no option's label. Raises Unclear where a label is
    all it can be.
    """
    label = re.fullmatch(r"\(?(?:[A-Za-z]|\d{1,2}|[①-⑩])\)?\.?", answer)
    if label and not asks:
        if re.search("[A-Ha-h]", answer) and not ASKS_LETTER.search(masked_question):
            raise Unclear(Reason.OPTIONS, "a letter answer, but no options")
        number = re.search(r"\d+", answer)
        counts = HOW_MANY.search(masked_question) or VALUE.search(masked_question)
        if number and 1 <= int(number[0]) <= n and not counts:
            raise Unclear(
                Reason.ANSWER, f"the answer {answer!r} may be a number of an image, or of something"
            )
        return []
    if label and re.fullmatch("[a-h]", answer):
        raise Unclear(Reason.OPTIONS, f"the answer {answer!r}")
    if label and lists_labels(masked_question, answer):
        raise Unclear(Reason.OPTIONS, f"the answer {answer!r} may be an option")
    asks = asks or bool(re.fullmatch(MARKS, answer) and re.search("@", masked_question))
    spans = [(0, len(answer))] if asks and not re.fullmatch("[a-z]", answer) else []
    found = find_names(answer, n, spans)
    if found and FROM_END.search(answer):
        raise Unclear(Reason.FROM_END, answer)
    return found


def set_of(words: Sequence[Word], n: int, stem: int) -> str:
    """An answer of several images in the schema's form, {[[1|1]], [[3|3]]}: the grader compares
    it without order.
    """
    each = []
    for word in words:
        for slot in word.slots:
            form = (
                vocabulary(n, stem).get((slot, word.said.lower()))
                or vocabulary(n, stem)[slot, str(slot)]
            )
            each.append(marked(slot, with_capitals_of(word.said, form[slot]), n, stem))
    return "{" + ", ".join(each) + "}"


def judge_pictures(
    question: str,
    answer: str,
    n: int,
    options: Sequence[Option],
    pictures: int,
    stem: int | None,
    declared: bool,
) -> Verdict:
    """A question whose options are the images after its
    stem: the letter of the answer follows its image.
    """
    if stem is None:
        stem = n - pictures if pictures else 0
    if pictures and n - pictures != stem:
        raise Unclear(Reason.OPTIONS, "the options are not the images after the stem")
    if n - stem < 2:
        raise Unclear(Reason.ONE_IMAGE)
    hidden = hide_placeholders(without_labels(hide_formulas(question), options), n, stem)
    if LETTER.search(hidden):
        raise Unclear(Reason.OPTIONS, "the question names a letter")

    found = find_names(hidden, n)
    if found:
        raise Unclear(Reason.DOUBT, "options are images, and an image is named by its place")
    texts = "\n".join(option.text for option in options[pictures:])
    check_leftover(hidden.lower(), n, order_is_answer=True)
    for text in texts.lower().split("\n") if texts else ():
        if not re.search(r"\b(?:none|neither|all|both|cannot|no|not)\b|以上|都|无法", text):
            raise Unclear(Reason.OPTIONS, text)
        if re.search(rf"\b(?:both|either) (?:a|b)\b|[a-d] and [a-d]\b|{NOUN}", text):
            raise Unclear(Reason.OPTIONS, text)

    letter = answer.strip().strip("().")
    labels = [option.label for option in options] or list(LETTERS[: n - stem])
    if letter not in labels:
        raise Unclear(Reason.ANSWER, answer)
    k = labels.index(letter)
    movable = k < n - stem
    marked_answer = (
        answer.replace(letter, marked(stem + k + 1, letter, n, stem)) if movable else answer
    )
    evidence = "declared; options are images" if declared else "options are images"
    return Verdict(True, stem, question, marked_answer, evidence=evidence)


# --- Rows and files -----------------------------------------------------------------------------


def equal_pictures(paths: Sequence[Path]) -> bool:
    """Do two files hold the same bytes? Files that are not there differ."""
    seen: dict[int, list[Path]] = {}
    for path in paths:
        if path.is_file():
            seen.setdefault(path.stat().st_size, []).append(path)
    for same_size in seen.values():
        if len(same_size) < 2:
            continue
        digests = {hashlib.sha256(path.read_bytes()).digest() for path in same_size}
        if len(digests) < len(same_size):
            return True
    return False


def unmarked(question: str, answer: str, n: int) -> list[str]:
    """The words that the rules take for names and that bear
    no mark, of a row that was marked by somebody else.
    """
    missed = []
    for text in (question, answer):
        bare, spans = plain(text), marked_spans(text)
        try:
            found = find_names(hide_formulas(bare.replace("<image>", HIDDEN_IMAGE)), n)
        except Unclear:
            continue
        for name in found:
            for word in name.words:
                if len(word.slots) == 1 and (word.start, word.end) not in spans:
                    missed.append(word.said)
    return missed


def marked_spans(text: str) -> set[tuple[int, int]]:
    """Where the marked words of a text stand in its plain form."""
    spans, removed = set(), 0
    for m in MARK.finditer(text):
        start = m.start() - removed
        spans.add((start, start + len(m[2])))
        removed += len(m[0]) - len(m[2])
    return spans


def separated(text: str) -> str:
    """ "[[1|2]]" of a raw text as "[ [1|2]]": what looks like a mark would be taken off."""
    return re.sub(r"\[(?=\[\d+\|)", "[ ", text)


def check_fields(row: dict) -> None:
    """Raises DataError for a raw row without the fields that the rules read."""
    for name, kind in {"images": list, "question": str, "answer": str}.items():
        if type(row.get(name)) is not kind:
            raise DataError(
                f"{name}: must be a {kind.__name__}" if name in row else f"{name}: missing"
            )
    for name, kind in {"permute": bool, "stem": int}.items():
        if name in row and type(row[name]) is not kind:
            raise DataError(f"{name}: must be a {kind.__name__}")
    for name in ("question", "answer"):
        try:
            row[name].encode()
        except UnicodeEncodeError as error:  # half an emoji is no text
            raise DataError(f"{name}: {error}") from None


def mark(row: dict, folder: Path = Path()) -> Verdict:
    """The verdict on one raw row, its images relative to `folder`. Raises DataError for a row
    without the fields.
    """
    check_fields(row)
    question, answer, images = row["question"], row["answer"], row["images"]
    kind = row["order"] if row.get("order") in OLD_KINDS and "permute" not in row else ""
    declared = row["permute"] if "permute" in row else kind != "fixed" if kind else None
    stem = row.get("stem")
    try:
        if re.search(r"\[\[\d+\|", question + answer):
            raise Unclear(Reason.BRACKETS)
        if declared is False:
            raise Unclear(Reason.DECLARED)
        if len(images) < 2:
            raise Unclear(Reason.ONE_IMAGE)
        if names_a_file_twice(images):
            raise Unclear(Reason.EQUAL)
        if equal_pictures([folder / name for name in images]):
            raise Unclear(Reason.EQUAL)
        known_stem = stem if stem or kind and kind != "options" else None
        return judge(question, answer, len(images), bool(declared), known_stem, kind)
    except Unclear as why:
        if why.reason == Reason.BRACKETS:
            question, answer = separated(question), separated(answer)
        return Verdict(False, stem or 0, question, answer, why.reason, why.words)


def is_marked(row: dict) -> bool:
    """Did somebody mark the row? It holds marks, and all of them are good ones."""
    n, stem = len(row["images"]), row.get("stem", 0)
    found = list(MARK.finditer(f"{row['question']}\n{row['answer']}"))
    return bool(found) and not any(mistake(int(m[1]), m[2], n, stem) for m in found)


@dataclass(frozen=True)
class Result:
    """A row as it is written, how it came about, and the names that somebody's marks miss."""

    row: dict
    verdict: Verdict
    missed: tuple[str, ...] = ()


def result_of(row: dict, source: Path, out: Path) -> Result:
    """One raw row of the file `source`, marked for
    the file `out`: image paths are relative to it.
    """
    check_fields(row)
    images = [os.path.relpath(source.parent / name, out.parent) for name in row["images"]]
    replaced = ("why", "order") if row.get("order") in OLD_KINDS else ("why",)
    kept = {name: value for name, value in row.items() if name not in replaced}
    said_before = {"why": row["why"]} if row.get("permute") is False and row.get("why") else {}
    if is_marked(row):
        # Raises DataError for a wrong number of placeholders, and the like.
        sample_of({"id": "", **row})
        missed = tuple(unmarked(row["question"], row["answer"], len(images)))
        permute = row.get("permute", False)
        verdict = Verdict(
            permute, row.get("stem", 0), row["question"], row["answer"], evidence="marked already"
        )
        row = kept | {"images": images, "permute": permute} | said_before
        return Result(row, verdict, missed)

    verdict = mark(row, source.parent)
    text = {"question": verdict.question, "answer": verdict.answer, "permute": verdict.permute}
    stem = {"stem": verdict.stem} if verdict.stem else {}
    why = {"why": explanation(verdict)} if verdict.reason else {}
    return Result(kept | {"images": images} | text | stem | why | said_before, verdict)


def explanation(verdict: Verdict) -> str:
    """The evidence of a permutable row, or the reason and the words that decided."""
    if verdict.reason is None:
        return verdict.evidence
    return f"{verdict.reason}: {verdict.evidence!r}" if verdict.evidence else str(verdict.reason)


class Summary:
    """Counts of what became of the rows: permutable by evidence, the others by reason, what was
    changed or is missed, and in which slot the right image stands.
    """

    def __init__(self):
        self.rows = 0
        self.evidence: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.slots: Counter[int] = Counter()
        self.written_out = self.sets = 0
        self.missed: list[str] = []

    def add(self, result: Result) -> None:
        verdict = result.verdict
        self.rows += 1
        if verdict.permute:
            self.evidence[verdict.evidence.split("; names: ")[0]] += 1
            options = {option.label: option.text for option in find_options(verdict.question)}
            slot = slot_of(Sample("", (), verdict.question, verdict.answer), options)
            if slot:
                self.slots[slot] += 1
        else:
            said = result.row.get("why") or str(verdict.reason or Reason.DECLARED)
            self.reasons[said.split(": ")[0]] += 1
        self.written_out += verdict.written_out > 0
        self.sets += verdict.set_answer
        if result.missed:
            words = ", ".join(result.missed)
            self.missed.append(
                f"{result.row.get('id')}: its marks miss what looks like a name: {words}"
            )

    def lines(self) -> list[str]:
        permutable = self.evidence.total()
        lines = [f"permutable {permutable} of {self.rows}"]
        lines += [f"{count:8d} true: {what}" for what, count in self.evidence.most_common()]
        lines += [f"{count:8d} false: {what}" for what, count in self.reasons.most_common()]
        if self.written_out:
            lines.append(f"{self.written_out:8d} rows with a set or a range of images written out")
        if self.sets:
            lines.append(f"{self.sets:8d} answers brought to the form of a set, {{1, 3}}")
        if self.slots:
            total = self.slots.total()
            shares = [f"{slot}: {self.slots[slot] / total:.0%}" for slot in sorted(self.slots)]
            lines.append(f"{total:8d} right images are named; by slot {', '.join(shares)}")
        return lines + self.missed


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("data", metavar="RAW.jsonl")
    p.add_argument(
        "--out", required=True, help="JSONL: the rows with `permute`, `stem`, marks, and `why`"
    )
    p.add_argument(
        "--explain", action="store_true", help="print the evidence or the reason of each row"
    )
    args = p.parse_args(argv)

    source, out = Path(args.data), Path(args.out)
    aside, summary = out.with_suffix(".tmp"), Summary()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.is_dir():
            raise DataError(f"--out {out}: it is a folder")
        with open(aside, "w", encoding="utf-8") as file:
            for where, row in rows(source):
                try:
                    result = result_of(row, source, out)
                except DataError as error:
                    raise DataError(f"{where}: {error}") from None
                file.write(json.dumps(result.row, ensure_ascii=False) + "\n")
                summary.add(result)
                if args.explain:
                    decided = str(result.verdict.permute).lower()
                    print(row.get("id"), decided, explanation(result.verdict), sep="\t")
        aside.replace(out)
    except (DataError, OSError) as error:
        sys.exit(f"mark.py: {error}")
    finally:
        if aside.is_file():
            aside.unlink()
    print("\n".join(summary.lines()), file=sys.stderr)


if __name__ == "__main__":
    main()
