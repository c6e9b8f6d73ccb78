"""What to expect of shared-prefix rows at 7B, counted from the architecture alone.

    python bench/expect.py [--size 7b]

Nothing is computed and nothing downloaded: the model is built without storage, and `flops` of
bench/cuda.py counts the multiply-adds of an update, in our rows and in a padded batch. The five
times of bench/step.py belong to short responses and many images; where responses are long most
work is theirs, and no layout can share it.
"""

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch  # noqa: E402
from transformers import AutoModelForImageTextToText  # noqa: E402

from bench import cuda  # noqa: E402
from perl.grpo import Row  # noqa: E402

TEXT, PATCHES, ORDERS, N = 128, 36, 2, 6  # tokens; patches a side: 504 pixels, 324 tokens an image
IMAGES, RESPONSES = (1, 4, 12), (400, 2048)


def shared_rows(
    images: int, response: int, text: int, sides: tuple[int, int], orders: int, n: int
) -> list[Row]:
    """A question in `orders` orders, n rollouts each, a row an order; all orders show the same
    pictures, of `sides` patches.
    """
    grid = torch.tensor([1, *sides])
    prompt = torch.zeros(text + images * (sides[0] * sides[1] // 4 + 2), dtype=torch.long)
    o = torch.zeros(response, dtype=torch.long)
    pictures = tuple(SimpleNamespace(key=k, grid_thw=grid) for k in range(images))
    return [Row(prompt, pictures, (o,) * n)] * orders


def padded_rows(rows: list[Row]) -> list[Row]:
    """The same as a row a rollout, which has its pictures to itself."""
    alone = []
    for row in rows:
        for o in row.responses:
            pictures = [
                SimpleNamespace(key=object(), grid_thw=image.grid_thw) for image in row.images
            ]
            alone.append(Row(row.prompt_ids, tuple(pictures), (o,)))
    return alone


def tokens(rows: list[Row]) -> int:
    return sum(len(row.prompt_ids) + sum(map(len, row.responses)) for row in rows)


def table(size: str) -> str:
    config = cuda.architecture(size)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    kept = (
        config.text_config.num_hidden_layers * config.text_config.hidden_size * 2
    )  # bytes a token
    lines = [
        "| images | prompt | response | ours, TFLOP | padded, TFLOP | ratio | activations kept, ours |",
        "|---" * 7 + "|",
    ]
    for images in IMAGES:
        for response in RESPONSES:
            ours = shared_rows(images, response, TEXT, (PATCHES, PATCHES), ORDERS, N)
            padded = padded_rows(ours)
            counts = [sum(cuda.flops(model, rows).values()) for rows in (ours, padded)]
            prompt = len(ours[0].prompt_ids)
            lines.append(
                f"| {images} | {prompt:,} | {response:,} | {counts[0] / 1e12:,.0f} "
                f"| {counts[1] / 1e12:,.0f} | {counts[1] / counts[0]:.2f} "
                f"| {tokens(ours) * kept / 1e9:.1f} GB |"
            )
    return "\n".join(lines)


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--size", choices=("3b", "7b"), default="7b")
    print(table(p.parse_args().size))


if __name__ == "__main__":
    main()
