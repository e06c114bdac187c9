"""The gallery in a real browser, with the real sandbox and a real bot behind it."""

import hashlib
import io
import re
import time

import pytest
import requests
from PIL import Image

import parts
from sandbox import running_sandbox
from tests.browser import (
    assert_fits,
    assert_undistorted,
    look,
    one_browser,
    running_bot,
    tab_to,
)
from tests.conftest import ROOT, eventually
from web.gallery import pages
from wechat.codes import explain
from wechat.formats import extension
from wechat.messages import parse_message

pytestmark = one_browser("gallery")

PASSWORD = "for tests 密码"
PHOTO = ROOT / "sandbox" / "photos" / "china.jpg"
MP3 = (b"\xff\xfb\x90\x00" + bytes(413)) * 80
AMR = b"#!AMR\n" + (b"\x3c" + bytes(31)) * 100
SVG = b"<svg xmlns='http://www.w3.org/2000/svg' onload='document.title=1'><script>document.title=1</script></svg>"


class Place:
    """A sandbox and a bot, and fans who send."""

    def __init__(self, sandbox, bot):
        self.sandbox, self.bot = sandbox, bot
        self.parts = parts.build(bot.settings).of[""]
        self.fans = 0

    def send(self, kind="image", data=None, until=("stored",)):
        """Another fan sends; returns the ledger's entry when it has come to one of those states."""
        self.fans += 1
        fan = f"oBrowser-AbCdEfGhIjKlMn{self.fans:05}"
        file = ("x", PHOTO.read_bytes() if data is None else data)
        url = f"{self.sandbox.url}/sandbox/fans/{fan}/messages"
        answer = requests.post(url, data={"type": kind}, files={"file": file}, timeout=30)
        assert answer.ok, answer.text

        def ended():
            (entry,) = self.parts.ledger.find_by_msg_id(int(answer.json()["msg_id"]))
            made = kind != "image" or entry.media_state != "stored" or entry.thumbnail_state
            return entry if entry.media_state in until and made else None

        return eventually(ended, what=f"a {kind}'s {until}")

    def wait_for_ever(self, kind="image"):
        """The ledger id of an entry whose download is not due while these tests run."""
        number, now = time.time_ns(), time.time()
        xml = (
            f"<xml><ToUserName>g</ToUserName><FromUserName>oHostile</FromUserName><CreateTime>{int(now)}</CreateTime>"
            f"<MsgType>{kind}</MsgType><MediaId>{number}</MediaId><MsgId>{number}</MsgId></xml>"
        )
        return self.parts.ledger.record(parse_message(xml.encode()), None, now + 3600).id

    def put(self, data, kind="image"):
        """An entry with a file that the sandbox would not let a fan send."""
        self.wait_for_ever(kind)  # the bot's worker does not see it before it is done
        now = time.time()
        (job,) = self.parts.queue.claim_downloads(now + 3601, 15)
        file = self.parts.files.put(job.stem, [data], extension=extension, attempt=1)
        assert self.parts.queue.mark_stored(job, file, now)
        return job.id

    def faults(self, *faults):
        requests.put(f"{self.sandbox.url}/sandbox/faults", json=list(faults), timeout=10)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bot")
    with running_sandbox() as sandbox, running_bot(sandbox, folder, ADMIN_PASSWORD=PASSWORD) as bot:
        place = Place(sandbox, bot)
        yield place
        place.parts.database.close()


@pytest.fixture
def visit(place, open_page):
    """visit(path, ...) -> a page of the gallery."""

    def visit(path="", **options):
        root = f"{place.bot.url}/gallery"
        return open_page(root + path, blank=f"{root}/sign-in", **options)

    return visit


@pytest.fixture
def enter(place, visit):
    """enter(path, ...) -> a page of the gallery that is signed in, though nobody has typed the password."""
    return lambda path="", **options: visit(path, cookies=signed_in(place), **options)


def signed_in(place):
    """The cookies of a new session."""
    url = f"{place.bot.url}/gallery"
    answer = requests.post(f"{url}/sign-in", data={"password": PASSWORD}, allow_redirects=False, timeout=10)
    return [{"name": cookie.name, "value": cookie.value, "url": url} for cookie in answer.cookies]


