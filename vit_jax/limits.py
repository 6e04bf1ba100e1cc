"""How large things from outside may be: files of strangers, and values of a config.

A limit is far above all that is in use, and below what would fill a machine: whoever
meets one has a damaged file, a hostile one, or a slip of the finger before them.
"""

import os
import stat

from vit_jax.errors import UserError

# Of an image that is decoded: `config.data.max_pixels`, if it says no other. Pillow
# refuses more than this too, twice its `Image.MAX_IMAGE_PIXELS`; as RGB it is 0.5 GB.
IMAGE_PIXELS = 178_956_970

# What OpenCV decodes at most, so that more cannot be asked for.
MOST_IMAGE_PIXELS = 2**30

# Of the file of one image: `IMAGE_PIXELS` of 16 bits in 4 channels, not compressed, are
# 1.4 GB, but nobody trains on these.
IMAGE_BYTES = 2**30

# Side of an image that a model is given, and of what is done to it before, in pixels.
IMAGE_SIDE = 2**14

# Classes of a head, and of a description of a dataset.
CLASSES = 2**24

# Classes that are numbers without names: a larger number is an identifier, or a slip,
# and a name is made for each number below it.
NUMBERED_CLASSES = 1_000_000

# Layers of a model.
LAYERS = 2**12

# Of JSON and of the index of a file of weights, bytes: the largest published model has
# some 2,000 arrays, 200 kB.
HEADER_BYTES = 16 * 2**20

# An archive may hold this many times its size, and `ARCHIVE_SLACK` bytes beside it.
# Weights hardly shrink when they are compressed; images do, if they are drawings
# (dSprites: 115 times). What was made to fill a disk holds 1,000 times its size.
WEIGHTS_RATIO = 20
DATA_RATIO = 200
ARCHIVE_SLACK = 64 * 2**20

# Processes that read data on one machine, and threads of each.
WORKERS = 1024

# Trials of a sweep, each a run of its own.
TRIALS = 100_000

# A line of a table, characters. Python's csv module takes cells of 131,072.
LINE = 2**24


def is_number(text: str) -> bool:
    """Whether a text is a whole number of at most 18 digits, which `int` takes.

    `str.isdigit` is true of superscripts too, and `int` refuses some thousand digits.

    >>> [is_number(x) for x in ("070", "\N{SUPERSCRIPT TWO}", "-1", "")]
    [True, False, False, False]
    """
    return text.isascii() and text.isdecimal() and len(text) <= 18


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuses a pipe or a device, of which there may be no end.

    Raises:
        UserError: it is none of a file's kind, or not there.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise UserError(f"{os.fspath(path)!r} cannot be read: {error}.") from error
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is no regular file: copy what it gives into one.")


def check_unpacked(path: str, packed: int, unpacked: int) -> None:
    """Refuses a compressed file of data that would fill the machine.

    Args:
        path: of the file.
        packed: its bytes.
        unpacked: the bytes that it claims to hold, or that have come out so far.

    Raises:
        UserError: more than data ever shrinks.
    """
    if unpacked > DATA_RATIO * packed + ARCHIVE_SLACK:
        raise UserError(
            f"{path} has {packed:,} bytes, and would be {unpacked:,} or more when it "
            f"is unpacked, over {DATA_RATIO} times as many: it is damaged, or made to "
            "fill this machine. If it is good, unpack it yourself."
        )


def check_memory(path: str, wanted: int) -> None:
    """Refuses a file that is read as a whole and is larger than this machine's memory.

    Raises:
        UserError: what it takes, and what there is.
    """
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if wanted > there:
        raise UserError(
            f"{path} is read into memory: it takes {wanted / 2**30:,.1f} GiB, and this "
            f"machine has {there / 2**30:,.1f}. Make a dataset of it that is read from "
            "disk, with python -m vit_jax.data.prepare."
        )
