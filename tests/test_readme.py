"""What the README says holds: links, tags, tables of names, every command (with a tiny model and
few questions), every example."""

import ast
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import hub
import pyarrow
import pyarrow.parquet
import pytest
import torch
from conftest import ROOT
from test_train import METRICS

from perl.permute import load, permute, plain
from perl.train import parse_args

DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "bench" / "README.md",
]
README = DOCUMENTS[0].read_text()
TEXTS = {path.name: path.read_text() for path in DOCUMENTS if path.parent.name != "bench"}


def defined(path: Path) -> dict[str, str]:
    """Name -> source, for what a module defines at its top."""
    text = path.read_text()
    found = {}
    for node in ast.parse(text).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node]
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            if name := getattr(target, "name", getattr(target, "id", None)):
                # With the last line's comment.
                found[name] = "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno])
    return found


def test_links_resolve():
    links = [
        (document, *link)
        for document in DOCUMENTS
        for link in re.findall(r"\[([^\]]*)\]\(([^)#]+)\)", document.read_text())
    ]
    assert len(links) > 30
    for document, text, target in links:
        if target.startswith("http"):
            continue
        path = (document.parent / target).resolve()
        assert path.exists(), f"{document.name}: {target}"
        if name := re.fullmatch(r"`(\w+\.py):(\w+)`", text):
            assert path.name == name[1] and name[2] in defined(path), f"{document.name}: {text}"


def test_equation_tags_resolve():
    """Both ways: each row of the table leads to a function that has the tag, and each tag in the
    code is in the table."""
    rows = re.findall(r"^\| (`# Eq.*?) \| \[`(\w+\.py):(\w+)`\]\((.*?)\) \|$", README, re.M)
    listed = {
        (file, name, k) for tags, file, name, _ in rows for k in re.findall(r"Eq\. \((\d)\)", tags)
    }
    assert {k for *_, k in listed} == set("1456")
    written = {
        (path.name, name, k)
        for path in (ROOT / "perl").glob("*.py")
        for name, source in defined(path).items()
        for comment in re.findall(r"# .*", source)
        for k in re.findall(r"Eq\. \((\d)\)", comment)
    }
    assert written == listed


def test_every_metric_is_explained():
    text = TEXTS["training.md"]
    table = text[text.index("## What each metric says") :].split("\n\n")[2]
    named = {
        name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    of_evaluation = {"eval_given", "eval_permuted", "eval_slot_1", "eval_slot_2"}
    assert named == {*METRICS, "orders_differ", *of_evaluation}


# --- Commands ---


def commands() -> list[str]:
    """The lines of the blocks of commands, without comments: README first, then the docs."""
    lines = []
    for name in ("README.md", "data.md", "training.md", "variants.md", "benchmarks.md"):
        text = re.sub(r"```.*?```", "", TEXTS[name], flags=re.S)
        for block in re.findall(r"^(?:    \S.*\n)+", text, re.M):
            lines += [line.split("  #")[0].strip() for line in block.splitlines()]
    return [
        line for line in lines if re.match(r"(torchrun|python|vllm|pip|tensorboard|cat) ", line)
    ]


NOT_RUN = {
    "vllm serve RUN/model": "the CPU wheel's script looks for another package; evals/orders.py loads the same folder with vLLM",
    "python data/label.py DATA/ALL.jsonl --base-url URL --model NAME --out DATA/MARKED.jsonl": "it needs a server: test_label.py",
    "vllm serve RUN/model --port 8000": "as above",
    "python -m lmms_eval --model openai --model_args model=RUN/model,base_url=http://127.0.0.1:8000/v1 --tasks blink,mantis --include_path evals/harness": "lmms-eval needs an environment of its own",
}


def test_no_command_is_forgotten():
    assert len(commands()) >= 10
    assert NOT_RUN.keys() <= set(commands())


@pytest.mark.parametrize(
    "target", ["demo", "test", "test-long", "bench", "paper", "setup", "format"]
)
def test_make_knows_its_targets(target):
    assert f"make {target}" in README
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "tools/setup_env.py" in done.stdout


@pytest.fixture(scope="module")
def place(digits, tmp_path_factory):
    """A folder with the files the commands name: RAW, TRAIN, TEST, and the docs' own reward; RUN,
    EVAL and the rest are made by them, in their order."""
    folder = tmp_path_factory.mktemp("readme")
    rows = [json.loads(line) for line in (digits / "train.jsonl").read_text().splitlines()]
    for row in rows:
        row["images"] = [str(digits / path) for path in row["images"]]
    raw = []
    for row in rows[:8]:
        raw.append(row | {name: plain(row[name]) for name in ("question", "answer")})
    [reward] = [block for block in blocks("variants.md") if "def brief" in block]
    (folder / "brief.py").write_text(reward)
    for name, part in (
        ("RAW", raw),
        ("TRAIN", rows[:8]),
        ("TEST", [r for r in rows if len(r["images"]) == 2][:2]),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    hub.mantis(folder / "mantis", copies=2)
    hub.mmk12(folder / "mmk12")
    hub.benchmarks(folder / "bench")
    hub.formats(folder)
    row = hub.formats(folder)["verl"][0][0]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), folder / "train.parquet")
    return folder


