"""What the README says holds: links, tags, tables of names, every command (with a tiny model and few questions), every example."""

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

import pytest

from conftest import ROOT
from perl.train import parse_args
from test_train import METRICS

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "bench" / "README.md"]
README = DOCUMENTS[0].read_text()


def defined(path: Path) -> dict[str, str]:
    """Name -> source, for what a module defines at its top."""
    text = path.read_text()
    found = {}
    for node in ast.parse(text).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node]
        for target in targets:
            if name := getattr(target, "name", getattr(target, "id", None)):
                found[name] = "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno])  # with the last line's comment
    return found


def test_links_resolve():
    links = [(document, *link) for document in DOCUMENTS for link in re.findall(r"\[([^\]]*)\]\(([^)#]+)\)", document.read_text())]
    assert len(links) > 30
    for document, text, target in links:
        if target.startswith("http"):
            continue
        path = (document.parent / target).resolve()
        assert path.exists(), f"{document.name}: {target}"
        if name := re.fullmatch(r"`(\w+\.py):(\w+)`", text):
            assert path.name == name[1] and name[2] in defined(path), f"{document.name}: {text}"


def test_equation_tags_resolve():
    """Both ways: each row of the table leads to a function that has the tag, and each tag in the code is in the table."""
    rows = re.findall(r"^\| (`# Eq.*?) \| \[`(\w+\.py):(\w+)`\]\((.*?)\) \|$", README, re.M)
    listed = {(file, name, k) for tags, file, name, _ in rows for k in re.findall(r"Eq\. \((\d)\)", tags)}
    assert {k for *_, k in listed} == set("123456")
    written = {(path.name, name, k) for path in (ROOT / "perl").glob("*.py") for name, source in defined(path).items()
               for comment in re.findall(r"# .*", source) for k in re.findall(r"Eq\. \((\d)\)", comment)}
    assert written == listed


def test_every_metric_is_explained():
    table = README[README.index("## What each metric says") :].split("\n\n")[2]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == {*METRICS, "eval_given", "eval_permuted"}


# --- Commands ---


def commands() -> list[str]:
    """The lines of the README's blocks of commands, without comments."""
    blocks = re.findall(r"^(?:    \S.*\n)+", re.sub(r"```.*?```", "", README, flags=re.S), re.M)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(r"(make|torchrun|python|vllm|pip|tensorboard) ", line)]


NOT_RUN = {"vllm serve RUN/model": "the CPU wheel's script looks for another package; evals/orders.py loads the same folder with vLLM"}


def test_no_command_is_forgotten():
    assert len(commands()) >= 10
    assert {c for c in commands() if not c.startswith(("make ", "torchrun ", "python "))} == NOT_RUN.keys()


@pytest.mark.parametrize("target", ["demo", "test", "bench", "paper", "setup"])
def test_make_knows_its_targets(target):
    assert f"make {target}" in README
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "tools/setup_env.py" in done.stdout


