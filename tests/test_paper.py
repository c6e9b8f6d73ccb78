"""The experiments of evals/paper.py: each variant does what it says, a run in each goes through,
the tables say what the runs gave."""

import json
import re
import statistics
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from evals import paper
from evals.paper import (
    ARMS,
    FIGURES,
    MAIN,
    PARTS,
    Adaptive,
    Arm,
    add_figures,
    augmented,
    constant_alpha,
    difference,
    figures_of,
    interval,
    jobs,
    joint,
    kept,
    load_results,
    plot,
    plot_skew,
    release_copies,
    seeds_with,
    single_images,
    tables,
    two_baselines,
    values_of,
    worst,
)
from perl.grpo import advantages
from perl.permute import Sample, copies, permute


def question(n, permutable=True):
    return Sample(
        f"q{n}",
        tuple(f"{i}.png" for i in range(n)),
        "<image> " * n + "How many show a 7?",
        "2",
        permutable,
    )


def test_release_permutation_is_one_for_all():
    """The constants of the release's re-seeded shuffle; the
    coin and the group's size stay those of `copies`."""
    expected = {2: (1, 0), 3: (1, 0, 2), 4: (2, 1, 3, 0), 5: (3, 1, 2, 4, 0)}
    for n, sigma in expected.items():
        x, moved = question(n), 0
        for step in range(40):
            ours, theirs = (f(x, 3, 0.5, 0, step) for f in (copies, release_copies))
            assert len(theirs) == 4 and theirs[0] == ours[0]
            for mine, copy in zip(ours[1:], theirs[1:]):
                permuted = mine.sigma != ours[0].sigma
                assert copy.sigma == (sigma if permuted else ours[0].sigma)
                assert copy.sample == permute(x, copy.sigma)
                moved += permuted
        assert 30 < moved < 90  # of 120, at alpha 0.5


def test_augmentation_asks_one_order_and_any():
    x = question(3)
    found = [augmented(x, 0, 0.0, 0, step) for step in range(600)]
    assert all(len(group) == 1 for group in found)
    counts = {}
    for [copy] in found:
        assert copy.sample == permute(x, copy.sigma)
        counts[copy.sigma] = counts.get(copy.sigma, 0) + 1
    assert len(counts) == 6 and min(counts.values()) > 60  # of 100 each
    assert augmented(question(3, permutable=False), 0, 0.0, 0, 1)[0].sigma == (0, 1, 2)


def test_two_baselines_forget_the_other_order():
    rewards = torch.tensor([[1.0, 1, 1, 0, 0, 0, 0, 1]])
    apart, merged = two_baselines(rewards), advantages(rewards)
    assert torch.equal(
        apart, torch.cat([advantages(rewards[:, :4]), advantages(rewards[:, 4:])], dim=1)
    )
    # Merged, the better order leads as a whole.
    assert apart[:, :4].sum().abs() < 1e-6 and merged[:, :4].sum() > 1


def test_joint_reward_pays_both_or_none():
    rewards = torch.tensor([[1.0, 1.0, 0.1, 1.0, 0.1, 1.0]])  # j = 0 is right in both orders
    A = joint(rewards)[0]
    assert A[0] == A[3] > 0 and A[1] == A[4] == A[2] == A[5] < 0


def test_adaptive_permutation_follows_the_gap():
    state, x = Adaptive(), question(3)
    share = lambda: sum(state.copies(x, 1, 0.0, 0, s)[1].sigma != (0, 1, 2) for s in range(400))  # noqa: E731
    assert share() == 400  # nothing is known yet
    state.gap[x.task] = 0.25
    assert 150 < share() < 250
    state.gap[x.task] = 0.0
    assert 15 < share() < 80  # it goes on looking, at 0.1


def test_alpha_without_decay():
    assert [constant_alpha(step, 20) for step in (0, 10, 19)] == [1.0] * 3


def test_every_arm_is_in_a_part_and_runs_as_often_as_its_part_says():
    named = [name for names, _ in PARTS.values() for name in names]
    assert sorted(named) == sorted(ARMS)
    runs = jobs(list(PARTS), range(5))
    assert len(runs) == len(set(runs)) == sum(len(names) * n for names, n in PARTS.values())
    assert [name for seed, name in runs if seed == 0][:2] == list(MAIN)


