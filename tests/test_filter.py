"""perl/filter.py: the resampling as a pure function, and the command as it runs."""

import dataclasses
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perl.filter import PAPER_AFTER, digest, histogram, mend, quotas, read_scores, report, resample
from perl.permute import Sample

# Fig. 3b, per cent of questions at mean accuracy 0, 0.1, .. 1 before the filter, read off the
# figure (+-0.3).
PAPER_BEFORE = (1.0, 1.5, 2.2, 3.1, 4.3, 5.5, 6.8, 9.0, 12.0, 19.4, 34.5)

counts = st.lists(st.integers(0, 400), min_size=11, max_size=11).filter(any)


def synthetic(shares, n):
    """About n scores spread as `shares` says."""
    return [b / 10 for b, share in enumerate(shares) for _ in range(round(share / sum(shares) * n))]


def test_the_published_before_becomes_the_published_after():
    scores = synthetic(PAPER_BEFORE, 10_000)
    kept = [scores[i] for i in resample(scores)]
    assert sum(scores) / len(scores) == pytest.approx(0.78, abs=0.01)
    assert sum(kept) / len(kept) == pytest.approx(0.38, abs=0.01)
    for count, target in zip(histogram(kept), PAPER_AFTER):
        assert 100 * count / len(kept) == pytest.approx(target, abs=1.0)


@given(counts, st.lists(st.floats(0, 1), min_size=11, max_size=11).filter(lambda t: max(t) > 0.01))
def test_quotas_take_what_is_there(have, target):
    keep = quotas(have, target)
    assert all(0 <= k <= h for k, h in zip(keep, have))
    total = sum(t for t, h in zip(target, have) if h)
    if sum(keep):
        for k, t, h in zip(keep, target, have):
            assert abs(k / sum(keep) - (t / total if h else 0)) <= 0.01


@given(counts)
def test_a_target_that_is_there_keeps_all(have):
    assert sum(quotas(have, have)) == sum(have)


def test_resampling_is_a_function_of_scores_and_seed():
    scores = synthetic(PAPER_BEFORE, 3000)
    a, b, other = resample(scores, seed=1), resample(scores, seed=1), resample(scores, seed=2)
    assert a == b != other and len(a) == len(set(a)) and a == sorted(a)
    assert histogram([scores[i] for i in a]) == histogram([scores[i] for i in other])


def test_an_empty_bin_is_left_out_of_the_target():
    scores = [s for s in synthetic(PAPER_BEFORE, 10_000) if s != 0.0]
    kept = Counter(scores[i] for i in resample(scores))
    assert len(kept) == 10 and kept[0.5] / sum(kept.values()) == pytest.approx(
        17.4 / (99.6 - 12.0), abs=0.01
    )


def test_as_many_questions_as_the_target_allows():
    """No larger number of questions, in any split, stays within a point of the target: small
    cases, all splits tried."""
    for have, target in (
        ((3, 5, 2), (1, 1, 1)),
        ((6, 1, 4), (3, 1, 2)),
        ((0, 4, 3), (1, 1, 2)),
        ((8, 2, 2), (2, 1, 1)),
    ):
        full, weights = [*have, *[0] * 8], [*target, *[0] * 8]
        total = sum(t for t, h in zip(target, have) if h)
        share = [t / total if h else 0 for t, h in zip(target, have)]
        best = 0
        for a in range(have[0] + 1):
            for b in range(have[1] + 1):
                for c in range(have[2] + 1):
                    if (k := a + b + c) and all(
                        abs(x / k - s) <= 0.01 for x, s in zip((a, b, c), share)
                    ):
                        best = max(best, k)
        assert sum(quotas(full, weights)) == best


def test_report_says_there_kept_and_missing():
    before, after = [0.0] * 3 + [0.5] * 10 + [1.0] * 4, [0.0] * 3 + [0.5] * 6
    lines = report(before, after, [40, 0, 0, 0, 0, 60, 0, 0, 0, 0, 0]).split("\n")
    assert lines[0].split() == ["accuracy", "there", "share", "kept", "share", "target", "missing"]
    assert lines[1].split() == ["0.0", "3", "17.6%", "3", "33.3%", "40.0%", "1"]  # 40% of 9 are 4
    assert lines[6].split() == ["0.5", "10", "58.8%", "6", "66.7%", "60.0%", "0"]
    assert lines[-1].split() == ["mean", "17", "0.53", "9", "0.33"]
    assert "missing" not in report(before, after, None)