def test_what_comes_in_is_shown_by_itself(place, enter):
    first = place.send()
    page = enter(clock=True)
    page.locator(".grid li", has_text=first.sender).wait_for()
    link = page.locator(".grid li", has_text=first.sender).locator(".fan a")
    link.focus()
    second = place.send()
    page.clock.fast_forward(10_000)
    page.locator(".grid li", has_text=second.sender).wait_for()
    assert page.locator(".picture").first.get_attribute("href") == f"/gallery/{second.id}"
    assert link.evaluate("link => link === document.activeElement")


def test_what_is_over_is_not_shown_any_longer(place, enter):
    """An entry that was deleted elsewhere; and all of them, after a sign-out in another tab."""
    entry = place.wait_for_ever()
    page = enter(f"/{entry}", clock=True, refused=404)
    assert "Pending" in page.locator(".badge").inner_text()
    place.parts.purge_rows.delete(entry, time.time())
    page.clock.fast_forward(3000)
    page.get_by_text("There is no such entry.").wait_for()
    page.goto(f"{place.bot.url}/gallery")
    assert page.request.post(f"{place.bot.url}/gallery/sign-out").ok
    page.clock.fast_forward(10_000)
    page.locator("#password").wait_for()


def test_an_entry_is_deleted_after_a_second_click(place, enter):
    entry = place.send()
    page = enter(f"/{entry.id}")
    assert not page.get_by_role("button", name="Delete for good").is_visible()
    page.get_by_text("Delete …").click()
    page.get_by_role("button", name="Delete for good").click()
    page.wait_for_url(f"{place.bot.url}/gallery")
    assert page.locator(".grid li", has_text=entry.sender).count() == 0
    assert place.parts.ledger.get(entry.id) is None


def test_what_is_unfolded_while_an_answer_is_on_its_way_stays_so(place, enter):
    page = enter(f"/{place.wait_for_ever()}", clock=True)
    held = []
    page.route(page.url, lambda route: held.append(route), times=1)
    page.clock.fast_forward(3000)
    eventually(lambda: held or page.evaluate("0"), what="the question for news")
    page.get_by_text("Delete …").click()
    with page.expect_event("requestfinished"):
        held[0].continue_()
    page.evaluate("fetch(location.href).then((answer) => answer.text())")  # the page has read the one before
    assert page.get_by_role("button", name="Delete for good").is_visible()


def natural(picture):
    picture.evaluate("image => image.decode()")
    return picture.evaluate("image => [image.naturalWidth, image.naturalHeight]")


def test_a_picture_is_there_small_and_whole(place, enter):
    entry = place.send()
    page = enter()
    card = page.locator(".grid li", has_text=entry.sender)
    assert "Stored" in card.inner_text()
    small = card.locator(".picture img")
    assert natural(small) == [400, 267]
    small.click()
    page.locator("dl").wait_for()
    whole = page.locator(".whole img")
    assert natural(whole) == [640, 427]
    shown = page.request.get(whole.evaluate("image => image.src")).body()
    assert hashlib.sha256(shown).digest() == hashlib.sha256(PHOTO.read_bytes()).digest()
    assert entry.media_sha256 in page.locator("dl").inner_text()
    page.get_by_role("link", name="Back").click()
    assert page.url == f"{place.bot.url}/gallery"


def test_a_picture_of_any_shape_is_not_distorted(place, enter):
    page = enter("?fan=nobody")
    for size in (40, 3000), (3000, 40), (1, 1):
        file = io.BytesIO()
        Image.new("RGB", size, "red").save(file, "PNG")
        page.goto(f"{place.bot.url}/gallery/{place.put(file.getvalue())}")
        assert_undistorted(page.locator(".whole img"))


def test_what_went_wrong_and_again(place, enter):
    place.faults(
        {"path": "/cgi-bin/media/get", "times": None, "errcode": 40007, "errmsg": "invalid media_id"}
    )
    try:
        entry = place.send(until=("failed",))
    finally:
        place.faults()
    page = enter()
    page.get_by_label("State").select_option("failed")
    page.get_by_label("Fan").fill(entry.sender)
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**state=failed**")
    card = page.locator(".grid li")
    assert card.count() == 1
    assert "40007" in card.inner_text()
    card.locator(".picture").click()
    text = page.locator(".card").inner_text()
    for words in ("Failed", "40007", explain(40007).hint_en, "The fan has to send it again."):
        assert words in text
    page.get_by_role("button", name="Retry").click()
    page.wait_for_url(f"**/gallery/{entry.id}?*")
    eventually(lambda: place.parts.ledger.get(entry.id).media_state == "stored", what="the second try")
    page.locator(".badge", has_text="Stored").wait_for()  # by itself
    assert explain(40007).hint_en not in page.locator(".card").inner_text()
    assert natural(page.locator(".whole img")) == [640, 427]
    assert page.get_by_role("button", name="Retry").count() == 0