SHORT = {  # for each script, what makes a run of it short
    "perl/train.py": "--steps 1 --prompts 4 --updates 2 --max-prompt 200 --max-tokens 8 --max-pixels 784",
    "perl/filter.py": "--rollouts 2 --max-prompt 700 --max-tokens 8",
    "evals/orders.py": "--max-prompt 200 --max-tokens 8",
    "perl/permute.py": "",
    "data/mark.py": "",
    "data/mantis.py": "--source {place}/mantis",
    "data/mmk12.py": "--source {place}/mmk12",
    "data/convert.py": "",
    "data/look.py": "",
    "data/benchmarks.py": "--source {place}/bench",
    "evals/benchmarks.py": "--only blink --orders 2 --max-prompt 1500 --max-tokens 8",
}


def short(command: str, place: Path, digits: Path, port: int) -> list[str]:
    """The README's line with one rank, the tiny model,
    the files of `place` and the flags of SHORT."""
    line = re.sub(r"Qwen/Qwen2.5-VL-[37]B-Instruct", str(digits / "base"), command)
    line = re.sub(
        r"(?<!/)\b((RAW|MARKED|TRAIN|TEST|PERMUTED)\.jsonl|train\.parquet|page\.html|(DATA|MINE)\b)",
        rf"{place}/\1",
        line,
    )
    line = line.replace("brief.py:", f"{place}/brief.py:")
    line = line.replace("IIGroup/Qwen-PeRL-7B", str(digits / "base"))
    line = re.sub(r"(?<![\w/])(RUN|EVAL|BENCH)\b", rf"{place}/\1", line).replace(
        "HOST:29500", f"127.0.0.1:{port}"
    )
    line = re.sub(r"--nproc_per_node \d", "--nproc_per_node 1", line)
    if line.startswith("cat "):
        return ["bash", "-c", line]
    script = next(word for word in shlex.split(line) if word.endswith(".py"))
    launcher = "-m torch.distributed.run" if line.startswith("torchrun") else ""
    flags = SHORT[script].format(place=place)
    return shlex.split(f"{sys.executable} {launcher} {line.split(' ', 1)[1]} {flags}")


def to_run() -> list[str]:
    """Each command once, at its first place, in the longest form in which it stands."""
    lines = [c for c in commands() if c.startswith(("torchrun ", "python ", "cat "))]
    found: list[str] = []
    for command in lines:
        longest = max((other for other in lines if other.startswith(command)), key=len)
        if longest not in found:
            found.append(longest)
    return found


