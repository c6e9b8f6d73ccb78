"""How much there is to read: files, lines of code and Python tokens, for docs/compare.md.

    python bench/tokens.py                            the five files, one by one and together
    python bench/tokens.py "LABEL=DIR/GRPO-Zero/*.py"  and any other files, by a label and a pattern

Tokens are Python's, without comments, docstrings, line ends and indents: a unit that no line
width changes. A line of code is a line on which such a token stands.
"""

import ast
import glob
import io
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIVE = ["permute", "filter", "rollout", "grpo", "train"]
NOT_COUNTED = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def docstring_lines(text: str) -> set[int]:
    """The lines of strings that are statements of their own."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines.update(range(node.lineno, node.end_lineno + 1))
    return lines


def count(text: str) -> tuple[int, int]:
    """Tokens, and lines of code, of a Python file."""
    docstrings = docstring_lines(text)
    tokens, lines = 0, set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        is_docstring = token.type == tokenize.STRING and token.start[0] in docstrings
        if token.type in NOT_COUNTED or is_docstring:
            continue
        tokens += 1
        lines.update(range(token.start[0], token.end[0] + 1))
    return tokens, len(lines)


def row(label: str, files: list[str]) -> str:
    """A row of the table: label, files, lines of code, tokens, tokens a line."""
    counts = [count(Path(file).read_text(encoding="utf-8")) for file in files]
    tokens = sum(t for t, _ in counts)
    lines = sum(n for _, n in counts)
    return f"| {label} | {len(files)} | {lines:,} | {tokens:,} | {tokens / lines:.1f} |"


def main() -> None:
    print("| what | files | lines of code | tokens | tokens a line |\n|---|---|---|---|---|")
    ours = [str(ROOT / "perl" / f"{name}.py") for name in FIVE]
    for name, file in zip(FIVE, ours):
        print(row(f"`perl/{name}.py`", [file]))
    print(row("the five together", ours))
    for argument in sys.argv[1:]:
        label, _, pattern = argument.partition("=")
        files = sorted(glob.glob(pattern, recursive=True))
        if not files:
            sys.exit(f"tokens.py: {pattern}: no such files")
        print(row(label, files))


if __name__ == "__main__":
    main()
