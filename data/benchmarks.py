"""The paper's eight benchmarks as rows of ours, so that they can be asked in any order of images.

    python data/benchmarks.py blink mv_math --out BENCH          # or: all
    python evals/benchmarks.py --model MODEL --data BENCH --out EVAL

writes BENCH/NAME.jsonl and BENCH/images/. --source is a folder with the layout of the hub (with
several names one subfolder each, DIR/NAME); by default each set's own hub id at a pinned revision
where one is known.

Every set has one small function: a row of the hub -> a row of ours, with the set's own index as
its id. Marks, `stem` and `permute` come from the template where a set has one (BLINK, MMIU), else
from data/mark.py. What the score of a row needs travels with it: `score` names its rule
(evals/scores.py), `task` the sub-task. Official prompts put images before the text; so do we
where the text has no placeholder. Rows that cannot be asked or graded by rule are left out and
counted: hidden answers, multi-step questions of MV-MATH.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.hub import Pictures, Skip, Writer, Zips, bytes_of, configs_of, part, progress, table
from data.mark import Reason, Unclear, find_names, hide_formulas, mark, separated
from perl.permute import DataError, names_a_file_twice

HOLE = "<image>"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Asked:
    """A question of a benchmark: what is asked, and what its score needs.

    `permute`: None leaves it to data/mark.py; False is the template's word, with `why`; True too,
    and then `question` bears its marks already.
    """

    id: str
    pictures: list
    question: str
    answer: str
    permute: bool | None = None
    why: str = ""
    info: dict | None = None


# --- Texts ---


def in_front(text: str, n: int) -> str:
    """The text with the placeholders that it lacks before it."""
    return f"{HOLE} " * (n - text.count(HOLE)) + text


def lettered(choices: Sequence[str]) -> str:
    """Options as lines, `(A) ..`; their own letters taken off.

    >>> lettered(["A. red", "(B) blue"])
    '\\n(A) red\\n(B) blue'
    """
    lines = []
    for letter, choice in zip(LETTERS, choices):
        text = re.sub(rf"^\(?{letter}(?:\)|[.:])\s*", "", choice.strip())
        lines.append(f"\n({letter}) {text}")
    return "".join(lines)


def in_order(text: str, n: int) -> str:
    """`<image1>`, `<image_1>`, `<image 1>` as `<image>`, where each stands once and in order.

    >>> in_order("See <image_1> and <image_2>.", 2)
    'See <image> and <image>.'
    """
    numbers = [int(k) for k in re.findall(r"<image[ _]?(\d+)>", text)]
    if numbers != list(range(1, n + 1)):
        raise Skip("placeholders that are not one for each image, in order")
    return re.sub(r"<image[ _]?\d+>", HOLE, text)


ORDINALS = ("first", "second", "third", "fourth")
ORDINAL = re.compile(r"\b(first|second|third|fourth)(?=(?: or the \w+)? (?:images?|one)\b)")


def ordinals_marked(text: str) -> str:
    """Each ordinal before "image" or "one" with its mark, for templates in which ordinals name
    images and nothing else does.

    >>> ordinals_marked("one of the second or the third image")
    'one of the [[2|second]] or the [[3|third]] image'
    """
    return ORDINAL.sub(lambda m: f"[[{ORDINALS.index(m[1]) + 1}|{m[1]}]]", text)


# --- The eight: a row of the hub -> Asked. Raises Skip for a row that cannot be used -------------


def mantis_eval(row: dict, number: int) -> Asked:
    """TIGER-Lab/Mantis-Eval: letters, or short answers that are graded as words."""
    pictures, answer = row["images"], row["answer"].strip()
    question = in_front(row["question"], len(pictures))
    if row["question_type"] == "multi-choice":
        question += lettered(row["options"])
        letter = re.match(r"\(?([A-Z])\b", answer)
        if not letter:
            raise Skip("an answer that is no letter")
        answer = letter[1]
    kind = row["category"] or row["question_type"]
    return Asked(row["id"], pictures, question, answer, info={"task": kind, "score": "words"})


# BLINK: the sub-tasks on several images whose template names them by ordinals, and by nothing
# else. The reference of Art_Style, Jigsaw and Visual_Similarity is named too, so it may move: no
# stem. Multi-view_Reasoning shows the beginning and the end of a video: its order is meaning.
BLINK_NAMED = (
    *("Art_Style", "Forensic_Detection", "Functional_Correspondence", "Jigsaw"),
    *("Semantic_Correspondence", "Visual_Correspondence", "Visual_Similarity"),
)


def blink(row: dict, number: int) -> Asked:
    """BLINK-Benchmark/BLINK: letters; the text holds the options."""
    pictures = [row[f"image_{k}"] for k in range(1, 5) if row[f"image_{k}"] is not None]
    letter = re.fullmatch(r"\(?([A-Z])\)?", row["answer"].strip())
    if not letter:
        raise Skip("a hidden answer")
    question, task = in_front(row["prompt"].strip(), len(pictures)), row["sub_task"]
    info = {"task": task}
    if len(pictures) > 1 and task in BLINK_NAMED:
        question = question.replace("the latter two images", "the second or the third image")
        marked = ordinals_marked(question)
        left = re.search(r"(?<!\|)\b(?:first|second|third|fourth|latter|former)\b", marked)
        if not left:
            return Asked(row["idx"], pictures, marked, letter[1], permute=True, info=info)
    why = "" if len(pictures) < 2 else f"order is meaning, or not known not to be: {task}"
    return Asked(row["idx"], pictures, question, letter[1], permute=False, why=why, info=info)


# MMIU: tasks whose images are a sequence, a scene seen from places in turn, or pieces of one
# picture. The order of their images is meaning.
MMIU_ORDERED = (
    *("action_quality_assessment", "casuality_reasoning_next_qa", "casuality_reasoning_var"),
    *("Egocentric_Video_QuestionAnswering", "general_action_recognition", "gui_app_recognition"),
    *("gui_next_action_prediction", "Homography_estimation", "jigsaw_puzzle_solving"),
    *("meme_vedio_understanding", "mevis", "Multiview_Action_Recognition", "Multiview_reasoning"),
    *("next_img_prediction", "point_tracking", "ravens_progressive_matrices"),
    *("single_object_tracking", "temporal_localization", "temporal_ordering", "textual_cloze"),
    *("threeD_Depth_Estimation", "threeD_Object_Detection", "threeD_Object_Tracking"),
    *("threeD_Pose_Estimation", "threeD_question_answering", "threeD_Scene_Reconstruction"),
    *("video_captioning", "visual_cloze", "visual_coherence", "visual_ordering"),
    "Image_Spatial_Transformation_Estimation",
)
# Tasks whose images are a set; what names them must be found by data/mark.py.
MMIU_SETS = (
    *("emotion_recognition_expw", "emotion_recognition_findingemo", "face_retrieval"),
    *("forensic_detection_blink", "forensic_detection_forgerynet", "handwritten_retrieval"),
    *("image2image_retrieval", "person_reid", "sketch2image_retrieval", "spot_the_similarity"),
    *("text2image_retrieval", "vehicle_retrieval", "visual_quality_assessment_ve_lol_l"),
    *("visually_grounded_reasoning_marvl", "visually_grounded_reasoning_nlvr2"),
)


def mmiu(row: dict, number: int) -> Asked:
    """FanqingM/MMIU-Benchmark: letters; official figures are means over tasks."""
    pictures = row["input_image_path"]
    options = re.sub(r"^([A-Z])[:.] ?", r"(\1) ", row["options"].strip(), flags=re.MULTILINE)
    letter = re.match(r"\(?([A-Z])\b", row["output"].strip())
    if not letter:
        raise Skip("an answer that is no letter")
    question = f"{in_front(row['question'].strip(), len(pictures))}\n{options}"
    permute, why = None, ""
    if row["task"] in MMIU_ORDERED:
        permute, why = False, f"order is meaning: {row['task']}"
    info = {"task": row["task"], "declared": row["task"] in MMIU_SETS}
    return Asked(str(number), pictures, question, letter[1], permute, why, info)


def mathvista(row: dict, number: int) -> Asked:
    """AI4Math/MathVista: one image; the answer is the text of a choice, or a number that is
    compared at the question's precision.
    """
    question, answer = f"{HOLE} {row['question'].strip()}", row["answer"]
    if not answer:
        raise Skip("a hidden answer")
    info = {"task": row["metadata"].get("task") or row["answer_type"], "score": "mathvista"}
    if row["question_type"] == "multi_choice":
        if answer not in row["choices"]:
            raise Skip("an answer that is none of the choices")
        question += lettered(row["choices"])
        answer = LETTERS[row["choices"].index(answer)]
        info["score"] = "letter"
    elif row["unit"]:
        question += f" (Unit: {row['unit']})"
    info |= {"precision": row["precision"], "answer_type": row["answer_type"]}
    return Asked(row["pid"], [row["decoded_image"]], question, answer, False, info=info)


def mathverse(row: dict, number: int) -> Asked:
    """AI4Math/MathVerse, testmini: five versions of each question; the text may be in the image
    alone (Vision Only).
    """
    question = row["question"].strip() or "Answer the question in the image."
    question = re.sub(r"^([A-Z])[:.] ?", r"(\1) ", question, flags=re.MULTILINE)
    if not row["answer"].strip():
        raise Skip("a hidden answer")
    info = {"task": row["problem_version"]}
    question, answer = f"{HOLE} {question}", row["answer"].strip()
    return Asked(row["sample_index"], [row["image"]], question, answer, False, info=info)


def mathvision(row: dict, number: int) -> Asked:
    """MathLLMs/MathVision: one file holds all figures of a question."""
    question = re.sub(r"<image\d+>", "", row["question"]).strip()
    options = row["options"] or []
    if options and options != list(LETTERS[: len(options)]):
        question += lettered(options)
    info = {"task": row["subject"], "level": row["level"], "score": "mathvision"}
    if options:
        info["choices"] = list(options)
    answer, picture = str(row["answer"]).strip(), [row["decoded_image"]]
    return Asked(str(row["id"]), picture, f"{HOLE} {question}", answer, False, info=info)


def named_in_order(text: str) -> int:
    """How many things are listed before "respectively": as many as there are images, and the list
    may be of them.

    >>> named_in_order("with sides 6, 8, 10, and 12, respectively"), named_in_order("a, b, c")
    (4, 0)
    """
    lists = re.findall(r"([^.;:]*?),? respectively", text.replace("$", ""))
    return max((len(re.split(r", and |,| and ", found)) for found in lists), default=0)


def remi(row: dict, number: int) -> Asked:
    """mehrankazemi/ReMI: images inside the text; a rule for each task, official figures are means
    over tasks.
    """
    pictures = [row[f"image_{k}"] for k in range(1, 7) if row[f"image_{k}"] is not None]
    info = {"task": row["task"], "score": "remi"}
    question = in_order(row["question"].strip(), len(pictures))
    return Asked(str(number), pictures, question, str(row["label"]).strip(), info=info)


def mv_math(row: dict, number: int) -> Asked:
    """PeijieWang/MV-MATH: choice and single-step questions; several steps have no rule. Options
    that are images are joined to their letters.
    """
    if row["answer_type"] == "multi-step":
        raise Skip("a question of several steps, which no rule grades")
    question = in_order(row["question"], len(row["input_image"]))
    question = re.sub(
        rf"^[ \t]*\(?([A-H])\)?[.．、:]?[ \t]*\n+[ \t]*{HOLE}", rf"\1. {HOLE}", question, flags=re.M
    )
    question = re.sub(r"\n{2,}(?=[A-H]\. )", "\n", re.sub(r"\s*#+\s*$", "", question))
    info = {"task": row["answer_type"], "subject": row["subject"], "score": "alternatives"}
    answer = str(row["answer"]).strip().strip("#").strip()
    if not answer:
        raise Skip("no answer")
    name, pictures = str(row["problem_id"]), row["input_image"]
    if options_are_all(question, answer, len(pictures)):
        marked = f"[[{LETTERS.index(answer) + 1}|{answer}]]"
        return Asked(name, pictures, question, marked, permute=True, info=info)
    return Asked(name, pictures, question, answer, info=info)


def options_are_all(question: str, answer: str, n: int) -> bool:
    """Are the lettered options all the images of a question, with no word beside them, and does
    the text name none of them? Then any order asks the same, and the letter follows its image.
    "Their sides are 6, 8 and 10, respectively" names them by their order.

    >>> options_are_all("Which one is a prism?\\nA. <image>\\nB. <image>", "B", 2)
    True
    """
    lines = "".join(rf"\n{letter}\. {HOLE}" for letter in LETTERS[:n])
    found = re.fullmatch(rf"(.*?){lines}[\s\d]*", question, re.DOTALL)
    if not found or HOLE in found[1] or answer not in LETTERS[:n] or n < 2:
        return False
    if named_in_order(found[1]) >= n:
        return False
    try:
        return not find_names(hide_formulas(found[1]), n)
    except Unclear:
        return False


# --- Where they are ---


@dataclass(frozen=True)
class Benchmark:
    adapter: Callable[[dict, int], Asked]
    hub_id: str
    split: str
    columns: tuple[str, ...]
    licence: str
    revision: str | None = None  # a pin, where one is known
    configs: tuple[str | None, ...] | None = (None,)  # None: all that the source has
    zips: tuple[str, ...] = ()  # or folders of these names, unpacked


SIX = tuple(f"image_{k}" for k in range(1, 7))
SETS = {
    "mantis_eval": Benchmark(
        mantis_eval,
        "TIGER-Lab/Mantis-Eval",
        "test",
        ("id", "question_type", "question", "images", "options", "answer"),
        "Apache-2.0",
        configs=("mantis_eval",),
    ),
    "blink": Benchmark(
        blink,
        "BLINK-Benchmark/BLINK",
        "val",
        ("idx", "sub_task", "prompt", "answer", *SIX[:4]),
        "Apache-2.0",
        configs=None,
    ),
    "mmiu": Benchmark(
        mmiu,
        "FanqingM/MMIU-Benchmark",
        "test",
        ("task", "question", "options", "input_image_path", "output"),
        "not stated",
        revision="03bf7d143d920e97a757f606b6b7baee161b019b",
        zips=(
            *("2D-spatial", "3D-spatial", "Continuous-temporal", "Discrete-temporal"),
            *("Low-level-semantic", "High-level-obj-semantic", "High-level-sub-semantic"),
        ),
    ),
    "mathvista": Benchmark(
        mathvista,
        "AI4Math/MathVista",
        "testmini",
        ("pid", "question", "decoded_image", "choices", "unit", "precision", "answer"),
        "CC-BY-SA-4.0",
        revision="2b6ad69445fbb5695c9b165475e8decdbeb97747",
    ),
    "mathverse": Benchmark(
        mathverse,
        "AI4Math/MathVerse",
        "testmini",
        ("sample_index", "problem_version", "question", "image", "answer"),
        "MIT",
        configs=("testmini",),
    ),
    "mathvision": Benchmark(
        mathvision,
        "MathLLMs/MathVision",
        "test",
        ("id", "question", "options", "decoded_image", "answer", "level", "subject"),
        "MIT",
    ),
    "remi": Benchmark(
        remi,
        "mehrankazemi/ReMI",
        "test",
        ("question", "label", "task", *SIX),
        "CC-BY (paper); the data's own file is empty",
    ),
    "mv_math": Benchmark(mv_math, "PeijieWang/MV-MATH", "test", (), "MIT", zips=("images",)),
}


def rows_of(name: str, source: str, revision: str | None) -> Iterator[dict]:
    """The rows of a set. Raises DataError for a source that cannot be used."""
    found = SETS[name]
    if name == "mv_math":  # a JSON file; its pictures lie beside it
        path = part(source, "MV-MATH.json", revision)
        try:
            yield from json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path}: no JSON ({error})") from None
        return
    for config in found.configs or configs_of(source, revision):
        yield from table(source, config, found.split, found.columns, revision)


class Files:
    """The bytes of a set's pictures: in the rows, in unpacked folders, or in zips."""

    def __init__(self, name: str, source: str, revision: str | None):
        self.folders = [Path(source), Path(source) / "images"] if Path(source).is_dir() else []
        self.zips: dict[str, Zips] = {}
        for zipped in SETS[name].zips:
            if not (Path(source) / zipped).is_dir():
                self.zips[zipped] = Zips([part(source, f"{zipped}.zip", revision)])

    def read(self, picture: object) -> bytes:
        """Raises Skip for a picture that is nowhere."""
        if not isinstance(picture, str):
            return bytes_of(picture, self.folders)
        path = picture.removeprefix("./")
        top, _, inside = path.partition("/")
        for zipped, archive in self.zips.items():
            for name in (inside if top == zipped else path, path, f"{zipped}/{path}"):
                if name in archive.of:
                    return archive.read(name)
        return bytes_of(path, self.folders)