@pytest.fixture(scope="module")
def place(digits, tmp_path_factory):
    """A folder with the files the commands name: ALL, TRAIN, TEST; RUN, EVAL and the rest are made by them, in their order."""
    folder = tmp_path_factory.mktemp("readme")
    rows = [json.loads(line) for line in (digits / "train.jsonl").read_text().splitlines()]
    for row in rows:
        row["images"] = [str(digits / path) for path in row["images"]]
    for name, part in (("ALL", rows[:8]), ("TRAIN", rows[:8]), ("TEST", [r for r in rows if len(r["images"]) == 2][:2])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


SHORT = {  # for each script, what makes a run of it short
    "perl/train.py": "--steps 1 --prompts 4 --updates 2 --max-prompt 200 --max-tokens 8 --max-pixels 784",
    "perl/filter.py": "--rollouts 2 --max-prompt 200 --max-tokens 8",
    "evals/orders.py": "--max-prompt 200 --max-tokens 8",
    "perl/permute.py": "", "data/infer.py": "",
}  # fmt: skip


def short(command: str, place: Path, digits: Path, port: int) -> list[str]:
    """The README's line with one rank, the tiny model, the files of `place` and the flags of SHORT."""
    line = re.sub(r"Qwen/Qwen2.5-VL-[37]B-Instruct", str(digits / "base"), command)
    line = re.sub(r"\b(ALL|TRAIN|TEST|PERMUTED|LABELLED)\.jsonl", rf"{place}/\1.jsonl", line)
    line = re.sub(r"(?<![\w/])(RUN|EVAL)\b", rf"{place}/\1", line).replace("HOST:29500", f"127.0.0.1:{port}")
    line = re.sub(r"--nproc_per_node \d", "--nproc_per_node 1", line)
    script = next(word for word in shlex.split(line) if word.endswith(".py"))
    launcher = "-m torch.distributed.run" if line.startswith("torchrun") else ""
    return shlex.split(f"{sys.executable} {launcher} {line.split(' ', 1)[1]} {SHORT[script]}")


def to_run() -> list[str]:
    """Each command once, and none of which a longer one is the continuation."""
    lines = [c for c in dict.fromkeys(commands()) if c.startswith(("torchrun ", "python "))]
    return [c for c in lines if not any(other != c and other.startswith(c) for other in lines)]


def test_commands_run_in_their_order(place, digits):
    for command in to_run():
        if "--nnodes" in command:  # below
            continue
        if "--gpu-memory" in command:  # the same script with other flags
            parse_args(shlex.split(command.split("train.py ")[1]))
            continue
        if "perl/train.py" in command:
            shutil.rmtree(place / "RUN", ignore_errors=True)
        words = short(command, place, digits, free_port())
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert {"PERMUTED.jsonl", "LABELLED.jsonl", "TRAIN.jsonl.scores.jsonl", "RUN"} <= {p.name for p in place.iterdir()}
    assert json.loads((place / "EVAL" / "orders.json").read_text())["questions"] == 2
    assert (place / "EVAL" / "orders.png").exists()


def test_two_nodes(place, digits):
    """Two torchrun agents that meet at one address, a rank each: the README's line, typed on two machines."""
    [command] = [c for c in commands() if "--nnodes" in c]
    shutil.rmtree(place / "RUN", ignore_errors=True)
    words, environment = short(command, place, digits, free_port()), os.environ | {"OMP_NUM_THREADS": "1"}
    with open(place / "nodes.log", "w") as log:
        nodes = [subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT) for _ in "12"]
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


def examples() -> dict[str, str]:
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    return {re.search(r"from (?:perl\.)?(permute|grpo|rollout) import (?!load)", block)[1]: block for block in blocks}


def execute(block: str, folder: Path) -> str:
    """The block as a script in `folder`, where nothing of the project is but what was copied there."""
    (folder / "example.py").write_text(block)
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "example.py"], cwd=folder, capture_output=True, text=True, timeout=300, env=clean)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_all_examples_are_here():
    assert examples().keys() == {"permute", "grpo", "rollout"}


def test_copied_permute(tmp_path):
    shutil.copy(ROOT / "perl" / "permute.py", tmp_path)
    block = examples()["permute"]
    promised = [line.split("  # ", 1)[1] for line in block.splitlines() if line.startswith("print(")]
    assert execute(block, tmp_path).splitlines() == promised and len(promised) == 2


def test_copied_grpo(tmp_path):
    shutil.copy(ROOT / "perl" / "grpo.py", tmp_path)
    check = """
assert r.tolist() == [[1.0, 0.9, 0.1, 0.0]] or torch.allclose(r, torch.tensor([[1.0, 0.9, 0.1, 0.0]]))
assert torch.equal(logp.grad < 0, A.repeat_interleave(lengths) > 0) and parts["clip_share"] == 0
"""
    execute(examples()["grpo"] + check, tmp_path)


def test_copied_rollout(tmp_path, digits, place):
    (tmp_path / "perl").mkdir()
    for name in ("rollout.py", "permute.py"):
        shutil.copy(ROOT / "perl" / name, tmp_path / "perl")
    block = examples()["rollout"].replace('"MODEL"', repr(str(digits / "base"))).replace('"TRAIN.jsonl"', repr(str(place / "ALL.jsonl")))
    lines = [re.fullmatch(r"train-\S+ (\[.*\]) -\d+\.\d+", line) for line in execute(block, tmp_path).splitlines() if line.startswith("train-")]
    assert [len(ast.literal_eval(line[1])) for line in lines] == [6] * 4
