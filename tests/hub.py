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
            ({"images": ["a.png"]}, "no field 'conversations'"),
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


# --- The eight benchmarks ---

FOUR = {f"image_{k}": Image() for k in range(1, 5)}
CHOOSE = "Select from the following choices.\n"


def blink_rows() -> list[tuple[str, int, str, str]]:
    """(sub-task, images, prompt, answer): the templates of BLINK."""
    second_or_third = f"{CHOOSE}(A) the second image\n(B) the third image"
    points = f"{CHOOSE}(A) Point A\n(B) Point B\n(C) Point C\n(D) Point D"
    of_points = 'choices of "A, B, C, D" are drawn beside each circle.'
    return [
        ("Art_Style", 3, "Given the following images of art paintings, use the first image as the reference image, and determine which one of the second or the third image shares the same style as the reference image?\n" + second_or_third, "(A)"),
        ("Jigsaw", 3, "Given the first image with the lower right corner missing, can you tell which one of the second image or the third image is the missing part? Imagine which image would be more appropriate to place in the missing spot.\n" + second_or_third, "(B)"),
        ("Visual_Similarity", 3, "Given three similar but different images, take the first image as reference. Can you tell which one of the latter two images is most similar to the first one?\n" + second_or_third, "(B)"),
        ("Forensic_Detection", 4, f"You are a judge in a photography competition, and now you are given the four images. Please examine the details and tell which one of them is most likely to be a real photograph.\n{CHOOSE}(A) the first image\n(B) the second image\n(C) the third image\n(D) the fourth image", "(D)"),
        ("Semantic_Correspondence", 2, f"Given the following two images, a reference point is annotated on the first image, labeled with REF. You are given multiple red-circled points on the second image, {of_points} Select between the choices on the second image and find the corresponding point for the reference point.\n{points}", "(C)"),
        ("Visual_Correspondence", 2, f"A point is circled on the first image, labeled with REF. We change the camera position or lighting and shoot the second image. You are given multiple red-circled points on the second image, {of_points} Which point on the second image corresponds to the point in the first image?\n{points}", "(A)"),
        ("Functional_Correspondence", 2, f"Given the following two images, a reference point is annotated on the first image, labeled with REF. You are given multiple red-circled points on the second image, {of_points} Which point corresponds to it?\n{points}", "(B)"),
        ("Multi-view_Reasoning", 2, f"The images are frames from a video. The video is shooting a static scene. The first image is from the beginning of the video and the second image is from the end. Is the camera moving left or right?\n{CHOOSE}(A) left\n(B) right", "(A)"),
        ("Counting", 1, f"How many blue floats are there?\n{CHOOSE}(A) 0\n(B) 3", "(B)"),
        ("IQ_Test", 1, f"Which picture follows?\n{CHOOSE}(A) picture A\n(B) picture B", "hidden"),
    ]  # fmt: skip


def blink(folder: Path) -> None:
    columns = {"idx": TEXT, "sub_task": TEXT, "question": TEXT, "prompt": TEXT, "answer": TEXT}
    for task, n, prompt, answer in blink_rows():
        row = {"idx": f"val_{task}_1", "sub_task": task, "question": "", "prompt": prompt}
        pictures = {f"image_{k}": image(COLOURS[k]) if k <= n else None for k in range(1, 5)}
        file = f"{task}/val-00000-of-00001.parquet"
        put(folder, task, "val", file, columns | FOUR, [row | {"answer": answer} | pictures])


def mantis_eval(folder: Path) -> None:
    columns = {
        name: TEXT
        for name in ("id", "question_type", "question", "answer", "data_source", "category")
    }
    columns |= {"images": List(Image()), "options": List(TEXT)}
    choice, short = "multi-choice", "short-answer"
    first = ["(A) The first image", "(B) The second image"]
    rows = [
        (choice, "<image> <image> Which image shows a red square?", 2, first, "A"),
        (choice, "Which image is darker?", 2, ["A. The first image", "B. The second image"], "(B)"),
        (choice, "<image> <image> Are they the same?", 2, ["Yes", "No"], "B"),
        (short, "How many squares are there in all images together?", 3, [], "3"),
        (short, "<image> <image> What is the colour of both?", 2, [], "Dark Red"),
        (choice, "<image> What happens next in these images?", 3, ["rain", "sun"], "A"),
        (choice, "<image> <image> 哪张图是红色的？", 2, ["第一张图", "第二张图"], "A"),
        (choice, "Hidden?", 2, ["rain", "sun"], "?"),
    ]  # fmt: skip
    made = []
    for k, (kind, question, n, options, answer) in enumerate(rows):
        row = {"id": f"mantis_eval_{k}", "question_type": kind, "question": question}
        row |= {"images": [image(COLOURS[(k + j) % 10]) for j in range(n)], "options": options}
        made.append(row | {"answer": answer, "data_source": "x", "category": ""})
    put(folder, "mantis_eval", "test", "mantis_eval/test-00000-of-00001.parquet", columns, made)