def row_of(name: str, asked: Asked, files: Files, pictures: Pictures) -> dict:
    """A question as a row of ours. Raises Skip."""
    images = [pictures.put(files.read(picture)) for picture in asked.pictures]
    if not images:
        raise Skip("no image")
    info = dict(asked.info or {})
    declared = info.pop("declared", False)
    row = {"id": f"{name}/{asked.id}", "images": images}
    if asked.permute is not None:
        permute, why = asked.permute, asked.why
        if permute and names_a_file_twice(images):
            permute, why = False, str(Reason.EQUAL)
        text = {"question": asked.question, "answer": asked.answer}
        if not permute:
            text = {field: separated(words) for field, words in text.items()}
            why = why or str(Reason.ONE_IMAGE)
        row |= text | {"permute": permute} | ({"why": why} if why else {})
    else:
        raw = {"images": images, "question": asked.question, "answer": asked.answer}
        verdict = mark(raw | ({"permute": True} if declared else {}))
        row |= {"question": verdict.question, "answer": verdict.answer, "permute": verdict.permute}
        row |= {"stem": verdict.stem} if verdict.stem else {}
        if verdict.reason:
            row["why"] = f"{verdict.reason}: {verdict.evidence!r}"
    if row["question"].count(HOLE) != len(images):
        raise Skip("not one <image> for each image")
    return row | info


