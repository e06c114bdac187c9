"""Pages in a real Chromium: one browser for a process of pytest, and pages that begin each test as new ones.

`open_page` is the way in: at the end of the test every page it gave must have stayed on this machine and must have
written no error into the console. Without Chromium these tests are skipped, or fail where CI=true is set. It knows no
page of ours.
"""

import os
import re
import shutil
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Error, sync_playwright

from sandbox import THROWAWAY
from tests.conftest import ACCOUNT, Bot, eventually, free_port, missing


def one_browser(name):
    """For `pytestmark` of a module: its tests run in one worker, and share its browser, the sandbox and the bot."""
    return pytest.mark.xdist_group(f"browser-{name}")


DESKTOP = {"width": 1200, "height": 800}
NARROW = {"width": 360, "height": 740}

_ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu"]
_AXE = Axe().axe_script
_ANIMATIONS_END = """() => Promise.all(
  document.getAnimations()
    .filter((one) => one.effect.getComputedTiming().endTime !== Infinity)
    .map((one) => one.finished.catch(() => {}))
)"""
# The first one has no windows of its own to draw: a fifth less work for the same pages.
_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def chromium():
    """The path of the installed Chromium; CHROMIUM names another one."""
    named = os.environ.get("CHROMIUM")
    return named or next(filter(None, map(shutil.which, _NAMES)), None)


def launch(playwright):
    return playwright.chromium.launch(executable_path=chromium(), args=_ARGUMENTS)


@pytest.fixture(scope="session")
def browser():
    if chromium() is None:
        missing(
            "The browser tests need Chromium: install it (on Debian: apt-get install chromium-headless-shell "
            "fonts-noto-cjk), or set CHROMIUM to its path"
        )
    with sync_playwright() as playwright:
        running = launch(playwright)
        yield running
        running.close()


class _Window:
    """A context with one page, which tests with the same options use one after the other: to open one is slow."""

    def __init__(self, browser, locale, clock):
        self.seen, self.refused = [], None  # what no page may do
        self.blank = "about:blank"
        self.context = browser.new_context(locale=locale)
        if clock:
            self.context.clock.install()
        self.context.set_default_timeout(10_000)
        self.context.on("console", self._console)
        self.context.on("weberror", lambda error: self.seen.append(f"uncaught: {error.error}"))
        self.context.on("request", self._request)
        self.page = self.context.new_page()

    def _console(self, message):
        if self.refused and re.match(f"Failed to load resource.* {self.refused} ", message.text):
            return
        if message.type in ("error", "warning"):
            self.seen.append(f"console {message.type}: {message.text}")

    def _request(self, request):
        address = urlsplit(request.url)
        if address.scheme not in ("blob", "data") and address.hostname != "127.0.0.1":
            self.seen.append(f"request to {request.url}")

    def empty(self):
        """Leaves the page as a new one: no document, cookie, stored value, permission or pointer."""
        for other in self.context.pages[1:]:
            other.close()
        if self.page.url.startswith("http"):
            self.page.evaluate("localStorage.clear(); sessionStorage.clear()")
        self.context.clear_cookies()
        self.context.clear_permissions()
        self.page.goto(self.blank)
        self.page.mouse.move(0, 0)


@pytest.fixture(scope="session")
def _windows():
    """Those that no test uses, by locale and clock."""
    return {}


@pytest.fixture
def open_page(browser, _windows):
    """open_page(url, locale=..., ...) -> a page that no other test has.

    `refused`: the page makes requests that are answered with this HTTP status, and the browser says so itself.
    `clock`: the page's time can be moved. `motion`: its animations run; each costs a dozen pictures of the page.
    `blank`: a small page to wait for the next test at, on a site whose Cross-Origin-Opener-Policy makes the browser
    start a process whenever it is entered.
    """
    used = []

    def open_one(
        url,
        *,
        locale="en-US",
        viewport=DESKTOP,
        clock=False,
        motion=False,
        permissions=(),
        cookies=(),
        refused=None,
        blank="about:blank",
    ):
        free = _windows.setdefault((locale, clock), [])
        window = free.pop() if free else _Window(browser, locale, clock)
        used.append((window, free))
        window.refused, window.blank = refused, blank
        window.page.set_viewport_size(viewport)
        window.page.emulate_media(
            color_scheme="light", reduced_motion="no-preference" if motion else "reduce"
        )
        window.context.grant_permissions(list(permissions))
        window.context.add_cookies(list(cookies))
        window.page.goto(url)
        return window.page

    yield open_one
    seen = []
    for window, free in used:
        try:
            window.empty()
        except Error:
            window.context.close()
        else:
            free.append(window)
        seen += window.seen
        window.seen.clear()
    assert not seen, "\n".join(seen)


