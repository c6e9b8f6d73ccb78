"""Data sets as they lie on the Hugging Face hub, and rows as they lie in our files.

A source is a hub id, or a folder with the same layout (parquet files, zips, a README.md whose
`configs:` names them): `datasets` reads both by the same call. Pictures are never decoded here:
their bytes are copied, once for each content, to DIR/images/<hash>.<format>.
"""

import base64
import hashlib
import io
import json
import os
import sys
import urllib.parse
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from perl.permute import DataError


class Skip(ValueError):
    """A row cannot become one of ours: the reason, as it is counted."""


# --- Tables and files of a source ---


def table(
    source: str, config: str | None, split: str, columns: Sequence[str], revision: str | None = None
):
    """The rows of one config and split as a `datasets.Dataset`, pictures as {bytes, path}.

    Raises DataError, one sentence, where the hub cannot be reached, or the source has no such
    config, split or columns.
    """
    import datasets

    local = Path(source).is_dir()
    # The cache knows a folder by its name and README.md alone: it would give another one's rows.
    local_options = {"download_mode": "force_redownload", "verification_mode": "no_checks"}
    options = local_options if local else {"revision": revision}
    if not local and (source.startswith((".", "/", "~")) or source.count("/") != 1):
        raise DataError(f"{source}: neither a folder nor a hub id (owner/name)")
    try:
        found = datasets.load_dataset(source, config, split=split, **options)
    except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
        raise DataError(
            f"{source}: the hub cannot be reached or has no such data set ({error}). "
            "Download it elsewhere and pass the folder: --source DIR"
        ) from None
    except (ValueError, FileNotFoundError, datasets.exceptions.DatasetGenerationError) as error:
        first_line = str(error.__cause__ or error).splitlines()[0]
        name = f"config {config!r}, " if config else ""
        raise DataError(f"{source}: {name}split {split!r}: {first_line}") from None

    missing = [name for name in columns if name not in found.column_names]
    if missing:
        raise DataError(
            f"{source}: no column {', '.join(missing)}; it has {', '.join(found.column_names)}"
        )
    return undecoded(found)


def undecoded(rows):
    """The same rows, with each picture as {bytes, path} instead of a decoded image."""
    from datasets import Image, List

    for name, feature in rows.features.items():
        if isinstance(feature, Image):
            rows = rows.cast_column(name, Image(decode=False))
        elif isinstance(feature, List) and isinstance(feature.feature, Image):
            rows = rows.cast_column(name, List(Image(decode=False)))
    return rows


def configs_of(source: str, revision: str | None = None) -> list[str]:
    """The names of a source's configs. Raises DataError where it cannot be read."""
    import datasets

    try:
        return datasets.get_dataset_config_names(
            source, revision=None if Path(source).is_dir() else revision
        )
    except (ConnectionError, FileNotFoundError, datasets.exceptions.DatasetNotFoundError) as error:
        raise DataError(
            f"{source}: the hub cannot be reached or has no such data set ({error})"
        ) from None


def part(source: str, name: str, revision: str | None = None) -> Path:
    """One file of a source, downloaded if it is on the hub. Raises DataError without it."""
    if Path(source).is_dir():
        file = Path(source) / name
        if not file.is_file():
            raise DataError(f"{source}: no file {name}")
        return file
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    try:
        return Path(hf_hub_download(source, name, repo_type="dataset", revision=revision))
    except (ConnectionError, EntryNotFoundError, HfHubHTTPError) as error:
        raise DataError(f"{source}: {name} cannot be had ({str(error).splitlines()[0]})") from None


def has_part(source: str, name: str, revision: str | None = None) -> bool:
    """Is there such a file in a source?"""
    if Path(source).is_dir():
        return (Path(source) / name).is_file()
    from huggingface_hub import file_exists

    return file_exists(source, name, repo_type="dataset", revision=revision)


# --- Pictures ---