def mmiu(folder: Path) -> None:
    """Two groups of pictures in zips without a top folder, five as unpacked folders."""
    columns = {
        name: TEXT
        for name in (
            "task",
            "visual_input_component",
            "source",
            "options",
            "question",
            "context",
            "output",
        )
    }
    columns |= {"input_image_path": List(TEXT)}
    ordinals = "A: the first image\nB: the second image\nC: the third image\nD: the fourth image"
    rows = [
        ("forensic_detection_blink", "Low-level-semantic", "Which image is most likely to be a real photograph?", ordinals, 4, "D"),
        ("person_reid", "High-level-obj-semantic", "Which image shows the same person as image 1?", "A: image 2\nB: image 3\nC: image 4", 4, "B"),
        ("temporal_ordering", "Continuous-temporal", "What is the right order?", "A: 1, 2\nB: 2, 1", 2, "A"),
        ("visually_grounded_reasoning_nlvr2", "High-level-obj-semantic", "The left image shows a dog. True or false?", "A: True\nB: False", 2, "A"),
        ("threeD_Pose_Estimation", "3D-spatial", "How did the camera move?", "A: left\nB: right", 2, "B"),
        ("gui_next_action_prediction", "Discrete-temporal", "What comes next?", "A: click\nB: scroll", 3, "A"),
        ("Icon_Question_Answering_with_Spatial_Context", "2D-spatial", "How many icons are there?", "A: 2\nB: 3", 2, "A"),
        ("emotion_recognition_expw", "High-level-sub-semantic", "How many of the images show a happy face?", "A: 1\nB: 2", 2, "B"),
        ("unknown_task", "Low-level-semantic", "Is it?", "A: yes\nB: no", 2, "?"),
    ]  # fmt: skip
    made, zipped = [], ("Low-level-semantic", "2D-spatial")
    for k, (task, group, question, options, n, output) in enumerate(rows):
        paths = []
        for j in range(n):
            suffix, data = (
                ("bmp", square("yellow", "BMP")) if j == 3 else ("png", COLOURS[k % 7 + j])
            )
            paths.append(f"./{group}/{task}/{k}_{j}.{suffix}")
            file = folder / group / task / f"{k}_{j}.{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        row = {"task": task, "visual_input_component": "", "source": "", "options": options}
        row |= {"question": question, "context": f"{question}\n{options}", "output": output}
        made.append(row | {"input_image_path": paths})
    for group in zipped:
        files = [file for file in (folder / group).rglob("*") if file.is_file()]
        with zipfile.ZipFile(folder / f"{group}.zip", "w") as archive:
            for file in files:
                archive.write(file, file.relative_to(folder / group))
                file.unlink()
        for empty in sorted((folder / group).rglob("*"), reverse=True):
            empty.rmdir()
        (folder / group).rmdir()
    put(folder, "default", "test", "all.parquet", columns, made)


def mathvista(folder: Path) -> None:
    columns = {
        name: TEXT
        for name in (
            "pid",
            "question",
            "image",
            "unit",
            "answer",
            "question_type",
            "answer_type",
            "query",
        )
    }
    columns |= {"decoded_image": Image(), "choices": List(TEXT), "precision": Value("float64")}
    columns |= {"metadata": {"task": TEXT, "language": TEXT}}
    free, choice = "free_form", "multi_choice"
    rows = [
        ("What colour is it?", ["blue", "red"], None, None, "red", choice, "text"),
        ("How long is its side?", None, "cm", 1.0, "5.6", free, "float"),
        ("How many are there?", None, None, None, "12", free, "integer"),
        ("Which numbers?", None, None, None, "[1, 2]", free, "list"),
        ("图中有几只？", None, None, None, "3", free, "integer"),
        ("Which?", ["blue", "red"], None, None, "green", choice, "text"),
        ("Hidden?", None, None, None, "", free, "integer"),
    ]
    made = []
    for k, (question, choices, unit, precision, answer, kind, of) in enumerate(rows):
        row = {"pid": str(k + 1), "question": question, "image": "x.jpg", "choices": choices}
        row |= {"decoded_image": image(COLOURS[k]), "unit": unit, "precision": precision}
        row |= {"answer": answer, "question_type": kind, "answer_type": of, "query": "Hint: .."}
        made.append(row | {"metadata": {"task": "geometry", "language": "english"}})
    put(folder, "default", "testmini", "data/testmini-0.parquet", columns, made)


