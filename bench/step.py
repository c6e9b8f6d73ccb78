"""One update of PeRL against a padded batch and against TRL: same model, same prompts, same
completions, same run.

    make bench            # or: .venv/bin/python bench/step.py; 20 minutes on two quiet cores

A random Qwen2.5-VL of 33M parameters and one question with four images, in both orders, 6
rollouts each. Three ways to compute the same update (forward, backward, clipping of the gradient,
AdamW; float32; KL to given reference log-probabilities):

    ours     perl.grpo: two rows [ prompt | o_1 .. o_6 ], each picture encoded once
    padded   the same loss and head over 12 padded sequences, every picture encoded 12 times
    trl      GRPOTrainer: its compute_loss, accelerator.backward, its optimizer (bench/README.md)

Each way lives in a process of its own, so that its peak memory is its own; the parent lets them
step in turn, so that whatever else the machine does meets all of them alike. Prints the tables
and writes them to bench/step.json."""

import argparse
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# In place of bench/, where cuda.py would hide NVIDIA's package of that name from torch.
sys.path[0] = str(ROOT)

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    TrainerCallback,
)

from data.digits import make_processor  # noqa: E402
from perl.grpo import LogprobHead, Policy, Row, grpo_loss, rollout_mean  # noqa: E402
from perl.permute import load, permute  # noqa: E402
from perl.rollout import INSTRUCTION, encode, load_processor  # noqa: E402

WAYS = ("ours", "padded", "trl")
# prompt / longest response, about: the height and width of a picture in tokens of 28 x 28 pixels,
# the longest response
SHAPES = {"280/48": (7, 8, 48), "700/128": (12, 13, 128), "1200/256": (16, 18, 256)}
IMAGES, N, BETA, LR = 4, 6, 0.01, 1e-6
# The flop counter knows attention on CUDA only. It counts every pair of tokens, those behind a
# mask too.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: (
        sdpa_flop_count(q, k, v)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
        sdpa_backward_flop_count(g, q, k, v)
    ),
}


# --- The subject: a model, a processor, a question ---


def build(out: Path, height: int, width: int) -> None:
    """Writes OUT/model (random weights, the processor of the digits task) and OUT/data.jsonl with
    its four pictures."""
    processor = make_processor()
    area = height * width * 28 * 28
    processor.image_processor.size = {"shortest_edge": area, "longest_edge": area}
    token = processor.tokenizer.convert_tokens_to_ids
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=4096,
            hidden_size=512,
            intermediate_size=1536,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=2,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [8, 12, 12],
            },
            bos_token_id=None,
            eos_token_id=token("<|im_end|>"),
            pad_token_id=token("<|endoftext|>"),
        ),
        vision_config=dict(
            depth=6,
            hidden_size=256,
            intermediate_size=768,
            num_heads=4,
            out_hidden_size=512,
            patch_size=14,
            spatial_merge_size=2,
            temporal_patch_size=2,
            window_size=112,
            fullatt_block_indexes=[3, 5],
        ),
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=config.text_config.eos_token_id, pad_token_id=config.text_config.pad_token_id
    )
    model.save_pretrained(out / "model")
    processor.save_pretrained(out / "model")
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        noise = rng.integers(0, 256, (height * 28, width * 28, 3), dtype=np.uint8)
        Image.fromarray(noise).save(out / f"{i}.png")
    row = {
        "id": "bench",
        "images": [f"{i}.png" for i in range(IMAGES)],
        "answer": "[[1|A]]",
        "permute": True,
        "question": "\n".join(f"{letter}. <image>" for letter in "ABCD")
        + "\nWhich image shows a 7?",
    }
    (out / "data.jsonl").write_text(json.dumps(row) + "\n")


def load_model(out):
    return AutoModelForImageTextToText.from_pretrained(
        out / "model", dtype="float32", attn_implementation="sdpa"
    ).train()


def orders(out):
    """The question with its images in the given order and in another."""
    sample = load(str(out / "data.jsonl"))[0]
    return [sample, permute(sample, (1, 2, 3, 0))]