class Zips:
    """Pictures inside zip files, read without unpacking."""

    def __init__(self, paths: Sequence[Path]):
        self.of: dict[str, zipfile.ZipFile] = {}
        for path in paths:
            try:
                archive = zipfile.ZipFile(path)
            except zipfile.BadZipFile:
                raise DataError(f"{path}: it is no zip file, or is torn") from None
            for name in archive.namelist():
                self.of[name] = archive

    def read(self, name: str) -> bytes:
        """Raises Skip for a picture that is in none of them."""
        if name not in self.of:
            raise Skip("a picture is missing in the zips")
        try:
            return self.of[name].read(name)
        except (zipfile.BadZipFile, zlib.error):
            raise Skip("a picture that is torn in its zip") from None


def bytes_of(picture: object, folders: Sequence[Path] = ()) -> bytes:
    """The bytes of a picture: {bytes, path}, a path, a file:// or a data: URL. A path is tried
    under each of `folders`. Raises Skip where there are none.
    """
    if isinstance(picture, dict):
        if picture.get("bytes"):
            return picture["bytes"]
        picture = picture.get("path") or picture.get("image") or picture.get("url")
        if isinstance(picture, dict):
            picture = picture.get("url")
    if isinstance(picture, bytes):
        return picture
    if not isinstance(picture, str):
        raise Skip("a picture without bytes or path")
    if picture.startswith("data:"):
        try:
            return base64.b64decode(picture.partition(",")[2], validate=True)
        except ValueError:
            raise Skip("a data: URL that is torn") from None
    if picture.startswith(("http://", "https://")):
        raise Skip("a picture at a web address: download it first")

    name = urllib.parse.unquote(picture.removeprefix("file://"))
    for folder in (Path(), *folders):
        if (folder / name).is_file():
            return (folder / name).read_bytes()
    raise Skip("a picture file is missing")


def jpeg_url(path: str | Path, side: int, quality: int) -> str:
    """A picture as a data: URL, upright and at most `side` pixels wide and high. Raises OSError
    for one that cannot be read.
    """
    from perl.rollout import open_image

    picture = open_image(path)
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


class Pictures:
    """DIR/images: byte-equal pictures are one file."""

    def __init__(self, out: Path):
        self.out = out
        self.written: dict[str, str] = {}  # digest -> path

    def put(self, data: bytes) -> str:
        """Write a picture if it is not there yet; returns its path relative to DIR. Raises Skip
        for bytes that are no picture.
        """
        from PIL import Image, UnidentifiedImageError

        digest = hashlib.sha256(data).hexdigest()[:20]
        if digest in self.written:
            return self.written[digest]
        try:
            with Image.open(io.BytesIO(data)) as picture:
                suffix = (picture.format or "png").lower()
                picture.load()
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
            raise Skip("a picture that cannot be read") from None
        name = f"images/{digest}.{suffix}"
        file = self.out / name
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            aside = file.with_suffix(".tmp")
            aside.write_bytes(data)
            aside.replace(file)
        self.written[digest] = name
        return name


# --- Rows out ---


class Writer:
    """DIR/NAME.jsonl, a line at a time, with a count for each stage and reason.

    What is written stays when the source fails in the middle.
    """

    def __init__(self, out: Path, name: str):
        out.mkdir(parents=True, exist_ok=True)
        self.path = out / f"{name}.jsonl"
        self.file = open(self.path, "w", encoding="utf-8")
        self.pictures = Pictures(out)
        self.kept = 0
        self.counts: Counter[str] = Counter()

    def write(self, row: dict) -> None:
        self.file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.kept += 1
        if row.get("permute"):
            self.counts["permutable"] += 1
        elif row.get("why"):
            self.counts[f"not permutable: {row['why'].split(': ')[0]}"] += 1

    def skip(self, why: Skip) -> None:
        self.counts[f"left out: {why}"] += 1

    def close(self) -> None:
        """Say what became of the rows, on stderr."""
        self.file.close()
        print(f"{self.path}: {self.kept} rows", file=sys.stderr)
        for what, count in sorted(self.counts.items(), key=lambda item: (-item[1], item[0])):
            print(f"{count:8d} {what}", file=sys.stderr)


def progress(rows, name: str) -> Iterator:
    """`rows` behind a progress bar."""
    from tqdm import tqdm

    return tqdm(rows, desc=name, dynamic_ncols=True, disable=not os.isatty(2))
