"""What the tests share: the repository root on sys.path, an untrained tiny model with its
questions, and torchrun."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A folder with the embedded task's questions, images and its base before any warm-up."""
    out = tmp_path_factory.mktemp("digits")
    subprocess.run(
        [sys.executable, "data/digits.py", "--out", out, "--no-warmup"], cwd=ROOT, check=True
    )
    return out


@pytest.fixture(scope="session")
def torchrun():
    """torchrun(ranks, script, *arguments) -> CompletedProcess, its output captured; fails the
    test unless told not to."""

    def launch(ranks, script, *arguments, check=True, timeout=600):
        if 0 < torch.cuda.device_count() < ranks:
            pytest.skip(f"{ranks} ranks need as many GPUs")
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            str(ranks),
            script,
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, *map(str, arguments)],
            cwd=ROOT,
            env=environment,
            text=True,
            capture_output=True,
            timeout=timeout,
        )
        if check and done.returncode:
            pytest.fail(
                f"{script} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
            )
        return done

    return launch