def test_scores_of_other_settings_and_torn_lines_do_not_count(tmp_path):
    samples = [Sample(name, (f"{name}.png",), "<image> What?", "7") for name in "abc"]
    keys = {x.id: digest(x) for x in samples}
    rows = [
        {"id": "a", "accuracy": 0.5, "question": keys["a"], "settings": {"seed": 0}},
        {"id": "b", "accuracy": 0.1, "question": keys["b"], "settings": {"seed": 1}},
    ]
    whole = "".join(json.dumps(row) + "\n" for row in rows)
    for torn in ("", '{"id": "c", "accu', '{"id": "c", "accuracy": 0.5, "settings": {"seed": 0}}'):
        (tmp_path / "s").write_text(whole + torn)
        mend(tmp_path / "s")
        assert (tmp_path / "s").read_text() == whole
        assert read_scores(tmp_path / "s", samples, {"seed": 0}) == {"a": 0.5}
    # An edited question is asked again.
    for change in (
        {"answer": "8"},
        {"question": "<image> Which?"},
        {"images": ("z.png",)},
    ):
        assert (
            read_scores(tmp_path / "s", [dataclasses.replace(samples[0], **change)], {"seed": 0})
            == {}
        )
    assert read_scores(
        tmp_path / "s", [dataclasses.replace(samples[0], images=("elsewhere/a.png",))], {"seed": 0}
    ) == {"a": 0.5}
    orders = [
        dataclasses.replace(samples[0], images=images)
        for images in (("u/1.png", "v/1.png"), ("v/1.png", "u/1.png"))
    ]
    assert digest(orders[0]) != digest(orders[1])
    (tmp_path / "s").write_text('{"id"')  # killed in its very first line
    mend(tmp_path / "s")
    mend(tmp_path / "none")
    assert (
        read_scores(tmp_path / "s", samples, {"seed": 0})
        == read_scores(tmp_path / "none", samples, {"seed": 0})
        == {}
    )


def test_bins_of_any_number_of_rollouts():
    assert histogram([k / 10 for k in range(11)]) == [1] * 11
    # 1/20 is nearest to 0.1 and to 0: halves go up, always.
    assert histogram([k / 20 for k in range(21)]) == [1] + [2] * 10
    assert histogram([k / 40 for k in range(41)]) == [2, *[4] * 9, 3]


REWARD = """
def paid(response, answer, options):
    return 1.0

def accuracy(response, answer, options):
    return 0.5
"""


@pytest.mark.long
def test_the_command_scores_resumes_and_resamples(torchrun, digits, tmp_path):
    rows = [json.loads(line) for line in (digits / "train.jsonl").read_text().splitlines()[:7]]
    data, out = digits / "seven.jsonl", tmp_path / "kept" / "out.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [data, "--model", digits / "base", "--out", out, "--rollouts", 2, "--max-tokens", 8]
    torchrun(2, "perl/filter.py", *flags)
    scores = out.with_name("out.jsonl.scores.jsonl")
    lines = scores.read_text().splitlines()
    assert sorted(json.loads(line)["id"] for line in lines) == sorted(row["id"] for row in rows)
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert kept and all(
        0 <= row["accuracy"] <= 1 and (out.parent / row["images"][0]).is_file() for row in kept
    )

    # Killed while it wrote the fifth.
    scores.write_text("\n".join(lines[:4]) + "\n" + lines[4][:20])
    torchrun(1, "perl/filter.py", *flags)
    again = scores.read_text().splitlines()
    # The same scores on one rank as on two.
    assert again[:4] == lines[:4] and sorted(again) == sorted(lines)

    done = torchrun(1, "perl/filter.py", *flags, "--keep", "0", "1")  # samples nothing, keeps all
    assert scores.read_text().splitlines() == again and "scoring" not in done.stderr
    assert len(out.read_text().splitlines()) == 7

    (tmp_path / "mine.py").write_text(REWARD)  # raw accuracy is scored, never the shaped reward
    mine = f"{tmp_path}/mine.py:paid"
    paid = tmp_path / "paid.jsonl"
    torchrun(1, "perl/filter.py", *flags, "--keep", "0", "1", "--reward", mine, "--out", paid)
    assert {json.loads(line)["accuracy"] for line in paid.read_text().splitlines()} == {0.5}

    (tmp_path / "target.json").write_text("[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]")
    done = torchrun(1, "perl/filter.py", *flags, "--target", tmp_path / "target.json")
    assert "missing" in done.stdout and scores.read_text().splitlines() == again
    for text in ("[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1]", '"12345678901"'):
        (tmp_path / "target.json").write_text(text)
        done = torchrun(
            1, "perl/filter.py", *flags, "--target", tmp_path / "target.json", check=False
        )
        assert done.returncode and "filter.py: --target: " in done.stderr
