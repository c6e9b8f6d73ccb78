r"""The default reward: is the last \boxed{...} right, and has the response the asked form?

    r = 0.9 accuracy + 0.1 format

Rule based, as in the paper, which gives no weights; 0.9 and 0.1 are its release's. The grader is
strict and total: a letter is a letter, an order is an order, and no response raises, hangs or
grows memory. It compares by the kind of the right answer:

    letter      `A`: also `(A)`, `A. its text`, or the text alone where no other option has it
    image       `Image 2`: also `2`, `the second image`, 第二张图
    order       `2,1,3` or `CAB`, in any brackets and with any separators
    set         `{1, 3}`: the same without order; so is `AC` where it is a part of the options
    quantity    `0.5`: also `\frac{1}{2}`, `50%`, `5e-1`, `0.5 cm`; formulas, `2(x+1)` for `2x+2`
    relation    `x \le 2`: both sides
    text        equal but for case, spaces and the final stop; `yes` is `true`

Another reward is a function (response, answer, options)
-> float in a file of its own: --reward FILE.py:FUNCTION.

Standard library, and math-verify for formulas, in a process of its own: it may be killed when it
takes too long, and it is replaced now and then, since its parser keeps every sentence that it has
met. Knows neither torch nor perl/.

    python rewards/boxed.py 'so \boxed{\frac{1}{2}}' 0.5
"""

import atexit
import math
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache

ACCURACY_WEIGHT = 0.9  # the release's; the paper gives none
FORMAT_WEIGHT = 0.1


def reward(response: str, answer: str, options: Mapping[str, str] | None = None) -> float:
    """r = 0.9 accuracy + 0.1 format, in [0, 1]. `options`: letter -> text, as `options` reads
    them off a question.
    """
    right = accuracy(response, answer, options)
    return ACCURACY_WEIGHT * right + FORMAT_WEIGHT * format_ok(response)


def boxed(response: str) -> str | None:
    r"""The text in the last \boxed{...}, inner braces
    kept; None where there is no box or it never closes.

    >>> boxed(r"\boxed{1} so \boxed{\frac{1}{2}}")
    '\\frac{1}{2}'
    """
    starts = list(re.finditer(r"\\boxed\s*\{", response))
    if not starts:
        return None

    text = response[starts[-1].end() :]
    depth = 1
    for token in re.finditer(r"\\.|[{}]", text, re.DOTALL):  # an escaped brace is text
        if token[0] == "{":
            depth += 1
        elif token[0] == "}":
            depth -= 1
        if depth == 0:
            return text[: token.start()]
    return None


def format_ok(response: str) -> bool:
    r"""<think>...</think> ... \boxed{...} ..., with
    one thought. It may be empty, as in the release.
    """
    thought, _, rest = response.partition("</think>")
    one_thought = thought.lstrip().startswith("<think>") and response.count("think>") == 2
    return one_thought and boxed(rest) is not None


# A label at the start of a line, or in brackets after a space: "A. cat", "(A) cat", "A: cat",
# "A、猫".
OPTION = re.compile(
    r"(?:^[ \t]*(?:[(（]([A-Z])[)）]|([A-Z])[.):．：、）])"
    r"|(?<=\s)[(（]([A-Z])[)）](?=[ \t]))[ \t]*(?=\S)",
    re.M,
)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def options(question: str) -> dict[str, str]:
    """The lettered options of a question without marks; {} when it has none.

    >>> options("Which one?\\n(A) True\\n(B) False")
    {'A': 'True', 'B': 'False'}
    """
    found = list(OPTION.finditer(question))
    letters = "".join(m[m.lastindex] for m in found)
    if len(found) < 2 or letters != ALPHABET[: len(found)]:
        return {}
    if not re.search(r"(^|[?:.!>\n？：。！])\s*$", question[: found[0].start()]):
        return {}  # "Are (A) and (B) alike?" lists none

    ends = [m.start() for m in found[1:]] + [len(question)]
    texts = [question[m.end() : end].split("\n")[0].rstrip() for m, end in zip(found, ends)]
    return dict(zip(letters, texts))


# --- One way to write what has several ----------------------------------------------------------

WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # full-width letters and signs
WIDE |= {ord(a): b for a, b in zip("　。、−–→⇒【】≤≥≠", " .,--→→[]≤≥≠")}
WIDE |= {ord("²"): "^2", ord("³"): "^3"}
TEXT_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}"
)
THIN_SPACE = r"(?:\\,|\\ |~|[\u00a0\u2009\u202f])"
RELATIONS = {
    "≤": r"\\leq?(?:slant)?(?![a-z])|<=",
    "≥": r"\\geq?(?:slant)?(?![a-z])|>=",
    "≠": r"\\neq?(?![a-z])|!=",
}
TURNED = {"<": ">", ">": "<", "≤": "≥", "≥": "≤", "≠": "≠"}
SIGNS = {"<": r"\\lt(?![a-z])", ">": r"\\gt(?![a-z])"}


def normalised(text: str) -> str:
    r"""Without wide forms, text commands, dollar signs, thousands separators and the final stop.

    >>> normalised(r"$\textbf{(A)}$."), normalised(r"1\,234\,567"), normalised(r"15 \text{ cm}^2")
    ('(A)', '1234567', '15 cm^2')
    """
    text = re.sub(
        rf"(?<![\d.,])[1-9]\d{{0,2}}(?:{THIN_SPACE}\d{{3}})+(?!\d)",
        lambda number: re.sub(THIN_SPACE, "", number[0]),
        text,
    )
    text = text.translate(WIDE)
    for _ in range(2):  # \textbf{\text{A}}
        text = TEXT_COMMAND.sub(r" \1 ", text)
    text = re.sub(r"\\(?:left|right)(?![a-z])|\\[,;! ]|\\?[$€£¥]|[\x00-\x1f]", " ", text)
    text = re.sub(r"\\(?:to|rightarrow)(?![a-z])|->", "→", text).replace("{,}", ",")
    for sign, written in (RELATIONS | SIGNS).items():
        text = re.sub(written, sign, text)
    text = re.sub(r"\\([{}])", r"\1", text)  # \{1, 2\}
    text = re.sub(r"\\%| percent\b", "%", text)
    # cm^{2}
    text = re.sub(r"(?<=[a-z]) *\^ *(?:\{([23])\}(?![0-9])|([23])(?![0-9]))", r"^\1\2", text)
    text = re.sub(r"\s*(?:\^\s*(?:\{\s*\\circ\s*\}|\\circ)|degrees?\b)", "°", text)
    text = re.sub(
        r"(?<![\d.,(\[{])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])",
        lambda number: number[0].replace(",", ""),
        text,
    )
    return re.sub(r"\s+", " ", text).strip(" *").removesuffix(".").strip()


# --- Accuracy -----------------------------------------------------------------------------------


def accuracy(response: str, answer: str, options: Mapping[str, str] | None = None) -> float:
    r"""1.0 where the last box gives `answer`, else 0.0.
    Total: no response raises, hangs or grows memory.

    >>> accuracy(r"\boxed{A. Image 2}", "A", {"A": "Image 2", "B": "Image 3"})
    1.0
    >>> accuracy(r"\boxed{2,1}", "1,2")
    0.0
    """
    box = boxed(response)
    if box is None or len(box) > 400 + len(answer):
        return 0.0
    if sum(map(box.count, "([{")) > 40 + len(answer):
        return 0.0
    texts = {letter: normalised(text) for letter, text in (options or {}).items()}
    return float(is_right(normalised(box), normalised(answer), texts))


def is_right(box: str, gold: str, texts: Mapping[str, str]) -> bool:
    """Does a normalised answer give the normalised
    right one? `texts`: the options, letter -> text.
    """
    golds = elements_of_set(gold, texts)
    if golds:
        return same_set(box, golds, texts)
    elements = elements_of_set(box, {})
    if len(elements) > 1:
        return False  # a set, where an order or a single answer is right
    if elements:
        box = elements[0]

    letter, text = letter_of(gold)
    if gold not in texts and letter not in texts:
        written = [key for key, said in texts.items() if same(gold, said)]
        if len(written) == 1:  # the right answer is the text of an option
            letter, text = written[0], ""
    if letter:
        return same_letter(box, letter, texts or {letter: text})
    return same(box, gold)


# --- Letters ------------------------------------------------------------------------------------

LETTER = re.compile(  # "A", "(A)", "Option A", "A. its text": (letter, text)
    r"(?:(?i:option|choice|answer|image|picture|photo|figure|选项?|答案|图)[ :]*)?"
    r"[(\[]?([A-Z])(?:[)\]]?|(?:[:)\]]|\. ) ?(?![ ,;→>(])(.*))"
)


