"""Permute the images of a question so that what was true stays true: Eq. (1) of PeRL (arXiv 2506.14907).

    I^ = (i_sigma(1), ..., i_sigma(n))        slot j of the permuted sample shows old image sigma[j] (0-based)
    q  = sigma^-1                             old image i now stands in slot q[i]
    y^ = S y + (1 - S) Lambda(y, sigma)       `order` of a sample says which S and Lambda are right:

    invariant   S = 1: only the images move         references  every image named in the text becomes q of it
    options     the letter follows its image        index       the image the answer names becomes q of it
    sequence    every element becomes q of it       fixed       order is meaning, or unknown: never permuted

An image named in the question is renamed under every kind (a sample of kind `invariant` that names one is
refused). What cannot be said exactly is refused with a reason, never guessed, and every result is permuted back
and compared: permute(permute(x, s), inverse(s)) == x holds for whatever is returned.

Deviations. The paper asks GPT-4o for S; here the data set says it, or the rules of `infer` do. The release never
edits text, flips A/B instead (wrong for "the left image shows a dog" when both do), and re-seeds its generator so
that sigma is one constant and the decay of alpha has no effect; here every draw has a seed of its own.

How it works. REFERENCES is a table of the ways to name an image, `at` being the words that say which one.
_vocabulary knows each such word as a slot in a form (1 2 3; first second third; left middle right; 一二三):
rewriting keeps the form and changes the slot. UNSAFE is a table of wordings under which a position means more.

    python perl/permute.py IN.jsonl [--sigma 1,0] [--n-s 1] [--seed 0] [--infer] [--out OUT.jsonl]
"""
from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from math import factorial
from pathlib import Path

ORDERS = ("invariant", "options", "index", "references", "sequence", "fixed")


class DataError(ValueError):
    """A data file cannot be used: one sentence with file, line and field."""