def make_rows(out, n, longest):
    """Both orders as rows with n rollouts each: random tokens, lengths evenly from 2/3 of
    `longest` up to it."""
    prompts = encode(load_processor(str(out / "model"), 10**9)[0], orders(out))
    g = torch.Generator().manual_seed(0)
    lengths = [longest - round(i * longest / 3 / max(1, n - 1)) for i in range(n)]
    return [
        Row(p.ids, p.images, tuple(torch.randint(300, 4096, (T,), generator=g) for T in lengths))
        for p in prompts
    ]


# --- The three ways: each a function of (rows, rollouts a pass) that does one update, returns (loss, gradient norm) ---


def scores(rows):
    """The given numbers of an update: lengths (K,), log pi_ref of every token (N,), one advantage
    a rollout (K,)."""
    g = torch.Generator().manual_seed(1)
    lengths = torch.tensor([len(o) for row in rows for o in row.responses])
    return (
        lengths,
        torch.randn(int(lengths.sum()), generator=g) * 0.1 - 8.3,
        torch.randn(len(lengths), generator=g),
    )


def make_step(model, optimizer, logps):
    """Our update, given `logps`(rows) -> (N,)."""

    def step(rows, micro):
        lengths, ref_logp, A = scores(rows)
        weight, tokens = rollout_mean(lengths, len(lengths)), A.repeat_interleave(lengths)
        total, start = 0.0, 0
        for part in passes(rows, micro):
            logp = logps(part)
            s = slice(start, start := start + len(logp))
            same = logp.detach()
            loss, _ = grpo_loss(logp, same, ref_logp[s], same, tokens[s], weight[s], beta=BETA)
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total, norm.item()

    return step


def passes(rows, micro):
    """`rows`, cut so that each list holds at most `micro` rollouts; 0: all in one."""
    if not micro:
        return [rows]
    cut = [
        replace(row, responses=row.responses[k : k + micro])
        for row in rows
        for k in range(0, len(row.responses), micro)
    ]
    return [[row] for row in cut]


def ours(out, longest):
    model = load_model(out)
    policy = Policy(model)
    return make_step(model, adamw(model), lambda rows: policy(rows)[0])


def padded(out, longest):
    model = load_model(out)
    model.lm_head.__class__ = LogprobHead
    return make_step(model, adamw(model), lambda rows: padded_logps(model, rows))


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True)


def trl(out, longest):
    trainer = trl_trainer(out, 12, longest)
    model, optimizer = trainer.model, trainer.create_optimizer()

    def step(rows, micro):
        lengths, ref_logp, A = scores(rows)
        parts = passes(rows, micro)
        trainer.current_gradient_accumulation_steps = 1  # shares are weighted here
        total, first, start = 0.0, 0, 0
        for part in parts:
            prompts, responses, mask = padded_batch(
                part, trainer.processing_class.tokenizer.pad_token_id
            )
            pixels, grids = all_images(part)
            K, N = len(responses), int(mask.sum())
            ref = torch.zeros(mask.shape).masked_scatter(mask, ref_logp[start : start + N])
            images = torch.cat([prompts, responses], dim=1) == model.config.image_token_id
            loss = trainer.compute_loss(
                model,
                {
                    "prompt_ids": prompts,
                    "prompt_mask": torch.ones_like(prompts),
                    "completion_ids": responses,
                    "completion_mask": mask.long(),
                    "advantages": A[first : first + K],
                    "ref_per_token_logps": ref,
                    "pixel_values": pixels,
                    "image_grid_thw": grids,
                    "num_images": [IMAGES] * K,
                    "mm_token_type_ids": images.long(),
                },
            ) * (K / len(lengths))
            trainer.accelerator.backward(loss)
            total, first, start = total + loss.item(), first + K, start + N
        norm = trainer.accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total, norm.item()

    return step


def padded_batch(rows, pad):
    """prompts (K, P), responses (K, T) padded on the right, and where they are real (K, T); all
    prompts are equally long."""
    responses = [o for row in rows for o in row.responses]
    prompts = torch.stack([row.prompt_ids for row in rows for _ in row.responses])
    ids = torch.nn.utils.rnn.pad_sequence(responses, batch_first=True, padding_value=pad)
    return (
        prompts,
        ids,
        torch.arange(ids.shape[1]) < torch.tensor([len(o) for o in responses])[:, None],
    )