def letter_of(text: str) -> tuple[str, str]:
    """The letter that a text names, and the words after it; ("", "") where it is none.

    >>> letter_of("(A)"), letter_of("B. a dog"), letter_of("a")
    (('A', ''), ('B', 'a dog'), ('', ''))
    """
    m = LETTER.fullmatch(text)
    return (m[1], m[2] or "") if m else ("", "")


def same_letter(box: str, letter: str, texts: Mapping[str, str]) -> bool:
    """Does the box name the option `letter`, by its
    letter or by its text? `a` and `B+A-B` are not `A`.
    """
    named, rest = letter_of(box)
    if not named:
        return [key for key, text in texts.items() if same(box, text)] == [letter]
    if named != letter:
        return False
    if not rest:
        return True
    if texts.get(named):
        return same(rest, texts[named])
    return not re.search(r"\b[A-Z]\b", rest)  # "A: or B"


# --- Sets ---------------------------------------------------------------------------------------

NOUN = r"(?:image|picture|photo|figure|panel|图像|图片|照片|图)"
# "AC", "A, C", "A and C".
LETTER_RUN = re.compile(r"[A-Z]{2,}|[A-Z](?:(?: ?[,;&/ ] ?| and )[A-Z])+")
SET_SEPARATOR = re.compile(r"(?: ?[,;] ?(?:and )?| and | & |[和与及])(?![^(\[{]*[)\]}])")


def elements_of_set(gold: str, texts: Mapping[str, str]) -> list[str]:
    """The elements of a right answer that is a set: "{1, 3}", or "AC" where that is a proper part
    of the options.

    >>> elements_of_set("{3, 1}", {}), elements_of_set("AC", dict(A="red", B="round", C="small"))
    (['3', '1'], ['A', 'C'])
    """
    if gold.startswith("{") and gold.endswith("}") and closes_last(gold):
        return split_set(gold)
    if texts and LETTER_RUN.fullmatch(gold):
        letters = re.findall("[A-Z]", gold)
        if set(letters) < set(texts) and len(set(letters)) == len(letters):
            return letters
    return []


def closes_last(text: str) -> bool:
    """Does the brace that opens the text close at its end?"""
    depth = 0
    for place, sign in enumerate(text):
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if depth == 0:
            return place == len(text) - 1
    return False


def split_set(text: str) -> list[str]:
    """The elements of a set, however it is written: "{1, 3}", "Images 1 and 3", "(1)(3)", "AC"."""
    inner = text.strip()
    while inner[:1] + inner[-1:] in ("{}", "[]") or re.fullmatch(r"\([^()]*\)", inner):
        inner = inner[1:-1].strip()
    inner = re.sub(rf"(?i)^(?:the )?(?:(?:options?|choices?|{NOUN}s) )?(?=\S)", "", inner)
    inner = re.sub(rf"(?i) {NOUN}s$", "", inner)
    if LETTER_RUN.fullmatch(inner):
        return re.findall("[A-Z]", inner)
    if re.fullmatch(r"(?:\(\w\) ?){2,}|\d(?: \d)+", inner):
        return re.findall(r"\w", inner)
    return [element.strip() for element in SET_SEPARATOR.split(inner) if element.strip()]


def same_set(box: str, golds: Sequence[str], texts: Mapping[str, str]) -> bool:
    """Are the elements the same, each once, in any order?"""
    left = split_set(box)
    if len(left) != len(golds):
        return False
    for gold in golds:
        equal = [element for element in left if is_right(element, gold, texts)]
        if not equal:
            return False
        left.remove(equal[0])
    return True


# --- All other answers --------------------------------------------------------------------------


def same(box: str, gold: str) -> bool:
    """Equal as words (names of images among them), as
    orders and tuples, as relations, or as quantities.
    """
    box, gold = without_plural(box), without_plural(gold)
    if word(box) == word(gold):
        return gold != ""
    if is_list(box) or is_list(gold):
        return same_list(box, gold)
    if relation_of(gold):
        return same_relation(box, gold)
    return same_quantity(box, gold)


def without_plural(text: str) -> str:
    """ "Images 1 and 3" as "1 and 3", and a run of marks as a list: "BA" and "B-A" as "B,A".

    >>> without_plural("CABD"), without_plural("2-1-3")
    ('C,A,B,D', '2,1,3')
    """
    text = re.sub(rf"(?i)^{NOUN}s ", "", text)
    if RUN.fullmatch(text):
        return ",".join(re.findall(r"\d+|[A-Za-z]", text))
    return text


