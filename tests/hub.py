"""Data sets in the layout of the Hugging Face hub, made of a few coloured squares: parquet files,
zips, and a README.md whose `configs:` makes `load_dataset(FOLDER, ..)` the call of the hub id."""

import io
import json
import zipfile
from pathlib import Path

from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Picture

TEXT = Value("string")


def square(colour, format: str = "PNG", side: int = 28) -> bytes:
    """A coloured square as a file of `format`."""
    buffer = io.BytesIO()
    Picture.new("RGB", (side, side), colour).save(buffer, format)
    return buffer.getvalue()


RED, GREEN, BLUE, GREY = (square(c) for c in ("red", "green", "blue", "grey"))
COLOURS = [RED, GREEN, BLUE, GREY] + [square((40 * k, 255 - 20 * k, 90)) for k in range(6)]


def image(data: bytes) -> dict:
    """A picture as a column with `Image()` has it."""
    return {"bytes": data, "path": None}


def put(folder: Path, config: str, split: str, file: str, features: dict, rows: list[dict]) -> None:
    """One parquet file of a data set, and its line in the README.md."""
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=Features(features)).to_parquet(str(path))
    card = folder / "README.md"
    text = card.read_text() if card.exists() else "---\nconfigs:\n---\n"
    entry = (
        f"configs:\n- config_name: {config}\n  data_files:\n  - split: {split}\n    path: {file}\n"
    )
    card.write_text(text.replace("configs:\n", entry, 1))


# --- TIGER-Lab/Mantis-Instruct ---

MANTIS = {
    "id": TEXT,
    "images": List({"bytes": Value("binary"), "path": TEXT}),
    "conversation": List({"role": TEXT, "content": TEXT}),
    "source": TEXT,
}


