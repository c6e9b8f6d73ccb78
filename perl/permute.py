"""Permute the images of a question so that what was true stays true: Eq. (1) of PeRL (arXiv 2506.14907), exactly.

Slot j of the permuted sample shows old image sigma[j] (0-based); q = sigma^-1: old image i now stands in slot q[i].
Recognise, rewrite, mask, refuse the rest: FORMS lists words for slots, WAYS the ways to name an image with them; the
form stays, the slot changes. With every name masked as "@", a position word that is left, or a wording of REFUSE, may
mean an image in a way unknown here: Refused, with the reason. Each rewrite is undone and compared.
Deviations: the paper asks GPT-4o which answers follow their image, here the data says it (ORDERS). The release edits no
text, flips A/B instead (wrong for "the left image shows a dog" when both do), and has one sigma for
each number of images, for ever.

    python perl/permute.py IN.jsonl [--sigma 1,0] [--n-s 1] [--seed 0] [--infer] [--out OUT.jsonl]
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

ORDERS = {"invariant": "only images move", "options": "the letter follows its image", "index": "the answer names an image",
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
    evidence: str = field(default="", compare=False)  # what `order` was inferred from

@dataclass(frozen=True)
class Copy:
    """One member of a group. `refused`: why it is identical ("" when permuted, or when the coin said no)."""
    sample: Sample
    sigma: tuple[int, ...]
    refused: str = ""

# --- words for slots: a form has one word per slot
FORMS = [row.split() for row in (
    "first second third fourth fifth sixth seventh eighth ninth tenth", "1st 2nd 3rd 4th 5th 6th 7th 8th 9th 10th", "a b c d e f g h",
    "one two three four five six seven eight nine ten", "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20", "甲 乙 丙 丁",
    "i ii iii iv v vi vii viii ix x", "一 二 三 四 五 六 七 八 九 十", "① ② ③ ④ ⑤ ⑥")]
FROM_END = [["last", *(f"{nth} to last" for nth in FORMS[0][1:])], ["最后一", *(f"倒数第{k}" for k in FORMS[7][1:])],
            ["ultimate", "penultimate", "antepenultimate"]]
ROWS = {2: "left right|leftmost rightmost|left-hand right-hand|lefthand righthand|top bottom|upper lower|initial final"
           "|左 右|左边 右边|左侧 右侧|首 末", 3: "left middle right|左 中 右|左侧 中间 右侧|左边 中间 右边"}
EDGES = (("first ", "last "), ("initial ", "final "), ("前", "后"), ("最前", "最后"))

@lru_cache
def _vocabulary(n: int) -> dict[str, tuple]:
    """word (of a range, both, "\\0" between) -> its form, {slots: word}, and its slots"""
    forms = [dict(zip(range(n)[::-1], form)) for form in FROM_END if n > 2]
    forms += [dict(zip(range(n), form)) for form in FORMS + [row.split() for row in ROWS.get(n, "").split("|")]]
    forms = [{frozenset([slot]): word for slot, word in form.items()} for form in forms]
    forms += [{frozenset(range(a, b + 1)): f"{form[a]}\0{form[b]}" for b in range(min(n, len(form))) for a in range(b)} for form in FORMS]
    for k, sizes in list(enumerate(zip(FORMS[3], FORMS[4], "一两三四五六七八九十"), 1))[1:n]:  # "first two", "last two"; two of two are all
        for last, first in ((end + size, start + size) for start, end in EDGES for size in sizes):
            ends = {frozenset(range(n - k, n)): last}, {frozenset(range(k)): first}
            forms += ends if k == n else [ends[0] | ends[1]]
    return {word: (form, slots) for form in forms for slots, word in form.items()}

# --- the ways to name an image: the one group of a way holds the words that say which
NOUN = r"(?:image|picture|photo(?:graph)?|pic|img)s?(?![a-z])"
SOFT = (r"(?:(?:figure|panel|diagram|graph|chart|map|plot|view|drawing|painting|animal|bird)s?\b|figs?\b\.?|#(?=\d)"
        r"|(?:option|choice|candidate)s?(?= [#(]?\d))")  # an image only in a text without images
SIDE = "(?:left|right)(?:-?hand|most)?|top|bottom|upper|lower|middle|central|center|centre"
NTH, COUNT = ("(?:" + "|".join(words) + ")" for words in (FORMS[0] + FORMS[1], FORMS[3]))
EDGE = rf"(?:first|last|initial|final) (?:{COUNT}|[2-9])\b|最?[前后][两三四五六七八九2-9]"
ORDINAL = rf"{NTH}|last|initial|final|(?:antepen|pen)?ultimate|(?:opening|starting|foremost|lead|premiere|end|secondary|tertiary)(?= {NOUN})"
TO = r"(?:(?:(?<=[\d①-⑥一-龥)])|(?<=\b[a-h])) ?[-–—~～] ?| (?:to|through|thru) (?:the )?(?!last)|[至到][图第]?)"
AND = r"(?:[)\]$）]?(?:, ?(?:and |or )?| (?:and|or|&|vs\.?) |[和与或及、]|(?<=\))(?=\())(?:the |第|图)?[(\[$（]?)"
DIGIT, HAN = r"[1-9]\d?(?![\d.%]|[个只条张位名辆本块米])", "[一二三四五六七八九十]"
SIDES, NTHS, HANS, HANUMS, *NUMBERS = (rf"(?:{token})(?:{AND}(?:{token}))*" for token in (  # a list keeps to one form
    rf"(?:{SIDE})(?! to)", rf"(?:{NTH} to last|{ORDINAL})(?! to)", rf"[1-9]\d?(?![\d.%])|{HAN}(?!{HAN}|样)",
    rf"{DIGIT}|{HAN}(?=$|所示|[至到\s，。、？！；：,.?;:!)）是有和与或及比里中的哪呢跟同更最上内])|[a-h](?![a-z\d])|[①-⑥甲乙丙丁]",
    rf"{COUNT}\b", r"[1-9]\d?(?![\w%]|[.,:]\w|[-–—~～/至到]| ?(?:[kmg]b|px)\b)", r"[a-h]\b", r"[ivx]+\b"))
PLACES = rf"{NTHS}|(?:(?<=the )|(?<=and )|(?<![a-z] )){SIDES}|(?:{SIDE})(?! to)"  # "facing left and the right image" holds no list
NUMBERS, PICTURE, HAN_END = "|".join(NUMBERS), r"(?:图[片像]?(?![书形纸案])|照片)", r"(?=$|[\s，。？?是有和与哪里中的都比更])"
ONE_OR_TWO = NUMBERS.replace(", ?(?:and |or )?|", "")  # of a singular: "in image 2, 3 dogs sleep" holds no list
SPAN = TO.join([rf"(?:\d\d?|[a-h]|[ivx]+|{COUNT})(?![\w%])"] * 2)
WAYS = (rf"\b(?<!-)(?<!a (?=second))(?!(?:(?<=to the )|(?<=on the ))(?:{SIDE}){AND})(?P<place>{EDGE}|{NTH}{TO}{NTH}|{PLACES}) {NOUN}",
        rf"\b{NOUN} (?:on|to|at) (?:the )?(?P<side>{SIDE})(?: hand)?(?: side)?\b(?! of)",
        rf"(?<![\w&])(?:{NOUN}|{SOFT})(?: number| no\.?(?= ?[\d#]))?[ #_-]*[(\[$]?"
        rf"(?P<number>(?:(?<=s )|(?<=s\. )|(?<=s [#(]))(?:{SPAN}|{NUMBERS})|{ONE_OR_TWO})[)\]$]?",
        rf"(?P<han>最后一|{EDGE}|倒数第{HAN}|第{HANS}(?:{TO}{HANS})?)(?:[张幅副个]?{PICTURE}|[张幅]画(?![面家])|[张幅]{HAN_END})",
        rf"(?<!地)(?:图[片像]?|照片) ?[（(]?(?P<hanumber>{HANUMS}{TO}{HANUMS}(?=[里中]?[都均全各哪])|{HANUMS})",
        rf"(?<![\da-z朝向往其图左右上下])(?P<hanside>[左右][边侧]|中间|[左右中首末])的?(?:[那这]一?)?[张幅]?{PICTURE}")
BARE = (r"(?:\A|(?<=^\([a-z]\) )|(?<=^[a-z]\. ))(?:the |选)?[(\[]?"
        rf"(?P<bare>{PLACES}|{NUMBERS})[)\]]?(?: ones?)?[.。]?$")  # all of an option, or of an answer
NAMES, NAMES_AND_BARE, MARKS = (re.compile("|".join(ways), re.M) for ways in (
    WAYS, (BARE, *WAYS), [rf"(?:{NOUN} ?)?(?P<bare>[a-h]|[1-9])"]))
BEFORE = re.compile(r"\b(?:an?|one|each|every|any|no|another|which|two|three|\d|(the|this|its)) $")
BEFORE_HASH = re.compile(r"(?:^|[.?!,(:\n\0\1]|\b(?:in|is|and|or|of|than|between|to|vs|with|does|do|are|like|compare))\s*$")
AFTER = re.compile(  # what may follow "image 2", but no count of things
    r" ?[^\w\s]|\s*$|\s*\n|[一-龥]| (?:is|are|was|were|has|have|do|does|and|or|but|while|in|on|at|of|for|from|to|with|as|than|that|not"
    r"|can|could|would|shows?|depicts?|contains?|features?|covers?|grows?|equals|differs?|looks?|(?:show|look|fac|depict|contain)ing|match|both|all|only|also"
    r"|similar|like|[a-z]+e[rd]|taken|there|an?|the)\b")
TOKEN = (rf"(?:(?<![a-z])(?!(?:and|or|vs|the)\b)(?:{EDGE}|[a-z]+ to last|[a-z]+-hand|[a-z]+|\d+[a-z]*)|最后一|倒数第."
         r"|[左右][边侧]|中间|[①-⑥一二三四五六七八九十甲乙丙丁左右中首末])")
WORD, JOIN, SET = re.compile(rf"{TOKEN}(?:{TO}{TOKEN})?", re.I), re.compile(TO, re.I), re.compile(rf"{EDGE}|.+?{TO}.+")
ONE_OF_SOME = re.compile(r" (?:with(?! respect)|that|which|where|showing|containing|depicting|having|in which)\b")  # "the second with a dog"
IN_ORDER = re.compile(r"respectively|increas|decreas|grow|bigger|trend|rotat|evol|mov(?:e|ing)|\bfrom .* to |分别|[增减从由移]")
ONE_IMAGE = re.compile(rf"\b(?:each|every|both|an?|one|either) {NOUN}")

def _moved(said: str, q: tuple) -> str:
    """A word ("2", "first two") or a range ("2 to 4") for the same images where they are now, in its form and capitals."""
    form, slots = _vocabulary(len(q)).get(JOIN.sub("\0", said.lower()), ({}, ()))
    if not (new := form.get(frozenset(q[slot] for slot in slots))):
        raise Refused(f"{said!r} is none of the images for certain, or has no word for the new place")
    return "".join(JOIN.findall(said)).join(
        word.upper() if old.isupper() else word[0].upper() + word[1:] if old[0].isupper() else word
        for word, old in zip(new.split("\0"), JOIN.split(said)))

def _rename(text: str, q: tuple, names: re.Pattern = NAMES) -> tuple[str, str]:
    """`text` with every name of old image i as slot q[i] says it; and in lower case, with "@" for every name."""
    low, out, masked, end, kinds, nouns, sides = text.lower(), [], [], 0, set(), set(), set()
    for m in names.finditer(low):
        way, (a, b), before, old = m.lastgroup, m.span(m.lastgroup), low[:m.start()], m[m.lastgroup]
        kind = (re.match(SOFT, m[0]) or ["image"])[0][:3]
        if old == text[a:b] == "a" and text[a - 1] != "(":
            continue  # "in one image a dog sleeps"
        if ((no := BEFORE.search(before[-9:])) and (way == "number" or not no[1]) or kind == "#" and not BEFORE_HASH.search(before[-9:])
                or way in ("number", "side") and not AFTER.match(low, m.end()) or SET.fullmatch(old) and IN_ORDER.search(low)
                or way == "number" and re.fullmatch("[a-h]|[ivx]+", text[a:b]) and text[a - 1] != "("
                or old == "i" and re.match(" (?:like|have|do|can|was|[a-z]+ed)", low[b:])
                or old == "second" and ONE_IMAGE.search(before) and "first" not in before
                or way == "place" and not re.match(SIDE, old) and ONE_OF_SOME.match(low, m.end())):
            raise Refused(f"{m[0]!r} may not be the name of an image")
        out += [text[end:a], WORD.sub(lambda word: _moved(word[0], q), text[a:b]), text[b:m.end()]]
        masked += [low[end:m.start()], "@"]
        kinds.add(kind)
        nouns.update(noun[:3] for noun in re.findall(NOUN, m[0].lower()))
        sides.add(way == "hanside" or bool(re.match(rf"(?:{SIDE})\b", old)))
        end = m.end()
    masked = "".join(masked) + low[end:]
    if len(nouns) > 1 or len(sides) > 1:
        raise Refused("images named in two ways: one may be a picture in an image")
    if len(kinds) > 1 or kinds and "ima" not in kinds and (
            ONE_IMAGE.search(masked) or kinds - {"fig", "#"} and re.search(rf"\b{NOUN}", masked)):
        raise Refused(f"a number that may be of a part of an image: {', '.join(sorted(kinds))!r}")
    return "".join(out) + text[end:], masked

# --- what may not be left over once every name is "@" ---
IMAGE = r"(?:@|(?:image|picture|photo(?:graph)?|pic|img|figure|fig)s?(?![a-z]))"
ONE = r"@|\b(?:one|an?|single|which) (?:\w+ )?(?:image|picture|photo)|一[张幅]"
LEFT_RIGHT = r"(?:\b(?:left|right)(?:most|-?hand)?\b|[左右])"
STILL = (r"\b(?:(?:fac|look|point|head|turn|angl)\w+(?: directly)?|to the|towards?(?: the)?|their|his|her|its|all) (?:left|right)\b|[左右]"
         r"[手脚臂腿转]|[朝向往][左右]|\b(?:left|right)[- ](?:arm|leg|hand|foot|eye|ear|wing|paw|shoe|side|half|angle|triangle|order|answer|of|next)\b")
TIME, POINT, PART = "temporal or story wording", "an image named by pointing", "a position of something else"
REFUSE = [(reason, re.compile(pattern, re.M)) for reason, pattern in (
    (TIME, r"\b(?:videos?|(?:first|last|second|next|following|these) frames?|frames? ?#?\d|(?:a|the|this) story|comic|sequen\w+"
     r"|chronolog\w+|timeline|time-?lapse|over time|no longer|consecutive|success\w+|happen\w*|comes? next|before|after|earlier"
     r"|later|then|changed?|missing|in (?:\w+ )?order|disappear\w*)\b"
     r"|先后|依次|顺序|变化|(?<![跑散])步|接下来|随后|之后|之前|故事|视频|帧"),
    ("several turns", r"^\s*(?:user|human|assistant|gpt|用户|助手) ?[:：]|<\|(?!@)|^\s*(?:q|question|example) ?[2-9] ?[:.]"
     r"|(?s:\bq(?:uestion)? ?:.*\bq(?:uestion)? ?:)"),
    (POINT, rf"{IMAGE},? (?:\w+ )?(?:between|next to|beside) @|@,? (?:counting )?from (?:the )?(?:right|bottom|end|back|last)"
     r"|\bcount(?:ing|ed)? (?:backwards?|from)|从[后右下末][^，。？]?[往向到]|截图|@有[^\s，。？]*的[图照]|头[两三四几][张幅]|[上下]方的?图"
     rf"|{IMAGE} (?:at|in|with|on) (?:the |both )?(?:index|position|place|{NTH} place|ends?\b|start|beginning)"
     r"|\b(?:topmost|bottommost|outer(?:most)?|inner(?:most)?|closing|(?:odd|even)-numbered) (?:image|picture|photo)"
     rf"|\b(?:half|row|column) of (?:the )?(?:image|picture|photo)s|(?<![a-z])[a-h甲乙丙丁\d]号?图(?![书形案表纸画])"
     r"|\A[^@]*(?:\brespectively\b|分别)[^@]*\Z"),
    (POINT, r"\b(?:previous|preceding|prior|subsequent|adjacent|former|latter|next to last)\b|[这那前后上下][一两二三四]?[张幅]"
     rf"|\b(?:this|that|next|following(?! (?:image|picture|photo)s)|above|below) (?:\w+ )?{IMAGE}|{IMAGE} (?:above|below|following|to the)\b"
     r"|[前后]者|第.个[？是有和]|(?<!以)[上下][面边]?的?图"),
    (PART, rf"(?:@|\b{IMAGE})(?:[ #_,.$(]{{0,3}}\d(?! ?[kmg]b)| (?:[b-h]|[ivx]+|{COUNT})\b"
     r"| (?:of )?(?:label|mark|number|named|lucky|no\.)"
     r"| (?:in|of|from|on) (?:the |an? )?(?:\w+ )?(?:row|column|page|series|middle|center|centre))|from @ to"
     r"|@ ?(?:[-–/~～至到]|through|thru) ?[@\d]|@(?: to| and| or| &|[、和与])? ?\d|@,? (?:and|or) (?:on |at )?(?:the )?(?:left|right)\b"
     r"|@ (?:pair|set|group|half|part|(?:frame|album|booth|book)s?\b)"
     r"|@[^\n]*(?:(?<![(\n])\b[b-h]\b(?![).:])|\b\d (?:is|has|shows?|contains?|depicts?)\b)"
     r"|间的?图|图[片像]? ?[（(]?[\dⅰ-ⅹ]|图[二三五六七八九](?![角边面次元])|#\d"
     rf"|第(?:\d+[张幅]|十{HAN})|@[^\n]*第{HAN}[张幅]|第{HAN}[张幅][^\n]*@|@[^\n]*(?:[比和与或跟在] ?[a-h\d甲乙丙丁]|比[左右])"
     rf"|\b(?:{SOFT}|person|room|step|day|slide|scene|\w*shot|scan|illustration|sketch) ?[(#]?(?:\d|[b-h]\b)"
     r"|(?s:@.*)\ba second|\ba second(?s:.*)@"),
    (PART, r"^\(?[1-9][.)] [^\n]*@|@, ?(?:\d+|[b-h])(?:,? (?:and|or) |, )|(?<![(\n])\b[a-h](?=\s*[?,;!])|\bwhich of (?:[a-h]|\d)\b"
     r"|\bonly (?:\d|[a-h])\b(?! \w)|\b(?:\d|[b-h]) only\b|\b(?:in|does|do|is|are) [b-h]\b|\bin a (?:there|is)\b"),
    (PART, r"@[^\n]*(?:,|\b(?:than|in|as|from|with|to|of|not|like|against|number|versus|vs\.?|and|or))"  # "as in 2?"
     rf" (?:\d|[a-h]|(?!one\b){COUNT})(?=\s*(?:$|[:.,;?!)]))|@[^\n]*\b(?:no|number)\.? ?\d|\b(?:no|number)\.? ?\d[^\n]*@"),
    (PART, rf"\b(?:(?:{SIDE})[ -](?:(?!in|on|of|is|and|with|the|an?\b)[\w-]+ )?{IMAGE}|(?:{SIDE}),? (?:and |or )?(?:the )?@"
     rf"|the (?:{SIDE}) ones?\b|(?:than|like|similar to) [b-h]\b|(?:that|those|ones?) (?:on|to|at|in) the (?:left|right)"
     r"|(?<!on )(?<!to )(?<!at )the (?:left|right)(?=$|[.,;:?!)]| (?:is|has|shows|contains|and|or)\b)"
     r"|which (?:is|one)\b(?s:.*)^\(?[a-z][).] ?\d"
     rf"|(?:is|does|do) (?:[a-h]|\d) (?:\w+er than|more|like|similar|the same))\b|\((?:{SIDE}|{ORDINAL})\b"
     rf"|(?<!\ba )\b(?:{ORDINAL}|\d+th|\w+teenth|eleventh|twelfth)\b(?! (?:row|column|person|place|half|floor|hand|class)\b)"),
    ("a side that may be an image",
     rf"(?:^|[.?!]\s)(?=.*{LEFT_RIGHT})(?:{STILL}|(?!{ONE}|{LEFT_RIGHT}|[.?!]\s)[^\n])*+{LEFT_RIGHT}"),
    ("a language other than English and Chinese",
     r"[\u3040-\u30ff\uac00-\ud7af\u0400-\u0eff\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017f¿¡\u0307]|[α-ω]{3}"
     r"|\b(?:bild|bilder|imagen|imagens|imagem|immagini?|afbeelding|l'image|image (?:de|du))\b"
     r"|\b(?:der|das|und|ist|les|une|est|los|una|il|het|een|della)\b"))]
OTHER = re.compile(rf"the (?:other|remaining)\b(?: (?:\w+ )?{IMAGE}| ones?\b| (two|three))|另|其余"
                   rf"|((?:reference|query|source|original|edited) {IMAGE}|参考图|原图)")

@lru_cache(4096)
def _leftover(masked: str, n: int, order: str) -> str:
    """The reason why a text may name an image in a way unknown here; "" when it does not."""
    for reason, pattern in REFUSE:
        if (reason != TIME or order not in ("options", "sequence")) and (m := pattern.search(masked)):
            return f"{reason}: {' '.join(m[0].translate({0: None, 1: None}).split())[-40:]!r}"
    for m in OTHER.finditer(masked):  # "one image ... the other image" is safe, and of two only
        if not (re.search(rf"\bone\b|{ONE}", masked[:m.start()]) and (n == 2 or m[1]) or m[2] and "@" in masked):
            return f"{POINT}: {m[0]!r}"
    return ""

# --- the sample
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTER = re.compile(rf"(?i:(?:{NOUN}|(?:option|choice|candidate|answer)s?) \(?[A-H]\b)|(?<![(\n\w])[B-H]\b(?![.):．：、])"
                    r"|\b(?:as|to|of|than|and|or|like|with) A(?! \w*[a-z]\b)")  # a letter that a question names
WHICH_HAN = "哪[一几]?(?:[张幅]|个?图|个(?=[有是更最中里与和？?]))"  # no 哪个数字
WHICH = re.compile(r"(?i)\bwhich(?: of)?(?: the| these| two| three| other)* (?:image|picture|photo)(?! (?:caption|title|number))"
                   rf"|\A(?!(?s:.*)\b{NOUN})(?s:.*)\bwhich (?:figure|panel)|{WHICH_HAN}")
MARK = re.compile(r"(?:^[ \t]*(?:\(([A-Z])\)|([A-Z])[.):．：、])|(?<=\s)\(([A-Z])\)(?=[ \t]))[ \t]*(?=\S)", re.M)
LEAD = re.compile(r"(?:^|[.?!。？！>]|(?i:images|pictures|photos|options)\W*|图片?\W*)\s*(?:\n\(?[A-Z][.):：、]?\s*)?$")
ROW_OF_IMAGES = re.compile(r"(?:<image[_\d]*>(?:\W*(?:and|or|vs)?\s*|\s*\n\(?[A-Z][.):：、]?\s*))+")
GLUED = re.compile(r"[ \t]*(?:[:：=]|(?:is|was|shows|depicts|has)\b)")
ORDERED = re.compile(rf"(?:\W|_|(?i:{NOUN})|图|[A-H]|[1-9])*")

def inverse(sigma) -> tuple[int, ...]:
    """q = sigma^-1: old image i stands in slot q[i]."""
    return tuple(sorted(range(len(sigma)), key=sigma.__getitem__))

def options(question: str) -> dict[str, str]:
    """The lettered options of a question, e.g. {"A": "True", "B": "False"}; {} when it has none."""
    marks = list(MARK.finditer(question))
    texts = [question[m.end():end].split("\n")[0].rstrip() for m, end in zip(marks, [m.start() for m in marks[1:]] + [len(question)])]
    letters = "".join(m[m.lastindex] for m in marks)
    opens = len(marks) > 1 and re.search(r"(^|[?:.!>\n])\s*$", question[:marks[0].start()])
    return dict(zip(letters, texts)) if opens and letters == LETTERS[:len(marks)] else {}

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
    if not (LEAD.search(text[max(0, a - 30):a]) and ROW_OF_IMAGES.fullmatch(text, a, b)) or GLUED.match(text, b):
        raise Refused("words, a label or a caption, are glued to a placeholder")
    return holes

def _answer(x: Sample, q: tuple, asks: bool) -> tuple[str, str]:
    """The answer renamed, and masked; Refused when it has to name images and does not."""
    if x.order == "sequence":
        marks = re.findall("[A-H1-9]", x.answer)
        if not (ORDERED.fullmatch(x.answer) and 1 < len(marks) == len(set(marks))):
            raise Refused("it is no order of the images")
        return _rename(x.answer, q, MARKS)[0], "@"
    answer, masked = _rename(x.answer, q, NAMES_AND_BARE if asks and not re.fullmatch("[a-z]", x.answer) else NAMES)
    if x.order == "index" and "@" not in masked:
        raise Refused("it names no image")
    return answer, masked

def _permute(x: Sample, sigma: tuple) -> Sample:
    """`permute` without the round trip."""
    n, q, choices, text, answer, rest = len(sigma), inverse(sigma), options(x.question), x.question, x.answer, ""
    if {"\0", "\1"} & set(text):
        raise Refused("control characters in the text")
    for a, b in (holes := _holes(text, n, [slot for slot, old in enumerate(sigma) if slot != old])):
        text = text[:a] + "\1".ljust(b - a, "\0") + text[b:]  # nothing is named in there
    asks = x.order == "index" or bool(WHICH.search(text)) and not re.search(r"(?i)\bhow m|\bnumber of\b|多少|几", text)
    question, masked = _rename(text, q, NAMES_AND_BARE if asks else NAMES)
    question = re.sub("\1\0*", lambda m, spans=iter(holes): x.question[slice(*next(spans))], question)
    if x.order == "options":  # the letter follows its image
        if n - x.stem > len(LETTERS) or choices and not (
                len(choices) == n - x.stem and all(option.startswith("<image") for option in choices.values())):
            raise Refused("the options are not the images after the stem")
        if answer not in LETTERS[:n - x.stem] or LETTER.search(text):
            raise Refused("the answer is no letter of an image, or the question names a letter")
        answer = LETTERS[q[LETTERS.index(answer) + x.stem] - x.stem]
    elif answer not in choices:  # else its option was renamed, and the letter stays: S = 1
        if x.order == "references" and re.fullmatch("[A-Z]", answer):
            raise Refused("a letter answer, but no options")
        answer, rest = _answer(x, q, asks)
    elif x.order == "sequence" or x.order == "index" and "@" not in masked:
        raise Refused("the options name no image")
    for wrong, why in ((x.order != "options" and "<image>" in choices.values(), "the options are images: order must be options"),
                       (x.order == "invariant" and "@" in masked + rest, "an invariant sample names an image by its position"),
                       (why := _leftover(masked + "\n" + rest, n, x.order), why)):
        if wrong:
            raise Refused(why)
    return replace(x, images=tuple(x.images[old] for old in sigma), question=question, answer=answer)  # Eq. (1): x^ and y^

def permute(sample: Sample, sigma) -> Sample:
    """The sample with old image sigma[j] in slot j, and every name of an image renamed. Raises Refused."""
    sigma, identity, stem = tuple(sigma), tuple(range(len(sample.images))), sample.stem
    if sigma == identity:
        return sample
    if sorted(sigma) != list(identity) or sample.order == "fixed" or sigma[:stem] != identity[:stem]:
        raise Refused("fixed" if sample.order == "fixed" else f"sigma {sigma} is no order of {len(identity)} images, or moves the stem")
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
    the other orders of the movable images, and new while there are any; one that is refused leaves its copy as the original
    is. Nothing but the arguments decides."""
    identity, drawn = tuple(range(len(sample.images))), set()
    movable, group = identity[sample.stem:], [Copy(sample, identity)]
    why = "one image" if len(identity) < 2 else "fixed" if sample.order == "fixed" else "one movable image" * (len(movable) < 2)
    if why or random.Random(f"{seed}/{step}/{sample.id}").random() >= alpha_t:
        return group + [Copy(sample, identity, why)] * n_s
    for copy in range(n_s):
        rng = random.Random(f"{seed}/{step}/{sample.id}/{copy + 1}")
        drawn = drawn if copy % (factorial(len(movable)) - 1) else {movable}  # every order is used: start over
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
    for bad, sentence in (
            (not n or any(type(name) is not str or not name for name in x.images), "images: must be a list of file names"),
            (x.order not in ORDERS, f"order: {x.order!r} is none of {', '.join(ORDERS)}"),
            (holes != n, f"question: {holes} <image> for {n} images"), (not 0 <= x.stem < n, f"stem: {x.stem} is not between 0 and {n - 1}"),
            (x.order != "sequence" and letters and x.answer not in letters, f"answer: {x.answer!r} is none of {', '.join(letters)}")):
        if bad:
            raise DataError(sentence)
    if x.order in ("index", "sequence") and x.answer not in letters:
        try:
            _answer(x, tuple(range(n)), True)
        except Refused as why:
            raise DataError(f"answer: {x.answer!r}: {why}") from None
    return x