# --- Words and names of images ---

ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth "
    "fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
).split()
NUMBERS = [
    ORDINALS,
    (
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
        "sixteen seventeen eighteen nineteen twenty"
    ).split(),
    "一 二 三 四 五 六 七 八 九 十 十一 十二 十三 十四 十五 十六 十七 十八 十九 二十".split(),
    "① ② ③ ④ ⑤ ⑥ ⑦ ⑧ ⑨ ⑩".split(),
]
NUMBER_OF = {said: str(k) for words in NUMBERS for k, said in enumerate(words, start=1)}
PLACES = (
    "left right middle center top bottom upper lower leftmost rightmost left-hand right-hand "
    "lefthand righthand initial final last ultimate penultimate antepenultimate "
    "preantepenultimate 左 右 中 上 下 首 末 左边 右边 中间 左侧 右侧 最后一 "
    "甲 乙 丙 丁 戊 己 庚 辛 壬 癸 "
    "i ii iii iv v vi vii viii ix x xi xii xiii xiv xv xvi xvii xviii xix xx"
).split()
PLACES += list("abcdefghijklmnopqrstuvwxyz")
PLACES += [f"{nth} to last" for nth in ORDINALS[1:]] + [f"倒数第{k}" for k in NUMBERS[2]]
WHICH = "|".join(sorted([*NUMBER_OF, *PLACES], key=len, reverse=True))
NAME = (
    re.compile(  # "the second image", "Image 2", "(2)", 第二张图, "2nd": the word that says which
        rf"(?:the |第 ?)?(?:{NOUN} ?)?(?:#|no\.|number)? ?[(\[]?([0-9]{{1,3}}|{WHICH})(?:st|nd|rd"
        rf"|th)?[)\]]?"
        rf" ?(?:[张幅个副]|的)? ?(?:{NOUN}|one)?"
    )
)
PLACE_AFTER = re.compile(rf"(?:the )?{NOUN} (?:on|at|to) the (left|right|top|bottom)(?: side)?")
TRUTHS = dict.fromkeys("yes 是 对 正确".split(), "true") | dict.fromkeys(
    "no 否 错 错误".split(), "false"
)


@lru_cache(maxsize=4096)
def word(text: str) -> str:
    """A text as it is compared: in lower case, `yes` as `true`, a name of an image as the word
    that says which.

    >>> word("The second image"), word("Image 2"), word("Yes"), word("a cat")
    ('2', '2', 'true', 'cat')
    """
    text = re.sub(r" ?([-=+*/<>(){}|,:→≤≥≠]) ?", r"\1", text).casefold()
    text = TRUTHS.get(text, text)
    text = re.sub(r"^(?:an?|the) (?=[a-z]{2})", "", text)
    m = NAME.fullmatch(text) or PLACE_AFTER.fullmatch(text)
    return NUMBER_OF.get(m[1], m[1]) if m else text


# --- Orders and tuples ---

RUN = re.compile(  # marks in a row: BA, B A, (B)(A), 2-1-3. So 3-1, a score, is no difference
    r"[(\[]?(?:[A-H]{2,}|[A-H](?: ?[ /-] ?[A-H])+|\d(?: \d)+|\d(?:/\d){2,}|\d+(?: ?- ?\d+)+"
    r"|(?:\(\w\)-?){2,})[)\]]?"
)
# (bracket, elements, bracket)
TUPLE = re.compile(r"([(\[]?) ?((?:[^()\[\]]|[(\[][^()\[\]]*[)\]])*?) ?([)\]]?)")
LIST_SEPARATOR = re.compile(
    r"(?:(?<=\d),? ?and (?:(?i:image|picture|photo) )?(?=\d)|(?<=[\d张图])[和与](?=[\d第图])"
    r"| ?[,;→>] ?)(?![^(\[]*[)\]])"
)


def parts(text: str) -> tuple[str, list[str]]:
    """The brackets around a text, and its elements: "(1, 2)" as "()" and ["1", "2"]."""
    m = TUPLE.fullmatch(text)
    if m is None:
        return "", [text]
    return m[1] + m[3], LIST_SEPARATOR.split(m[2])


def is_list(text: str) -> bool:
    """Several elements, with a comma or an arrow between them?"""
    return len(parts(text)[1]) > 1


def same_list(box: str, gold: str) -> bool:
    """The same elements in the same order. Orders stand
    in any brackets, but the pair (0,1) is not [0,1].
    """
    box_brackets, boxes = parts(box)
    gold_brackets, golds = parts(gold)
    if len(boxes) != len(golds):
        return False
    alike = box_brackets == gold_brackets or not box_brackets or not gold_brackets or len(golds) > 2
    return alike and all(map(same, boxes, golds))