def all_images(rows):
    """pixel_values and image_grid_thw with the images of every rollout, one after another."""
    images = [image for row in rows for _ in row.responses for image in row.images]
    return torch.cat([i.pixel_values for i in images]), torch.stack([i.grid_thw for i in images])


def padded_logps(model, rows):
    """What `perl.grpo.Policy` computes, the usual way: one padded sequence a rollout."""
    prompts, responses, mask = padded_batch(rows, model.config.text_config.pad_token_id)
    ids, P = torch.cat([prompts, responses], dim=1), prompts.shape[1]  # (K, P + T)
    pixels, grids = all_images(rows)
    hidden = model.model(
        input_ids=ids,
        attention_mask=torch.cat([torch.ones_like(prompts), mask.long()], dim=1),
        pixel_values=pixels,
        image_grid_thw=grids,
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
        use_cache=False,
    ).last_hidden_state[:, P - 1 : -1]  # (K, T, D)
    banned = torch.tensor([model.config.image_token_id, model.config.video_token_id])
    return model.lm_head(hidden[mask], responses[mask], banned, 1.0)[0]


def trl_trainer(out, batch, longest, **settings):
    """GRPOTrainer on the question in both orders: float32, no gradient checkpointing, `batch`
    rollouts a pass."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def prompt(x):
        return [{"role": "user", "content": f"{x.question.replace('<image>', '')}\n{INSTRUCTION}"}]

    rows = [
        {"prompt": prompt(x), "images": [Image.open(path) for path in x.images]}
        for x in orders(out)
    ]
    config = GRPOConfig(
        output_dir=str(out / "trl"),
        per_device_train_batch_size=batch,
        num_generations=N,
        beta=BETA,
        loss_type="grpo",
        max_completion_length=longest,
        learning_rate=LR,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        shuffle_dataset=False,
        **settings,
    )
    return GRPOTrainer(
        load_model(out),
        args=config,
        train_dataset=Dataset.from_list(rows),
        reward_funcs=lambda completions, **_: [i % 2 for i in range(len(completions))],
        processing_class=AutoProcessor.from_pretrained(out / "model"),
    )


# --- Processes: one for each way, all stepping in turn ---


def serve(way, out, longest):
    """The life of a worker: each line {"n", "micro", "count"} is an update to make, answered with
    its cost and result."""
    step, rows, before = globals()[way](out, longest), {}, rss()
    for line in sys.stdin:
        ask = json.loads(line)
        if ask["n"] not in rows:
            rows[ask["n"]] = make_rows(out, ask["n"], longest)
        counter = (
            FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
            if ask["count"]
            else nullcontext()
        )
        start, busy = time.perf_counter(), time.process_time()
        with counter:
            loss, norm = step(rows[ask["n"]], ask["micro"])
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        peak = peak_rss()
        flops = counter.get_total_flops() if ask["count"] else None
        result = {
            "seconds": seconds,
            "cpu": busy,
            "peak": peak - before,
            "loss": loss,
            "norm": norm,
            "flops": flops,
        }
        print("RESULT", json.dumps(result), flush=True)


def rss():
    """Bytes of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_rss():
    """Bytes of memory that this process held at most.
    (ru_maxrss begins with what the parent held.)"""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


class Worker:
    """A process that computes updates in one of the three ways."""

    def __init__(self, way, out, longest, threads):
        command = [
            sys.executable,
            __file__,
            "--worker",
            way,
            "--dir",
            str(out),
            "--longest",
            str(longest),
            "--threads",
            str(threads),
        ]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def step(self, n=N, micro=0, count=False):
        print(
            json.dumps({"n": n, "micro": micro, "count": count}),
            file=self.process.stdin,
            flush=True,
        )
        for line in self.process.stdout:
            if line.startswith("RESULT "):
                return json.loads(line.removeprefix("RESULT "))
        raise RuntimeError(f"a worker ended with {self.process.wait()}: its words are above")

    def close(self):
        self.process.stdin.close()
        self.process.wait()


