"""bench/lines.py: what a line of code is, which files a pattern names, what is counted, and what is said of what is missing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from bench import lines

# A file, each line behind its mark: code, note (comment or docstring), both, none (blank).
SMALL = r'''
note|"""A docstring with a # in it, and a blank line:
none|
note|    its last line"""
none| 
note|# a comment alone
both|import os  # a comment behind code
code|text = """a string that has a name
none|
code|# and this is no comment
code|"""
code|path = "a" \
code|       \
code|       "b"
code|def f(x="""a default
both|over two lines"""): "a docstring behind code"  # and its comment
code|class C:
note|    r'a docstring in other quotes'
code|    size: int = 1
note|    """A string that is a statement: of a field."""
note|    # a comment, then a string that is not alone
both|    a = 1; """not alone"""
code|    b = ("in brackets, "
both|         "over lines "  # with a comment
code|         "of strings alone")
code|    b"""bytes are no docstring"""
code|    f"""and neither is
code|    {a} this"""
both|    async def h(self):  # a comment
note|        """Only this."""
'''


def test_each_line_of_a_small_file():
    marks, texts = zip(*(row.split("|", 1) for row in SMALL.strip("\n").split("\n")))
    source = "\n".join(texts) + "\n"
    found = [lines.count(source, {n}) for n in range(1, len(marks) + 1)]
    said = {(0, 0): "none", (1, 0): "code", (0, 1): "note", (1, 1): "both"}
    assert [said[one["code"], one["commented"]] for one in found] == list(marks)
    total = lines.count(source)
    assert total == sum(found, total - total)  # parts of a file add up to it
    assert dict(total) == {"lines": len(marks), "filled": len(marks) - marks.count("none"),
                           "code": marks.count("code") + marks.count("both"),
                           "commented": marks.count("note") + marks.count("both")}  # fmt: skip


@pytest.mark.parametrize("source, total", [("", 0), ("\n", 1), ("x = 1", 1), ("x = 1\n", 1), ("x = '\x0c\u2028'\n\x0c\n", 2)])
def test_lines_end_where_a_newline_is(source, total):
    assert lines.count(source)["lines"] == total


@pytest.mark.parametrize("path", ["bench/lines.py", "perl/filter.py"])
def test_the_lines_of_code_alone_are_the_same_program(path):
    """Nothing of a program stands in the lines that are not counted."""

    def program(source):
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(body := getattr(node, "body", None), list):
                node.body = [x for x in body if not (isinstance(x, ast.Expr) and isinstance(x.value, ast.Constant))]
        return ast.dump(tree)

    source = (ROOT / path).read_text()
    rows = source.splitlines()
    code = [lines.count(source, {n})["code"] for n in range(1, len(rows) + 1)]
    assert program("\n".join(row for row, kept in zip(rows, code) if kept)) == program(source)
    assert 0 < sum(code) == lines.count(source)["code"] < len(rows)


def test_ours_is_what_wc_says():
    said = subprocess.check_output("wc -l perl/*.py | tail -n 1; ls perl/*.py | wc -l", shell=True, cwd=ROOT, text=True).split()
    table = subprocess.check_output([sys.executable, "bench/lines.py"], cwd=ROOT, text=True).splitlines()
    cells = [cell.strip() for cell in table[2].split("|")]
    assert cells[3] == said[2] and cells[4].replace(",", "") == said[0] and int(cells[5].replace(",", "")) < int(said[0])
    assert len(table) == 2 + len(lines.PATHS["ours"])  # without DIR, no other project


@pytest.mark.parametrize("name", lines.CLONES)
def test_patterns_are_those_of_a_shell(name, tmp_path):
    for patterns in lines.PATHS[name].values():
        words = [word.partition(":") for word in patterns.split() if "*" not in word]
        named = [subprocess.check_output(["bash", "-c", f"echo {path}"], text=True).split() for path, _, _ in words]
        for file in [tmp_path / path for paths in named for path in paths]:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        found = [str(file.relative_to(tmp_path)) for file, _ in lines.files(tmp_path, " ".join(path for path, _, _ in words))]
        assert found == [path for paths in named for path in paths] and len(set(found)) == len(found)


def test_spans_are_lines_from_one(tmp_path):
    (tmp_path / "a.py").write_text("# one\ntwo = 2\n\nfour = 4\nfive = 5\n")
    ((_, only),) = lines.files(tmp_path, "a.py:1,3-4")
    assert only == {1, 3, 4}
    assert lines.row("a", "b", tmp_path, "a.py:1,3-4 a.py", "c") == "| a | b | 2 | 8 | 4 | 33% | c |"


def clone(folder: Path, git: bool = True) -> str:
    """A project of 4 files under the name of one that is counted; its commit."""
    for name in ("countdown_task", "data_types", "grpo", "train"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text('"""Doc."""\nx = 1\n')
    if not git:
        return ""
    run = ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "init", "-q", folder], check=True)
    subprocess.run([*run, "add", "."], check=True)
    subprocess.run([*run, "commit", "-q", "-m", "a"], check=True)
    return subprocess.check_output([*run, "rev-parse", "HEAD"], text=True).strip()


ROW = "| GRPO-Zero | text only, one GPU, no vLLM | 4 | 8 | 4 | 50% |"


def test_missing_checkouts_are_said_with_their_clone_line(tmp_path):
    clone(tmp_path / "GRPO-Zero", git=False)
    done = subprocess.run([sys.executable, "bench/lines.py", str(tmp_path)], cwd=ROOT, text=True, capture_output=True, check=True)
    assert f"{ROW} d41bb486c, 2025-04-18 (files without .git: not checked) |" in done.stdout.splitlines()
    said = [line.strip() for line in done.stdout.splitlines() if line.startswith("    ")]
    there = {name: tmp_path / name for name in lines.CLONES if name != "GRPO-Zero"}
    assert said == [f"git clone {lines.CLONES[name][0]} {at} && git -C {at} checkout {lines.CLONES[name][1]}"
                    for name, at in there.items()]  # fmt: skip


def test_another_commit_is_not_counted(tmp_path, capsys, monkeypatch):
    made = clone(tmp_path / "GRPO-Zero")
    lines.main([str(tmp_path)])
    out = capsys.readouterr().out
    assert "| GRPO-Zero" not in out and f"git -C {tmp_path}/GRPO-Zero fetch && git -C {tmp_path}/GRPO-Zero checkout d41bb486c" in out
    monkeypatch.setitem(lines.CLONES, "GRPO-Zero", ("url", made, "today"))
    lines.main([str(tmp_path)])
    out = capsys.readouterr().out
    assert f"{ROW} {made[:9]}, today |" in out and "GRPO-Zero fetch" not in out


def test_a_file_that_is_not_there_ends_it(tmp_path):
    clone(tmp_path / "GRPO-Zero", git=False)
    (tmp_path / "GRPO-Zero" / "grpo.py").unlink()
    with pytest.raises(SystemExit, match="GRPO-Zero has no grpo.py"):
        lines.main([str(tmp_path)])


def test_the_page_names_what_is_counted():
    page = (ROOT / "docs" / "compare.md").read_text()
    for name, (url, commit, day) in lines.CLONES.items():
        assert f"| {commit[:9]}, {day} |" in page and url in page and commit in page
        for what, patterns in lines.PATHS[name].items():
            assert f"| {name} | {what} |" in page and not (set(patterns.split()) - set(page.replace("`", " ").split()))