class Refused(ValueError):
    """The sample cannot be permuted exactly; `reason` says why."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Sample:
    """One question, with one `<image>` per entry of `images`, in order. `stem` leading images never move."""
    id: str
    images: tuple[str, ...]
    question: str
    answer: str
    order: str = "fixed"
    stem: int = 0


@dataclass(frozen=True)
class Copy:
    """One member of a group. `refused`: why it is identical ("" when permuted, or when the coin said no)."""
    sample: Sample
    sigma: tuple[int, ...]
    refused: str = ""


# ---- words that say which image, and the slots they name
_DIGITS, _ROMAN = tuple(map(str, range(1, 100))), tuple("i ii iii iv v vi vii viii ix x".split())
_LETTER = tuple("abcdefghijklmnopqrstuvwxyz")
_COUNTED = tuple(tuple(words.split()) for words in (  # slots 1, 2, 3, ...
    "one two three four five six seven eight nine ten", "first second third fourth fifth sixth seventh "
                                                        "eighth ninth tenth",
    "1st 2nd 3rd 4th 5th 6th 7th 8th 9th 10th", "primary secondary tertiary", "一 二 三 四 五 六 七 八 九 十",
    "甲 乙 丙 丁 戊 己 庚 辛 壬 癸", "① ② ③ ④ ⑤ ⑥ ⑦ ⑧ ⑨ ⑩"))
_FROM_END = tuple(tuple(words.split("|")) for words in (  # last, last but one, ...
    "last|second to last|third to last|fourth to last|fifth to last", "ultimate|penultimate|antepenultimate",
    "最后一|倒数第二|倒数第三|倒数第四|倒数第五"))
_LAYOUT = {2: "left right|top bottom|upper lower|initial final|opening closing|starting ending|左 右|首 末",
           3: "left {mid} right|top {mid} bottom|initial middle final|左 中 右"}
_ENDS = {"initial opening starting foremost premiere lead 首": 0, "final end 末": -1}  # no other word in their form


@lru_cache(maxsize=4096)
def _vocabulary(n: int, style: frozenset) -> dict:
    """word -> (slot, form) for n images; `style`: words of the text that settle which word a form uses."""
    mid = next((word for word in ("center", "centre", "central") if word in style), "middle")
    layouts = [layout.split() for layout in _LAYOUT.get(n, "").format(mid=mid).split("|") if layout]
    if n == 3:  # the middle of a row, unless the text stacks the images
        layouts.append(layouts[1 if style & {"top", "bottom"} else 0])
    layouts += [("上", "下")] * (n == 2 and {"上", "下"} <= style)  # 上图 alone: "the figure above"
    layouts += [("first", "last")] * (n == 2 and {"first", "last"} <= style and "second" not in style)
    table = {word: (end % n, ("",) * (end % n) + (word,))
             for words, end in _ENDS.items() for word in words.split()}
    from_end = [("",) * (n - len(form)) + form[:n][::-1] for form in _FROM_END]
    for form in (*_COUNTED, *from_end, *layouts):
        table |= {word: (slot, tuple(form)) for slot, word in enumerate(form) if word}
    return table


def _slot(word: str, n: int, style: frozenset) -> tuple[int, tuple]:
    """The slot that `word` names and the form it belongs to; Refused when there is no such image."""
    key = re.sub(r"[-\s]+", " ", word.lower())
    if key in _ROMAN and not (key == "i" and n > 8):
        slot, form = _ROMAN.index(key), _ROMAN
    else:
        numbered = next((form for form in (_DIGITS, _LETTER) if key in form), None)
        slot, form = (numbered.index(key), numbered) if numbered else _vocabulary(n, style).get(key, (n, ()))
    if slot >= n or (key == "i" and n > 8):
        raise Refused(f"{word!r} names none of the {n} images for certain")
    return slot, form


def _word(form: tuple, slot: int, like: str) -> str:
    """The word of `form` for `slot`, in the capitals of `like`."""
    word = form[slot] if slot < len(form) else ""
    if not word:
        raise Refused(f"{like!r} has no word in its own form for image {slot + 1}")
    if like.isupper() and (len(like) > 1 or form in (_ROMAN, _LETTER)):
        return word.upper()
    return word[0].upper() + word[1:] if like[0].isupper() else word


def _say(at: str, q: tuple, style: frozenset) -> str:
    """Rewrite words that name images ("1", "1, 3 and 4", "left and right", "2-4"): slot i becomes q[i]."""
    tokens, out, end, k = list(_TOKEN.finditer(at)), [], 0, 0
    if not tokens:
        raise Refused(f"{at!r} is not understood")
    while k < len(tokens):
        token = tokens[k]
        slot, form = _slot(token[0], len(q), style)
        out.append(at[end:token.start()])
        gap = at[token.end():tokens[k + 1].start()] if k + 1 < len(tokens) else ""
        stop = _slot(tokens[k + 1][0], len(q), style)[0] if (span := _RANGE.fullmatch(gap)) else slot
        to = span and span[1] and re.search(r"\bto\b|[至到]", gap)  # "image 1 to image 2": two, or a range?
        if span and not (to and abs(stop - slot) == 1):
            k += 1  # a range is a set: sayable while it has no holes
            new = sorted(q[slot:stop + 1])
            if not new or new[-1] - new[0] != stop - slot or to:
                raise Refused(f"the range {at!r} would have holes")
            out += [_word(form, new[0], token[0]), gap, _word(form, new[-1], tokens[k][0])]
        else:
            out.append(_word(form, q[slot], token[0]))
        end, k = tokens[k].end(), k + 1
    return "".join(out) + at[end:]


def _say_edge(at: str, count: str, q: tuple) -> str:
    """"first two images" is the set {0, 1}: sayable when it lands on the first or on the last ones."""
    n, k = len(q), _COUNT_OF[count.lower()]
    words = ("first", "last") if at.isascii() else ("前", "最后" if at == "最后" else "后")
    front = at.lower() == words[0]
    new = {q[i] for i in (range(k) if front else range(n - k, n))} if k <= n else None
    if new == set(range(k) if front else range(n - k, n)):
        return at
    if new == set(range(n - k, n) if front else range(k)):
        return _word(words, int(front), at)
    raise Refused(f"{at + ' ' + count!r} would not be neighbours")


# ---- the ways to name an image
_CORE = r"(?:image|picture|photo(?:graph)?|pic|img)s?"
_SOFT = (r"(?:(?:painting|diagram|graph|chart|panel|map|plot|drawing|illustration|screenshot|scan|slide"
         r"|figure|view)s?"
         r"|figs?\.?)")
_NOUN = rf"(?P<noun>(?i:{_CORE}|{_SOFT}))"
_WORDS = "one two three four five six seven eight nine ten"
_PLACES = ("first second third fourth fifth sixth seventh eighth ninth tenth 1st 2nd 3rd 4th 5th 6th 7th 8th "
           "9th 10th last "
           "final ultimate penultimate antepenultimate initial opening starting foremost premiere lead "
           "closing ending end "
           "secondary tertiary left right middle center centre central top bottom upper lower").split()
_PLACE = (rf"(?i:(?:second|third|fourth|fifth)[- ]to[- ]last"
          rf"|{'|'.join(sorted(_PLACES, key=len, reverse=True))})")
_UNIT = r"\s?(?i:[kmg]b|px|dpi|pixels?|[cm]m|x|times|percent|%|minutes?|seconds?|hours?|years?|days?)\b"
_WORD = rf"(?i:{_WORDS.replace(' ', '|')})"
_NUM = (rf"(?:{_WORD}\b|[1-9]\d?(?![\dA-Zi-z%]|[.,:]\d|{_UNIT})|[IVX]+(?![\w'’])|[A-Z](?![\w'’])"
        r"|(?<=\()(?:[ivx]+|[a-z])(?=\))|[①-⑩])")
_SIDE = r"(?i:[- ]?(?:most|hand(?:ed)?|side)\b)*"
_AND = r"(?:\s*(?:,|/|&|、)\s*(?:(?i:and|or)\s+)?|\s+(?i:and|or|vs\.?|versus)\s+|[和与或及跟])"
_TO = r"(?:\s*[-–—~～至到]\s*|\s+(?i:through|thru|to)\s+)"
_HAN, _HAN_NOUN = "[一二三四五六七八九十]", r"(?:图(?:片|像|表|画)?(?![形书案标钉层章])|插图|照片|相片|画面|画)"
_HAN_NEXT = r"(?=$|[\s，。、？！；：,.?!;:)）是有和与或及跟中里的哪呢显展为比上还都更不没])"
_HAN_NUM = (rf"(?:[1-9]\d?(?!\d|\s?(?:[KMG]B|[A-Za-z]))|(?:[A-Ha-h]|{_HAN}|[①-⑩甲乙丙丁])"
            r"(?![A-Za-z样共直起定边旁般些个张下会侧块条只种面半方]))")
_SIDED = re.compile(r"(?i)(?:most|hand(?:ed)?|side)\b")
_TOKEN = re.compile(rf"最后一|倒数第{_HAN}|(?<![A-Za-z\d])(?:{_PLACE}(?=(?i:most|handed|hand|side)\b)"
                    rf"|(?:{_PLACE}|{_WORD}|[IVX]+|[A-Z]|(?:[ivx]+|[a-z])(?=[)）]|$))(?![A-Za-z]))"
                    rf"|(?<!\d)\d\d?(?!\d)|{_HAN}|[①-⑩甲乙丙丁左右上下中首末]")
_RANGE, _PLURAL = re.compile(rf"{_TO}((?i:{_CORE})[ _#]?|图片?|第)?"), re.compile(r"(?i)[^s]s$|figs\.$")
_COUNT_OF = {w: k for words in (_DIGITS, _COUNTED[0], _COUNTED[4], "一两") for k, w in enumerate(words, 1)}


def _list(token: str, between: str = "") -> str:
    return rf"(?P<at>{token}(?:[)\]$]?(?:{_AND}|{_TO}|(?<=\))(?=\())(?:{between})?[(\[$#]?{token})*)"


# How an image is named: the rule by which it is said again, words it can start with, the pattern. The first
# row that matches claims its words; "keep" rows are look-alikes.
_NOUNS = ("image picture photo pic img painting diagram graph chart panel map plot drawing illustration "
          "screenshot scan slide fig view")
REFERENCES = tuple((rule, frozenset(cues.split()), re.compile(pattern)) for rule, cues, pattern in (
    ("keep", "first right all", r"(?i:\bfirst[- ]person\s+view|\bfirst place|\bright[- ]angled?\b|\bright "
                                r"triangle\w*|\ball right\b)"),
    ("edge", "first last", rf"\b(?P<at>(?i:first|last))\s+(?P<count>(?i:[2-9]|{_WORD}))\s+{_NOUN}\b"),
    ("edge", "前 最后 后", rf"(?P<at>前|最后|(?<!最)后)(?P<count>[两二三四五六七八九2-9])[张幅个]{_HAN_NOUN}?"),
    ("place", " ".join(_PLACES),                                # the left (and the right) image
     rf"(?<![-\w]){_list(_PLACE + _SIDE, '[Tt]he +')}\s+(?:(?i:input|given|provided|shown)\s+)?{_NOUN}\b"),
    ("place", _NOUNS,                                           # the image on the left
     rf"\b{_NOUN}\s+(?:(?:that is|which is|shown|displayed|located)\s+)?(?i:on|to|at"
     r"|in)\s+(?:the\s+)?(?:far\s+|very\s+)?"
     rf"{_list('(?i:left|right|middle|center|centre|top|bottom)' + _SIDE)}(?!\s+of\b|[- ]\w*(?:left|right))"),
    ("place", " ".join(_PLACES), rf"\b(?P<at>{_PLACE})\s+of\s+the\s+(?:(?:two|three|four|\d)\s+)?{_NOUN}\b"),
    ("index", _NOUNS, rf"(?<![A-Za-z]){_NOUN}(?:\s+(?i:number\s*|no\.?\s*(?=\d))|\s*[#_-]\s*"
                      rf"|\s*)[(\[$]?{_list(_NUM, f'(?i:{_CORE})[ _#]?')}"),
    ("index", "#", r"(?<![\w&])(?P<noun>)#(?P<at>[1-9]\d?)\b"),
    ("place", "the", rf"\b(?i:the)\s+(?P<noun>)(?P<at>{_PLACE})(?=\s+(?:shows|contains|depicts|features"
                     r"|displays)\b)"),
    ("subject", "animal bird person room", r"\b(?P<noun>(?i:animal|bird|person|room))\s+(?P<at>[1-9])\b"),
    ("han", "最后一 倒数第", rf"(?P<at>最后一|倒数第{_HAN})[张幅个]{_HAN_NOUN}?"),
    ("han", "第", rf"(?<!倒数)第\s*{_list(rf'(?:{_HAN}|[1-9][0-9]?)', '第')}\s*(?:[张幅副个]?\s*{_HAN_NOUN}"
                 rf"|[张幅副]{_HAN_NEXT})"),
    ("han", "图 插图 照片 相片 画", rf"{_HAN_NOUN}\s*[（(]?{_list(_HAN_NUM, '图片?')}[）)]?"),
    ("han", "左 右 上 下 中 首 末", rf"(?<![左右上下])(?P<at>[左右上下中首末])(?:[边侧面方间]的?)?[那这]?一?(?:[张幅]?{_HAN_NOUN}"
                             rf"|[张幅]{_HAN_NEXT})"),
))

_CLOSED = re.compile(  # a word that can follow "image 2" but not a count of things
    r"(?i)\s*(?:$|['’]s\b|[^\w\s'])|\s+(?:is|are|was|were|has|have|had|do|does|did|and|or|but|nor|while|in"
    r"|on|at|of|for|from|to|with"
    r"|as|than|that|which|who|not|can|could|would|will|may|might|must|should|shows?|\w+ing|\w+ed|depicts?"
    r"|contains?|features?"
    r"|displays?|includes?|looks?|appears?|seems?|differs?|match(?:es)?|both|respectively|only|also|more"
    r"|most|alone|together|if|when"
    r"|what|how|by|between|because|since|the|an?|it|there|best|better|about|into|under|same|similar"
    r"|different|like|alike|identical"
    r"|equal|vs|versus|(?:dark|bright|light|larg|small|bigg|tall|clos|long|short|old|young)er)\b")
_INDEFINITE = re.compile(r"(?i)\b(?:an?|one|each|every|any|no|another|per|which|two|three|four|\d+)\s+$")
_DEFINITE = re.compile(r"(?i)\b(?:the|this|that|its|same|in|whole)\s+$")

# Wordings under which a position means more than a name: reason, the kinds it matters for (r references, x index,
# v invariant, s sequence, o options), words one of which must be there, pattern (of the text in lower case).
_TIME, _POINT, _PART, _OPTION = ("temporal or story wording", "an image named by its neighbour or by pointing",
                                 "a position in a grid, a pair or a subset", "an option, not an image")
_ORDINAL = r"(?:first|second|third|last|next|previous|following|these|\d+)"
UNSAFE = tuple((reason, kinds, frozenset(cues.split("|")), re.compile(pattern)) for reason, kinds, cues, pattern in (
    (_TIME, "rxv", "video", r"\bvideos?\b(?! games?| cameras?)"),
    (_TIME, "rxv", "frame", rf"\b{_ORDINAL}\s+frames?\b|(?<!picture )\bframes?\s*#?\d|\bframes\s+(?:of|from"
                            r"|show)"),
    (_TIME, "rxv", "happen|come|came|occur", r"\b(?:happen\w*|comes?|came|occurs?)\s+(?:next|before|after"
                                             r"|first|last|then)\b"),
    (_TIME, "rxv", "chronolog|timeline|lapse|over time|no longer|success|consecut|sequen",
     r"chronolog|\btimeline|time[- ]?lapse|\bover time\b|\bno longer\b|\bsuccessive|\bconsecutive"
     r"|\bsequen(?:ce|tial)"),
    (_TIME, "rxv", "order", r"\b(?:in|into|correct|right|proper|temporal|logical"
                            r"|time)\s+(?:the\s+)?(?:\w+\s+)?order\b"),
    (_TIME, "rxv", "stor", r"\b(?:tell\w*|told|following|visual|short|this|write|continue|the)\s+(?:an?\s+"
                           r"|the\s+)?stor(?:y|ies)\b"
                           r"(?! (?:build|hous|home|wind))|\bstory(?:tell|board)"),
    (_TIME, "rxv", "step|day|stage|phase", r"\b(?:step|day|stage|phase)\s*#?\s*(?:\d|one\b)"),
    (_TIME, "rxv", "before|after|earlier|later|following|preceding",
     rf"\bbefore[- /]*(?:and|&|/)[- /]*after\b|\b(?:before|after|earlier|later)[- ]{_CORE}\b"
     rf"|\b{_CORE}\s+(?:\w+ly\s+|right\s+)?(?:before|after|following|preceding)\b"),
    (_TIME, "rxv", "has|have|had|chang", r"\b(?:has|have|had)\s+(?:been\s+)?(?:changed|moved|disappeared"
                                         r"|appeared|vanished|gone|removed"
                                         r"|added)\b|\bwhat\s+(?:\w+\s+)?chang"),
    (_TIME, "rxv", "先后|依次|顺序|变化|下一步|接下来|随后|之后|之前|故事|视频|帧|步|天",
     r"先后|依次|顺序|变化前|变化后|前后变化|下一步|接下来|随后|之后|之前|故事|视频|帧|步骤\s*[一二\d]|第\s*[一二三四五\d]+[步天]"),
    ("several turns", "rxvso", "user|human|assistant|gpt|bot|用户|助手|inst]|q|example|another",
     r"(?m)^\s*(?:user|human|assistant|gpt|bot|用户|助手)\s*[:：]|<\|(?:im_start|user|assistant)|\[/?inst\]"
     r"|^\s*(?:q|question)\s*2\s*[.:)]"
     r"|^\s*example\s*\d|^\s*(?:q|question)\s*\d?\s*:(?s:.*)^\s*(?:q|question)\s*\d?\s*:|\bnow (?:look"
     r"|consider|we)\b.{0,20}\banother\b"),
    (_POINT, "rxvs", "previous|next|preceding|succeeding|subsequent|prior|adjacent|neighb|above|below"
                     "|following|to the",
     rf"\b(?:previous|next(?!\s+to)|preceding|succeeding|subsequent|prior|adjacent|neighbou?ring|above"
     rf"|below)\s+(?:\w+\s+)?{_CORE}\b"
     rf"|\bfollowing\s+(?:image|picture|photo|one)\b|\b{_CORE}\s+(?:\w+ly\s+|right\s+)?(?:above|below"
     r"|to the (?:left|right) of)\b"),
    (_POINT, "rxvs", "this|that|former|latter",
     r"\b(?:this|that)\s+(?:image|picture|photo|photograph|one)\b(?!\s*[#(]?\d)|\b(?:former|latter)\b"),
    (_POINT, "rxvs", "第", rf"第\s*(?:{_HAN}|\d)\s*个{_HAN_NEXT}"),
    (_POINT, "rxvs", "左|右", r"(?m)(?:^|[，。？！；：>])\s*[左右][边侧面](?:更|是|有|比|和|与|或|的(?:更|是|比|和))"),
    (_POINT, "rxvs", "张|幅", r"(?<!最)[前后上下]一?[张幅]|这一?[张幅]|那一?[张幅]图"),
    (_PART, "rxvs", "top|bottom|upper|lower|views", rf"\b(?:top|bottom|upper|lower)[- ](?:left"
                                                    rf"|right)\S*\s+{_CORE}\b|\b(?:left|right|top"
     rf"|bottom|upper|lower)\s+views?\b|\b{_CORE}\s+(?:in|on|at)\s+the\s+(?:top|bottom|upper"
     r"|lower)[- ](?:left|right)"),
    (_PART, "rxvs", "last", r"\bnext[- ]to[- ]last\b|\b(?:second|third|fourth)[- ]last\b|\blast[- ]but\b"),
    (_PART, "rxvs", "label|marked|numbered|named|called", rf"\b{_CORE}\s+(?:\w+\s+)?(?:labell?ed|marked"
                                                          r"|numbered|named|called)\b"),
    (_PART, "rxvs", "pair|set|group", rf"\b{_PLACE}\s+{_CORE}\s+(?:pairs?|sets?|groups?)\b"),
    (_PART, "rxvs", "row|column|page|panel|from",
     rf"\b{_CORE}\s+(?:in|of|from|on)\s+(?:the\s+)?(?:\w+\s+)?(?:row|column|page|panel)s?\b"
     rf"|\b{_CORE}\s+from\s+(?:the\s+)?(?:left|right|top|bottom|end|back)\b"),
    (_PART, "rxvs", " of the ", rf"\b{_PLACE}\s+of\s+the\s+(?:\w+\s+){{1,3}}{_CORE}\b"),
    (_OPTION, "rxo", "option|choice|candidate", r"\b(?:options?|choices?|candidates?)\s+#?[1-9]\b"),
    (_OPTION, "xo", "option|choice|candidate", r"\b(?:option|choice|candidate)\s+\(?[a-z]\b"),
    ("a language other than English and Chinese", "rxso", "",
     r"[\u3040-\u30ff\uac00-\ud7af\u0400-\u04ff\u0590-\u06ff\u0900-\u0eff]"
                                                              r"|[α-ω]{3}|画像|枚目|番目"),
))
# The same, looked for after every reference found has been replaced by "one image".
_BODY = (r"side|half|halves|part|corner|edge|end|third|arm|leg|hand|foot|feet|paw|eye|ear|wing|shoulder|knee"
         r"|elbow|thumb|cheek"
         r"|lane|bank|turn|angle|triangle|answer|option|choice|order|way|direction|place|time|amount|size"
         r"|letter|statement|word|number")
_OPEN = (r"(?!(?:in|on|of|at|to|with|from|and|or|is|are|the|an?|each|both|all|one|this|these|which|for|by|as"
         r"|than|has|have"
         rf"|{_CORE})\b)\w+")
_LEFT_OVER = re.compile(rf"\b{_PLACE}\s+(?:{_OPEN}\s+){{1,2}}(?:images?|pictures?|photos?|photographs?)\b")
_BARE_PLACE = "first|second|third|fourth|fifth|last|final|1st|2nd|3rd|4th"
_ELLIPTIC = re.compile(  # "..., the second three", "(left)", "the right one"
    rf"\b(?:the\s+(?:{_BARE_PLACE})|(?<!to )(?<!on )(?<!at )(?<!from )(?<!of )(?<!in )the\s+(?:left"
    r"|right))(?=\s*(?:[^\w\s-]|$"
    r"|\s(?:is|are|was|were|has|have|had|do|does|did|and|or|but|nor|while|in|on|at|of|for|from|to|with|as"
    r"|than|that|which|not|can|there"
    r"|it|a|an|the|two|three|four|five|six|only|both|no|some|any|every|each|\d|shows?|contains?|depicts?"
    r"|features?|displays?|also)\b))"
    rf"|\bthe\s+(?:{_BARE_PLACE}|left|right|top|bottom|middle)(?:most|-hand)?\s+ones?\b|\(\s*(?:the\s+"
    r"|on\s+the\s+)?(?:left|right|first|second"
    r"|third|top|bottom|middle)\b[^()]{0,12}\)")
_EITHER = re.compile(r"\b(?:left|first|1|a|one|top|1st)\s*(?:or|/)\s*(?:the\s+)?(?:right|second|2|b|two"
                     r"|bottom|2nd)\b")
_SIDES = re.compile(rf"\b(?:on|at)\s+the\s+(?:far\s+|very\s+)?(?:left|right)(?:most"
                    rf"|[- ]?hand)?(?:[- ]side)?(?![-\w]|\s+(?:of|{_BODY})\b)"
                    rf"|\bthe\s+(?:left|right)(?:most|[- ]?hand)?\s+(?!(?:of|{_BODY})s?\b)\w+")
_ONE = re.compile(rf"\b(?:one|an?|single|which|what)\s+(?:of\s+the\s+)?(?:\w+\s+)?{_CORE}\b")
_OTHER = re.compile(r"\bthe\s+other\s+(?:image|picture|photo|photograph|one)\b|另外?一?[张幅]")
_OTHERS = re.compile(rf"\bthe\s+(?:other|remaining)\s+(?:\w+\s+)?{_CORE}\b|\bthe\s+other\s+(?:two|three"
                     r"|four)\b|其余|其他[张幅图]|剩下")
_ROLE = re.compile(rf"\b(?:reference|query|source|original|template|edited|modified)\s+{_CORE}\b|参考图|原图")
_ASKS = re.compile(rf"\b(?:which|what)(?:\s+ones?)?(?:\s+of)?(?:\s+(?:the|these|other|following|given|two"
                   rf"|three|four|five|\d))*\s+{_CORE}\b"
                   r"|哪(?:一|几)?[张幅]|哪(?:一)?个?图")
_COUNTS = re.compile(r"\bhow (?:many|much)\b|\bnumber of\b|多少|几[个只张条]")
_SYMMETRIC = re.compile(rf"\b(?:both|all|each|every|either|neither|at least one|one|an?|the two|these|any|no"
                        r"|none)\s+(?:of\s+)?"
                        rf"(?:the\s+|these\s+)?(?:\w+\s+)?{_CORE}\b|两[张幅]|每[张幅]|所有|都")
_FOREIGN = frozenset("der das und ist ein eine nicht welches bild zeigt auf dem links rechts le les des est "
                     "une dans sur avec quelle "
                     "gauche droite deuxième première el los las una con qué cuál imagen izquierda derecha "
                     "muestra os um uma não "
                     "qual imagem esquerda direita il gli che quale immagine sinistra destra mostra het een "
                     "niet welke".split())
_ENGLISH = frozenset("the is of and are which what there does image images picture how with true".split())
_STYLE = re.compile("center|centre|central|top|bottom|upper|lower|first|second|last|上|下")
_LETTERED = re.compile(rf"{_NOUN}\s+[A-Z]\b")
_LABEL = re.compile(r"\s*\n\s*(?i:figure|fig\.?|image|picture|图)\s*(\d)\.?\s*(?:\n\s*|$)")
_BARE = re.compile(rf"\s*(?:(?i:the)\s+)?[(\[]?{_list(rf'(?:{_PLACE}|{_NUM}|{_HAN})' + _SIDE)}[)\]]?"
                   r"(?:\s+(?i:one|ones))?[.。]?\s*")
_ELEMENT = re.compile(rf"(?:(?i:{_CORE}|{_SOFT})\s*[#_]?\s*|{_HAN_NOUN}\s*|第|(?i:the)\s+)?(?P<at>{_PLACE}\b"
                      rf"|[1-9]\d?|{_NUM}|{_HAN})"
                      rf"(?:\s+{_CORE}|[张幅]{_HAN_NOUN}?)?")
_OPENING = re.compile(r"(?i)\b(?:images|pictures|photos|photographs|figures|diagrams|pair|set|inputs?"
                      r"|question|context|following|options)\W*$"
                      r"|(?:图片|图像|图|照片|问题)\W*$")


_REFERENCE_CUES = frozenset().union(*(cues for _, cues, _ in REFERENCES))
_UNSAFE_CUES = frozenset().union(*(cues for _, _, cues, _ in UNSAFE))
_CORE_RE, _VERTICAL = re.compile(rf"\b{_CORE}\b"), re.compile(r"\b(?:left|right|top|bottom)\b")
_IN_ONE = re.compile(rf"\s+(?:\w+\s+){{0,3}}(?:in|of)\s+(?:one|an?|the)\s+{_CORE}")
_ONE_SECOND = re.compile(rf"\b(?:one|an)\s+{_CORE}\b.*\bthe\s+second\s+{_CORE}\b")
_GLUE = re.compile(rf"(?:\b(?i:{_CORE}|{_SOFT})\W*{_NUM}|\b(?i:before|after)|\b{_PLACE}\s+\w+)\W*$")
_ANTECEDENT = re.compile(r"\bone\b|\ban? (?:image|picture|photo)|一[张幅]|图")


def _matches(cues, pattern: re.Pattern, text: str, low: str) -> list[re.Match]:
    """pattern.finditer(text) for a pattern that starts with one of `cues`; str.find makes it much faster."""
    found = []
    for cue in cues:
        at = low.find(cue)
        while at >= 0:
            if m := pattern.match(text, at):
                found.append(m)
            at = low.find(cue, at + 1)
    return sorted(found, key=lambda m: (m.start(), -m.end()))


def _lower(text: str) -> str:
    low = text.lower()
    return low if len(low) == len(text) else "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


def _renumber(text: str, q: tuple, x: Sample, style: frozenset, keep=(), said=()) -> str:
    """`text` with every reference rewritten; spans in `keep` stay, `said` are (start, end, new words)."""
    original, claimed, nouns, edits = text, [], set(), [(a, b, new, a, b) for a, b, new in said]
    for a, b in (*keep, *((a, b) for a, b, _ in said)):         # nothing can match across these
        text = text[:a] + "\0" * (b - a) + text[b:]
    low = _lower(text)
    core, hits = _CORE_RE.search(low), {cue for cue in _REFERENCE_CUES if cue in low}
    for rule, cues, pattern in REFERENCES:
        for m in _matches(cues & hits, pattern, text, low) if hits else ():
            start, end = m.span()
            if any(start < b and a < end for a, b in claimed):
                continue
            new = _reference(rule, m, text, q, x, style, core, edits)
            if new is None and rule != "keep":
                continue
            claimed.append((start, end))
            if new is not None:
                edits.append((m.start("at"), m.end("at"), new, start, end))
                if rule == "place" and m["noun"]:
                    nouns.add(m["noun"].lower().rstrip("s"))
    if len(nouns) > 1 and _VERTICAL.search(low):
        raise Refused(f"one inside the other: positions of {' and '.join(sorted(nouns))}")
    out, masked, at, seen = [], [], 0, 0
    for a, b, new, start, end in sorted(edits):
        out += [original[at:a], new]
        masked += [low[seen:start], "one image"]
        at, seen = b, end
    _check_rest("".join(masked) + low[seen:], low, q, bool(edits), x.order)
    return "".join(out) + original[at:]


def _reference(rule: str, m: re.Match, text: str, q: tuple, x: Sample, style: frozenset, core, edits):
    """What the words `at` of one match become; None when the match is a look-alike."""
    if rule == "keep":
        return None
    at, noun = m["at"], m.groupdict().get("noun") or ""
    before, after = text[:m.start()], text[m.end():]
    tokens = _TOKEN.findall(at)
    if rule == "edge":
        return _say_edge(at, m["count"], q)
    if rule == "subject" and (core or int(at) > len(q)):
        raise Refused(f"{m[0]!r} may be inside an image")
    if rule == "place" and re.search(r"(?i)\b(?:an?|another|one|each|no)\s+$", before):
        if at.lower() in ("second", "third", "fourth") and not edits and "the first" not in text.lower():
            return None  # "one image ..., a second image": any other one
        raise Refused(f"ambiguous: {before.split()[-1]} {m[0]}")
    if noun and not _CORE_RE.fullmatch(noun.lower()) and rule in ("place", "index") and core and not (
            rule == "index" and noun.lower().startswith("fig")):
        raise Refused(f"{m[0]!r} may be inside an image")
    if rule == "index" and noun:
        closed, plural = _CLOSED.match(after), _PLURAL.search(noun)
        if _INDEFINITE.search(before):
            if plural or len(tokens) > 1:
                raise Refused(f"{m[0]!r} may count something")
            return None                                         # "each image 2 dogs"
        if not closed and len(tokens) > 1 and not plural and not re.search(_CORE, at.lower()):
            raise Refused(f"{m[0]!r} may count something")
        if not closed and not plural and (not at[0].isdigit() or _DEFINITE.search(before)):
            if _DEFINITE.search(before) and not at[0].isdigit() and not before.lower().endswith("in "):
                return None                                     # "the picture I took"
            raise Refused(f"{m[0]!r} may count something")
        if x.order == "options" and re.fullmatch("[A-Z]", at):  # lettered images: letters count from the stem
            return chr(65 + q[ord(at) - 65 + x.stem] - x.stem) if ord(at) - 65 + x.stem < len(q) else None
    if rule == "index" and not noun and not re.search(r"(?i)(?:^|\b(?:in|and|or|of|than|between|to|from|is"
                                                      r"|vs|compare)|[(,.?!\0\n])\s*$", before):
        raise Refused(f"{m[0]!r} may be a label inside an image")
    if rule == "place" and not noun and not edits:
        raise Refused(f"{m[0]!r} has no image to lean on")
    if "respectively" in text and _RANGE.search(at) and len(tokens) > 1:
        raise Refused("a range with 'respectively'")
    if rule == "place" and x.order == "sequence":
        raise Refused(f"{m[0]!r} may mean the order asked for")
    new = _say(at, q, style)
    if rule == "han" and new != at and "中" in at + new and re.search("[边侧面方间]", m[0]):
        raise Refused(f"{m[0]!r} has no word in its own form")
    sided = _SIDED.search(m[0][m.end("at") - m.start():] + at)  # "middlemost" is no word
    if new != at and sided and re.search(r"(?i)middle|cent(?:er|re|ral)", at + new):
        raise Refused(f"{m[0]!r} has no word in its own form")
    return new


def _check_rest(masked: str, low: str, q: tuple, found: bool, order: str) -> None:
    """Refuse what is left unresolved. `masked`: the text with "one image" for every reference found."""
    if m := next(iter(_matches(_PLACES, _LEFT_OVER, masked, masked)), None):
        raise Refused(f"a position among some of the images: {m[0]!r}")
    if m := _ELLIPTIC.search(masked):
        raise Refused(f"an elliptic position: {m[0]!r}")
    if (m := _EITHER.search(masked)) and _ASKS.search(low):
        raise Refused(f"an elliptic position: {m[0]!r}")
    if "left" in masked or "right" in masked:
        for sentence in re.split(r"(?<=[.?!])\s+|\n", masked):
            m = _SIDES.search(sentence)
            if m and not _ONE.search(sentence[:m.start()]) and not _IN_ONE.match(sentence, m.end()):
                raise Refused(f"a side that may be an image: {m[0]!r}")
    if m := _OTHER.search(masked):
        if len(q) != 2 or not _ANTECEDENT.search(masked[:m.start()]):
            raise Refused(f"ambiguous: {m[0]!r}")
    if q[0] != 0 and not found:
        if (m := _OTHERS.search(masked)) and not re.search(r"\bone\b", masked[:m.start()]):
            raise Refused(f"ambiguous: {m[0]!r}")
        if order != "sequence" and (m := _ROLE.search(masked)):
            raise Refused(f"known by its position only: {m[0]!r}")
    if "second" in low and "first" not in low and _ONE_SECOND.search(low):
        raise Refused("ambiguous: 'one image' and 'the second image'")


# ---- the sample
def inverse(sigma) -> tuple[int, ...]:
    """q = sigma^-1: old image i stands in slot q[i]."""
    return tuple(sorted(range(len(sigma)), key=lambda slot: sigma[slot]))


_OPTION_MARK = re.compile(r"\(?[A-Z][.):．：、]\s*$")
_MARKS = (re.compile(r"(?m)^[ \t]*(?:\(([A-Z])\)|([A-Z])[.):．：、])[ \t]*(?=\S)"),
          re.compile(r"(?:(?<=\s)|^)\(([A-Z])\)[ \t]+(?=\S)"))


def _choices(question: str) -> list[tuple[str, int, int]]:
    """(letter, start, end of its text) of the lettered options A, B, ... without a hole, or []."""
    for mark in _MARKS if "A" in question and "B" in question else ():
        run = []
        for m in mark.finditer(question):
            letter = m[m.lastindex]
            run = [] if letter == "A" else run
            if ord(letter) - 65 == len(run):
                run.append(m)
        ends = [m.start() for m in run[1:]] + [len(question)]
        texts = [question[m.end():end].split("\n")[0].rstrip() for m, end in zip(run, ends)]
        if len(run) > 1 and re.search(r"(?:^|[?:.!\n])\s*$", question[:run[0].start()]) and all(
                re.search(r"[\w<]", t) and t not in ("and", "or") for t in texts):
            return [(chr(65 + k), m.end(), m.end() + len(t)) for k, (m, t) in enumerate(zip(run, texts))]
    return []


def options(question: str) -> dict[str, str]:
    """The lettered options of a question, e.g. {"A": "True", "B": "False"}; {} when it has none."""
    return {letter: question[a:b] for letter, a, b in _choices(question)}


def _layout(text: str, moved: list, x: Sample) -> list:
    """Spans of placeholders and of labels that repeat their number; Refused when words belong to an image."""
    holes = [m.span() for m in re.finditer("<image>", text)]
    if not holes:  # `<image_1> <image_2>`: the first mention is the placeholder
        first = {int(m[1]): m.span() for m in reversed(list(re.finditer(r"<image[_ ]?(\d)>", text)))}
        holes = [first[k] for k in sorted(first)]
        if sorted(holes) != holes or sorted(first) != list(range(1, len(first) + 1)):
            raise Refused("numbered placeholders out of order")
    if len(holes) != len(x.images):
        raise Refused(f"{len(holes)} placeholders for {len(x.images)} images")
    gaps = [text[a:b] for (_, a), (b, _) in zip(holes, holes[1:] + [(len(text), 0)])]
    labels = [_LABEL.match(gap) for gap in gaps]
    if all(m and int(m[1]) == k for k, m in enumerate(labels, 1)) and all(
            m.end() == len(gap) for m, gap in zip(labels[:-1], gaps)):
        return holes + [(hole[1], hole[1] + m.end()) for hole, m in zip(holes, labels)]
    between = r"[\s,.;&|/()\[\]*、，和与及]*(?:\b(?:and|or|vs\.?|versus)\b)?\s*"
    if x.order == "options":
        between += r"|[\s,.;]*\(?[A-Z][.):．：、]?\s*"
    for gap in gaps[moved[0]:moved[-1]]:
        if not re.fullmatch(between, gap):
            raise Refused(f"a label or a caption is glued to a placeholder: {' '.join(gap.split())[:40]!r}")
    before = text[:holes[moved[0]][0]].rsplit("\n", 1)[-1].rstrip()
    if x.order != "options" and (_GLUE.search(before)
                                 or before.endswith((":", "：")) and not _OPENING.search(before)):
        raise Refused(f"a label or a caption is glued to a placeholder: {before[-40:]!r}")
    predicate = re.match(r"[ \t]*(?:[:：=]|(?:is|was|shows?|depicts)\b)", gaps[moved[-1]])
    if predicate and not re.search(r"(?i)s\W*$", before):
        raise Refused(f"a caption is glued to a placeholder: {gaps[moved[-1]][:40].strip()!r}")
    return holes


def _bare(text: str, q: tuple, style: frozenset) -> str | None:
    """A whole answer or option that is only a position ("2", "Left", "the second one", "(1)(3)"), or None."""
    m = _BARE.fullmatch(text)
    return text[:m.start("at")] + _say(m["at"], q, style) + text[m.end("at"):] if m else None


def _sequence(text: str, q: tuple, style: frozenset) -> str:
    """An order of images ("2,1,4,3", "CABD", "2→1→3"): every element becomes q of it."""
    glued = re.fullmatch(r"\W*([A-Z]{2,}|[1-9]{2,})\W*", text)
    marks = [*re.finditer("[A-Z1-9]", text)] if glued else [*_ELEMENT.finditer(text)]
    slots = [_slot(m["at"] if not glued else m[0], len(q), style)[0] for m in marks]
    rest = "" if glued else _ELEMENT.sub("", text)
    plain = re.fullmatch(r"(?:[\s,;，、→>\-–—=()\[\]{}/.]|then|and|然后|再)*", rest)
    if len(slots) < 2 or len(set(slots)) < len(slots) or not plain:
        raise Refused("the answer is no order of the images")
    out, end = [], 0
    for m in marks:
        a, b = m.span("at") if not glued else m.span()
        out += [text[end:a], _say(text[a:b], q, style)]
        end = b
    return "".join(out) + text[end:]


def _names(text: str, q: tuple, style: frozenset) -> bool:
    """Does an answer name an image?"""
    x = Sample("", ("",) * len(q), "", text, "index")
    return _bare(text, q, style) is not None or any(
        _reference(rule, m, text, q, x, style, None, [1]) is not None
        for rule, cues, pattern in REFERENCES for m in _matches(cues, pattern, text, _lower(text)))


def _named(text: str, q: tuple, x: Sample, style: frozenset, bare: bool) -> str:
    """An answer (or an option) in its new words."""
    said = _bare(text, q, style) if bare else None
    return _renumber(text, q, x, style) if said is None else said


def _permute(x: Sample, sigma: tuple) -> Sample:
    """`permute` without the round trip."""
    q, moved = inverse(sigma), [slot for slot, old in enumerate(sigma) if slot != old]
    y = replace(x, images=tuple(x.images[old] for old in sigma))
    text, kind = x.question, {"index": "x"}.get(x.order, x.order[0])
    low = _lower(text)
    said = f"{low}\n{_lower(x.answer)}" if kind in "rx" and len(x.answer) > 1 else low
    hits = {cue for cue in _UNSAFE_CUES if cue in said}
    for reason, kinds, cues, pattern in UNSAFE:
        if kind in kinds and not cues.isdisjoint(hits) and (m := pattern.search(said)):
            raise Refused(f"{reason}: {m[0].strip()[:40]!r}")
    words = re.findall(r"[^\W\d_]+", low) if kind != "v" else []
    if len(found := _FOREIGN.intersection(words)) > 1 and len(found) > len(_ENGLISH.intersection(words)):
        raise Refused(f"a language other than English and Chinese: {', '.join(sorted(found)[:3])}")
    style = frozenset(_STYLE.findall(f"{text}\n{x.answer}".lower()))
    keep = _layout(text, moved, x)
    choices = _choices(text)
    letter = x.answer if x.answer in {c[0] for c in choices} else ""
    asks = x.order == "index" or (
        x.order == "references" and bool(_ASKS.search(low)) and not _COUNTS.search(low))
    # options that are only a position ("(A) Left") or an order are said first, then the rest of the text
    spans = []
    for name, a, b in choices if x.order in ("references", "index", "sequence") else ():
        said = _sequence(text[a:b], q, style) if x.order == "sequence" and letter else \
            _bare(text[a:b], q, style) if asks and x.order != "sequence" else None
        if said is not None:
            spans.append((a, b, said))
    labels = [m.span() for name, a, _ in choices for m in [_OPTION_MARK.search(text, 0, a)]]
    question = _renumber(text, q, x, style, keep + labels, spans)
    if x.order == "invariant":
        if question != text or _renumber(x.answer, q, x, style) != x.answer:
            raise Refused("an invariant sample names an image by its position")
        return y
    if x.order == "options":
        old = ord(x.answer) - 65 + x.stem if re.fullmatch("[A-Z]", x.answer) else len(q)
        if old >= len(q):
            raise Refused("the answer is no letter of an image")
        return replace(y, question=question, answer=chr(65 + q[old] - x.stem))
    if re.fullmatch("[A-Z]", x.answer) and x.order == "references" and not choices and _LETTERED.search(text):
        raise Refused("a letter answer and lettered images, but no options")
    if letter:  # an option letter stays: its text was rewritten
        if x.order == "index" and question == text and q != tuple(range(len(q))):
            raise Refused("the options name no image")
        return replace(y, question=question)
    if x.order == "sequence":
        return replace(y, question=question, answer=_sequence(x.answer, q, style))
    if x.order == "index":
        if not _names(x.answer, q, style):
            raise Refused("the answer names no image")
        return replace(y, question=question, answer=_named(x.answer, q, x, style, True))
    bare = asks and not re.fullmatch("[A-Z]", x.answer)
    return replace(y, question=question, answer=_named(x.answer, q, x, style, bare))


def permute(sample: Sample, sigma) -> Sample:
    """The sample with old image sigma[j] in slot j, and all that names an image renamed. Raises Refused."""
    sigma, identity = tuple(sigma), tuple(range(len(sample.images)))
    if sorted(sigma) != list(identity):
        raise Refused(f"sigma {','.join(map(str, sigma))} is no order of {len(identity)} images")
    if sigma == identity:
        return sample
    if sample.order == "fixed":
        raise Refused("fixed")
    if sigma[:sample.stem] != identity[:sample.stem]:
        raise Refused("sigma moves an image of the stem")
    permuted = _permute(sample, sigma)
    if (permuted.question, permuted.answer) == (sample.question, sample.answer):
        return permuted                                         # nothing named: nothing to undo
    try:
        back = _permute(permuted, inverse(sigma))
    except Refused:
        back = None
    if back != sample:
        raise Refused("the rewrite could not be undone exactly")
    return permuted


def alpha(step: int, total: int, alpha_0: float = 1.0) -> float:
    """alpha_t, the share of samples permuted at 0-based `step`: linear decay from alpha_0 to 0 at `total`."""
    return alpha_0 * max(0.0, 1.0 - step / total)


def _copy(sample: Sample, sigma: tuple) -> Copy:
    """The copy under sigma, or an identical one with the reason."""
    try:
        return Copy(permute(sample, sigma), sigma)
    except Refused as refusal:
        return Copy(sample, tuple(range(len(sample.images))), refusal.reason)


def copies(sample: Sample, n_s: int, alpha_t: float, seed: int, step: int) -> list[Copy]:
    """The group of Algorithm 1: the original, then n_s copies, permuted if the coin falls below alpha_t.

    sigma is uniform over the orders of the movable images other than the given one; copies differ from each other
    while there are enough orders. Nothing but the arguments decides: any rank, any resume draws the same.
    """
    identity = tuple(range(len(sample.images)))
    fixed, movable = identity[:sample.stem], identity[sample.stem:]
    original = Copy(sample, identity)
    why = ("one image" if len(identity) < 2 else "fixed" if sample.order == "fixed" else
           "one movable image" if len(movable) < 2 else "")
    if why:
        return [original] + [Copy(sample, identity, why)] * n_s
    if random.Random(f"{seed}/{step}/{sample.id}").random() >= alpha_t:
        return [original] * (n_s + 1)
    group, drawn = [original], {movable}
    for copy in range(1, n_s + 1):
        rng = random.Random(f"{seed}/{step}/{sample.id}/{copy}")
        if len(drawn) == factorial(len(movable)):               # every order is used: start over
            drawn = {movable}
        while (tail := tuple(rng.sample(movable, len(movable)))) in drawn:
            pass
        drawn.add(tail)
        group.append(_copy(sample, fixed + tail))
    return group


def _named_in(text: str) -> bool:
    return any(rule != "keep" and _matches(cues, p, text, _lower(text)) for rule, cues, p in REFERENCES)


def infer(sample: Sample) -> tuple[Sample, str]:
    """The sample with `order` and `stem` read off question and answer, and the evidence; "fixed" if uncertain.

    The offline substitute for the paper's GPT-4o label. A rule proposes; the kind is kept if permute accepts it.
    """
    n, text, choices = len(sample.images), sample.question, options(sample.question)
    low = _lower(text)
    pictures = [letter for letter, choice in choices.items() if choice == "<image>"]
    rules = (
        ("options", pictures and len(pictures) == len(choices) and sample.answer in pictures,
         "every lettered option is an image"),
        ("sequence", re.fullmatch(r"[\W\dA-Z]+", sample.answer) and len(re.findall("[A-Z1-9]", sample.answer)) == n,
         "the answer orders the images"),
        ("index", not choices and _named_in(sample.answer), "the answer names an image"),
        ("index", not choices and _ASKS.search(low) and not _COUNTS.search(low) and _BARE.fullmatch(sample.answer),
         "the question asks which image and the answer is a position"),
        ("references", _named_in(text), "the text names an image by its position"),
        ("invariant", _SYMMETRIC.search(low), "the text speaks of any or all of the images"),
    )
    why = "one image" if n < 2 else "no evidence"
    for order, holds, evidence in rules if n > 1 else ():
        guess = replace(sample, order=order, stem=n - len(pictures) if order == "options" else 0)
        if holds and guess.stem < n - 1:
            for shift in range(1, n - guess.stem):  # any rotation that can be said exactly will do
                movable = range(guess.stem, n)
                try:
                    permute(guess, (*range(guess.stem), *movable[shift:], *movable[:shift]))
                    return guess, evidence
                except Refused as refusal:
                    why = refusal.reason
            break
    return replace(sample, order="fixed"), why


# ---- files
def _lines(path) -> list[tuple[str, dict]]:
    """("train.jsonl:3", object) for every line that is not blank. Raises DataError."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name}: not UTF-8: byte {error.start}") from None
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path.name}:{number}: no JSON: {error.msg} at column {error.colno}") from None
            if not isinstance(row, dict):
                raise DataError(f"{path.name}:{number}: not a JSON object")
            rows.append((f"{path.name}:{number}", row))
    if not rows:
        raise DataError(f"{path}: the file is empty")
    return rows