def load(path, check_images: bool = True, absolute: bool = True) -> list[Sample]:
    """The samples of a JSONL file; `absolute`: images as openable paths, relative to the file. Raises DataError."""
    path, seen = Path(path), {}
    try:
        text = path.read_text(encoding="utf-8-sig") if path.is_file() else None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no text in UTF-8 ({error})") from None
    if not (text or "").strip():
        raise DataError(f"{path}: " + ("no such file" if text is None else "the file is empty"))
    for number, line in ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()):
        try:
            x = _sample(json.loads(line))
            f"{x.question}{x.answer}".encode()  # half an emoji is no text
            for name in x.images if check_images else ():
                if not (path.parent / name).is_file():
                    raise DataError(f"images: file {name} does not exist")
            if x.id in seen:
                raise DataError(f"id: {x.id!r} is already in {seen[x.id].where}")
        except ValueError as error:  # of json and encode, too
            raise DataError(f"{path.name}:{number}: {'no JSON: ' * isinstance(error, json.JSONDecodeError)}{error}") from None
        images = tuple(str(path.parent / name) for name in x.images) if absolute else x.images
        seen[x.id] = replace(x, images=images, where=f"{path.name}:{number}")
    return list(seen.values())

def main(argv=None) -> None:
    """What permutation does to a data set, before a GPU hour is spent: a line for each copy, a summary on stderr."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", metavar="IN.jsonl")
    p.add_argument("--sigma", help="one order for all, e.g. 1,0: slot j shows old image sigma[j]; default: drawn")
    p.add_argument("--n-s", type=int, default=1, help="permuted copies of a sample")  # paper: Table 2
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--infer", action="store_true", help="infer `order` and `stem` by rule where a line has no `order`")
    p.add_argument("--out", help="default: standard output")
    args, rows, counts, read = p.parse_args(argv), [], Counter(), load
    if args.infer:  # the one thing that this file cannot do alone
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        from data.infer import load_inferred as read
    try:
        sigma = tuple(map(int, args.sigma.split(","))) if args.sigma else None
        samples = read(args.data, check_images=False, absolute=False)
        (out := Path(args.out or ".")).parent.mkdir(parents=True, exist_ok=True)
    except ValueError as error:
        sys.exit(str(error) if type(error) is not ValueError else f"--sigma: {args.sigma!r} is no list of slots such as 1,0")
    for x in samples:
        counts[f"kind {x.order}"] += 1
        inferred = {"order": x.order, "stem": x.stem, "evidence": x.evidence} if x.evidence else {}
        for copy in [_copy(x, sigma)] if sigma else copies(x, args.n_s, 1.0, args.seed, 0)[1:]:
            y, refused = copy.sample, {"refused": copy.refused} if copy.refused else {}
            row = {"id": y.id, "sigma": copy.sigma, "images": y.images, "question": y.question, "answer": y.answer}
            rows.append(json.dumps(row | inferred | refused, ensure_ascii=False) + "\n")
            moved = copy.sigma != tuple(range(len(x.images)))
            counts["refused: " + copy.refused.split(": ")[0] if copy.refused else "permuted" if moved else "as it was"] += 1
    (open(out, "w", encoding="utf-8") if args.out else sys.stdout).writelines(rows)
    print(f"permuted {counts.pop('permuted', 0)} of {len(rows)}", *(f"{k} {v}" for k, v in sorted(counts.items())), sep="\n",
          file=sys.stderr)

if __name__ == "__main__":
    main()