# --- Relations ---

RELATION = re.compile("([^<>≤≥≠]+) ?([<>≤≥≠]) ?(.+)")


def relation_of(text: str) -> tuple[str, ...]:
    """ "x ≤ 2" as ("x", "≤", "2"); () for any other text. A chain (1 < x < 2) has its second
    relation on the right.
    """
    m = RELATION.fullmatch(text)
    return m.groups() if m else ()


def same_relation(box: str, gold: str) -> bool:
    """The same relation with the same sides, or turned around: "2 ≥ x" is "x ≤ 2"."""
    boxes, golds = relation_of(box), relation_of(gold)
    if not boxes:
        return False
    left, sign, right = golds
    if boxes[1] == sign and same(boxes[0], left) and same(boxes[2], right):
        return True
    return boxes[1] == TURNED[sign] and same(boxes[0], right) and same(boxes[2], left)


# --- Quantities: a number or formula, with a name or a unit ---

UNIT = (
    r"(?:%|°|(?<=[ }0-9])(?:[mgshLNJWV]|[mcdkμ]m|[mk]g|mL|min|km/h|m/s|hours?|minutes?"
    r"|seconds?|days?|years?|units?|meters?|inch(?:es)?|feet|ft|miles?|dollars|[厘千]?米|元|度))(?:\^[23])?"
)
QUANTITY = re.compile(rf"(?:([a-zA-Z]) ?= ?)?(.*?) ?({UNIT})?")  # "x = 5 cm": (name, term, unit)
# "5 apples".
COUNTED = re.compile(
    r"(-?\d+(?:\.\d+)?) ((?:[a-z]{3,} )?[a-z]{3,})|(\d+)([个只条位名辆本块][一-龥]{0,4})"
)
NOT_COUNTED = re.compile(  # words after a number that change it, or name an image
    rf"\b(?:{NOUN}s?|{'|'.join(ORDINALS)}|and|or|nor|not|plus|minus|times|over|per|mod|squared"
    rf"|cubed|factorial|dozens?"
    r"|hundreds?|thousands?|millions?|billions?|trillions?|half|halves|thirds?|quarters?|fourths?"
    r"|fifths?|sixths?|tenths?"
    r"|hundredths?|pairs?|percent|percentage|sqrt|root|sin|cos|tan|log|exp|pi|degrees?|to|than"
    r"|out|cannot|unknown|wrong)\b"
)
E_NOTATION = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+))[eE]([-+]?\d{1,3})")
MIXED_NUMBER = re.compile(r"(-?[0-9]+) ([0-9]+)/([0-9]+)")


def same_quantity(box: str, gold: str) -> bool:
    """Equal in value, to 1e-6. A dropped name or unit is forgiven, another one is not. 50% is
    0.5, and 50 with its sign dropped; not so up to 1.
    """
    box_name, box_term, box_unit = quantity(box)
    gold_name, gold_term, gold_unit = quantity(gold)
    if box_name and gold_name and box_name != gold_name:
        return False
    if box_unit and gold_unit and box_unit != gold_unit:
        return False
    y = value(gold_term)
    if y is None:
        return False
    x = value(box_term)
    if x is None:
        return False

    if close(x / 100 if box_unit == "%" else x, y / 100 if gold_unit == "%" else y):
        return True
    return abs(y) > 1 and close(x, y)


def quantity(text: str) -> tuple[str, str, str]:
    """The name, term and unit of a quantity, "" for what is not there.

    >>> quantity("x = 5 cm")
    ('x', '5', 'cm')
    """
    counted = COUNTED.fullmatch(text)
    name, term, unit = QUANTITY.fullmatch(text).groups("")
    if counted and not unit and not NOT_COUNTED.search(counted[2] or ""):
        return "", counted[1] or counted[3], counted[2] or counted[4]
    return name, term, unit


def close(x: complex, y: complex) -> bool:
    return abs(x - y) <= 1e-9 + 1e-6 * abs(y)


TERM = re.compile(  # LaTeX that may be handed to math-verify; to it 5(4) is 9
    r"(?=.*[-0-9\\+*/^])(?!.*(?:\{\{|[0-9] [0-9.]|[0-9)}] ?\( ?-?[0-9.]+ ?\)))"
    r"(?:\\(?:sqrt|sin|cos|tan|ln|[dtc]?frac|pi|cdot|times|div|alpha|beta|theta)(?![a-zA-Z])"
    r"|(?<![a-zA-Z])[a-zA-Z]{1,2}(?![a-zA-Z])|(?<![0-9])[0-9]{1,15}(?![0-9])"
    r"|\^ ?(?:\{ ?-?(?:[0-9]{1,2}|[a-z]) ?\}|[0-9a-z])(?! ?\^)|[-+*/.(){}\[\] ])+"
)


