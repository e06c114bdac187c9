"""`python -m tests.screenshots`: takes the pictures of docs/images from real pages with a real bot behind them.

One function for each picture. A picture is kept small: it is in every clone.
"""

import base64
import struct
import tempfile
import zlib
from pathlib import Path

from playwright.sync_api import sync_playwright

from sandbox import running_sandbox
from tests.browser import launch, running_bot
from tests.conftest import ROOT
from tests.test_browser_phone import HOPPER, choose, wait_for

IMAGES = ROOT / "docs" / "images"


PIXELS = """async (picture) => {
  const image = new Image();
  image.src = `data:image/png;base64,${picture}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.width, image.height];
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const all = context.getImageData(0, 0, image.width, image.height).data;
  let text = "";
  for (let at = 0; at < all.length; at += 4) text += String.fromCharCode(all[at], all[at + 1], all[at + 2]);
  return [image.width, image.height, btoa(text)];
}"""


def save(page, name):
    """What the page shows, as a PNG whose colours go in steps of five: nobody sees it, and photos need a third less."""
    picture = base64.b64encode(page.screenshot()).decode()
    blank = page.context.browser.new_page()  # without our page's policy, which forbids data: addresses
    width, height, pixels = blank.evaluate(PIXELS, picture)
    blank.close()
    steps = bytes(round(value / 5) * 5 for value in range(256))
    rgb = base64.b64decode(pixels).translate(steps)
    rows = b"".join(b"\0" + rgb[at : at + 3 * width] for at in range(0, len(rgb), 3 * width))
    (IMAGES / name).write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + _chunk(b"IDAT", zlib.compress(rows, 9))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


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


def main():
    IMAGES.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_sandbox() as sandbox,
        running_bot(sandbox, Path(folder)),
        sync_playwright() as playwright,
    ):
        browser = launch(playwright)
        phone(
            browser.new_page(
                viewport={"width": 1040, "height": 735}, locale="en-US", reduced_motion="reduce"
            ),
            sandbox,
        )
        browser.close()


if __name__ == "__main__":
    main()
