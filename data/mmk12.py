"""The paper's single-image source: K12 mathematics and science, FanqingM/MMK12.

The paper trains on 36K such questions, which are not public; these are the 15,616 of MMK12's
train split (apache-2.0). A question has one image, so none is ever permuted; where the text has
no placeholder, the image stands before it.

    python data/mmk12.py --out DATA [--split train]

writes DATA/mmk12.jsonl and DATA/images/. --source is the hub id, or a folder with its layout:
data/train-*.parquet, README.md.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.hub import Skip, Writer, bytes_of, progress, table
from data.mark import Reason, separated
from perl.permute import DataError

SOURCE = "FanqingM/MMK12"
REVISION = "372a609268ea79b5e78d90ab173e02c37b486163"
COLUMNS = ("id", "question", "answer", "image")


def row_of(row: dict, writer: Writer) -> dict:
    """One row as ours. Raises Skip."""
    question, answer = (row["question"] or "").strip(), (row["answer"] or "").strip()
    if not question or not answer:
        raise Skip("no question or no answer")
    if question.count("<image>") > 1:
        raise Skip("not one <image> for each image")
    if "<image>" not in question:
        question = f"<image> {question}"
    return {
        "id": f"mmk12/{row['id']}",
        "images": [writer.pictures.put(bytes_of(row["image"]))],
        "question": separated(question),
        "answer": separated(answer),
        "permute": False,
        "why": str(Reason.ONE_IMAGE),
        "task": row.get("subject") or "mmk12",
    }


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--source", default=SOURCE, help="hub id, or a folder with the same layout")
    p.add_argument("--split", default="train", help="test has 2,000 questions with four options")
    p.add_argument("--out", required=True, metavar="DIR")
    p.add_argument("--limit", type=int, help="read at most that many rows")
    args = p.parse_args(argv)
    try:
        pin = REVISION if args.source == SOURCE else None
        rows = table(args.source, None, args.split, COLUMNS, pin)
        writer = Writer(Path(args.out), "mmk12")
    except (DataError, OSError) as error:
        sys.exit(f"mmk12.py: {error}")
    if args.limit:
        rows = rows.select(range(min(args.limit, len(rows))))
    for row in progress(rows, "mmk12"):
        try:
            writer.write(row_of(row, writer))
        except Skip as why:
            writer.skip(why)
    writer.close()


if __name__ == "__main__":
    main()
