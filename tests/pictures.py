"""Small pictures of every kind that real data has, each the same upright pattern on white: made
here, with Pillow."""

from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 56, 84


def pattern() -> np.ndarray:
    """(56, 84) grey, 0..255: white, with a black bar on the left and a grey one below."""
    grey = np.full((HEIGHT, WIDTH), 255, np.uint8)
    grey[:, 4:20] = 0
    grey[40:50, 30:80] = 128
    return grey


def grey() -> Image.Image:
    return Image.fromarray(pattern())


def turned(orientation: int) -> Image.Image:
    """The stored pixels that a reader must turn by the
    tag `orientation` to see the pattern upright."""
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    picture = grey().convert("RGB")
    return picture.transpose(undo) if undo is not None else picture


def with_alpha(mode: str) -> Image.Image:
    """Ink in the alpha channel alone: every colour is black."""
    alpha = Image.fromarray(255 - pattern())
    picture = Image.new(mode, alpha.size)
    picture.putalpha(alpha)
    return picture


def palette() -> Image.Image:
    picture = grey().quantize(8)
    white = picture.getpixel((0, 0))
    picture.info["transparency"] = white
    colours = picture.getpalette()
    colours[3 * white : 3 * white + 3] = [255, 0, 0]  # what is transparent is red underneath
    picture.putpalette(colours)
    return picture


KINDS = {
    **{f"exif {k}": (f"exif{k}.jpg", lambda k=k: turned(k)) for k in range(1, 9)},
    "exif in a png": ("exif.png", lambda: turned(6)),
    "rgba": ("rgba.png", lambda: with_alpha("RGBA")),
    "la": ("la.png", lambda: with_alpha("LA")),
    "palette": ("palette.png", palette),
    "transparent grey": ("tl.png", grey),
    "16 bits": ("grey16.png", lambda: Image.fromarray(pattern().astype(np.uint16) * 257)),
    "16 bits tiff": ("grey16.tiff", lambda: Image.fromarray(pattern().astype(np.uint16) * 257)),
    "cmyk": ("cmyk.jpg", lambda: grey().convert("RGB").convert("CMYK")),
    "animation": ("animation.gif", grey),
    "one bit": ("bit.png", lambda: grey().convert("RGB").convert("1")),
    "webp": ("rgba.webp", lambda: with_alpha("RGBA")),
    "bmp": ("plain.bmp", lambda: grey().convert("RGB")),
}


def write(kind: str, folder: Path) -> Path:
    """A file of the kind in `folder`."""
    name, make = KINDS[kind]
    path, picture = Path(folder) / name, make()
    more = {}
    if kind.startswith("exif"):
        exif = Image.Exif()
        exif[0x0112] = 6 if kind == "exif in a png" else int(kind.split()[1])
        more = {"exif": exif}
    if name.endswith(".jpg"):
        more |= {"quality": 95, "subsampling": 0}
    if kind == "transparent grey":
        more = {"transparency": 255}
    if kind == "palette":
        more = {"transparency": picture.info["transparency"]}
    if kind == "animation":
        more = {
            "save_all": True,
            "append_images": [Image.new("L", picture.size, 0)],
            "duration": 100,
        }
    if name.endswith(".webp"):
        more = {"lossless": True, "exact": True}
    picture.save(path, **more)
    return path