def mathverse(folder: Path) -> None:
    columns = {
        name: TEXT
        for name in (
            "sample_index",
            "problem_index",
            "problem_version",
            "question",
            "answer",
            "question_type",
        )
    }
    columns |= {"image": Image()}
    versions = ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only")
    made = []
    for k, version in enumerate(versions):
        question = "" if version == "Vision Only" else "Find x.\nChoices:\nA:50°\nB:100°"
        row = {"sample_index": str(k + 1), "problem_index": "1", "problem_version": version}
        row |= {"question": question, "image": image(COLOURS[k]), "answer": "B"}
        made.append(row | {"question_type": "multi-choice"})
    free = {
        "sample_index": "6",
        "question": "Find the area.",
        "answer": "14",
        "question_type": "free-form",
    }
    made.append(made[0] | free)
    put(folder, "testmini", "testmini", "testmini.parquet", columns, made)


def mathvision(folder: Path) -> None:
    columns = {name: TEXT for name in ("id", "question", "image", "answer", "solution", "subject")}
    columns |= {"decoded_image": Image(), "options": List(TEXT), "level": Value("int64")}
    rows = [
        ("Which number should stand there?\n<image1>", [], "60"),
        ("Which bike is most expensive?\n<image1>", ["A", "B", "C", "D", "E"], "A"),
        ("How long is it?\n<image1>", ["2", "$\\frac{1}{2}$", "3", "4", "5"], "B"),
        ("<image1> and <image2> make?", [], "x^{2}"),
        ("<image1>", ["<image1>", "<image2>", "<image3>"], "C"),
        ("How much?\n<image1>", [], "2.5"),
    ]
    made = []
    for k, (question, options, answer) in enumerate(rows):
        row = {"id": str(k + 1), "question": question, "options": options, "image": "x.jpg"}
        row |= {"decoded_image": image(COLOURS[k]), "answer": answer, "solution": None}
        made.append(row | {"level": 2, "subject": "arithmetic"})
    put(folder, "default", "test", "data/test-00000-of-00001.parquet", columns, made)


def remi(folder: Path) -> None:
    columns = {"question": TEXT, "label": TEXT, "task": TEXT} | {
        f"image_{k}": Image() for k in range(1, 7)
    }
    rows = [
        ("EmojiAlgebra", "Compute the value in the image below <image1> by the equations in <image2> <image3>.", "92", 3),
        ("Clocks", "How many minutes lie between <image1> and <image2>?", "205", 2),
        ("RefCoco", "Which part of <image1> does <image2> show?", "left, top left", 2),
        ("GeomShape", "What is the area of <image1> if its side is that of <image2>?", "12.5", 2),
        ("Charts", "By how many per cent is <image1> above <image2>?", "93 %", 2),
        ("Isomorphism", "Are the graphs <image1> and <image2> isomorphic?", "Yes", 2),
        ("IQ", "Which of <image2> comes before <image1>?", "2", 2),
    ]  # fmt: skip
    made = []
    for task, question, label, n in rows:
        pictures = {f"image_{k}": image(COLOURS[k]) if k <= n else None for k in range(1, 7)}
        made.append({"question": question, "label": label, "task": task} | pictures)
    put(folder, "default", "test", "data/test-00000-of-00002.parquet", columns, made)


def mv_math(folder: Path) -> None:
    """Real questions (tests/fixtures/mv_math_200.json, PeijieWang/MV-MATH, MIT) with squares for
    pictures: the first ten whose options are images, and others."""
    questions = json.loads(MV_MATH.read_text(encoding="utf-8"))
    by_options = [row for row in questions if "\nD.\n\n<image_4>" in row["question"]][:10]
    others = [row for row in questions if row not in by_options][:14]
    several_steps = [row for row in questions if row["answer_type"] == "multi-step"][:1]
    chosen = by_options + others + several_steps
    (folder / "images").mkdir(parents=True)
    for row in chosen:
        for k, name in enumerate(row["input_image"]):
            (folder / "images" / name).write_bytes(COLOURS[k])
    (folder / "MV-MATH.json").write_text(json.dumps(chosen, ensure_ascii=False))


MV_MATH = Path(__file__).parent / "fixtures" / "mv_math_200.json"
EIGHT = {
    "mantis_eval": mantis_eval,
    "blink": blink,
    "mmiu": mmiu,
    "mathvista": mathvista,
    "mathverse": mathverse,
    "mathvision": mathvision,
    "remi": remi,
    "mv_math": mv_math,
}


def benchmarks(folder: Path) -> Path:
    """All eight, a subfolder each."""
    for name, make in EIGHT.items():
        make(folder / name)
    return folder
