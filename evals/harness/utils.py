"""Rows of data/benchmarks.py as tasks of lmms-eval: given-order figures by another harness.

    PERL_ROWS=BENCH/blink.jsonl python -m lmms_eval --model openai \\
        --model_args model=RUN/model,base_url=http://127.0.0.1:8000/v1 \\
        --tasks perl_given,perl_permuted --include_path evals/harness

in an environment of its own (lmms-eval pins other versions), with math-verify and pillow there.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from evals.scores import score
from perl.permute import permute, sample_of
from perl.rollout import chat, open_image

ROWS = os.environ.get("PERL_ROWS", "")


def sample(doc: dict):
    """The row with paths that can be opened. `datasets` fills fields that a row lacks with None."""
    row = {name: value for name, value in doc.items() if value is not None}
    return sample_of(row, folder=str(Path(ROWS).parent))


def turned_around(docs):
    """The permutable rows with their movable images in reverse order."""

    def reverse(doc):
        x = sample(doc)
        moving = list(range(x.stem, len(x.images)))[::-1]
        y = permute(x, [*range(x.stem), *moving])
        images = [os.path.relpath(path, Path(ROWS).parent) for path in y.images]
        return doc | {"images": images, "question": y.question, "answer": y.answer}

    return docs.filter(lambda doc: doc["permute"]).map(reverse)


def pictures(doc: dict) -> list:
    return [open_image(path) for path in sample(doc).images]


def question(doc: dict, lmms_eval_specific_kwargs=None) -> str:
    """The prompt as text, for models that take no messages."""
    [turn] = chat(sample(doc).question)
    words = [part.get("text", "<image>") for part in turn["content"]]
    return "".join(words)


def messages(doc: dict, lmms_eval_specific_kwargs=None) -> list[dict]:
    """The prompt of training, with each picture in its place."""
    [turn] = chat(sample(doc).question)
    images, content = iter(pictures(doc)), []
    for part in turn["content"]:
        is_image = part["type"] == "image"
        content.append({"type": "image", "url": next(images)} if is_image else part)
    return [{"role": "user", "content": content}]


def graded(doc: dict, results: list[str]) -> dict[str, float]:
    return {"accuracy": score(results[0], sample(doc))}
