"""A run one can leave alone: exact resume, kills, a full disk, damaged files, a rank that dies,
numbers that are not finite."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file

from perl.permute import DataError, load
from perl.train import check, digest, parse_args

pytestmark = pytest.mark.long

FLAGS = "--prompts 8 --updates 2 --steps 4 --save-every 2 --max-prompt 200 --max-tokens 12 --lr 1e-4 --beta 0.1 --show 1".split()


def command(digits, run, *more, ranks=2, model=None, data=None):
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", ranks] if ranks else []
    )
    words = [
        "perl/train.py",
        "--model",
        model or digits / "base",
        "--data",
        data or digits / "train.jsonl",
        "--out",
        run,
    ]
    return [str(word) for word in (sys.executable, *launcher, *words, *FLAGS, *more)]


def completed(words, timeout=300):
    """A command that has ended, whatever its exit code; one thread, from the repository root."""
    return subprocess.run(
        [str(word) for word in words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finish(digits, run, *more, **settings):
    done = completed(command(digits, run, *more, **settings))
    return done.returncode, done.stdout + done.stderr


def start(digits, run, *more, **settings):
    """A run in the background."""
    return subprocess.Popen(
        command(digits, run, *more, **settings),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def ranks_of(process):
    """The processes that torchrun started: each leads a session of its own."""
    return sorted(child.pid for child in psutil.Process(process.pid).children())


def steps_of(run):
    """The whole lines of metrics.jsonl, but for what depends on the clock."""
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


def wait_for_steps(run, process, steps):
    wait_for(lambda: len(steps_of(run)) >= steps, process)


def wait_for(happened, process):
    deadline = time.monotonic() + 200
    while not happened():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def largest_difference(run, other):
    a, b = (load_file(r / "model" / "model.safetensors") for r in (run, other))
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.fixture(scope="module")
def straight(digits, tmp_path_factory):
    """Four steps on two ranks, uninterrupted."""
    run = tmp_path_factory.mktemp("straight") / "run"
    code, said = finish(digits, run)
    assert code == 0, said[-3000:]
    return run


def test_killed_and_resumed_equals_uninterrupted(digits, straight, tmp_path):
    run = tmp_path / "run"
    process = start(digits, run)
    wait_for(lambda: (run / "step-000002").exists(), process)
    for pid in [process.pid, *ranks_of(process)]:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    assert [p.name for p in run.glob("step-*")] == ["step-000002"]
    one_rank = tmp_path / "one"
    shutil.copytree(run, one_rank, symlinks=True)
    # Somebody's copy is no checkpoint.
    shutil.copytree(run / "step-000002", run / "step-000002.bak", symlinks=True)
    with open(run / "metrics.jsonl", "a") as file:
        # A step that runs again, and a line torn by the kill.
        file.write('{"step": 2}\n{"step": 3, "rew')
    code, said = finish(digits, run, "--resume")
    assert code == 0, said[-3000:]
    assert steps_of(run) == steps_of(straight) and len(steps_of(run)) == 4
    assert largest_difference(run, straight) == 0.0
    kept = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    assert [row["step"] for row in kept] == [0, 1, 2, 3]

    # A checkpoint of two ranks goes on with one.
    code, said = finish(digits, one_rank, "--resume", ranks=1)
    assert code == 0, said[-3000:]
    assert largest_difference(one_rank, straight) <= 1e-5
    assert [row["step"] for row in steps_of(one_rank)] == [0, 1, 2, 3]

    # A run is never gone over by mistake.
    samples = load(digits / "train.jsonl")
    for more, sentence in (
        ([], "it holds a run already; --resume"),
        (["--resume", "--seed", "1"], "another seed: 0 became 1"),
        (["--resume", "--lr", "1e-5"], "another lr: 0.0001 became 1e-05"),
    ):
        with pytest.raises(DataError, match=sentence):
            check(parse_args(command(digits, run, *more, ranks=0)[2:]), samples, 1)


def test_resume_across_meshes(digits, straight, tmp_path):
    """Begun by two ranks that share one copy of the weights, gone on with by two copies of two
    ranks, ended by two ranks again: the same run.
    """
    run = tmp_path / "run"
    shutil.copytree(straight, run, symlinks=True)
    shutil.rmtree(run / "step-000004")
    code, said = finish(digits, run, "--resume", "--replicate", 2, "--save-every", 1, ranks=4)
    assert code == 0, said[-3000:]
    assert largest_difference(run, straight) <= 1e-5
    assert json.loads((run / "config.json").read_text())["replicate"] == 2

    shutil.rmtree(run / "step-000004")  # step-000003 is of two copies
    code, said = finish(digits, run, "--resume")
    assert code == 0, said[-3000:]
    assert largest_difference(run, straight) <= 1e-5
    assert [row["step"] for row in steps_of(run)] == [0, 1, 2, 3]


def test_sigterm_to_torchrun_has_both_ranks_save(digits, straight, tmp_path):
    """They end the running step and save within torchrun's 30 seconds; its own code is not 0."""
    run = tmp_path / "run"
    process = start(digits, run)
    wait_for_steps(run, process, 1)
    ranks = [psutil.Process(pid) for pid in ranks_of(process)]
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) != 0
    gone, alive = psutil.wait_procs(ranks, timeout=5)
    assert len(gone) == 2 and not alive
    assert f"step-{len(steps_of(run)):06d}" == max(p.name for p in run.glob("step-*"))
    code, said = finish(digits, run, "--resume")
    assert code == 0, said[-3000:]
    assert largest_difference(run, straight) == 0.0 and len(steps_of(run)) == 4