_FIELDS = {"id": str, "images": list, "question": str, "answer": str, "order": str, "stem": int}


def _sample(where: str, row: dict) -> Sample:
    """One checked line, image paths as written."""
    row = {"order": "fixed", "stem": 0} | row
    for field, kind in _FIELDS.items():
        if field not in row:
            raise DataError(f"{where}: {field}: missing")
        if not isinstance(row[field], kind) or isinstance(row[field], bool):
            wanted = "list of file names" if kind is list else kind.__name__
            raise DataError(f"{where}: {field}: must be a {wanted}")
    if not row["images"] or not all(isinstance(image, str) and image for image in row["images"]):
        raise DataError(f"{where}: images: must be a list of file names")
    x = Sample(row["id"], tuple(row["images"]), row["question"], row["answer"], row["order"], row["stem"])
    n, holes, choices = len(x.images), x.question.count("<image>"), options(x.question)
    if x.order not in ORDERS:
        raise DataError(f"{where}: order: {x.order!r} is none of {', '.join(ORDERS)}")
    if holes != n:
        raise DataError(f"{where}: question: {holes} <image> for {n} images")
    if not 0 <= x.stem < n:
        raise DataError(f"{where}: stem: {x.stem} is not between 0 and {n - 1}")
    letters = list(choices) or [chr(65 + k) for k in range(min(n - x.stem, 26))] * (x.order == "options")
    if x.order == "options":
        letters = letters[:n - x.stem]
    if letters and x.answer not in letters and x.order != "sequence":
        raise DataError(f"{where}: answer: {x.answer!r} is none of the option letters {', '.join(letters)}")
    if x.order in ("index", "sequence") and x.answer not in letters:
        style, q = frozenset(_STYLE.findall(f"{x.question}\n{x.answer}".lower())), tuple(range(n))
        try:
            if x.order == "sequence":
                _sequence(x.answer, q, style)
            elif not _names(x.answer, q, style):
                raise Refused("it names no image")
        except Refused as refusal:
            raise DataError(f"{where}: answer: {x.answer!r}: {refusal.reason}") from None
    return x


