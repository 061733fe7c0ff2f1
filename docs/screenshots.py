"""Write the pictures of the documentation: docs/images/{admin,job,schedules}-{light,dark}.png.

usage: screenshots.py [FOLDER]    FOLDER is docs/images by default

Runs `rqjobs dev` with the jobs of shop.py in a temporary folder, on a free port, and a Chromium
without a window. Both have ended when the script ends. `make screenshots` installs what it needs.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import math
import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
DOCS = Path(__file__).resolve().parent
WIDTH_PIXELS = 1280
HEIGHT_MAX_PIXELS = 940
FILE_MAX_BYTES = 150_000
START_SECONDS = 120
STOP_SECONDS = 60
PALETTE_COLOURS = 256
PALETTE_EXACT_COLOURS = 96


def wait_for(condition: Callable[[], Any], what: str, seconds: float = START_SECONDS) -> Any:
    """Return the condition's first true value.

    Raises:
        TimeoutError: it had none within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.1)
    return value


@contextlib.contextmanager
def rqjobs_dev(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """Run `rqjobs dev` in this folder for the length of a `with` block; yields its address."""
    address = f"http://127.0.0.1:{environment['PORT']}"
    log = folder / "dev.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "rqjobs", "dev"],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )

    def answers() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"rqjobs dev ended:\n{log.read_text()}")
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{address}/healthz", timeout=5).status == 200
        return False

    try:
        wait_for(answers, "the pages")
        yield address
    finally:
        for _ in range(2):  # the second signal returns the running jobs to their queues
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(3)
        process.wait(STOP_SECONDS)


def fill(rqjobs: Any, shop: Any) -> str:
    """Make the demo data; returns the id of a finished job.

    Some jobs have finished or failed, two are running and keep both workers busy, and some wait.
    """
    wait_for(lambda: len(rqjobs.schedules.all()) == 4, "the declared schedules")
    ended = [
        rqjobs.schedules.run_now(schedule.name)
        for schedule in rqjobs.schedules.all()
        if schedule.name != "shop-import_catalog"
    ]
    ended += [rqjobs.enqueue(shop.charge_card, 1038 + n, 12_900) for n in range(2)]
    ended += [rqjobs.enqueue(shop.resize_photo, f"chair-{n}.jpg", 400) for n in range(2)]
    for number in range(2):
        rqjobs.enqueue_in(3600 * (number + 1), shop.send_receipt, 1050 + number, "ada@example.com")
    ended += [rqjobs.enqueue(shop.send_receipt, 1040 + n, "grace@example.com") for n in range(2)]
    shown = rqjobs.enqueue(shop.sync_inventory, "north")
    ended.append(shown)
    wait_for(lambda: all(job.get_status() in ("finished", "failed") for job in ended), "the jobs")
    long = [rqjobs.enqueue(shop.import_catalog, name) for name in ("oak & co", "lamps")]
    wait_for(lambda: all(job.get_status() == "started" for job in long), "two running jobs")
    for number in range(3):
        rqjobs.enqueue(shop.resize_photo, f"table-{number}.jpg")
    return str(shown.id)


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[webdriver.Chrome]:
    """A Chromium without a window, as wide as the pictures."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (program and driver):
        sys.exit(
            "chromium and chromedriver are needed; for example: apt-get install chromium-driver"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-lcd-text",
        "--hide-scrollbars",
        "--no-first-run",
        f"--window-size={WIDTH_PIXELS},1000",
        f"--user-data-dir={folder / 'profile'}",
    ):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield browser
    finally:
        browser.quit()


def with_palette(png: bytes) -> bytes:
    """The same picture with at most 256 colours: a page has few, and its file a third of the size.

    Raises:
        ValueError: the picture is not as Chromium writes it (8 bits a colour, not interlaced).
    """
    chunks = dict(read_chunks(png))
    width, height, bits, kind, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    if (bits, interlaced) != (8, 0) or kind not in (2, 6):
        raise ValueError(f"a PNG with {bits} bits, colour type {kind}, interlace {interlaced}")
    size = 3 if kind == 2 else 4
    rows = unfiltered(zlib.decompress(chunks[b"IDAT"]), width * size, size)
    pixels = [[row[at : at + 3] for at in range(0, len(row), size)] for row in rows]
    counts = Counter(colour for row in pixels for colour in row)
    palette = palette_of(counts)
    place = {colour: number for number, colour in enumerate(palette)}
    for colour in counts:
        if colour not in place:
            nearest = min(palette, key=lambda one: math.dist(one, colour))
            place[colour] = place[nearest]
    data = b"".join(b"\0" + bytes(place[colour] for colour in row) for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    return PNG_SIGNATURE + b"".join(
        chunk(name, content)
        for name, content in (
            (b"IHDR", header),
            (b"PLTE", b"".join(palette)),
            (b"IDAT", zlib.compress(data, 9)),
            (b"IEND", b""),
        )
    )


def palette_of(counts: Counter[bytes]) -> list[bytes]:
    """At most 256 colours for these: the most frequent ones, then one for each hue that is left.

    A small red text has few pixels, but nothing else is red.
    """
    palette = [colour for colour, _ in counts.most_common(PALETTE_EXACT_COLOURS)]
    hues: dict[tuple[int, ...], Counter[bytes]] = {}
    for colour, count in counts.items():
        hues.setdefault(tuple(part >> 4 for part in colour), Counter())[colour] = count
    for hue in sorted(hues.values(), key=Counter.total, reverse=True):
        (colour, _), *_ = hue.most_common(1)
        if colour not in palette and len(palette) < PALETTE_COLOURS:
            palette.append(colour)
    return palette


def read_chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The name and the content of each chunk; the image data as one chunk."""
    at, data = len(PNG_SIGNATURE), b""
    while at < len(png):
        length, name = struct.unpack(">I4s", png[at : at + 8])
        content = png[at + 8 : at + 8 + length]
        at += length + 12
        if name == b"IDAT":
            data += content
        else:
            yield name, content
    yield b"IDAT", data