def write(name: str, source: str | None, out: Path, limit: int | None) -> None:
    """DIR/NAME.jsonl. Raises DataError for a source that cannot be used."""
    found = SETS[name]
    revision = found.revision if source is None else None
    source = source or found.hub_id
    rows, files = rows_of(name, source, revision), Files(name, source, revision)
    writer = None
    for number, row in enumerate(progress(rows, name)):
        if number == limit:
            break
        writer = writer or Writer(out, name)  # the first row was there: the source can be read
        try:
            writer.write(row_of(name, found.adapter(row, number), files, writer.pictures))
        except Skip as why:
            writer.skip(why)
    if writer is None:
        raise DataError(f"{source}: it has no rows")
    writer.close()
    if not writer.kept:
        raise DataError(f"{source}: no row can be asked: hidden answers, or no pictures")


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("names", nargs="+", metavar="NAME", choices=[*SETS, "all"], help=", ".join(SETS))
    p.add_argument("--source", help="a hub id or a folder; with several names DIR/NAME each")
    p.add_argument("--out", required=True, metavar="DIR")
    p.add_argument("--limit", type=int, help="read at most that many rows of each set")
    args = p.parse_args(argv)
    names = list(SETS) if "all" in args.names else args.names
    failed = False
    for name in names:
        source = args.source
        if source and (len(names) > 1 or (Path(source) / name).is_dir()):
            source = str(Path(source) / name)
        try:
            write(name, source, Path(args.out), args.limit)
        except (DataError, OSError) as error:
            print(f"benchmarks.py: {name}: {error}", file=sys.stderr)
            failed = True
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