def mantis_row(name: str, pictures: list[str], *texts: str) -> dict:
    """A conversation whose turns are given one after the other."""
    roles = ("user", "assistant") * (len(texts) // 2)
    conversation = [{"role": role, "content": text} for role, text in zip(roles, texts)]
    images = [{"bytes": None, "path": picture} for picture in pictures]
    return {"id": name, "images": images, "conversation": conversation, "source": "fixture"}


TRUE_FALSE = "Is it true or false? \nOptions:\n(A) True\n(B) False"
STATEMENT = "Here is a statement describing these 2 images: "
MORE_LIKE = "which image of the other two is more similar to the reference image?"
GIVEN_DETAIL = (
    "Given a detailed description, retrieve the target image among 10 minimally contrastive images"
)
TEN = "<image>" * 10


def mantis_rows() -> dict[str, list[dict]]:
    """Config -> rows, with the traps of real data. Pictures are p0.png .. p9.png."""
    two, three = ["p0.png", "p1.png"], ["p0.png", "p1.png", "p2.png"]
    ten = [f"p{k}.png" for k in range(10)]
    nlvr2 = [
        mantis_row(
            "t1",
            two,
            "Answer the following multiple-choice question:\nGiven these 2 images, <image> and "
            "<image>. Here is a statement describing them: The left image shows a red square. "
            "Is it true or false?\nOptions:\n(A) True\n(B) False",
            "A",
        ),
        mantis_row("t2", two, f"<image> <image> {STATEMENT}There are two dogs. {TRUE_FALSE}", "B"),
        mantis_row(
            "t3",
            two,
            "Here is a statement describing 2 images: The image on the right is darker. "
            "Is it true or false? <image> <image> \nOptions:\n(A) False\n(B) True",
            "B",
        ),
        mantis_row(
            "doubt", two, f"<image> <image> {STATEMENT}The left dog sits. {TRUE_FALSE}", "A"
        ),
        mantis_row("turns", two, "<image> <image> One?", "A", "Two?", "B"),
        mantis_row(
            "lost", ["p0.png", "gone.png"], f"<image> <image> {STATEMENT}A. {TRUE_FALSE}", "A"
        ),
        mantis_row("hole", two, f"<image> {STATEMENT}Both are red. {TRUE_FALSE}", "A"),
        mantis_row(
            "equal", ["p0.png", "p0.png"], f"<image> <image> {STATEMENT}A. {TRUE_FALSE}", "A"
        ),
        mantis_row(
            "bmp", ["p0.png", "p3.bmp"], f"<image> <image> {STATEMENT}Red. {TRUE_FALSE}", "A"
        ),
        mantis_row("chinese", two, "<image> <image> 左边的图是红色的。对吗？", "A"),
    ]
    dreamsim = [
        mantis_row(
            "mc",
            three,
            f"Here are there images: <image> <image> <image>. If image 2 is the reference image, "
            f"{MORE_LIKE}\nOptions:\n(A) Image 3\n(B) Image 1",
            "A",
        ),
        mantis_row(
            "end",
            three,
            f"If image 3 is the reference image, {MORE_LIKE}\nOptions:\n(A) Image 1\n(B) Image 2\n"
            "<image> <image> <image>",
            "B",
        ),
        mantis_row(
            "stem",
            three,
            "If <image> is the reference image, which image of the other two images <image> <image> "
            "is more similar to the reference image? (Assume reference image is image 1 and the "
            "other two are image 2 and image 3)\nOptions:\n(A) Image 2\n(B) Image 3",
            "A",
        ),
        mantis_row(
            "short",
            three,
            f"<image> <image> <image> If image 1 is the reference image, {MORE_LIKE}",
            "Image 3",
        ),
        mantis_row(
            "sentence",
            three,
            f"<image> <image> <image> If image 1 is the reference image, {MORE_LIKE}",
            "Image 2 is more similar to the reference image.",
        ),
        mantis_row(
            "long",
            three,
            f"<image> <image> <image> If image 1 is the reference image, {MORE_LIKE}",
            "The image that is more similar to the reference image is image 3.",
        ),
        mantis_row(
            "none",
            three,
            f"<image> <image> <image> If image 1 is the reference image, {MORE_LIKE}",
            "Neither",
        ),
        mantis_row("other", three, "<image> <image> <image> Which one?", "Image 1"),
    ]
    iconqa = [
        mantis_row(
            "choose", three, "<image>Which one is next?\nA. <image>\nB. <image>", "Answer: B"
        ),
        mantis_row(
            "after", three, "How do they go on?<image>\nA. <image>\nB. <image>", "Answer: A"
        ),
        mantis_row("text", ["p0.png"], "<image>How many dots?\nA. 3\nB. 4", "Answer: A"),
        mantis_row("fill", ["p0.png"], "<image>How many dots?", "Answer: 7"),
        mantis_row("letter", three, "<image>Which one?\nA. <image>\nB. <image>", "Answer: C"),
        mantis_row("layout", three, "<image>Which one?\n(A) <image>\n(B) <image>", "Answer: A"),
        mantis_row(
            "named", three, "<image>Is the second image next?\nA. <image>\nB. <image>", "Answer: A"
        ),
        mantis_row("hole", three, "Which one?\nA. <image>\nB. <image>", "Answer: A"),
    ]
    letters = "\n".join(f"{letter}. <image>" for letter in "ABCDEFGHIJ")
    imagecode = [
        mantis_row(
            "before",
            ten,
            f"{TEN}\n{GIVEN_DETAIL}\nDescription:\nThe man looks up.",
            "Answer: Image 7",
        ),
        mantis_row(
            "after",
            ten,
            f"Given this detailed description:\nA hand.\nWhich image provided best matches the description?\n{TEN}",
            "Answer: Image 10",
        ),
        mantis_row(
            "letters",
            ten,
            f"{GIVEN_DETAIL}\nDescription:\nA dog and then a cat.\n{letters}",
            "Answer: G",
        ),
        mantis_row(
            "frame",
            ten,
            f"{TEN}\n{GIVEN_DETAIL}\nDescription:\nAs in the next image.",
            "Answer: Image 2",
        ),
        mantis_row(
            "eleven", ten, f"{TEN}\n{GIVEN_DETAIL}\nDescription:\nA dog.", "Answer: Image 11"
        ),
        mantis_row("words", ten, f"{TEN}\n{GIVEN_DETAIL}\nDescription:\nA dog.", "the dog"),
        mantis_row(
            "nine", ten[:9], f"{TEN}\n{GIVEN_DETAIL}\nDescription:\nA dog.", "Answer: Image 2"
        ),
        mantis_row(
            "first",
            ten,
            f"{TEN}\n{GIVEN_DETAIL}\nDescription:\nDarker than image 1.",
            "Answer: Image 3",
        ),
    ]
    which = "Which image is the caption describing?\n"
    lead = "Here are 3 images: <image> <image> <image>"
    contrastive = [
        mantis_row(
            "turns",
            three,
            f"{lead}\n{which}A dog.",
            "The third image",
            f"{which}A cat.",
            "Image 1",
            "What do you see in the the first image",
            "A cat.",
        ),
        mantis_row("opening", three, f"{lead}\n{which}A dog.", "The opening image"),
        mantis_row("sequence", three, f"{which}A dog. {lead}", "The third image in sequence"),
        mantis_row("last", three, f"{lead}\n{which}A dog.", "The last image"),
        mantis_row(
            "relative", three, f"{lead}\n{which}A dog.", "The image directly after the first"
        ),
        mantis_row("lucky", three, f"{lead}\n{which}A dog.", "The image of lucky number seven"),
        mantis_row("see", three, f"{lead}\nWhat do you see in the the second image", "A dog."),
        mantis_row("named", three, f"{lead}\n{which}As in the second image.", "Image 3"),
    ]
    multi_vqa = [
        mantis_row("which", two, "<image><image>Which image shows a dog?", "Image 2"),
        mantis_row("count", two, "<image><image>How many images show a dog?", "2"),
        mantis_row("story", two, "<image><image>What happens next?", "rain"),
        mantis_row(
            "sentence", two, "<image><image>What is in image 2?", "A dog that sleeps on the mat."
        ),
        mantis_row("turns", two, "<image><image>One?", "A", "Two?", "B"),
        mantis_row("hole", two, "Which image shows a dog?", "Image 2"),
        mantis_row("one", two[:1], "<image>What is it?", "a dog"),
        mantis_row("empty", two, "<image><image>Which image shows a dog?", " "),
    ]
    return {
        "nlvr2": nlvr2,
        "dreamsim": dreamsim,
        "iconqa": iconqa,
        "imagecode": imagecode,
        "contrastive_caption": contrastive,
        "multi_vqa": multi_vqa,
    }  # fmt: skip


def mantis(folder: Path, copies: int = 1) -> Path:
    """The data set in `folder`; nlvr2's pictures lie in two zips. `copies`: so many times the
    rows, for measuring."""
    for config, rows in mantis_rows().items():
        many = [
            row | {"id": f"{row['id']}-{k}" if k else row["id"]}
            for k in range(copies)
            for row in rows
        ]
        put(folder, config, "train", f"{config}/train-00000-of-00001.parquet", MANTIS, many)
        zips = {f"{config}/train_images.zip": range(10)}
        if config == "nlvr2":
            zips = {f"{config}/train_images_{k}.zip": range(5 * k, 5 * k + 5) for k in range(2)}
            listed = "\n".join(Path(name).name for name in zips)
            (folder / config / "train_images_zips.txt").write_text(listed)
        for name, pictures in zips.items():
            with zipfile.ZipFile(folder / name, "w") as archive:
                for k in pictures:
                    archive.writestr(f"p{k}.png", COLOURS[k])
                if 3 in pictures:
                    archive.writestr("p3.bmp", square("yellow", "BMP"))
    return folder


# --- FanqingM/MMK12 ---


def mmk12(folder: Path) -> Path:
    features = {"id": TEXT, "question": TEXT, "answer": TEXT, "subject": TEXT, "image": Image()}
    questions = [
        ("As shown, $AB = 3$. Find $x$.", r"$\frac{1}{2}$", RED),
        ("<image>\nFind the area.", "12", GREEN),
        ("如图，求 $x$。\nA、1\nB、2", "A", BLUE),
        ("A. 1\nB. 2\nC. 3\nD. 4 <image> Which?", "C", square("pink", "JPEG")),
        ("<image> <image> Two?", "1", RED),
        ("", "1", RED),
        ("No answer", " ", RED),
        ("[[1|2]] is a matrix. Its trace?", "3", square("yellow", "BMP")),
    ]
    rows = []
    for k, (question, answer, data) in enumerate(questions):
        row = {"id": str(k), "question": question, "answer": answer, "subject": "math"}
        rows.append(row | {"image": image(data)})
    put(folder, "default", "train", "data/train-00000-of-00003.parquet", features, rows)
    return folder


# --- Other projects' formats: (row, what becomes of it) ---


def formats(folder: Path) -> dict[str, list[tuple[dict, object]]]:
    """Format -> (row, the question and answer it becomes, or the reason why it is left out).
    Pictures a.png and b.png lie in `folder`."""
    for name, data in {"a.png": RED, "b.png": BLUE}.items():
        (folder / name).write_bytes(data)
    two = ["a.png", "b.png"]
    think = " You FIRST think about the reasoning process as an internal monologue. \\boxed{}."

    def verl(text, truth, pictures=two, **more):
        prompt = [{"role": "user", "content": text}]
        truth = {"style": "rule", "ground_truth": truth}
        return {"prompt": prompt, "images": pictures, "reward_model": truth, **more}

    def user(content):
        return [{"role": "user", "content": content}]

    block = {"type": "image"}
    question = {"type": "text", "text": "Which one is red?"}
    return {
        "verl": [
            (verl(f"<image><image>Which is red?{think}", "Image 1"), ("<image><image>Which is red?", "Image 1")),
            (verl(f"<image>Find x.{think}", "3", ["a.png"], extra_info={"question": "<image>Find x."}), ("<image>Find x.", "3")),
            (verl("<image>Find x.", ["72"], ["a.png"]), ("<image>Find x.", "72")),
            (verl("<image>Find x.", ["1", "2"], ["a.png"]), "not one accepted answer"),
            (verl("Find x.", "3"), "not one <image> for each image"),
            (verl("<image1><image2>x?", "3"), "another dialect of placeholders"),
            ({"prompt": user("<image>a") + user("b"), "images": ["a.png"], "reward_model": {"ground_truth": "1"}}, "several turns"),
            (verl("<image>图中有几只狗？", "3", ["a.png"]), ("<image>图中有几只狗？", "3")),
        ],
        "easyr1": [
            ({"images": ["a.png"], "problem": "<image>Find x.", "answer": "3"}, ("<image>Find x.", "3")),
            ({"images": [image(RED), image(BLUE)], "problem": "<image><image>Which?", "answer": "B"}, ("<image><image>Which?", "B")),
            ({"images": two, "problem": "<image>Find x.", "answer": "3"}, "not one <image> for each image"),
            ({"images": [], "problem": "1 + 1?", "answer": "2"}, "no image"),
            ({"images": ["gone.png"], "problem": "<image>x", "answer": "2"}, "a picture file is missing"),
            ({"images": ["a.png"], "problem": "<image>x", "answer": "Because the left one is much darker."}, "the answer is a sentence of more than 5 words"),
            ({"images": ["a.png"], "answer": "2"}, "no field 'problem'"),
            ({"images": ["a.png"], "problem": "<image>左图是什么？", "answer": "狗"}, ("<image>左图是什么？", "狗")),
        ],
        "trl": [
            ({"prompt": user([block, block, question]), "images": two, "solution": "<answer> Image 1 </answer>"}, ("<image><image>Which one is red?", "Image 1")),
            ({"prompt": user([block, question | {"text": "And"}, block]), "images": two, "answer": "A"}, ("<image>And<image>", "A")),
            ({"prompt": user("What is it?"), "image": "a.png", "solution": r"\boxed{7}"}, ("<image> What is it?", "7")),
            ({"prompt": "Which one?", "images": two, "solution": "B"}, ("<image> <image> Which one?", "B")),
            ({"prompt": user("<image>What is it?"), "images": ["a.png"], "solution": "7"}, "<image> in a text, which TRL does not read: use content blocks"),
            ({"prompt": user([block, question]), "images": two, "solution": "7"}, "not one <image> for each image"),
            ({"prompt": user([{"type": "video"}]), "images": two, "solution": "7"}, "a content block of type 'video'"),
            ({"prompt": user("What is it?"), "images": [], "solution": "7"}, "no image"),
        ],
        "swift": [
            ({"messages": user("<image><image>Which?"), "images": two, "solution": "<answer> 3 </answer>"}, ("<image><image>Which?", "3")),
            ({"messages": user("Which?") + [{"role": "assistant", "content": "A"}], "images": two}, ("<image> <image> Which?", "A")),
            ({"query": "<image>x?", "response": "4", "images": ["a.png"]}, ("<image>x?", "4")),
            ({"messages": [{"role": "system", "content": "s"}] + user("<image>x?"), "images": ["a.png"], "solution": "4"}, ("<image>x?", "4")),
            ({"messages": user("<image>x?"), "images": ["a.png"]}, "no answer"),
            ({"messages": user("<image><image>x?"), "images": ["a.png"], "solution": "4"}, "not one <image> for each image"),
            ({"messages": user("<image>") + user("b"), "images": ["a.png"], "solution": "4"}, "several turns"),
            ({"messages": user("<video>x?"), "images": ["a.png"], "solution": "4"}, "video or audio"),
        ],
        "llava": [
            ({"id": "i", "images": two, "conversations": [{"from": "human", "value": "<image>\n<image>Which?"}, {"from": "gpt", "value": "Answer: B"}]}, ("<image>\n<image>Which?", "B")),
            ({"image": "a.png", "conversations": [{"from": "human", "value": "<image>\nColour?"}, {"from": "gpt", "value": "red"}]}, ("<image>\nColour?", "red")),
            ({"images": two, "conversation": [{"role": "user", "content": "<image><image>Same?"}, {"role": "assistant", "content": "No"}]}, ("<image><image>Same?", "No")),
            ({"images": two, "conversations": [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": "B"}]}, "not one <image> for each image"),
            ({"images": two, "conversations": [{"from": "human", "value": "<image><image>a"}, {"from": "gpt", "value": "B"}, {"from": "human", "value": "b"}, {"from": "gpt", "value": "B"}]}, "several turns"),
            ({"images": ["a.png"], "conversations": [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A dog sleeps on a mat near the door."}]}, "the answer is a sentence of more than 5 words"),
            ({"images": ["a.png"], "conversations": [{"from": "human", "value": "<image>What?"}]}, "no answer"),
            ({"images": ["a.png"]}, "no field 'conversation'"),
        ],
    }  # fmt: skip


def write_format(folder: Path, format: str, rows: list[dict]) -> Path:
    """The rows in the file that the format uses; parquet, one file a row, since real files differ
    in their columns' types as these rows do. Returns what to pass to convert.py."""
    import pyarrow
    import pyarrow.parquet

    if format in ("verl", "easyr1"):
        for k, row in enumerate(rows):
            pyarrow.parquet.write_table(
                pyarrow.Table.from_pylist([row]), folder / f"{format}-{k}.parquet"
            )
        return folder
    if format == "llava":
        (folder / "llava.json").write_text(json.dumps(rows))
        return folder / "llava.json"
    file = folder / f"{format}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
