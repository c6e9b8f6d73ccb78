"""bench/growth.py: the subject of a point is what it says, its bound is counted from it, and one
point of each kind goes through."""

from dataclasses import replace

import pytest

from bench import growth
from perl.permute import load


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    folder = tmp_path_factory.mktemp("subject")
    growth.write_subject(folder)
    return folder


@pytest.mark.parametrize("images", [1, 4, 16])
def test_questions_of_a_point(subject, images):
    samples = load(str(growth.write_questions(subject, images, 3)))
    assert [len(x.images) for x in samples] == 3 * [images]
    assert all(x.permute for x in samples) and len({x.question for x in samples}) == 3


def test_the_bound_counts_what_grows(subject):
    """A question more is as much again; a rollout more is its tokens alone, not its prompt's."""
    one = growth.flops(subject, growth.START)
    assert growth.flops(subject, replace(growth.START, questions=4)) == 4 * one
    for axis, points in growth.AXES.items():
        counts = [growth.flops(subject, point) for point in points]
        grows = axis != "ranks"  # the same work, shared out
        assert (counts == sorted(counts) and counts[0] < counts[-1]) == grows, axis
    twice = growth.flops(subject, replace(growth.START, n=2 * growth.START.n))
    assert one < twice < 1.5 * one


@pytest.mark.long
def test_a_point_is_measured(subject, tmp_path):
    """Two steps of perl/train.py: every phase took time, and a row of the table says so."""
    found = growth.measure(subject, growth.START, steps=2)
    assert min(found["phases"].values()) > 0 and 1e8 < found["peak"] < 1e10
    assert found["length"] > 40  # random weights hardly end a response
    report = {"axes": {"n": [found]}, "gemm_flops": 1e11, "asking": []}
    [row] = growth.table(report).splitlines()[2:]
    assert row.startswith(f"| n | 6 | {found['seconds']:.2f} |")
    growth.plot(report, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000
