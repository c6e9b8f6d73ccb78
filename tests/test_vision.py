"""The vision tower as a GPU wants it: the patch embedding as a matrix product and one attention
call a layer, equal to what the model does by itself; and the parts of bench/gpu.py."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from torch import nn

from bench import cuda, expect
from perl import grpo
from perl.grpo import PatchEmbed, Policy


def test_patch_embedding_is_the_convolution():
    torch.manual_seed(0)
    conv = nn.Conv3d(3, 64, (2, 14, 14), (2, 14, 14), bias=True)
    ours = nn.Conv3d(3, 64, (2, 14, 14), (2, 14, 14), bias=True)
    ours.load_state_dict(conv.state_dict())
    ours.__class__ = PatchEmbed
    x = torch.randn(30, 3, 2, 14, 14)
    y = x.clone().requires_grad_()
    x.requires_grad_()
    weight = torch.randn(30, 64)
    a, b = conv(x).flatten(1), ours(y)
    assert (a - b).abs().max() < 1e-5
    (a * weight).sum().backward()
    (b * weight).sum().backward()
    assert (x.grad - y.grad).abs().max() < 1e-5
    for p, q in zip(conv.parameters(), ours.parameters()):
        assert (p.grad - q.grad).norm() < 1e-5 * p.grad.norm()
    assert list(ours.state_dict()) == ["weight", "bias"]  # checkpoints and vLLM know these names


@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_call_a_layer_is_a_call_a_window(checkpointing, monkeypatch):
    """Blocks with windows and blocks without, several images: features and gradients."""
    model = cuda.build(cuda.architecture("tiny"), torch.float32, "cpu")
    visual = model.model.visual
    grids = torch.tensor([[1, 12, 12], [1, 8, 20]])
    x = torch.randn(12 * 12 + 8 * 20, 3 * 2 * 14 * 14)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    calls, attention = [], grpo.window_attention
    monkeypatch.setattr(
        grpo, "window_attention", lambda *a, **k: calls.append(1) or attention(*a, **k)
    )

    def learn(implementation):
        visual.config._attn_implementation = implementation
        visual.zero_grad()
        features = visual(x, grids).pooler_output
        features.square().mean().backward()
        return features.detach(), {n: p.grad.clone() for n, p in visual.named_parameters()}

    own = learn("sdpa")
    Policy(model)  # registers ours
    ours = learn("windows_flash")
    forwards = 2 if checkpointing else 1
    assert len(calls) == forwards * cuda.TINY_VISION["depth"]
    assert (ours[0] - own[0]).abs().max() < 1e-5
    for name, gradient in own[1].items():
        assert (ours[1][name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-9, name


@pytest.mark.long
def test_vision_under_fsdp(torchrun, tmp_path):
    """Two ranks, sharded as on CUDA: float32 to 1e-5; in bfloat16 within twice what rounding makes
    of the model's own, as in bench/cuda.py: two ways of rounding are no closer to each other.
    """
    torchrun(2, "tests/workers/vision.py", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["float32"]["logp"] < 1e-5 and found["float32"]["gradient"] < 1e-5, found
    for figure in ("logp", "gradient"):
        assert found["mixed"][figure] <= cuda.NOISES * found["noise"][figure], found
    assert 0 < found["noise"]["gradient"] < 0.2, found


@pytest.mark.long
def test_every_part_of_make_gpu_in_its_smallest_size(tmp_path):
    words = [sys.executable, "bench/gpu.py", "--size", "tiny", "--out", str(tmp_path / "gpu.json")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900)
    report = json.loads((tmp_path / "gpu.json").read_text())
    said = {name: found.get("failed") for name, found in report["parts"].items()}
    assert done.returncode == 0, (said, done.stdout[-2000:], done.stderr[-2000:])
    names = "environment kernel patches vision sleep sync train update"
    assert list(report["parts"]) == names.split() and not any(said.values())
    assert all(f"| {name} | yes |" in done.stdout for name in report["parts"])


def test_a_part_that_fails_leaves_the_others(tmp_path, monkeypatch):
    """A part that crashes is reported with its last words, and the next one runs."""
    broken = tmp_path / "modules" / "tensorboard"  # which training needs, and no other part
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise RuntimeError('broken on purpose')")
    monkeypatch.setenv("PYTHONPATH", str(broken.parent))
    out = tmp_path / "gpu.json"
    words = [sys.executable, "bench/gpu.py", "--size", "tiny", "--out", str(out)]
    words += ["--only", "train", "environment"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    parts = json.loads(out.read_text())["parts"]
    assert done.returncode == 1 and parts["environment"]["passed"]
    assert not parts["train"]["passed"] and "broken on purpose" in parts["train"]["failed"]
    assert "| train | NO |" in done.stdout and "| environment | yes |" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_one_sentence():
    words = [sys.executable, "bench/gpu.py"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "no GPU" in done.stderr


def test_the_bound_at_7b_is_as_the_page_says():
    found = expect.table("7b")
    assert found in (ROOT / "bench" / "README.md").read_text()
    ratios = [float(line.split("|")[6]) for line in found.splitlines()[2:]]
    assert all(1 < ratio < 12 for ratio in ratios)  # never more than the rollouts of a question
    assert ratios[0] < ratios[2] < ratios[4] and ratios[1] < ratios[0]