# --- The tables ---


def reach(rows):
    """What a padded batch computes of LM tokens and of image patches, as a multiple of ours: the
    bound by distinct tokens."""
    images = {image.key: image for row in rows for image in row.images}
    patches = lambda images: sum(len(i.pixel_values) for i in images)  # noqa: E731
    own = sum(len(row.prompt_ids) + sum(map(len, row.responses)) for row in rows)
    flat = sum(len(row.prompt_ids) + len(o) for row in rows for o in row.responses)
    return {
        "prompt": len(rows[0].prompt_ids),
        "tokens": own,
        "tokens_bound": flat / own,
        "patches_bound": sum(patches(row.images) * len(row.responses) for row in rows)
        / patches(images.values()),
    }


def peak_gemm(threads):
    """FLOP/s of a float32 matrix product of 2048 x 2048, the median of 9: what this machine can
    do at best."""
    torch.set_num_threads(threads)
    a, b, seconds = torch.randn(2048, 2048), torch.randn(2048, 2048), []
    for _ in range(10):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * 2048**3 / statistics.median(seconds[1:])


def compare(shape, repeats, threads):
    """All three ways at one shape, in turn, `repeats` times. The other two get one rollout a
    pass, which is faster on a CPU and needs the least memory; at the first shape that is tried
    against all rollouts in one pass, and the faster is kept."""
    height, width, longest = SHAPES[shape]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        build(out, height, width)
        result = {"shape": shape} | reach(make_rows(out, N, longest))
        workers = {way: Worker(way, out, longest, threads) for way in WAYS}
        # Rollouts a pass; 0: all. Ours keeps those of a row together.
        small = {
            "ours": 0,
            "padded": 1,
            "trl": 1,
        }
        # Also the warm-up.
        counted = {way: workers[way].step(micro=small[way], count=True) for way in WAYS}
        tried = {way: {small[way]: workers[way].step(micro=small[way])} for way in WAYS}
        peak = {way: tried[way][small[way]]["peak"] for way in WAYS}
        if shape == "280/48":
            tried |= {
                way: tried[way] | {0: workers[way].step(micro=0)} for way in ("padded", "trl")
            }
        best = {
            way: min(tried[way], key=lambda micro: tried[way][micro]["seconds"]) for way in WAYS
        }
        rounds, gemm = {way: [] for way in WAYS}, []
        for _ in range(repeats):
            gemm.append(peak_gemm(threads))
            for way in WAYS:
                rounds[way].append(workers[way].step(micro=best[way]))
        for worker in workers.values():
            worker.close()
    result["gemm_flops"] = statistics.median(gemm)
    for way in WAYS:
        result[way] = {
            "seconds": statistics.median(r["seconds"] for r in rounds[way]),
            "all": [r["seconds"] for r in rounds[way]],
            "cpu_seconds": statistics.median(r["cpu"] for r in rounds[way]),
            "micro": best[way] or 2 * N,
            "tried_seconds": {micro or 2 * N: r["seconds"] for micro, r in tried[way].items()},
            "peak_bytes": tried[way][best[way]]["peak"] if best[way] == 0 else peak[way],
        } | {key: counted[way][key] for key in ("flops", "loss", "norm")}
    return result


