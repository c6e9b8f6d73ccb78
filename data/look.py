"""A page to look at before a GPU hour is spent: marked rows, or the rollouts of a run.

    python data/look.py ROWS.jsonl --out page.html          # each row as it stands and permuted
    python data/look.py RUN/rollouts.jsonl --out page.html  # what was answered under each order

One file without a server, a script from elsewhere or a picture beside it: thumbnails are inside.
A mark has the colour of its picture, so that a wrong one is seen: after a permutation the same
colour must still name the same picture. Rows can be filtered by `permute`, by reason and by words.
"""

import argparse
import html
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.hub import jpeg_url, progress
from perl.permute import MARK, DataError, Sample, copies, load, plain, rows, slot_of
from perl.rollout import at_least
from rewards.boxed import options

SIDE = 140  # pixels of a thumbnail's longer side

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; padding: 0 1rem;
  max-width: 75rem; color: #222 }}
h1 {{ font-size: 1.3rem }}
form {{ position: sticky; top: 0; background: #fff; padding: .6rem 0; border-bottom: 1px solid #ccc;
  display: flex; gap: .6rem; flex-wrap: wrap; align-items: center; z-index: 1 }}
input, select {{ font: inherit; padding: .15rem .35rem }}
input {{ flex: 1; min-width: 12rem }}
section {{ border-bottom: 1px solid #ddd; padding: .9rem 0; break-inside: avoid }}
h2 {{ font-size: 1rem; margin: 0 0 .5rem; font-weight: 600 }}
h2 small {{ font-weight: 400; color: #777 }}
.orders {{ display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)) }}
h3 {{ font-size: .85rem; margin: 0 0 .3rem; color: #777; font-weight: 400 }}
figure {{ display: inline-block; margin: 0 .4rem .4rem 0; text-align: center; font-size: .75rem;
  color: #777; vertical-align: top }}
figure img {{ display: block; border: 4px solid var(--c);
  max-width: {side}px; max-height: {side}px }}
p {{ white-space: pre-wrap; margin: .2rem 0; overflow-wrap: anywhere }}
mark {{ background: var(--c); color: #fff; padding: 0 .25em; border-radius: .2em }}
.why {{ color: #a33 }}
table {{ border-collapse: collapse; font-size: .9rem }}
td, th {{ padding: .15rem .7rem .15rem 0; text-align: left; vertical-align: top }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums }}
td p {{ max-height: 9rem; overflow: auto }}
[hidden] {{ display: none !important }}
</style>
<h1>{title}</h1>
{summary}
<form>
<select name="permute" aria-label="permutable">
<option value="">all rows<option value="true">permutable<option value="false">not permutable
</select>
<select name="why" aria-label="reason"><option value="">any reason{reasons}</select>
<input name="words" type="search" placeholder="words in id, question, answer" aria-label="words">
<output></output>
</form>
{sections}
<script>
const form = document.forms[0], rows = [...document.querySelectorAll("section")];
const pictures = {pictures};
for (const img of document.images) img.src = pictures[img.dataset.picture];
function show() {{
  const {{ permute, why, words }} = form.elements;
  const wanted = words.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let shown = 0;
  for (const row of rows) {{
    const text = row.dataset.text;
    const fits = (!permute.value || row.dataset.permute === permute.value)
      && (!why.value || row.dataset.why === why.value) && wanted.every(word => text.includes(word));
    row.hidden = !fits;
    shown += fits;
  }}
  form.querySelector("output").value = `${{shown}} of ${{rows.length}}`;
}}
form.addEventListener("input", show);
form.addEventListener("change", show);
form.addEventListener("submit", event => event.preventDefault());
show();
</script>
"""

COLOURS = ("#b03a2e", "#1e7d47", "#6c3483", "#9c640c", "#21618c", "#a0306b", "#2e6f73", "#5d6d1e")


class Thumbnails:
    """Each picture once, as a data: URL under its number."""

    def __init__(self):
        self.numbers: dict[str, int] = {}
        self.urls: list[str] = []

    def number(self, path: str) -> int:
        """Raises OSError for a picture that cannot be read."""
        if path not in self.numbers:
            url = jpeg_url(path, side=2 * SIDE, quality=80)
            self.numbers[path] = len(self.urls)
            self.urls.append(url)
        return self.numbers[path]


def colour(picture: int) -> str:
    """The colour of a picture of a row, by its slot in the given order (0-based)."""
    return COLOURS[picture % len(COLOURS)]


def coloured(text: str, sigma: Sequence[int]) -> str:
    """A text as HTML; each mark in the colour of the picture that it names under sigma."""
    parts, end = [], 0
    for m in MARK.finditer(text):
        picture = sigma[int(m[1]) - 1]
        word = f'<mark style="--c:{colour(picture)}">{html.escape(m[2])}</mark>'
        parts += [html.escape(text[end : m.start()]), word]
        end = m.end()
    return "".join(parts) + html.escape(text[end:])


def order(x: Sample, sigma: Sequence[int], thumbnails: Thumbnails, head: str) -> str:
    """One order of a question: pictures, question and answer."""
    figures = []
    for slot, (path, picture) in enumerate(zip(x.images, sigma), start=1):
        number = thumbnails.number(path)
        figures.append(
            f'<figure style="--c:{colour(picture)}"><img data-picture="{number}" '
            f'alt="{html.escape(Path(path).name)}">{slot}</figure>'
        )
    question, answer = coloured(x.question, sigma), coloured(x.answer, sigma)
    return (
        f"<div><h3>{html.escape(head)}</h3>{''.join(figures)}"
        f"<p>{question}</p><p><b>Answer:</b> {answer}</p></div>"
    )


def section(name: str, note: str, x: Sample, why: str, body: str) -> str:
    """A row of the page, with what the filters look at."""
    text = html.escape(f"{x.id} {plain(x.question)} {plain(x.answer)}".lower(), quote=True)
    kind = html.escape(why.split(": ")[0], quote=True)
    reason = f'<p class="why">not permutable: {html.escape(why)}</p>' if why else ""
    return (
        f'<section data-permute="{str(x.permute).lower()}" data-why="{kind}" data-text="{text}">'
        f"<h2>{html.escape(name)} <small>{html.escape(note)}</small></h2>{reason}"
        f'<div class="orders">{body}</div></section>'
    )


def row_section(x: Sample, seed: int, thumbnails: Thumbnails) -> str:
    """A marked row: as it stands, and in another order of its images."""
    given = tuple(range(len(x.images)))
    body = order(x, given, thumbnails, "as it stands")
    copy = copies(x, 1, 1.0, seed, 0)[1]
    if copy.sigma != given:
        said = ", ".join(str(old + 1) for old in copy.sigma)
        body += order(copy.sample, copy.sigma, thumbnails, f"permuted: shows images {said}")
    why = "" if x.permute else x.why or "permute is not true"
    return section(x.id, x.task, x, why, body)


def group_section(step: int, group: Sequence[dict], folder: Path, thumbnails: Thumbnails) -> str:
    """The rollouts kept of one question in one step, order by order."""
    orders: dict[int, list[dict]] = {}
    for row in group:
        orders.setdefault(row["copy"], []).append(row)
    body, x = "", None
    for copy, rollouts in sorted(orders.items()):
        first = rollouts[0]
        images = tuple(str(folder / name) for name in first["images"])
        permutable = len(orders) > 1 or first["sigma"] != sorted(first["sigma"])
        x = Sample(first["id"], images, first["question"], first["answer"], permutable)
        said = ", ".join(str(old + 1) for old in first["sigma"])
        head = "as it stands" if copy == 0 else f"copy {copy}: shows images {said}"
        lines = []
        for row in rollouts:
            lines.append(
                f'<tr><td class="number">{row["reward"]:.2f}<td class="number">'
                f"{row['advantage']:+.2f}<td><p>{html.escape(row['response'])}</p>"
            )
        table = f"<table><tr><th>reward<th>advantage<th>response{''.join(lines)}</table>"
        body += order(x, first["sigma"], thumbnails, head).removesuffix("</div>") + table + "</div>"
    return section(f"step {step}", group[0]["id"], x, "", body)


def summary(samples: Sequence[Sample]) -> str:
    """What a reader should see first: how many rows move, why the others do not, and in which slot
    the right image stands. A bias of the data for slot 1 is what permutation is for.
    """
    permutable = sum(x.permute for x in samples)
    slots = Counter(slot_of(x, options(x.question)) for x in samples)
    named = {slot: slots[slot] for slot in sorted(slot for slot in slots if slot)}
    total = sum(named.values())
    shares = ", ".join(f"{slot}: {count / total:.0%}" for slot, count in named.items())
    by_slot = f" Right images are named in {total} rows; by slot {shares}." if named else ""
    return f"<p>{permutable} of {len(samples)} rows are permutable.{by_slot}</p>"


def page_of_rows(path: Path, most: int, seed: int) -> str:
    """The page of a file of marked rows; the summary is of all of them. Raises DataError."""
    samples = load(path)
    thumbnails, sections, reasons = Thumbnails(), [], Counter()
    for x in samples:
        if not x.permute:
            reasons[(x.why or "permute is not true").split(": ")[0]] += 1
    for x in progress(samples[:most], path.name):
        try:
            sections.append(row_section(x, seed, thumbnails))
        except OSError as error:
            raise DataError(f"{x.where}: images: {error}") from None
    listed = ""
    for why, count in reasons.most_common():
        value = html.escape(why, quote=True)
        listed += f'<option value="{value}">{value} ({count})'
    return filled(path.name, summary(samples), listed, sections, thumbnails)


ROLLOUT = {
    "step": int,
    "id": str,
    "copy": int,
    "sigma": list,
    "images": list,
    "question": str,
    "answer": str,
    "response": str,
    "reward": int | float,
    "advantage": int | float,
}


def page_of_run(path: Path, most: int) -> str:
    """The page of RUN/rollouts.jsonl. Raises DataError."""
    groups: dict[tuple[int, str], list[dict]] = {}
    for where, row in rows(path):
        for name, kind in ROLLOUT.items():
            if not isinstance(row.get(name), kind):
                raise DataError(f"{where}: {name}: no row of a run's rollouts.jsonl has this")
        groups.setdefault((row["step"], row["id"]), []).append(row)
    thumbnails, sections = Thumbnails(), []
    for (step, name), group in progress(list(groups.items())[-most:], path.name):
        try:
            sections.append(group_section(step, group, path.parent, thumbnails))
        except OSError as error:
            raise DataError(f"{path}: {name}: images: {error}") from None
    said = f"<p>{len(groups)} questions of a run, with the rollouts that were kept (--show).</p>"
    return filled(f"{path.parent.name}/{path.name}", said, "", sections, thumbnails)


def filled(title: str, said: str, reasons: str, sections: list[str], thumbnails) -> str:
    return PAGE.format(
        title=html.escape(title),
        summary=said,
        reasons=reasons,
        sections="\n".join(sections),
        pictures=json.dumps(thumbnails.urls),
        side=SIDE,
    )


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("data", metavar="ROWS.jsonl", help="marked rows, or RUN/rollouts.jsonl")
    p.add_argument("--out", required=True, metavar="PAGE.html")
    p.add_argument(
        "--rows", type=at_least(1), default=200, help="at most so many (of a run, the last)"
    )
    p.add_argument("--seed", type=int, default=0, help="of the permutations")
    args = p.parse_args(argv)
    path, out = Path(args.data), Path(args.out)
    try:
        _, first = next(rows(path))
        if {"sigma", "advantage"} & first.keys():
            page = page_of_run(path, args.rows)
        else:
            page = page_of_rows(path, args.rows, args.seed)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
    except (DataError, OSError) as error:
        sys.exit(f"look.py: {error}")
    print(f"{out}: {len(page) / 1e6:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    main()
