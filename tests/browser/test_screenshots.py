"""The pictures of the documentation, and the script that makes their files small."""

from __future__ import annotations

import importlib.util
import random
import re
import struct
import zlib
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
SIZE = struct.Struct(">II")
NAMES = [
    f"{name}-{scheme}" for name in ("admin", "job", "schedules") for scheme in ("light", "dark")
]


@pytest.fixture(scope="module")
def screenshots():
    spec = importlib.util.spec_from_file_location("screenshots", DOCS / "screenshots.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def filtered(rows, size):
    """The rows as PNG stores them, each with another of its five filter methods."""
    above = bytes(len(rows[0]))
    for number, row in enumerate(rows):
        method, line = number % 5, bytearray()
        for at, byte in enumerate(row):
            left = row[at - size] if at >= size else 0
            corner = above[at - size] if at >= size else 0
            guess = left + above[at] - corner
            paeth = min((left, above[at], corner), key=lambda one: abs(guess - one))
            line.append(byte - (0, left, above[at], (left + above[at]) // 2, paeth)[method] & 255)
        yield bytes([method]) + line
        above = row


@pytest.mark.parametrize("colour_type,size", [(2, 3), (6, 4)])
def test_a_picture_with_few_colours_keeps_its_pixels(screenshots, colour_type, size):
    dice = random.Random(1)
    colours = [bytes(dice.choices(range(256), k=3)) for _ in range(40)]
    pixels = [[dice.choice(colours) for _ in range(12)] for _ in range(10)]
    rows = [b"".join(colour + b"\xff" * (size - 3) for colour in row) for row in pixels]
    header = SIZE.pack(12, 10) + bytes([8, colour_type, 0, 0, 0])
    data = zlib.compress(b"".join(filtered(rows, size)))
    picture = screenshots.PNG_SIGNATURE + b"".join(
        screenshots.chunk(name, content)
        for name, content in (
            (b"IHDR", header),
            (b"IDAT", data[:50]),
            (b"IDAT", data[50:]),
            (b"IEND", b""),
        )
    )

    chunks = dict(screenshots.read_chunks(screenshots.with_palette(picture)))

    palette = [chunks[b"PLTE"][at : at + 3] for at in range(0, len(chunks[b"PLTE"]), 3)]
    places = screenshots.unfiltered(zlib.decompress(chunks[b"IDAT"]), 12, 1)
    assert [[palette[place] for place in row] for row in places] == pixels


@pytest.mark.parametrize("name", NAMES)
def test_every_picture_is_small_and_as_wide_as_the_others(screenshots, name):
    content = (DOCS / "images" / f"{name}.png").read_bytes()
    width, _ = SIZE.unpack_from(content, 16)
    assert width == screenshots.WIDTH_PIXELS and len(content) < screenshots.FILE_MAX_BYTES


def test_every_picture_is_shown():
    pages = [DOCS.parent / "README.md", *DOCS.glob("*.md")]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    assert sorted(set(re.findall(r"images/([\w-]+)\.png", text))) == sorted(NAMES)