def growth(ns, threads):
    """Seconds of an update against n at the first shape."""
    height, width, longest = SHAPES["280/48"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        build(out, height, width)
        workers = {way: Worker(way, out, longest, threads) for way in ("ours", "trl")}
        table = []
        for worker in workers.values():
            worker.step(n=1)
        for n in ns:
            row = {"n": n}
            for way, worker in workers.items():
                micro = 0 if way == "ours" else 1
                row[way] = statistics.median(
                    worker.step(n=n, micro=micro)["seconds"] for _ in range(3 if n < 8 else 2)
                )
            table.append(row)
        for worker in workers.values():
            worker.close()
    return table


def head_memory():
    """Peak memory of the head over its inputs and outputs,
    at V = 152,064: bytes for 1,024 and 4,096 positions."""
    script = """
import sys, torch
from bench.step import peak_rss, rss
from perl.grpo import LogprobHead
head = LogprobHead(16, 152_064, bias=False)
hidden, targets, before = torch.randn(int(sys.argv[1]), 16, requires_grad=True), torch.arange(int(sys.argv[1])), rss()
head(hidden, targets, torch.tensor([5]), 1.0)[0].sum().backward()
print(peak_rss() - before)
"""
    command = [sys.executable, "-c", script]
    return {
        n: int(subprocess.check_output([*command, str(n)], cwd=ROOT, text=True))
        for n in (1024, 4096)
    }


def whole_step(threads, rounds):
    """Sample, reference, update at the first shape: perl/train.py with vLLM, and trl's train()
    with its own generation. The two run in turn, `rounds` times four steps each; medians of all
    but the first step of each run."""
    height, width, longest = SHAPES["280/48"]
    ours, trl = [], []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        build(out, height, width)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        for k in range(rounds):
            run = out / f"run{k}"
            command = [
                "perl/train.py",
                "--model",
                out / "model",
                "--data",
                out / "data.jsonl",
                "--out",
                run,
                "--steps",
                4,
                "--prompts",
                1,
                "--updates",
                1,
                "--n",
                N,
                "--max-tokens",
                longest,
                "--show",
                0,
                "--beta",
                BETA,
            ]
            subprocess.run(
                [sys.executable, *map(str, command)],
                cwd=ROOT,
                env=environment,
                check=True,
                stdout=subprocess.DEVNULL,
            )
            ours += [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][
                1:
            ]
            command = [
                sys.executable,
                __file__,
                "--worker",
                "trl_step",
                "--dir",
                str(out),
                "--longest",
                str(longest),
                "--threads",
                str(threads),
            ]
            done = subprocess.run(command, text=True, stdout=subprocess.PIPE, check=True).stdout
            said = next(line for line in done.splitlines() if line.startswith("RESULT "))
            trl += json.loads(said.removeprefix("RESULT "))["all"][1:]
    phases = [{k: v for k, v in step.items() if k.startswith("seconds_")} for step in ours]
    return {
        "ours": statistics.median(sum(p.values()) for p in phases),
        "trl": statistics.median(trl),
        "ours_all": [sum(p.values()) for p in phases],
        "trl_all": trl,
        "ours_phases": {name: statistics.median(p[name] for p in phases) for name in phases[0]},
        "response_length": statistics.mean(step["response_length"] for step in ours),
    }


def trl_step(out, longest):
    """Four steps of trl's own train(), one rollout a pass; prints the seconds of each."""
    times = []

    class Clock(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            times.append(-time.perf_counter())

        def on_step_end(self, args, state, control, **_):
            times[-1] += time.perf_counter()

    trainer = trl_trainer(out, 1, longest, gradient_accumulation_steps=2 * N, max_steps=4)
    trainer.add_callback(Clock())
    trainer.train()
    print("RESULT", json.dumps({"all": times}), flush=True)


# Passes of the model in each phase, a backward being two: what its multiply-adds are counted by.
PASSES = {"sampling": 1, "reference": 1, "update": 3}


def whole_step_table(report):
    """Each phase of our step beside the seconds that its multiply-adds take at the peak of the
    machine; TRL's step beside those of all its phases."""
    whole, first = report["whole_step"], report["shapes"][0]
    forward = {way: first[way]["flops"] / PASSES["update"] for way in ("ours", "trl")}
    seconds_of = lambda way, passes: passes * forward[way] / first["gemm_flops"]  # noqa: E731
    lines = ["| phase | seconds | bound, s |", "| --- | --- | --- |"]
    for phase, passes in PASSES.items():
        seconds = whole["ours_phases"][f"seconds_{phase}"]
        lines.append(f"| {phase} | {seconds:.2f} | {seconds_of('ours', passes):.2f} |")
    lines.append(f"| sync | {whole['ours_phases']['seconds_sync']:.2f} | |")
    passes = sum(PASSES.values())
    lines.append(f"| **ours** | **{whole['ours']:.2f}** | {seconds_of('ours', passes):.2f} |")
    lines.append(f"| **TRL** | **{whole['trl']:.2f}** | {seconds_of('trl', passes):.2f} |")
    return [*lines, "", f"Whole step: {whole['trl'] / whole['ours']:.2f} times"]


def show(report):
    lines = [
        "| prompt/response | way | rollouts a pass | seconds | CPU seconds | peak memory | GFLOP | of peak GEMM | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in report["shapes"]:
        for way in WAYS:
            w = r[way]
            share = w["flops"] / w["seconds"] / r["gemm_flops"]
            lines.append(
                f"| {r['prompt']}/{SHAPES[r['shape']][2]} | {way} | {w['micro']} | {w['seconds']:.2f} | "
                f"{w['cpu_seconds']:.2f} | "
                f"{w['peak_bytes'] / 1e9:.2f} GB | {w['flops'] / 1e9:.0f} | {share:.0%} | "
                f"{w['seconds'] / r['ours']['seconds']:.2f} |"
            )
    lines += [
        "",
        "| prompt/response | tokens | image patches | multiply-adds | measured padded | measured trl |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for r in report["shapes"]:
        lines.append(
            f"| {r['prompt']}/{SHAPES[r['shape']][2]} | {r['tokens_bound']:.2f} | {r['patches_bound']:.1f} | "
            f"{r['trl']['flops'] / r['ours']['flops']:.2f} | {r['padded']['seconds'] / r['ours']['seconds']:.2f} | "
            f"{r['trl']['seconds'] / r['ours']['seconds']:.2f} |"
        )
    lines += ["", "| n | ours, s | trl, s | ratio |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {g['n']} | {g['ours']:.2f} | {g['trl']:.2f} | {g['trl'] / g['ours']:.2f} |"
        for g in report["growth"]
    ]
    for n, peak in report["head_bytes"].items():
        logits = int(n) * 152_064 * 4
        lines += [
            "",
            f"Head at V = 152,064, {int(n):,} positions: {peak / 1e9:.2f} GB (all logits: {logits / 1e9:.1f} GB)",
        ]
    if report["whole_step"]:
        lines += ["", *whole_step_table(report)]
    return "\n".join(lines)


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--threads",
        type=int,
        default=os.cpu_count(),
        help="of every process; all cores of the machine",
    )
    p.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    p.add_argument(
        "--ns", nargs="*", type=int, default=[1, 2, 4, 8, 16], help="n of the table of growth"
    )
    p.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="at the first shape, and of whole steps; 2 and 1 at the other shapes",
    )
    p.add_argument("--out", default=ROOT / "bench" / "step.json", type=Path)
    p.add_argument("--worker", help=argparse.SUPPRESS)
    p.add_argument("--dir", type=Path, help=argparse.SUPPRESS)
    p.add_argument("--longest", type=int, help=argparse.SUPPRESS)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    if args.worker:
        return (
            trl_step(args.dir, args.longest)
            if args.worker == "trl_step"
            else serve(args.worker, args.dir, args.longest)
        )
    start, repeats = time.perf_counter(), dict(zip(SHAPES, (args.repeats, min(2, args.repeats), 1)))
    report = {
        "date": date.today().isoformat(),
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "cores": os.cpu_count(),
        "threads": args.threads,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "numpy")},
        "shapes": [],
        "whole_step": None,
        "head_bytes": {},
        "growth": [],
    }

    def keep(**part):  # what was measured is on disk before the next part starts
        report.update(part, minutes=(time.perf_counter() - start) / 60)
        args.out.write_text(json.dumps(report, indent=1) + "\n")

    for shape in args.shapes:
        keep(shapes=[*report["shapes"], compare(shape, repeats[shape], args.threads)])
        print(show(report), flush=True)
    keep(whole_step=whole_step(args.threads, args.repeats))
    keep(head_bytes=head_memory())
    keep(growth=growth(args.ns, args.threads))
    print(show(report))


if __name__ == "__main__":
    main()