def test_the_questions_of_an_arm(tmp_path):
    folder = tmp_path / "0" / "skew-0.9"
    folder.mkdir(parents=True)
    rows = [{"id": str(k), "images": ["a.png"] * (1 + k % 3)} for k in range(30)]
    scores = [{"id": str(k), "accuracy": k % 11 / 10} for k in range(30)]
    for name, lines in {
        "train": rows,
        "filtered": rows[:4],
        "filtered.jsonl.scores": scores,
    }.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    read = lambda keep: [json.loads(line) for line in kept(Arm(keep=keep), 0, tmp_path).open()]  # noqa: E731
    assert len(read("all")) == 30 and len(read("filtered")) == 4
    assert {len(row["images"]) for row in read("several images")} == {2, 3}
    assert {len(row["images"]) for row in read("one image")} == {1}
    band = read("0.2-0.8")
    assert len(band) == 4 and all(0.2 <= int(row["id"]) % 11 / 10 <= 0.8 for row in band)


RUN = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from evals.paper import ARMS, train
from perl.rollout import run
digits, out = Path({digits!r}), Path({out!r})
small = dict(steps=2, eval_every=2, prompts=4, updates=2, max_tokens=8)
arm, few = ARMS[{arm!r}], digits / "few.jsonl"
run(lambda: train(arm, 0, digits / "base", digits / "train.jsonl", few, out, **small))
"""


@pytest.mark.parametrize("arm", ["joint reward", "adaptive", "original prompt", "augmentation"])
def test_a_variant_trains(digits, tmp_path, arm):
    several = []
    for line in (digits / "train.jsonl").read_text().splitlines():
        if len(json.loads(line)["images"]) == 2 and "options" in line:
            several.append(line)
    (digits / "few.jsonl").write_text("\n".join(several[:3]))
    out = tmp_path / "run"
    script = RUN.format(root=str(ROOT), digits=str(digits), out=str(out), arm=arm)
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]

    figures = figures_of(out)
    assert set(FIGURES) <= figures.keys() and set(figures["by_task"]) == {"options"}
    assert figures["worst_order"] <= figures["mean_over_orders"]
    assert [point["step"] for point in figures["curve"]] == [2]
    assert sum(figures["early_advantages"]) == 2 * 4 * 12


def test_runs_from_another_base_are_not_mixed(tmp_path, monkeypatch):
    """Another machine may make another base of a seed: its runs are no pairs of the ones there."""
    file = tmp_path / "results.json"
    add_figures(file, 0, "base", {"weights": "theirs"})
    monkeypatch.setattr(paper, "prepare", lambda *_: None)
    monkeypatch.setattr(paper, "figures_of_base", lambda *_: {"weights": "ours"})
    monkeypatch.setattr(paper, "launch", lambda *_: pytest.fail("ran"))
    with pytest.raises(SystemExit, match="runs of seed 0 from another base"):
        paper.run_all(tmp_path, file, ["main"], [0])
    assert load_results(file)["seeds"]["0"] == {"base": {"weights": "theirs"}}


# --- Tables ---


def made_up(k: int, seed: int) -> dict:
    """Figures of a run that never was."""
    figures = {name: (k + 1) / 40 + seed / 100 + i / 50 for i, name in enumerate(FIGURES)}
    slots = {slot: 0.5 for slot in "12345"}
    tasks = {task: 0.5 for task in ("options", "index", "references", "invariant", "single")}
    curve = [{"step": step, "by_slot": slots, **figures} for step in (5, 10, 15, 20)]
    more = {"by_slot": slots, "by_task": tasks, "worst_by_task": tasks, "curve": curve}
    more |= {"no_spread": 0.25, "permuted": 0.5, "orders_differ": [0.5] * 20}
    return figures | more | {"early_advantages": [1] * 25}


def test_tables_and_pictures(tmp_path):
    file = tmp_path / "results.json"
    for seed in (0, 1, 2):
        for k, arm in enumerate(["base", "weak", *ARMS]):
            add_figures(file, seed, arm, made_up(k, seed))
    results = load_results(file)
    found = tables(results)
    rows = {}
    for name, text in found.items():
        for line in text.splitlines():
            cells = [cell.strip() for cell in line.split("|")[1:-1]]
            rows[name, cells[0]] = cells[1:]

    k = list(ARMS).index("no decay") + 2
    worst = statistics.mean((k + 1) / 40 + seed / 100 + 2 / 50 for seed in (0, 1, 2))
    assert rows["arms", "no decay"][3] == f"{worst:.3f}"
    later = k - (list(ARMS).index(MAIN[1]) + 2)
    assert rows["arms", "no decay"][-1] == f"{later / 40:+.3f} ± 0.000, higher"
    assert rows["seeds", "1"][-1] == f"{1 / 40:+.3f}"
    assert rows["axis", "skew 0.9"][0] == "3"
    for picture in (plot, plot_skew):
        picture(results, tmp_path / "picture.png")
        assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_a_difference_is_claimed_only_outside_the_interval():
    def results(differences):
        seeds = {}
        for seed, d in enumerate(differences):
            seeds[str(seed)] = {"a": {"worst_order": 0.5 + d}, "b": {"worst_order": 0.5}}
        return {"seeds": seeds}

    mean, half = interval([0.1, 0.2, 0.3, 0.2])
    assert mean == pytest.approx(0.2) and half == pytest.approx(3.182446 * 0.0408248, rel=1e-4)
    assert difference(results([0.1, 0.11, 0.1]), "a", "b").endswith("higher")
    assert difference(results([-0.1, -0.11, -0.1]), "a", "b").endswith("lower")
    assert difference(results([0.1, -0.1, 0.05]), "a", "b").endswith("not told apart")
    assert difference(results([0.1]), "a", "b").endswith("one seed: nothing to tell")


def test_the_published_tables_are_those_of_the_published_results():
    results = load_results(ROOT / "docs" / "results.json")
    text = (ROOT / "docs" / "results.md").read_text()
    for name, table in tables(results).items():
        assert f"<!-- table {name} -->\n{table}\n<!-- end -->" in text, name
    axis = tables(results)["axis"]
    assert f"<!-- table axis -->\n{axis}\n<!-- end -->" in (ROOT / "README.md").read_text()


def test_every_figure_in_the_words_stands_in_a_table():
    text = (ROOT / "docs" / "results.md").read_text()
    words = re.sub(r"<!-- table .*?<!-- end -->", "", text, flags=re.S)
    shown = " ".join(tables(load_results(ROOT / "docs" / "results.json")).values())
    figures = re.findall(r"[+-]?\d\.\d{3}", words)
    assert len(figures) > 20
    for figure in figures:
        assert re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", shown), figure


def test_what_the_words_claim_of_all_arms():
    results = load_results(ROOT / "docs" / "results.json")
    words = " ".join((ROOT / "docs" / "results.md").read_text().split())

    def mean(arm, get=worst, seeds=None):
        return statistics.mean(values_of(results, arm, get, seeds or seeds_with(results, arm)))

    lowest = min(mean(arm, single_images) for arm in ARMS)
    assert f"on one-image questions: the means are {lowest:.3f} or more" in words

    gains = {}
    for arm, settings in ARMS.items():
        [twin] = [
            name
            for name in ARMS
            if "grpo" in name
            and "filter" not in name
            and (ARMS[name].skew, ARMS[name].base) == (settings.skew, settings.base)
        ]
        seeds = seeds_with(results, arm, twin)
        gains[arm] = mean(arm, seeds=seeds) - mean(twin, seeds=seeds)
    assert max(gains, key=gains.get) == "perl skew 1.0"

    ahead = []
    for seed in seeds_with(results, *MAIN):
        theirs, ours = (worst(results["seeds"][seed][arm]) for arm in MAIN)
        ahead.append(ours - theirs)
    assert f"on each of the five seeds, by {min(ahead):+.3f} to {max(ahead):+.3f}" in words
    assert len(ahead) == 5

    weak = [arm for arm in ARMS if arm.startswith("weak, ")]
    highest = max(weak, key=mean)
    assert highest == "weak, augmentation"
    assert f"the highest mean ({mean(highest):.3f};" in words

    for arm in MAIN:  # Fig. 9: one peak, at 0
        runs = [results["seeds"][seed][arm] for seed in seeds_with(results, arm)]
        bins = [sum(counts) for counts in zip(*(run["early_advantages"] for run in runs))]
        assert max(bins) == bins[12] and bins[12] > 2 * max(bins[:12] + bins[13:])
