"""`python -m tests.screenshots`: takes the pictures of docs/images from real pages with a real bot behind them.

One function for each picture. A picture is kept small: it is in every clone.
"""

import io
import tempfile
import time
from pathlib import Path

import requests
from PIL import Image
from playwright.sync_api import sync_playwright

import parts
from sandbox import running_sandbox
from tests.browser import launch, running_bot
from tests.conftest import ROOT, eventually
from tests.test_browser_phone import AMR, CHINA, HOPPER, choose, wait_for

IMAGES = ROOT / "docs" / "images"


def save(page, name):
    """What the page shows, as a PNG of 256 colours: hardly anybody sees it, and it is much smaller."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    colours = picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=1)
    picture.quantize(palette=colours, dither=Image.Dither.FLOYDSTEINBERG).save(IMAGES / name, optimize=True)


def phone(page, sandbox):
    """A fan follows and sends a picture."""
    page.goto(sandbox.url)
    page.locator("#follow").click()
    wait_for(page, "account", 1)
    choose(page, HOPPER)
    wait_for(page, "account", 2)
    page.locator("#calls li", has_text="media/get").wait_for()
    page.mouse.move(0, 0)
    save(page, "phone.png")


def gallery(page, sandbox, bot):
    """Some fans have sent pictures, a voice and a video; one picture could not be had."""
    ledger = parts.build(bot.settings).of[""].ledger
    fault = {"path": "/cgi-bin/media/get", "times": None, "errcode": 40007, "errmsg": "invalid media_id"}
    for number, (kind, data) in enumerate(SENT):
        faults = [] if data else [fault]
        requests.put(f"{sandbox.url}/sandbox/faults", json=faults, timeout=10).raise_for_status()
        fan = f"oSandbox-{('First', 'Second', 'Third')[number % 3]}Fan0000000001"
        file = ("x", HOPPER.read_bytes() if data is None else data)
        url = f"{sandbox.url}/sandbox/fans/{fan}/messages"
        requests.post(url, data={"type": kind}, files={"file": file}, timeout=30).raise_for_status()
        eventually(lambda: not ledger.status(time.time()).pending, what="the end of the download")
    page.goto(f"{bot.url}/gallery")
    page.locator("#password").fill(bot.environ["ADMIN_PASSWORD"])
    page.locator("#password").press("Enter")
    page.locator(".grid").wait_for()

    def small_pictures():
        page.reload()
        return page.locator(".stored img.sign[src$='/image.svg']").count() == 0

    eventually(small_pictures, what="the thumbnails of all that is stored")
    page.wait_for_load_state("networkidle")
    save(page, "gallery.png")


def cut(path, *box):
    """A part of a photograph: left, upper, right and lower side as parts of the whole."""
    picture = Image.open(path)
    sides = [part * size for part, size in zip(box, picture.size * 2, strict=True)]
    out = io.BytesIO()
    picture.crop(tuple(map(int, sides))).save(out, "JPEG", quality=95)
    return out.getvalue()


SENT = (
    ("image", cut(CHINA, 0, 0.1, 0.5, 0.8)),
    ("voice", AMR),
    ("image", cut(HOPPER, 0.1, 0, 0.9, 0.7)),
    ("image", None),
    ("image", cut(CHINA, 0.35, 0, 1, 1)),
)


def main():
    IMAGES.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_sandbox() as sandbox,
        running_bot(sandbox, Path(folder), ADMIN_PASSWORD="for a picture", TZ="Asia/Shanghai") as bot,
        sync_playwright() as playwright,
    ):
        browser = launch(playwright)
        phone(
            browser.new_page(
                viewport={"width": 1040, "height": 735}, locale="en-US", reduced_motion="reduce"
            ),
            sandbox,
        )
        gallery(browser.new_page(viewport={"width": 1040, "height": 530}, locale="en-US"), sandbox, bot)
        browser.close()


if __name__ == "__main__":
    main()