def _samples(path) -> list[tuple[str, Sample]]:
    seen, out = {}, []
    for where, row in _lines(path):
        x = _sample(where, row)
        if x.id in seen:
            raise DataError(f"{where}: id: {x.id!r} is already in {seen[x.id]}")
        seen[x.id] = where
        out.append((where, x))
    return out


def load(path, check_images: bool = True) -> list[Sample]:
    """The samples of a JSONL file, images as openable paths (relative to the file). Raises DataError."""
    folder, out = Path(path).parent, []
    for where, x in _samples(path):
        images = tuple(str(folder / image) for image in x.images)
        for name, image in zip(x.images, images):
            if check_images and not Path(image).is_file():
                raise DataError(f"{where}: images: file {name} does not exist")
        out.append(replace(x, images=images))
    return out


def main(argv=None) -> None:
    """Write one line per (sample, permutation) and a summary."""
    parser = argparse.ArgumentParser(description="What permutation does to a data set, before a GPU hour is "
                                                 "spent.")
    parser.add_argument("data", metavar="IN.jsonl")
    parser.add_argument("--sigma", help="one order for all, e.g. 1,0: slot j shows old image sigma[j]; "
                                        "default: drawn")
    parser.add_argument("--n-s", type=int, default=1, help="permuted copies of a sample (paper: 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--infer", action="store_true", help="infer the kind where `order` is missing; else "
        "it is fixed")
    parser.add_argument("--out", help="default: standard output")
    args = parser.parse_args(argv)
    if args.sigma and not re.fullmatch(r"\d+(,\d+)*", args.sigma):
        sys.exit(f"--sigma: {args.sigma!r} is no list of slots such as 1,0")
    sigma = tuple(map(int, args.sigma.split(","))) if args.sigma else None
    kinds, reasons, lines = Counter(), Counter(), []
    try:
        stated = {row["id"] for _, row in _lines(args.data) if "order" in row and "id" in row}
        samples = [x for _, x in _samples(args.data)]
    except DataError as error:
        sys.exit(str(error))
    for x in samples:
        extra = {}
        if args.infer and x.id not in stated:
            x, evidence = infer(x)
            extra = {"order": x.order, "stem": x.stem, "evidence": evidence}
        kinds[x.order] += 1
        group = copies(x, args.n_s, 1.0, args.seed, 0)[1:] if sigma is None else [_copy(x, sigma)]
        for copy in group:
            y = copy.sample
            row = {"id": y.id, "sigma": copy.sigma, "images": y.images, "question": y.question, "answer": y.answer}
            row |= extra | ({"refused": copy.refused} if copy.refused else {})
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
            reasons[copy.refused.split(": ")[0]] += 1
    try:
        (Path(args.out).open("w", encoding="utf-8") if args.out else sys.stdout).writelines(lines)
    except OSError as error:
        sys.exit(f"--out: {args.out}: {error.strerror}")
    print("kinds: " + ", ".join(f"{kind} {count}" for kind, count in kinds.most_common()), file=sys.stderr)
    print(f"permuted {reasons.pop('', 0)} of {len(lines)}", file=sys.stderr)
    for reason, count in reasons.most_common():
        print(f"refused {count}: {reason}", file=sys.stderr)


if __name__ == "__main__":
    main()
