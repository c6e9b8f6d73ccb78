"""How each benchmark's answers are scored, by rule: no judge, and no text of a model is ever run.

A score is a function (response, row) -> 0.0 or 1.0. The row's field `score` names it; a row
without one is graded as in training (rewards/boxed.py): letters, images, sets, formulas, texts.

    mathvista     official: MathVista's normalize_extracted_answer and safe_equal, without the
                  language model that extracts answers: integers, floats at `precision`, lists
    mathvision    official: MATH-V's is_equal: equal in words, or numbers that agree within 0.01,
                  or the value of the right option
    remi          official: ReMI's notebook, a rule for each task: 3% (shapes), 10 minutes
                  (clocks), any of several labels (RefCoco), 1% for other numbers
    words         official: Mantis-Eval's short answers, equal without regard to case
    alternatives  MV-MATH: "1.2 or 1.5" accepts either; officially a language model judges

All read the answer out of the box that our prompt asks for; official prompts ask otherwise, and
official scripts extract with a language model. docs/benchmarks.md says how much that may move.
"""

import re
from collections.abc import Callable
from fractions import Fraction

from perl.permute import Sample, plain
from rewards.boxed import accuracy, boxed, options


def as_in_training(response: str, x: Sample) -> float:
    """The default: the grader of training, with the options of the question."""
    return accuracy(response, plain(x.answer), options(plain(x.question)))


def letter(response: str, x: Sample) -> float:
    """A multiple choice: the letter, or the text of its option."""
    return as_in_training(response, x)


def number_in(text: str) -> float | None:
    """The number that a text is, with a thousands separator, a unit or a percent sign; None.

    >>> number_in("1,234"), number_in("$3.5 cm$"), number_in("1/2"), number_in("7 or 8")
    (1234.0, 3.5, 0.5, None)
    """
    text = text.replace("$", "").replace("\\%", "%").replace(",", "").strip().rstrip(".")
    found = re.fullmatch(r"([-+]?\d*\.?\d+(?:[eE][-+]?\d+)?)(?:/(\d+))?\s*(?:%|°|[a-zA-Z]+)?", text)
    if not found:
        return None
    if found[2]:
        return float(Fraction(found[1]) / int(found[2])) if int(found[2]) else None
    return float(found[1])


def words_of(text: str) -> str:
    """A text in lower case without LaTeX's \\text, outer dots and doubled blanks."""
    text = re.sub(r"\\text\{([^{}]*)\}", r"\1", text)
    return " ".join(text.casefold().split()).strip(" .")


def mathvista(response: str, x: Sample) -> float:
    """Integers as integers, floats rounded to the question's precision, all else as words."""
    said, gold = boxed(response), plain(x.answer)
    if said is None:
        return 0.0
    kind, ours, right = x.info.get("answer_type"), number_in(said), number_in(gold)
    if kind == "integer" and ours is not None and right is not None:
        return float(int(ours) == int(right))
    if kind == "float" and ours is not None and right is not None:
        digits = int(x.info.get("precision") or 0)
        return float(round(ours, digits) == round(right, digits))
    if words_of(said) == words_of(gold):
        return 1.0
    return as_in_training(response, x)


def mathvision(response: str, x: Sample) -> float:
    """Equal as in training, or within 0.01 as numbers; of a choice also the value of the right
    option.
    """
    if as_in_training(response, x):
        return 1.0
    said, gold = boxed(response), plain(x.answer)
    if said is None:
        return 0.0
    golds = [gold]
    place = "ABCDEFGHIJ".find(gold) if len(gold) == 1 else -1
    choices = x.info.get("choices") or []
    if 0 <= place < len(choices) and choices[place] != gold:
        golds = [choices[place]]
    for value in golds:
        ours, right = number_in(said), number_in(value)
        if ours is not None and right is not None and abs(round(ours - right, 6)) < 0.01:
            return 1.0
        if words_of(said) == words_of(value):
            return 1.0
    return 0.0


def minutes_in(text: str) -> float | None:
    """A time of day or a number of minutes, in minutes.

    >>> minutes_in("3:25"), minutes_in("205")
    (205.0, 205.0)
    """
    clock = re.fullmatch(r"(\d{1,2}):(\d{2})(?::\d{2})?\s*(?:[ap]\.?m\.?)?", text.strip().lower())
    if clock:
        return 60.0 * int(clock[1]) + int(clock[2])
    return number_in(text)


def remi(response: str, x: Sample) -> float:
    """ReMI's rule for the row's task."""
    said, gold, task = boxed(response), plain(x.answer), x.task
    if said is None:
        return 0.0
    if task == "RefCoco":
        labels = {words_of(label) for label in gold.split(",")}
        return float(words_of(said) in labels)
    if task == "Clocks":
        ours, right = minutes_in(said), minutes_in(gold)
        return float(ours is not None and right is not None and abs(ours - right) <= 10)
    if words_of(said).rstrip("%").strip() == words_of(gold).rstrip("%").strip():
        return 1.0
    ours, right = number_in(said), number_in(gold)
    if ours is None or right is None:
        return as_in_training(response, x)
    tolerance = 0.03 if task in ("GeomShape", "GeomCost") else 0.01
    return float(abs(ours - right) <= tolerance * abs(right))


def words(response: str, x: Sample) -> float:
    """As in training; a short answer also as words, in any case."""
    if as_in_training(response, x):
        return 1.0
    said, gold = boxed(response), plain(x.answer)
    is_letter = bool(re.fullmatch("[A-Z]", gold))
    return float(said is not None and not is_letter and words_of(said) == words_of(gold))


def alternatives(response: str, x: Sample) -> float:
    """As in training, for any of the answers that the gold joins by "or"."""
    if as_in_training(response, x):
        return 1.0
    golds = re.split(r"\s+or\s+|\s*##\s*", plain(x.answer))
    if len(golds) < 2:
        return 0.0
    choices = options(plain(x.question))
    return max(accuracy(response, gold.strip(), choices) for gold in golds if gold.strip())


SCORES: dict[str, Callable[[str, Sample], float]] = {
    "": as_in_training,
    "letter": letter,
    "mathvista": mathvista,
    "mathvision": mathvision,
    "remi": remi,
    "words": words,
    "alternatives": alternatives,
}
# Sets whose official figure is a mean over their tasks; of the others, over rows.
MEAN_OVER_TASKS = ("mmiu", "remi")


def score(response: str, x: Sample) -> float:
    """The score of a response by the rule that the row names; 0 or 1."""
    return SCORES[x.info.get("score", "")](response, x)
