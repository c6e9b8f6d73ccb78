"""The ablations of evals/paper.py: each variant does what it says, a run in each goes through,
the tables say what the runs gave."""

import json
import statistics
import subprocess
import sys

import torch
from conftest import ROOT

from data.digits import TRAIN
from evals.paper import (
    ARMS,
    FIGURES,
    collect,
    constant_alpha,
    finished,
    plot,
    release_copies,
    spread,
    tables,
    two_baselines,
)
from perl.grpo import advantages
from perl.permute import Sample, copies, permute


def question(n):
    return Sample(
        f"q{n}",
        tuple(f"{i}.png" for i in range(n)),
        "<image> " * n + "How many show a 7?",
        "2",
        True,
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


def test_two_baselines_forget_the_other_order():
    rewards = torch.tensor([[1.0, 1, 1, 0, 0, 0, 0, 1]])
    apart, merged = two_baselines(rewards), advantages(rewards)
    assert torch.equal(
        apart, torch.cat([advantages(rewards[:, :4]), advantages(rewards[:, 4:])], dim=1)
    )
    # Merged, the better order leads as a whole.
    assert apart[:, :4].sum().abs() < 1e-6 and merged[:, :4].sum() > 1


def test_alpha_without_decay():
    assert [constant_alpha(step, 20) for step in (0, 10, 19)] == [1.0] * 3


RUN = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from evals.paper import ARMS, train
from perl.rollout import run
digits, out = Path({digits!r}), Path({out!r})
small = dict(steps=1, eval_every=1, prompts=4, updates=2, max_tokens=8, eval=digits / "few.jsonl")
run(lambda: train(ARMS[{arm!r}], 0, digits, digits / "train.jsonl", out, **small))
"""


def test_a_variant_trains(digits, tmp_path):
    lines = (digits / "train.jsonl").read_text().splitlines()
    (digits / "few.jsonl").write_text(
        "\n".join(
            line for line in lines if len(json.loads(line)["images"]) == 2 and "options" in line
        )
    )
    few = (digits / "few.jsonl").read_text().splitlines()[:3]
    (digits / "few.jsonl").write_text("\n".join(few))
    script = RUN.format(
        root=str(ROOT), digits=str(digits), out=str(tmp_path / "run"), arm="two baselines"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [row] = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert {f"eval_{name}" for name in FIGURES} <= row.keys() and row["eval_worst_order"] <= row[
        "eval_mean_over_orders"
    ]
    assert 0 < row["permuted"] <= 1 and sum(row["advantages"]) == 4 * 12


def runs(folder, seeds):
    """What finished runs leave, with made-up figures."""
    for seed in seeds:
        for k, arm in enumerate(["base", *ARMS]):
            out = folder / str(seed) / arm
            out.mkdir(parents=True)
            figures = {name: (k + 1) / 20 + seed / 100 + i / 50 for i, name in enumerate(FIGURES)}
            if arm == "base":
                (out / "orders.json").write_text(json.dumps(figures | {"by_slot": {"1": 1.0}}))
                continue
            every = ARMS[arm].every
            rows = [
                {
                    "step": s,
                    "reward": 0.5,
                    "no_spread": 0.25,
                    "permuted": 0.5,
                    "logp_gap_max": 1e-5,
                    "advantages": [1] * 25,
                }
                | {f"seconds_{phase}": 1.0 + seed for phase in ("sampling", "update")}
                | (
                    {f"eval_{f}": v for f, v in figures.items()} | {"eval_slot_1": 1.0}
                    if (s + 1) % every == 0
                    else {}
                )
                for s in range(TRAIN["steps"])
            ]
            (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            (out / "model").mkdir()


def test_tables_and_picture(tmp_path):
    runs(tmp_path, (0, 1, 2))
    assert (
        finished(tmp_path / "0" / "both")
        and not finished(tmp_path / "0" / "base")
        and not finished(tmp_path / "3" / "both")
    )
    results = json.loads(json.dumps(collect(tmp_path, (0, 1, 2))))
    found = tables(results)
    rows = {
        cells[1].strip(): [c.strip() for c in cells[2:-1]]
        for text in found.values()
        for line in text.splitlines()
        if len(cells := line.split("|")) > 8
    }
    place = list(FIGURES).index("worst_order")
    worst = [
        (["base", *ARMS].index("neither") + 1) / 20 + seed / 100 + place / 50 for seed in (0, 1, 2)
    ]
    assert rows["neither"][place] == f"{statistics.mean(worst):.3f} ± 0.010"
    assert rows["neither"][6].endswith("(3 of 3 lower)") and rows["both"][6] == ""
    assert "4.00" in rows["n_s=3"][-1]  # seconds: 2 (1 + seed), the mean of 2, 4 and 6
    gap = found["Best against worst order over training"].splitlines()
    assert gap[0].count("|") == 2 + 6 and [line.split("|")[1].strip() for line in gap[2:]] == [
        "GRPO",
        "PeRL",
    ]
    plot(results, tmp_path / "results.png")
    assert (tmp_path / "results.png").stat().st_size > 10_000


def test_the_published_tables_are_those_of_the_published_results():
    results = json.loads((ROOT / "docs" / "results.json").read_text())
    text = (ROOT / "docs" / "results.md").read_text()
    for table in tables(results).values():
        assert table in text
    assert results["command"] in text and len(results["seeds"]) >= 5
    readme, runs = (ROOT / "README.md").read_text(), results["seeds"].values()
    for arm, name in (("base", "base"), ("filter", "GRPO"), ("both", "PeRL")):
        cells = [spread([run[arm][figure] for run in runs]) for figure in FIGURES]
        slots = " ".join(
            f"{statistics.mean(run[arm]['by_slot'][slot] for run in runs):.2f}" for slot in "12345"
        )
        assert f"| {name} | {' | '.join(cells)} | {slots} |" in readme
