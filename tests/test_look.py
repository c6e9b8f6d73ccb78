"""The page of data/look.py in a real browser: opened, counted, filtered, searched."""

import json
import shutil

import pytest

from data.look import COLOURS, coloured, main

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="module")
def browser():
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium with its driver here (Debian: chromium, chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    words = "headless no-sandbox disable-gpu disable-background-networking no-first-run"
    for word in words.split():
        options.add_argument(f"--{word}")
    options.add_argument("--window-size=1100,900")
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def visible(browser) -> list[str]:
    """The titles of the rows that are shown."""
    found = browser.find_elements("css selector", "section:not([hidden]) h2")
    return [title.text.split()[0] for title in found]


@pytest.fixture(scope="module")
def page(digits, tmp_path_factory):
    """A page of 40 rows of the digits; two of them are not permutable, for two reasons."""
    out = tmp_path_factory.mktemp("look") / "page.html"
    lines = (digits / "test.jsonl").read_text().splitlines()
    several = [row for row in map(json.loads, lines) if len(row["images"]) > 1][:38]
    for number, why in enumerate(("captions: 'x'", "a story")):
        text = {"id": f"no-{number}", "permute": False, "why": why, "answer": "a & <b>"}
        several.append(several[number] | text)
    (digits / "look.jsonl").write_text("".join(json.dumps(row) + "\n" for row in several))
    main([str(digits / "look.jsonl"), "--out", str(out)])
    return out


def test_marks_have_the_colour_of_their_picture():
    text = "Is [[1|left]] < [[2|right]]?"
    given, permuted = coloured(text, (0, 1)), coloured(text, (1, 0))
    assert given.index(COLOURS[0]) < given.index(COLOURS[1])
    assert permuted.index(COLOURS[1]) < permuted.index(COLOURS[0])
    assert "&lt;" in given and "[[" not in given


def test_the_page_needs_nothing_else(page):
    text = page.read_text()
    assert "http" not in text.replace("data:image", "") and 'src="' not in text


def test_rows_are_shown_and_filtered(browser, page):
    browser.get(page.as_uri())
    assert len(visible(browser)) == 40
    assert browser.find_element("css selector", "output").text == "40 of 40"
    assert "38 of 40 rows are permutable" in browser.find_element("css selector", "p").text
    broken = browser.execute_script(
        "return [...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    )
    assert broken == 0 and len(browser.find_elements("css selector", "img")) > 80

    browser.find_element("css selector", "[name=permute] option[value=false]").click()
    assert visible(browser) == ["no-0", "no-1"]
    assert "a & <b>" in browser.find_element("css selector", "section:not([hidden])").text
    browser.find_element("css selector", "[name=why] option[value=captions]").click()
    assert visible(browser) == ["no-0"]
    for name in ("permute", "why"):
        browser.find_element("css selector", f"[name={name}] option").click()
    browser.find_element("css selector", "[name=words]").send_keys("NO-1")
    assert visible(browser) == ["no-1"]


def test_a_permuted_row_shows_the_same_colours(browser, page):
    """In both orders a mark has the colour of the picture it names."""
    browser.get(page.as_uri())
    seen = 0
    for row in browser.find_elements("css selector", "section[data-permute=true]")[:20]:
        orders = row.find_elements("css selector", ".orders > div")
        assert len(orders) == 2
        shown = []
        for order in orders:
            marks = order.find_elements("css selector", "mark")
            figures = order.find_elements("css selector", "figure")
            shown.append(sorted(mark.get_attribute("style") for mark in marks))
            assert set(shown[-1]) <= {figure.get_attribute("style") for figure in figures}
        assert shown[0] == shown[1]
        seen += bool(shown[0])
    assert seen > 5


def test_a_run_is_shown(browser, digits, tmp_path):
    x = json.loads((digits / "test.jsonl").read_text().splitlines()[0])
    rollouts = []
    for copy, sigma in enumerate(([0, 1], [1, 0])):
        for reward in (1.0, 0.1):
            row = {"step": 3, "id": "which", "copy": copy, "sigma": sigma, "reward": reward}
            row |= {"images": [str(digits / name) for name in (x["images"] * 2)[:2]]}
            row |= {"question": "<image> <image> Is the [[1|left]] one a 3?", "answer": "[[1|A]]"}
            rollouts.append(
                row | {"response": f"<think>{reward}</think>", "advantage": reward - 0.5}
            )
    path = tmp_path / "rollouts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rollouts))
    main([str(path), "--out", str(tmp_path / "run.html")])
    browser.get((tmp_path / "run.html").as_uri())
    cells = [cell.text for cell in browser.find_elements("css selector", "td")]
    assert cells[:3] == ["1.00", "+0.50", "<think>1.0</think>"] and len(cells) == 12
    assert len(browser.find_elements("css selector", ".orders > div")) == 2


@pytest.mark.parametrize(
    "content, said",
    [
        ("", "the file is empty"),
        ('{"id": "x"}', "missing"),
        (
            '{"id": "x", "images": ["no.png"], "question": "<image> x", "answer": "y"}',
            "does not ex",
        ),
        ('{"id": "x", "images": ["r.jsonl"], "question": "<image> x", "answer": "y"}', "r.jsonl:1"),
    ],
)
def test_bad_rows(tmp_path, content, said):
    (tmp_path / "r.jsonl").write_text(content)
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "r.jsonl"), "--out", str(tmp_path / "page.html")])
    assert said in str(ended.value)