@contextmanager
def running_bot(sandbox, folder, **environ):
    """A bot in processes of its own that takes every mode, for as many tests as its user likes."""
    bot = Bot(
        folder,
        {
            **ACCOUNT,
            "WECHAT_AES_KEY": THROWAWAY.aes_key,
            "WECHAT_ACCEPT_PLAINTEXT": "1",
            "WECHAT_API_BASE": sandbox.url,
            "DATABASE_URL": f"sqlite:///{folder}/bot.db",
            "MEDIA_STORE": f"{folder}/media",
            "PORT": str(free_port()),
            "WEB_CONCURRENCY": "1",
            **environ,
        },
    )
    sandbox.callback = f"{bot.url}/wechat"
    try:
        bot.web()
        yield bot
    finally:
        for process in bot.processes:
            process.kill()


def assert_accessible(page):
    """axe-core finds nothing: contrast, labels, roles, structure."""
    if not page.evaluate("'axe' in window"):
        session = page.context.new_cdp_session(page)
        # Half the work of page.evaluate(), for so long a script.
        session.send("Runtime.evaluate", {"expression": _AXE})
        session.detach()
    page.evaluate(_ANIMATIONS_END)  # what fades in has another contrast meanwhile
    violations = page.evaluate("axe.run({ resultTypes: ['violations'] }).then((found) => found.violations)")
    assert not violations, "\n".join(
        f"{one['id']}: {one['help']}: {node['html'][:200]} {node.get('failureSummary', '')}"
        for one in violations
        for node in one["nodes"]
    )


def assert_fits(page):
    """Nothing has to be scrolled sideways."""
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def look(page, locale):
    """In both widths, and by axe in one of them: in English dark and narrow, where words and colours are tightest, in
    Chinese light and wide. No colour depends on the width."""
    dark = locale == "en-US"
    page.emulate_media(color_scheme="dark" if dark else "light")
    for viewport in (DESKTOP, NARROW) if dark else (NARROW, DESKTOP):
        page.set_viewport_size(viewport)
        assert_fits(page)
    assert_accessible(page)
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", back))) < 300) == dark


def assert_undistorted(picture):
    """It is drawn as high and wide as it is, or with the missing part cut off or left empty."""
    assert picture.evaluate(
        """async (image) => {
          await image.decode();
          const drawn = image.clientWidth / image.clientHeight, own = image.naturalWidth / image.naturalHeight;
          return Math.abs(drawn / own - 1) < 0.02 || ["contain", "cover"].includes(getComputedStyle(image).objectFit);
        }"""
    )


STOP = """wanted => [
  document.activeElement === document.body || getComputedStyle(document.activeElement).outlineStyle !== "none",
  document.activeElement === wanted,
]"""


def tab_to(page, wanted, most=60):
    """Moves the focus by the Tab key alone, and sees that each stop is visible, if only a frame later."""

    def stop():
        seen, there = wanted.evaluate(STOP)
        return seen and ("there" if there else "on the way")

    for _ in range(most):
        page.keyboard.press("Tab")
        if eventually(stop, 2, "a focus that is to be seen") == "there":
            return
    raise AssertionError(f"Tab does not reach {wanted}")


SAME_PIXELS = """([one, other]) => {
  const pixels = (image) => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, canvas.width, canvas.height).data;
  };
  const [a, b] = [pixels(one), pixels(other)];
  return a.length > 4 && a.length === b.length && a.every((value, index) => value === b[index]);
}"""


def same_pixels(page, one, other):
    """Whether two img elements, given as locators, show the very same picture."""
    for image in (one, other):
        image.evaluate("image => image.decode()")
    return page.evaluate(SAME_PIXELS, [one.element_handle(), other.element_handle()])
