"""Folders of images as people have them: odd names, odd files, any layout."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (11, 13, 3), np.uint8)


def encoded(kind: str, mode: str = "RGB", **more: object) -> bytes:
    """A picture by Pillow."""
    image = Image.fromarray(PIXELS)
    if mode == "I;16":
        image = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)
    elif mode != "RGB":
        image = image.convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def animated(kind: str) -> bytes:
    first, second = Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)
    file = io.BytesIO()
    first.save(file, kind, save_all=True, append_images=[second, first])
    return file.getvalue()


# Files that hold an image which is read.
GOOD: dict[str, bytes] = {
    "1.jpg": encoded("JPEG"),
    "2.JPEG": encoded("JPEG", "L"),
    "cmyk.jpg": encoded("JPEG", "CMYK"),
    "progressive.jpg": encoded("JPEG", progressive=True),
    "a.png": encoded("PNG", "RGBA"),
    "16.png": encoded("PNG", "I;16"),
    "palette.png": encoded("PNG", "P"),
    "bits.png": encoded("PNG", "1"),
    "16.tif": encoded("TIFF", "I;16"),
    "moving.gif": animated("GIF"),
    "moving.webp": animated("WEBP"),
    "pages.tiff": animated("TIFF"),
    "x.Bmp": encoded("BMP"),
    "png.jpg": encoded("PNG"),  # under another format's name
    "ünïcode 中.png": encoded("PNG"),
    " spaces and\ttabs .jpg": encoded("JPEG"),
    "line\nbreak.jpg": encoded("JPEG"),
    "-rf.png": encoded("PNG"),
    "$(x)`y`'\".jpg": encoded("JPEG"),
    "%s{0}[1]*?.jpg": encoded("JPEG"),
    os.fsdecode(b"caf\xe9.jpg"): encoded("JPEG"),
    "jpg.jpg": encoded("JPEG"),
    "a.b.c.jpg": encoded("JPEG"),
    "x" * 240 + ".jpg": encoded("JPEG"),
}
# Files that look like an image, and are none.
BAD: dict[str, bytes] = {
    "empty.jpg": b"",
    "short.jpg": encoded("JPEG")[:300],
    "short.png": encoded("PNG")[:100],
    "text.jpg": b"no image at all\n",
    "page.png": b"<!DOCTYPE html><html>404</html>",
    "zeros.bmp": bytes(500),
}
# Files and folders that are to be left out.
OTHER = (
    *(
        "Thumbs.db",
        ".DS_Store",
        "desktop.ini",
        "notes.txt",
        "labels.csv",
        "archive.zip",
    ),
    *("._1.jpg", ".hidden.png", "jpg", "x.jpg.part", "x.jpg~", "clip.mp4", "raw.CR2"),
)
CLASSES = (
    *("a", "b", "c", "A", "ä", "猫", "a b", " ", "-x", "--help", "'q'", '"', "$HOME"),
    *(
        "%s",
        "{0}",
        "[1]",
        "*",
        "con",
        "a:b",
        "a,b",
        "0",
        "01",
        "x" * 200,
        "a\\b",
        "nul",
    ),
    *("line\nbreak", "tab\t", "\x1b[31m", "x.jpg", "1.0.0", "~", "None", "true"),
)
JUNK = ("__MACOSX", "@eaDir", ".git", ".ipynb_checkpoints", "..a")


class Tree:
    """A random folder below `root`.

    Attributes:
      good: paths of the images in classes that are to be read.
      bad: of those that look like one.
    """

    def __init__(self, root: Path, seed: int) -> None:
        """Makes it; the same for the same seed."""
        self.root, self._rng = root, np.random.default_rng(seed)
        self.good: set[str] = set()
        self.bad: set[str] = set()
        root.mkdir()
        top = root / self._one("photos", "data", "a") if self._may(0.2) else root
        splits = self._splits()
        names = [self._one(*CLASSES) for _ in range(self._rng.integers(0, 5))]
        if self._may(0.05):
            names.append(os.fsdecode(b"caf\xe9"))
        for split in splits:
            for name in names:
                if self._may(0.9):
                    self._class(top / split / name)
        for place in (root, top, *(top / split for split in splits)):
            if place.is_dir():
                self._rubbish(place)

    def of_split(self, split: str) -> set[str]:
        """The images below folders of a name; all if that is empty."""
        return {p for p in self.good | self.bad if not split or f"/{split}/" in p}

    def _splits(self) -> tuple[str, ...]:
        return self._one(
            *((("",),) * 2),
            ("train", "test"),
            ("train",),
            ("Training", "val"),
            ("train", "valid", "test"),
        )

    def _class(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for _ in range(self._rng.integers(0, 6)):
            place = folder
            for _ in range(self._rng.integers(0, 3) if self._may(0.3) else 0):
                place /= self._one("deep", "deeper", "x.png", "中")
            try:
                place.mkdir(parents=True, exist_ok=True)
                self._file(place)
            except (FileExistsError, NotADirectoryError, IsADirectoryError):
                continue  # two of one name
        if self._may(0.3):
            self._rubbish(folder)

    def _file(self, place: Path) -> None:
        files, found = (GOOD, self.good) if self._may(0.93) else (BAD, self.bad)
        name = self._one(*files)
        path = place / name
        if self._may(0.1):
            source = self.root.with_name(f"elsewhere-{len(os.listdir(place))}")
            source.write_bytes(files[name])
            path.symlink_to(source)
        elif not path.exists():
            path.write_bytes(files[name])
        else:
            return
        found.add(str(path))

    def _rubbish(self, place: Path) -> None:
        makers: tuple[Callable[[], object], ...] = (
            lambda: (place / self._one(*OTHER)).write_bytes(b"x"),
            lambda: (place / self._one(*JUNK)).mkdir(),
            lambda: (place / self._one(*CLASSES)).mkdir(),
            lambda: (place / "gone.jpg").symlink_to(place / "nowhere"),
            lambda: (place / "self.jpg").symlink_to(place / "self.jpg"),
            lambda: (place / "loop").symlink_to(place, target_is_directory=True),
            lambda: (place / "up").symlink_to(place.parent, target_is_directory=True),
            lambda: os.mkfifo(place / "pipe.jpg"),
            lambda: (place / "device.png").symlink_to("/dev/zero"),
        )
        for _ in range(self._rng.integers(0, 3)):
            try:
                makers[self._rng.integers(len(makers))]()
            except OSError:
                continue  # two of one name

    def _may(self, chance: float) -> bool:
        return bool(self._rng.random() < chance)

    def _one(self, *choices):
        return choices[self._rng.integers(len(choices))]
