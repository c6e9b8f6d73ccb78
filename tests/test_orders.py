"""evals/orders.py: its figures on hand-made model output."""

import pytest

from evals.orders import asked, mapped_back, orders_of, slot_of, summarise
from perl.permute import Sample, permute


def sample(n, order="options", answer="A", stem=0, question=None):
    letters = "".join(f"\n{chr(65 + k)}. <image>" for k in range(n - stem))
    text = question or "<image>" * stem + " Which image shows a 7?" + letters
    return Sample("x", tuple(f"{k}.png" for k in range(n)), text, answer, order, stem)


@pytest.mark.parametrize("n, stem, count", [(2, 0, 2), (3, 0, 6), (4, 0, 24), (4, 1, 6), (5, 0, 24), (5, 1, 24), (8, 0, 24)])
def test_orders(n, stem, count):
    orders = orders_of(sample(n, stem=stem), seed=0)
    assert len(orders) == len(set(orders)) == count and orders[0] == tuple(range(n))
    assert all(sorted(o) == list(range(n)) and o[:stem] == tuple(range(stem)) for o in orders)
    assert orders == orders_of(sample(n, stem=stem), seed=0)


def test_what_is_refused_is_asked_once():
    assert asked(sample(3, order="fixed"), 0) == [((0, 1, 2), sample(3, order="fixed"))]
    assert len(asked(sample(3), 0)) == 6


def test_answers_are_mapped_back_to_the_given_order():
    x, sigma = sample(3, answer="C"), (2, 0, 1)
    y = permute(x, sigma)
    assert y.answer == "A" and slot_of(y) == 1
    assert mapped_back(y, sigma, "A") == "c"  # the image that stands first was the third
    assert mapped_back(y, sigma, " B ") == "a"
    assert mapped_back(y, sigma, None) is None
    assert mapped_back(y, sigma, "nonsense") == "nonsense"
    count = sample(3, "invariant", "2", question="<image><image><image> How many of the images show a 7?")
    assert mapped_back(permute(count, sigma), sigma, "1") == "1" and slot_of(count) is None
    index = sample(3, "index", "Image 3", question="<image><image><image> Which image shows a 7?")
    y = permute(index, sigma)
    assert y.answer == "Image 1" and slot_of(y) == 1 and mapped_back(y, sigma, "Image 2") == "image 1"


def test_figures_on_hand_made_output():
    def record(id, order, right, answer, slot=None, kind="options"):
        return {"id": id, "kind": kind, "order": order, "right": float(right), "answer": answer, "slot": slot}

    records = [
        record("a", 0, 1, "a", 1), record("a", 1, 0, "b", 2),  # right only where it stands first
        record("b", 0, 0, "b", 2), record("b", 1, 0, "b", 1),  # consistently wrong
        record("c", 0, 1, "a", 1), record("c", 1, 1, "a", 2),  # consistently right
        record("d", 0, 0, None, 1), record("d", 1, 0, None, 2),  # never answers: not the same answer
        record("e", 0, 1, "7", kind="fixed"),  # can't be permuted: counts in `given` alone
        record("f", 0, 0, "a"), record("f", 1, 1, "b"),  # right only in the permuted order
    ]  # fmt: skip
    assert summarise(records) == {
        "questions": 6, "permutable": 5,
        "given": pytest.approx(3 / 6), "mean_over_orders": pytest.approx((0.5 + 0 + 1 + 0 + 0.5) / 5),
        "worst_order": pytest.approx(1 / 5), "best_order": pytest.approx(3 / 5), "consistency": pytest.approx(2 / 5),
        "by_slot": {"1": pytest.approx(2 / 4), "2": pytest.approx(1 / 4)},
        "by_kind": {"fixed": 1.0, "options": pytest.approx(4 / 10)},
    }  # fmt: skip


def test_no_question_to_permute():
    figures = summarise([{"id": "a", "kind": "fixed", "order": 0, "right": 1.0, "answer": "7", "slot": None}])
    assert figures["given"] == 1.0 and figures["worst_order"] is None and figures["by_slot"] == {}