@lru_cache(maxsize=4096)
def value(latex: str) -> complex | None:
    """The value of a term; None where it is none, or one that may cost too much.

    Each variable stands at a fixed generic point: two formulas with
    equal values there are equal, and nothing has to be simplified.
    Length, depth and exponents are bounded before the library sees them.
    """
    number = re.fullmatch(r"[-+]?(?:\d{1,15}(?:\.\d{0,15})?|\.\d{1,15})", latex)
    if number:
        return complex(float(latex))
    scientific = E_NOTATION.fullmatch(latex)
    if scientific:
        power = float(f"{scientific[1]}e{scientific[2]}")
        return complex(power) if abs(power) < 1e300 else None

    latex = MIXED_NUMBER.sub(r"\1\\frac{\2}{\3}", latex)
    exponents = re.findall(r"\^[ {-]*([0-9]+|[a-z])", latex)
    size = math.prod((int(power) or 1) if power.isdigit() else 4 for power in exponents)
    if size > 200 or len(latex) > 100 or latex.count("{") > 12:
        return None
    if len(re.findall(r"[(\[]", latex)) > 3 or len(re.findall(r"\\(?:s|co|ta|l)", latex)) > 3:
        return None
    if not TERM.fullmatch(latex):
        return None
    return CALCULATOR.value(latex)


# --- math-verify, in a process of its own -------------------------------------------------------


class Calculator:
    """Values of LaTeX terms by math-verify, which parses them, and sympy, which evaluates them.

    Both run in a child process. It is killed when a term takes more than SECONDS, and replaced
    after LIFE terms: the parser never forgets a sentence it has met. Threads take turns. The
    child ends when its input does.
    """

    SECONDS = 1.5
    LIFE = 2000

    def __init__(self):
        self.child = None
        self.asked = 0
        self.turn = threading.Lock()

    def start(self) -> None:
        self.stop()
        pipe = subprocess.PIPE
        command = [sys.executable, __file__, "--values"]
        self.child = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
        )
        self.child.stdout.readline()  # it is ready: its imports do not count
        self.asked = 0

    def stop(self) -> None:
        if self.child is None:
            return
        self.child.kill()
        self.child.wait()
        self.child.stdin.close()
        self.child.stdout.close()
        self.child = None

    def value(self, latex: str) -> complex | None:
        """The value of a term, each variable at a fixed generic point; None where it has none, or
        takes too long.
        """
        with self.turn:
            if self.child is None or self.asked >= self.LIFE:
                self.start()
            self.asked += 1
            limit = threading.Timer(self.SECONDS, self.child.kill)
            limit.start()
            try:
                self.child.stdin.write(latex + "\n")
                self.child.stdin.flush()
                answer = self.child.stdout.readline().strip()
            except BrokenPipeError:
                answer = ""
            limit.cancel()
            if not answer:  # it was killed
                self.stop()
                return None
        return None if answer == "None" else complex(answer)


CALCULATOR = Calculator()
atexit.register(CALCULATOR.stop)


def print_values() -> None:
    """The child's side: a term a line in, a value or None a line out."""
    from math_verify import LatexExtractionConfig, parse

    print("ready", flush=True)
    for line in sys.stdin:
        print(value_by_math_verify(line.rstrip("\n"), parse, LatexExtractionConfig()), flush=True)


def value_by_math_verify(latex: str, parse, config) -> complex | None:
    try:
        term = parse(f"${latex}$", [config], parsing_timeout=None)[0]
        point = {symbol: 2 + math.sin(sum(map(ord, symbol.name))) for symbol in term.free_symbols}
        found = complex(term.evalf(15, subs=point))
    except Exception:  # antlr and sympy raise anything on malformed terms
        return None
    return found if abs(found) < 1e300 else None


def main() -> None:
    if sys.argv[1:] == ["--values"]:
        print_values()
    elif len(sys.argv) == 3:
        response, answer = sys.argv[1:]
        print(
            f"accuracy {accuracy(response, answer)}, format {format_ok(response)}, reward "
            f"{reward(response, answer)}"
        )
    else:
        sys.exit("boxed.py: a response and the right answer, please")


if __name__ == "__main__":
    main()
