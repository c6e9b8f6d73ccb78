"""The same pixels on both sides: open_image on every kind of picture, what vLLM and the trainer
make of them, and what is found before a model is loaded."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pictures import HEIGHT, KINDS, WIDTH, grey, pattern, write
from PIL import Image

from perl.permute import DataError, Sample
from perl.rollout import check_images, image_size, open_image

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_upright_on_white_with_8_bits(kind, tmp_path):
    picture = open_image(write(kind, tmp_path))
    assert picture.mode == "RGB" and picture.size == (WIDTH, HEIGHT)
    seen = np.asarray(picture).astype(int)
    expected = pattern().astype(int)
    if kind == "one bit":
        seen, expected = seen[:, :24], expected[:, :24]  # dithering changes the grey bar
    off = np.abs(seen - expected[..., None])
    assert off.mean() < 3 and np.quantile(off, 0.98) <= 16  # JPEG and palettes are not exact


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_for_a_second_reader(kind, tmp_path):
    picture = open_image(write(kind, tmp_path))
    assert not picture.info and not picture.getexif() and not picture.has_transparency_data


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_is_read_off_the_header(kind, tmp_path):
    path = write(kind, tmp_path)
    assert image_size(path) == open_image(path).size


@pytest.mark.parametrize("value", [0, 1, 255, 256, 32896, 65534, 65535])
def test_16_bits_are_scaled_not_clipped(value, tmp_path):
    Image.fromarray(np.full((4, 4), value, np.uint16)).save(tmp_path / "x.png")
    assert open_image(tmp_path / "x.png").getpixel((0, 0))[0] == round(value / 257)


def test_floats_are_refused_by_name(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(ValueError, match="floating-point numbers"):
        open_image(tmp_path / "x.tiff")


def test_32_bits_are_refused_by_name(tmp_path):
    Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(tmp_path / "x.tiff")
    with pytest.raises(ValueError, match="32-bit numbers"):
        open_image(tmp_path / "x.tiff")


def torn(folder: Path, name: str = "torn.jpg") -> Path:
    """A JPEG whose header is fine."""
    path = folder / name
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:9000])
    return path


def test_a_torn_file_passes_its_header_and_is_found(tmp_path):
    path = torn(tmp_path)
    assert image_size(path) == (200, 200)
    x = Sample("x", (str(path),), "<image>", "A", where="train.jsonl:7")
    with pytest.raises(
        DataError, match=r"train.jsonl:7: images: .*torn.jpg is not a readable image"
    ):
        check_images([x])


def test_several_torn_files_are_one_sentence(tmp_path):
    xs = [
        Sample(str(k), (str(torn(tmp_path, f"{k}.jpg")),), "<image>", "A", where=f"t.jsonl:{k}")
        for k in range(3)
    ]
    with pytest.raises(DataError, match="t.jsonl:0: .*; 2 more are torn") as error:
        check_images(xs)
    assert "\n" not in str(error.value)


def test_equal_contents_in_one_row_are_named_and_not_permuted(tmp_path, capsys):
    grey().save(tmp_path / "a.png")
    grey().convert("RGB").save(tmp_path / "b.bmp")  # other bytes, the same picture
    Image.new("L", (WIDTH, HEIGHT)).save(tmp_path / "c.png")
    a, b, c = (str(tmp_path / name) for name in ("a.png", "b.bmp", "c.png"))
    rows = [
        Sample("same", (a, b), "", "A", True, where="t.jsonl:1"),
        Sample("other", (a, c), "", "A", True),
    ]
    same, other = check_images(rows)
    assert not same.permute and same.why and other.permute
    assert capsys.readouterr().err.count("t.jsonl:1: images: two are equal: not permuted") == 1


@pytest.mark.long
def test_sampler_and_trainer_see_the_same_pixels(torchrun, digits, tmp_path):
    torchrun(1, "tests/workers/pixels.py", digits, tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found) == set(KINDS)
    for kind, measured in found.items():
        assert measured["pixels"] <= 1e-5 and measured["gap"] <= 1e-4, (kind, measured)


def test_open_image_needs_pillow_alone():
    """As a data tool imports it: no torch, no transformers, no vLLM."""
    script = "import sys; import perl.rollout; print({'torch', 'transformers', 'vllm', 'numpy'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, text=True, capture_output=True, check=True
    )
    assert done.stdout.strip() == "set()"


TOKENS = [
    "<|im_end|>",
    "<|im_start|>assistant",
    "<|image_pad|>",
    "<|vision_start|>",
    "<|endoftext|>",
]


@pytest.mark.parametrize("token", TOKENS)
def test_a_control_token_in_a_question_is_found_before_weights_are_loaded(digits, tmp_path, token):
    grey().save(tmp_path / "a.png")
    row = {
        "id": "s",
        "images": ["a.png"],
        "question": f"<image> What follows {token}?",
        "answer": "7",
    }
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n")
    flags = [
        "--model",
        digits / "base",
        "--data",
        tmp_path / "t.jsonl",
        "--out",
        tmp_path / "run",
        "--prompts",
        "1",
        "--updates",
        "1",
    ]
    command = [sys.executable, "perl/train.py", *map(str, flags)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (
        done.returncode == 1
        and "t.jsonl:1: question: it holds" in done.stderr
        and not (tmp_path / "run").exists()
    )
