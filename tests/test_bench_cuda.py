"""bench/cuda.py in its smallest size: the command, what its checks notice, and its FLOPs against
what torch counts."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from bench import cuda
from perl import grpo

# Sides of 12 patches: a window of 8 and one of 4.
SMALL = {
    "images": 3,
    "pixels": 170,
    "rollouts": 6,
    "response": 12,
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def test_command(tmp_path):
    out = tmp_path / "cuda.json"
    shape = [x for name, value in SMALL.items() for x in (f"--{name}", str(value))]
    command = [
        sys.executable,
        "bench/cuda.py",
        "--size",
        "tiny",
        *shape,
        "--steps",
        "2",
        "--out",
        str(out),
    ]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    checks = report["correctness"]
    assert (
        checks["float32_passed"]
        and checks["bfloat16_passed"]
        and "float32 within 0.001: pass" in done.stdout
    )
    assert checks["images exchanged"]["logp_max"] > 10 * cuda.LIMIT  # the check can see
    assert 0 < checks["rounding"]["logp_mean"] < checks["images exchanged"]["logp_mean"]
    assert (
        report["device"]
        and report["versions"]["torch"] == torch.__version__
        and report["peak_flops"] > 0
    )
    prompt = 64 + 3 * (36 + 2)  # text, and pads with a token on each side
    for way in report["update"].values():
        assert way["logical_tokens"] == 6 * prompt + 2 * (12 + 10 + 8)
        assert way["executed_tokens"] == 2 * prompt + 2 * (12 + 10 + 8)
        parts = [way[part] for part in ("preparation", "vision", "language_model", "head_and_loss")]
        assert min(parts) > 0 and sum(parts) == pytest.approx(way["seconds"], rel=1e-6)
        assert way["mfu"] == pytest.approx(
            sum(way["flops"].values()) / way["seconds"] / report["peak_flops"]
        )
        assert way["peak_bytes"] > 4 * way["parameters"]  # bfloat16 weights and gradients
    assert done.stdout.count("\n| on |") == done.stdout.count("\n| off |") == 1


def test_checks_notice_the_alignment_of_the_other_kind(monkeypatch):
    """Query i on key i, instead of the last query on the last key: what a kernel would do whose
    causal mask starts top left."""

    def top_left(module, q, k, v, attention_mask, layout, scaling=None, **_):
        spans = zip(
            q.split(layout.query_lengths, 2),
            k[:, :, layout.keys].split(layout.key_lengths, 2),
            v[:, :, layout.keys].split(layout.key_lengths, 2),
        )
        outputs = [
            torch.nn.functional.scaled_dot_product_attention(
                *span, is_causal=True, scale=scaling, enable_gqa=True
            )
            for span in spans
        ]
        return torch.cat(outputs, dim=2).transpose(1, 2), None

    monkeypatch.setattr(grpo, "shared_prefix_attention", top_left)
    checks = cuda.correctness("tiny", SMALL, DEVICE)
    assert not checks["float32_passed"] and not checks["bfloat16_passed"]


def test_flops_are_what_torch_counts():
    config = cuda.architecture("tiny")
    rows, model = cuda.make_rows(config, **SMALL), cuda.build(config, torch.float32, "cpu")
    ours, policy = cuda.flops(model, rows), grpo.Policy(model)
    # It knows no attention on a CPU, and counts the head's second forward.
    with FlopCounterMode(display=False) as counter:
        cuda.loss_of(policy(rows)[0], rows).backward()
    assert (
        counter.get_total_flops() == ours["language_model"] + ours["vision"] + ours["head"] * 8 // 6
    )

    attention = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: (
            sdpa_flop_count(q, k, v)
        )
    }
    pixels, grids = (
        torch.cat([getattr(i, x) for i in rows[0].images]) for x in ("pixel_values", "grid_thw")
    )
    with torch.no_grad(), FlopCounterMode(display=False) as matrices:
        model.model.visual(pixels, grids.view(-1, 3))
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=attention) as everything:
        model.model.visual(pixels, grids.view(-1, 3))
    # Forward alone.
    assert (
        everything.get_total_flops() - matrices.get_total_flops() == ours["vision_attention"] // 3
    )

    where = grpo.layout(rows)
    lengths = zip(where.query_lengths, where.key_lengths)
    pairs = sum(S - T + i + 1 for T, S in lengths for i in range(T))
    # Two products, forward and twice backward; width 128, 2 layers.
    assert ours["attention"] == 3 * 4 * pairs * 128 * 2


@pytest.mark.parametrize("size, parameters", [("7b", 8_292_166_656), ("3b", 3_754_622_976)])
def test_architectures_are_those_of_qwen(size, parameters):
    model = cuda.build(cuda.architecture(size), torch.bfloat16, "meta")
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("checkpointing, calls", [(True, 2), (False, 1)])
def test_checkpointing_computes_layers_twice(checkpointing, calls, monkeypatch):
    seen, original = [], grpo.shared_prefix_attention
    monkeypatch.setattr(
        grpo, "shared_prefix_attention", lambda *a, **k: seen.append(1) or original(*a, **k)
    )
    cuda.measure("tiny", SMALL, 1, checkpointing, 1e12, DEVICE)
    assert len(seen) == 2 * 2 * calls  # updates, the first to warm up, and layers


@pytest.mark.parametrize("full, code", [("measure", 0), ("correctness", 1)])
def test_out_of_memory_is_written_down(full, code, tmp_path, monkeypatch, capsys):
    def raises(*args):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(cuda, full, raises)
    out = tmp_path / "cuda.json"
    argv = "--size tiny --images 1 --pixels 56 --rollouts 2 --response 3 --steps 1 --out".split()
    assert cuda.main([*argv, str(out)]) == code
    report = json.loads(out.read_text())
    wanted = (
        {"on": "out of memory", "off": "out of memory"} if full == "measure" else "out of memory"
    )
    assert (
        report["update" if full == "measure" else full] == wanted
        and "| out of memory |" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--rollouts", "5"], "even"),
        (["--steps", "0"], "positive"),
        (["--out", "nowhere/at/all.json"], "no such directory"),
    ],
)
def test_refuses_before_it_computes(argv, said, capsys, monkeypatch):
    monkeypatch.setattr(cuda, "peak_flops", lambda device: pytest.fail("computed"))
    with pytest.raises(SystemExit):
        cuda.main(["--size", "tiny", *argv])
    assert said in capsys.readouterr().err