def test_sigterm_saves_and_exits_with_zero(digits, straight, tmp_path):
    run = tmp_path / "run"
    process = start(digits, run, ranks=0)  # without torchrun: the exit code is the script's own
    wait_for_steps(run, process, 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 0
    assert f"step-{len(steps_of(run)):06d}" == max(p.name for p in run.glob("step-*"))
    code, said = finish(digits, run, "--resume")  # and from one rank to two
    assert code == 0, said[-3000:]
    assert largest_difference(run, straight) <= 1e-5 and len(steps_of(run)) == 4


def test_twenty_kills_while_saving_and_a_full_disk(digits, tmp_path):
    worker = [sys.executable, "tests/workers/checkpoint.py", digits, tmp_path / "run", "20"]
    done = completed(worker, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    # Each got further.
    assert found["resumed"][0] == 0 and sorted(set(found["resumed"])) == found["resumed"]
    assert found["full disk"] == [1, 1] and found["after"] == found["before"] > found["resumed"][-1]


def test_a_dead_rank_ends_the_run(digits, straight, tmp_path):
    """torchrun ends the other rank; what was saved before goes on."""
    run = tmp_path / "run"
    process = start(digits, run)
    wait_for(lambda: (run / "model").exists(), process)
    ranks = [psutil.Process(pid) for pid in ranks_of(process)]
    ranks[1].kill()
    assert process.wait(timeout=60) != 0
    gone, alive = psutil.wait_procs(ranks, timeout=5)
    assert len(gone) == 2 and not alive
    code, said = finish(digits, run, "--resume")
    assert code == 0, said[-3000:]
    assert largest_difference(run, straight) == 0.0 and len(steps_of(run)) == 4


def test_a_killed_torchrun_leaves_no_rank_behind(digits, straight, tmp_path):
    """Its ranks end the running step, save, and are gone."""
    run = tmp_path / "run"
    process = start(digits, run)
    wait_for_steps(run, process, 1)
    ranks = [psutil.Process(pid) for pid in ranks_of(process)]
    os.kill(process.pid, signal.SIGKILL)
    gone, alive = psutil.wait_procs(ranks, timeout=60)
    assert len(gone) == 2 and not alive
    assert max(p.name for p in run.glob("step-*")) == f"step-{len(steps_of(run)):06d}"
    code, said = finish(digits, run, "--resume")
    assert code == 0, said[-3000:]
    assert largest_difference(run, straight) == 0.0 and len(steps_of(run)) == 4


def faulty(faults, tmp_path, *flags):
    """What tests/workers/faults.py found of runs with these faults."""
    out = tmp_path / "found.json"
    words = [sys.executable, "tests/workers/faults.py", out, *faults, "--", *flags]
    done = completed(words, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


PHASES = ["sampling", "reference", "update", "sync", "evaluation", "metrics", "saving"]


def test_a_rank_that_raises_ends_the_run(digits, tmp_path):
    """In every phase: traceback, exit code, and all ranks gone, although the tear-down would block
    for ever.
    """
    held_out = (digits / "test.jsonl").read_text().splitlines(keepends=True)[:8]
    (digits / "few.jsonl").write_text("".join(held_out))
    flags = ["--model", digits / "base", "--data", digits / "train.jsonl"]
    flags += ["--out", tmp_path / "run-FAULT", "--save-every", "1"]
    flags += ["--eval", digits / "few.jsonl", "--eval-every", "1"]
    flags += "--steps 3 --prompts 4 --updates 2 --max-prompt 300 --max-tokens 8".split()
    found = faulty([f"raise {phase}" for phase in PHASES], tmp_path, *flags)
    for phase in PHASES:
        ended = found[f"raise {phase}"]
        assert ended["code"] == 1 and ended["left"] == 0, (phase, ended)
        assert ended["seconds"] < 30, (phase, ended["seconds"])
        assert f"RuntimeError: rank 1 raises in {phase}" in ended["said"]
        assert "Traceback" in ended["said"]


def test_a_full_disk_at_each_write_loses_no_checkpoint(digits, straight, tmp_path):
    """Wherever it is full, the run ends with an error, and what was whole stays so: with space
    again it goes on, and ends where one that never met a full disk does.
    """
    run = tmp_path / "run"
    shutil.copytree(straight, run, symlinks=True)
    shutil.rmtree(run / "step-000004")
    flags = ["--model", digits / "base", "--data", digits / "train.jsonl", "--out", run, *FLAGS]
    places = ["config", "metrics", "curves", "state", "model"]
    found = faulty([f"full {place}" for place in places], tmp_path, *flags, "--resume")
    for place in places:
        ended = found[f"full {place}"]
        assert ended["code"] == 1 and ended["left"] == 0, (place, ended)
        assert "File too large" in ended["said"], (place, ended["said"][-2000:])
    assert [path.name for path in run.glob("step-*")] == ["step-000002"]

    code, said = finish(digits, run, "--resume")
    assert code == 0, said[-3000:]
    assert largest_difference(run, straight) == 0.0 and len(steps_of(run)) == 4


def test_numbers_that_are_not_finite(digits, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(digits / "base", model)
    weights = load_file(model / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    code, said = finish(digits, tmp_path / "run", model=model)
    assert code != 0 and "step 0: 2 updates skipped, no finite gradient" in said
    assert (
        "three steps in a row had a gradient that is not finite; the questions of step 2: train-"
        in said
    )
    assert [row["skipped"] for row in steps_of(tmp_path / "run")] == [2, 2, 2]


def rows_with_own_pictures(digits, folder):
    """Sixteen questions over copies of their pictures."""
    rows = [json.loads(line) for line in (digits / "train.jsonl").read_text().splitlines()[:16]]
    for row in rows:
        for path in row["images"]:
            shutil.copy(digits / path, folder / Path(path).name)
        row["images"] = [Path(path).name for path in row["images"]]
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def test_a_picture_that_breaks_in_the_middle_saves_before_the_end(digits, tmp_path):
    """What was fine at the start and is torn later: the sample is named, and nothing that was
    learnt is lost."""
    rows = rows_with_own_pictures(digits, tmp_path)
    run = tmp_path / "run"
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(
            command(digits, run, data=tmp_path / "own.jsonl"),
            cwd=ROOT,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    wait_for_steps(run, process, 1)
    for name in {name for row in rows for name in row["images"]}:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:60])
    assert process.wait(timeout=120) != 0
    assert (tmp_path / "said").read_text().count("train.py: own.jsonl:") == 1  # by rank 0 alone
    assert max(p.name for p in run.glob("step-*")) == f"step-{len(steps_of(run)):06d}"


def test_other_rows_under_resume(digits, tmp_path):
    rows_with_own_pictures(digits, tmp_path)
    data, run = tmp_path / "own.jsonl", tmp_path / "run"
    run.mkdir()
    flags = ["--model", "m", "--data", data, "--out", run, "--prompts", "8", "--resume"]
    args = parse_args([str(flag) for flag in flags])
    (run / "step-000002").mkdir()
    (run / "config.json").write_text(json.dumps(vars(args) | {"data_sha256": digest(data)}))
    check(args, load(data), 1)
    data.write_text(data.read_text().replace("True or false?", "True, or false?"))
    with pytest.raises(DataError, match="own.jsonl: --resume with other rows"):
        check(args, load(data), 1)


def test_a_torn_image_is_found_at_the_start(digits, tmp_path):
    """Its header is fine, so that only reading it all shows it."""
    rows = [json.loads(line) for line in (digits / "train.jsonl").read_text().splitlines()[:16]]
    for row in rows:
        row["images"] = [str(digits / path) for path in row["images"]]
    content = open(rows[9]["images"][0], "rb").read()
    (tmp_path / "torn.png").write_bytes(content[: len(content) // 2])
    rows[9]["images"][0] = str(tmp_path / "torn.png")
    (tmp_path / "torn.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, said = finish(digits, tmp_path / "run", data=tmp_path / "torn.jsonl")
    assert (
        code != 0
        and f"train.py: torn.jsonl:10: images: {tmp_path}/torn.png is not a readable image" in said
    )


def test_a_skipped_update_leaves_the_weights(digits, tmp_path):
    """One bad number in a mini-batch: the optimizer never sees it."""
    out = tmp_path / "update.pt"
    worker = [sys.executable, "tests/workers/update.py", digits, out, "--nan"]
    completed(worker).check_returncode()
    found = torch.load(out)
    assert json.loads(out.with_suffix(".json").read_text())["skipped"] == 1
    assert all(torch.isfinite(w).all() for w in found["after"].values())
    # The other update was made.
    assert any(not torch.equal(w, found["before"][name]) for name, w in found["after"].items())