@pytest.mark.long
def test_commands_run_in_their_order(place, digits):
    for command in to_run():
        if "label.py" in command:  # in its place, what the rules alone give
            shutil.copy(place / "DATA" / "ALL.jsonl", place / "DATA" / "MARKED.jsonl")
        if "--nnodes" in command or command in NOT_RUN:  # below; elsewhere
            continue
        if command.endswith("perl/train.py"):  # the embedded task: the demo's own script runs it
            continue
        if "--gpu-memory" in command:  # the same script with other flags
            parse_args(shlex.split(command.split("train.py ")[1]))
            continue
        if "perl/train.py" in command:
            shutil.rmtree(place / "RUN", ignore_errors=True)
        words = short(command, place, digits, free_port())
        done = subprocess.run(
            words,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
        assert done.returncode == 0, (
            f"{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
    assert {"PERMUTED.jsonl", "MARKED.jsonl", "TRAIN.jsonl.scores.jsonl", "RUN"} <= {
        p.name for p in place.iterdir()
    }
    assert json.loads((place / "EVAL" / "orders.json").read_text())["questions"] == 2
    assert (place / "EVAL" / "orders.png").exists()


@pytest.mark.long
def test_two_nodes(place, digits):
    """Two torchrun agents that meet at one address, a rank
    each: the README's line, typed on two machines."""
    [command] = [c for c in commands() if "--nnodes" in c]
    shutil.rmtree(place / "RUN", ignore_errors=True)
    words, environment = (
        short(command, place, digits, free_port()),
        os.environ | {"OMP_NUM_THREADS": "1"},
    )
    with open(place / "nodes.log", "w") as log:
        nodes = [
            subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
            for _ in "12"
        ]
    try:
        codes = [node.wait(timeout=300) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert codes == [0, 0], (place / "nodes.log").read_text()[-5000:]
    assert json.loads((place / "RUN" / "config.json").read_text())["world"] == 2
    assert (place / "RUN" / "model" / "config.json").exists()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# --- Examples for copying ---


def blocks(name: str) -> list[str]:
    """The blocks of Python in a document."""
    return re.findall(r"```python\n(.*?)```", TEXTS[name], re.S)


def examples() -> dict[str, str]:
    """The examples for copying, by the file they copy."""
    found = {}
    for block in blocks("variants.md"):
        copied = re.search(r"from (?:perl\.)?(permute|grpo|rollout) import (?!load)", block)
        if copied:
            found[copied[1]] = block
    return found


def execute(block: str, folder: Path) -> str:
    """The block as a script in `folder`, where nothing
    of the project is but what was copied there."""
    (folder / "example.py").write_text(block)
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env=clean,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_all_examples_are_here():
    assert examples().keys() == {"permute", "grpo", "rollout"}


def test_copied_permute(tmp_path):
    shutil.copy(ROOT / "perl" / "permute.py", tmp_path)
    block = examples()["permute"]
    promised = [
        line.split("  # ", 1)[1] for line in block.splitlines() if line.startswith("print(")
    ]
    assert execute(block, tmp_path).splitlines() == promised and len(promised) == 2


def test_copied_grpo(tmp_path):
    shutil.copy(ROOT / "perl" / "grpo.py", tmp_path)
    check = """
assert torch.equal(logp.grad < 0, A.repeat_interleave(lengths) > 0) and parts["clip_share"] == 0
"""
    execute(examples()["grpo"] + check, tmp_path)


@pytest.mark.long
def test_copied_rollout(tmp_path, digits, place):
    (tmp_path / "perl").mkdir()
    for name in ("rollout.py", "permute.py"):
        shutil.copy(ROOT / "perl" / name, tmp_path / "perl")
    block = (
        examples()["rollout"]
        .replace('"MODEL"', repr(str(digits / "base")))
        .replace('"TRAIN.jsonl"', repr(str(place / "TRAIN.jsonl")))
    )
    lines = [
        re.fullmatch(r"train-\S+ (\[.*\]) -\d+\.\d+", line)
        for line in execute(block, tmp_path).splitlines()
        if line.startswith("train-")
    ]
    assert [len(ast.literal_eval(line[1])) for line in lines] == [6] * 4


# --- What the README shows ---


def test_the_rows_of_the_readme_load_and_permute(tmp_path):
    rows = [json.loads(line) for line in re.findall(r"^\{.*\}$", README, re.M)]
    assert len(rows) >= 4
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for x in load(tmp_path / "rows.jsonl", check_images=False):
        sigma = (*range(x.stem), *reversed(range(x.stem, len(x.images))))
        assert permute(permute(x, sigma), sigma) == x


def test_variants_are_their_definitions():
    space = {}
    [block] = [block for block in blocks("variants.md") if "def dr_grpo" in block]
    exec(block, space)
    r = torch.tensor([[1.0, 0.0, 0.0, 1.0, 1.0]])
    assert torch.allclose(space["dr_grpo"](r), r - 0.6)
    others = [r[0, i] - (r[0].sum() - r[0, i]) / 4 for i in range(5)]
    assert torch.allclose(space["leave_one_out"](r)[0], torch.stack(others))


def test_the_table_of_tokens_is_that_of_the_script():
    script = [sys.executable, "bench/tokens.py"]
    done = subprocess.run(script, cwd=ROOT, text=True, capture_output=True, check=True)
    assert all(line in TEXTS["compare.md"] for line in done.stdout.splitlines())
