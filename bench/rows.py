"""Rows a second, and memory, of the data tools: N rows like NLVR2's over a pool of 64 pictures,
written in the hub's layout, then through data/mantis.py and data/mark.py.

    python bench/rows.py [--rows 100000]

Prints seconds, rows a second and the peak of own memory of each, at N rows and at N / 4:
memory that is flat is the same at both.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from datasets import Dataset, Features, List, Value
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SENTENCES = ROOT / "tests" / "fixtures" / "nlvr2_200.jsonl"
TEXT = Value("string")
FEATURES = {
    "id": TEXT,
    "images": List({"bytes": Value("binary"), "path": TEXT}),
    "conversation": List({"role": TEXT, "content": TEXT}),
    "source": TEXT,
}


def write_source(folder: Path, count: int) -> None:
    """Mantis-Instruct's nlvr2 config with `count` rows."""
    (folder / "nlvr2").mkdir(parents=True)
    with zipfile.ZipFile(folder / "nlvr2" / "train_images.zip", "w") as archive:
        for k in range(64):
            buffer = io.BytesIO()
            Image.new("RGB", (64, 64), (4 * k, 255 - 3 * k, 90)).save(buffer, "PNG")
            archive.writestr(f"p{k}.png", buffer.getvalue())
    sentences = [json.loads(line)["sentence"] for line in SENTENCES.read_text().splitlines()]

    def rows():
        for k in range(count):
            question = (
                "<image> <image> Here is a statement describing these 2 images: "
                f"{sentences[k % len(sentences)]} Is it true or false? \n"
                "Options:\n(A) True\n(B) False"
            )
            said = [("user", question), ("assistant", "AB"[k % 2])]
            pictures = (f"p{k % 64}.png", f"p{(7 * k + 1) % 64}.png")
            yield {
                "id": str(k),
                "images": [{"bytes": None, "path": name} for name in pictures],
                "conversation": [{"role": role, "content": text} for role, text in said],
                "source": "nlvr2",
            }

    made = Dataset.from_generator(rows, features=Features(FEATURES), cache_dir=str(folder / "tmp"))
    made.to_parquet(str(folder / "nlvr2" / "train-00000-of-00001.parquet"))
    card = "---\nconfigs:\n- config_name: nlvr2\n  data_files:\n  - split: train\n    path: nlvr2/train-*\n---\n"
    (folder / "README.md").write_text(card)


def measure(words: list, count: int) -> None:
    """Run a command; print what it took. Memory is the process's own (RssAnon): pages of the
    mapped parquet file are the system's to drop.
    """
    start = time.perf_counter()
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
    )
    peak = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status")
        for line in status.read_text().splitlines() if status.exists() else ():
            if line.startswith("RssAnon"):
                peak = max(peak, int(line.split()[1]) // 1024)
        time.sleep(0.1)
    seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"{words[0]} ended with {process.returncode}")
    print(
        f"{words[0]:15} {count:8d} rows {seconds:7.1f} s {count / seconds:7.0f} rows/s "
        f"peak {peak:5d} MB",
        flush=True,
    )


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--rows", type=int, default=100_000)
    args = p.parse_args()
    for count in (args.rows // 4, args.rows):
        with tempfile.TemporaryDirectory() as folder:
            source, out = Path(folder) / "source", Path(folder) / "out"
            write_source(source, count)
            measure(["data/mantis.py", "nlvr2", "--source", source, "--out", out], count)
            marked = out / "marked.jsonl"
            measure(["data/mark.py", out / "nlvr2.jsonl", "--out", marked], count)


if __name__ == "__main__":
    main()