def unfiltered(data: bytes, width: int, size: int) -> list[bytes]:
    """The rows of an image of `width` bytes, with `size` bytes a pixel (PNG specification, 9.2)."""
    rows = [bytes(width)]
    for start in range(0, len(data), width + 1):
        method, row, above = data[start], bytearray(data[start + 1 : start + 1 + width]), rows[-1]
        for at in range(width) if method else ():
            left = row[at - size] if at >= size else 0
            corner = above[at - size] if at >= size else 0
            row[at] = row[at] + predicted(method, left, above[at], corner) & 0xFF
        rows.append(bytes(row))
    return rows[1:]


def predicted(method: int, left: int, above: int, corner: int) -> int:
    """The value that a filter method of PNG predicts for a byte."""
    if method == 1:
        return left
    if method == 2:
        return above
    if method == 3:
        return (left + above) // 2
    guess = left + above - corner
    return min((left, above, corner), key=lambda byte: abs(guess - byte))


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file, with its length and checksum."""
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def take(browser: webdriver.Chrome, path: Path) -> None:
    """Write a picture of the page that the browser shows, from its top."""
    height = browser.execute_script("return document.documentElement.scrollHeight")
    clip = {"x": 0, "y": 0, "width": WIDTH_PIXELS, "scale": 1}
    clip["height"] = min(height, HEIGHT_MAX_PIXELS)
    picture = browser.execute_cdp_cmd(
        "Page.captureScreenshot",
        {"format": "png", "clip": clip, "captureBeyondViewport": True},
    )
    content = with_palette(base64.b64decode(picture["data"]))
    if len(content) > FILE_MAX_BYTES:
        sys.exit(f"{path.name} has {len(content):,} bytes, more than {FILE_MAX_BYTES:,}")
    path.write_bytes(content)
    print(f"{path}  {clip['height']} pixels high, {len(content):,} bytes")


def take_all(
    browser: webdriver.Chrome, address: str, password: str, job: str, images: Path
) -> None:
    """Log in, and take a picture of each page in both colour schemes."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": WIDTH_PIXELS, "height": 600, "deviceScaleFactor": 1, "mobile": False},
    )
    browser.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": "Europe/Berlin"})
    browser.get(f"{address}/")
    browser.find_element(By.ID, "user").send_keys("admin")
    browser.find_element(By.ID, "password").send_keys(password)
    browser.find_element(By.CSS_SELECTOR, "button.primary").click()
    wait_for(lambda: browser.find_elements(By.CSS_SELECTOR, ".verdict"), "the home page")
    pages = {
        "admin": "/",
        "job": f"/jobs/{job}",
        "schedules": "/schedules",
    }
    for scheme in ("light", "dark"):
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )
        for name, path in pages.items():
            browser.get(address + path)
            time.sleep(1.5)  # the page's script localises times and refreshes its tables
            take(browser, images / f"{name}-{scheme}.png")


def main() -> None:
    images = Path(sys.argv[1] if len(sys.argv) > 1 else DOCS / "images").resolve()
    images.mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    password = secrets.token_urlsafe(12)
    keep = {name: text for name, text in os.environ.items() if not name.startswith("RQJOBS_")}
    keep.pop("REDIS_URL", None)
    keep.update(
        PORT=str(port),
        RQJOBS_MODULES="shop",
        RQJOBS_ADMIN_PASSWORD=password,
        PYTHONPATH=f"{DOCS.parent}:{DOCS}",
        TZ="Europe/Berlin",
    )
    os.environ.clear()
    os.environ.update(keep)
    with tempfile.TemporaryDirectory(prefix="shop-") as name:
        folder = Path(name)
        os.chdir(folder)
        with rqjobs_dev(folder, keep) as address:
            job = fill(importlib.import_module("rqjobs"), importlib.import_module("shop"))
            with chromium(folder) as browser:
                take_all(browser, address, password, job, images)
        os.chdir(DOCS)


if __name__ == "__main__":
    main()