def test_by_keyboard_alone(place, visit):
    entry = place.send()
    page = visit()
    page.wait_for_function("document.activeElement.id === 'password'")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    page.locator(".grid").wait_for()
    tab_to(page, page.get_by_label("Fan"))
    page.keyboard.type(entry.sender)
    page.keyboard.press("Enter")
    page.wait_for_url("**fan=**")
    tab_to(page, page.locator(".picture"))
    page.keyboard.press("Enter")
    page.locator("dl").wait_for()
    tab_to(page, page.get_by_role("button", name="Sign out"))
    page.keyboard.press("Enter")
    page.locator("#password").wait_for()
    page.goto(f"{place.bot.url}/gallery/{entry.id}")
    page.locator("#password").fill(PASSWORD)
    page.locator("#password").press("Enter")
    page.locator("dl").wait_for()
    assert page.url == f"{place.bot.url}/gallery/{entry.id}"


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_everybody_can_use_it(place, visit, locale):
    stored, voice = place.send(), place.send("voice", AMR)
    place.faults(
        {"path": "/cgi-bin/media/get", "times": None, "errcode": 40007, "errmsg": "invalid " + "x" * 300}
    )
    try:
        failed = place.send(until=("failed",))
    finally:
        place.faults()
    page = visit(locale=locale)
    look(page, locale)
    page.locator("#password").fill(PASSWORD)
    page.locator("#password").press("Enter")
    page.locator(".grid").wait_for()
    page.wait_for_load_state()  # the list is there before its style sheet
    look(page, locale)
    for path in ("?fan=nobody", *(f"/{entry.id}" for entry in (stored, voice, failed))):
        page.goto(f"{place.bot.url}/gallery{path}")
        look(page, locale)
        assert page.locator("html").get_attribute("lang") == locale.partition("-US")[0]
        has_chinese = re.search("[\u4e00-\u9fff]", page.locator("main").inner_text().replace("hint_zh", ""))
        assert bool(has_chinese) or locale == "en-US"


def test_the_links_to_other_pages_fit_the_narrowest_phone(place, enter):
    for _ in range(pages.PAGE_ENTRIES + 1):
        place.wait_for_ever()
    page = enter("?before=9999999999_999999999", viewport={"width": 320, "height": 568})
    assert page.locator("nav.pages a").all_inner_texts() == ["Newest", "Newer", "Older", "Oldest"]
    assert_fits(page)


def test_a_voice_plays_and_another_is_a_download(place, enter):
    playing, other = place.send("voice", MP3), place.send("voice", AMR)
    page = enter(f"/{playing.id}")
    page.wait_for_function("document.querySelector('audio').readyState > 0")
    assert page.evaluate("document.querySelector('audio').duration") > 1
    page.goto(f"{place.bot.url}/gallery/{other.id}")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.path().read_bytes() == AMR


def test_a_hostile_upload_does_not_run(place, enter):
    page = enter("?fan=nobody")
    for data in SVG, b"<!doctype html><script>document.title=1</script>":
        ledger_id = place.put(data)
        page.goto(f"{place.bot.url}/gallery/{ledger_id}")
        with page.expect_download() as download:
            page.get_by_role("link", name="Download").click()
        assert download.value.suggested_filename == f"{ledger_id}.bin"
        assert download.value.path().read_bytes() == data
        assert page.title() == f"Picture {ledger_id} · 图尚往来"


def test_a_polyglot_opened_by_its_address_does_not_run(place, browser):
    """A JPEG with a page in it, opened as a document of its own; Chromium's frame around it may not style itself."""
    data = PHOTO.read_bytes() + b"<script>document.title='run'</script>"
    context = browser.new_context()
    context.add_cookies(signed_in(place))
    page = context.new_page()
    page.goto(f"{place.bot.url}/gallery/{place.put(data)}/file")
    assert page.evaluate("[document.contentType, document.scripts.length]") == ["image/jpeg", 0]
    assert page.title() != "run"
    context.close()
