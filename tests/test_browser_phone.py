"""The phone page in a real browser, with the real sandbox and a real bot behind it."""

import base64
import hashlib
import re
import shlex
import socket
import subprocess
import threading

import pytest
import requests
from PIL import Image

from sandbox import THROWAWAY, Account, running_sandbox
from sandbox.feed import CONNECTIONS
from tests.browser import (
    DESKTOP,
    NARROW,
    assert_accessible,
    assert_fits,
    assert_undistorted,
    look,
    one_browser,
    running_bot,
    same_pixels,
    tab_to,
)
from tests.conftest import ACCOUNT, ROOT, eventually, free_port, needs_curl
from tests.serving import serving
from tests.test_accounts import THREE

pytestmark = one_browser("phone")

HOPPER = ROOT / "sandbox" / "photos" / "grace_hopper.jpg"
CHINA = ROOT / "sandbox" / "photos" / "china.jpg"
AMR = b"#!AMR\n" + (b"\x3c" + bytes(31)) * 100
FILM = (ROOT / "tests" / "samples" / "film.mp4").read_bytes()
MP3 = (b"\xff\xfb\x90\x00" + bytes(413)) * 80
FAILURE = "该公众号暂时无法提供服务，请稍后再试"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """One sandbox and one bot for the module: each test begins with a reset."""
    with running_sandbox() as sandbox, running_bot(sandbox, tmp_path_factory.mktemp("bot")):
        yield sandbox


@pytest.fixture
def phone(running):
    requests.post(f"{running.url}/sandbox/reset", timeout=10)
    yield running
    # What the last test sent and did not wait for would end in the next one's chat.
    eventually(lambda: all(push["ended"] for push in pushes(running)), what="the end of all pushes")


@pytest.fixture
def page(phone, open_page):
    return open_page(phone.url)


def choose(page, *files, kind="image"):
    page.locator(f"#choose-{kind}").set_input_files(list(files))


def said(page, side):
    """The chat's entries of fan, account or system."""
    return page.locator(f"#chat .message.{side}")


def wait_for(page, side, count):
    said(page, side).nth(count - 1).wait_for()
    assert said(page, side).count() == count


def sides(page):
    return page.eval_on_selector_all("#chat .message", "all => all.map(one => one.classList[1])")


def newest(page):
    """The newest push, once it has ended."""
    item = page.locator("#pushes > li").first
    item.locator(".facts", has_text="The fan saw").wait_for()
    return item


def verdicts(item):
    return [re.split(" · ", text)[0] for text in item.locator("summary > .badge").all_inner_texts()]


def apply_fault(page, name):
    page.get_by_label("Fault", exact=True).select_option(label=name)
    page.get_by_role("button", name="Apply").click()


def test_a_picture_comes_back_in_each_mode(page):
    for count, mode in enumerate(("safe", "plain", "compat"), 1):
        page.get_by_label("Mode").select_option(mode)
        choose(page, HOPPER)
        wait_for(page, "account", count)
        assert_a_picture_came_back(page, mode)


def assert_a_picture_came_back(page, mode):
    mine, theirs = (said(page, side).last.locator("img") for side in ("fan", "account"))
    assert same_pixels(page, mine, theirs)
    assert theirs.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [512, 600]
    picture = requests.get(theirs.evaluate("image => image.src"), timeout=10).content
    assert hashlib.sha256(picture).digest() == hashlib.sha256(HOPPER.read_bytes()).digest()
    assert "passive reply" in said(page, "account").last.inner_text()

    push = newest(page)
    assert verdicts(push) == ["reply"]
    assert "of 5 s" in push.inner_text()
    assert f"{mode} · MsgId" in push.inner_text()
    assert "well-formed image reply" in push.inner_text()
    shown = push.locator("pre").all_inner_texts()
    assert any("<MsgType><![CDATA[image]]></MsgType>\n" in text for text in shown), "opened, line by line"
    msg_id = re.search(r"<MsgId>(\d+)</MsgId>", "".join(shown))[1]
    assert f"MsgId {msg_id} " in push.inner_text(), "every digit, though it is beyond 2**53"
    push.get_by_text("Signed query").click()
    query = push.get_by_role("group", name="Signed query")
    assert "timestamp = " in query.inner_text()
    assert ("msg_signature = " in query.inner_text()) == (mode != "plain")
    assert push.get_by_text("As it was sent").count() == (mode != "plain")


def test_a_picture_by_customer_service_message(sandbox, make_bot, open_page):
    bot = make_bot(sandbox, ECHO_VIA="upload")
    bot.web()
    page = open_page(sandbox.url)
    choose(page, HOPPER)
    wait_for(page, "account", 1)
    assert "customer service" in said(page, "account").inner_text()
    assert same_pixels(page, said(page, "fan").locator("img"), said(page, "account").locator("img"))
    assert verdicts(newest(page)) == ["silent"]
    assert "The fan saw: nothing" in newest(page).inner_text(), "as an answer to the push"
    page.locator("#calls li", has_text="/cgi-bin/message/custom/send").wait_for()


def test_long_pictures_are_not_distorted(page, tmp_path):
    for name, size in (("high.png", (40, 3000)), ("wide.png", (3000, 40))):
        Image.new("RGB", size, "red").save(tmp_path / name)
    choose(page, tmp_path / "high.png", tmp_path / "wide.png")
    wait_for(page, "account", 2)
    for picture in said(page, "account").locator("img").all():
        assert_undistorted(picture)


def test_several_pictures_in_their_order_and_one_whole(page):
    choose(page, HOPPER, CHINA, HOPPER)
    wait_for(page, "account", 3)
    widths = "all => all.map(one => one.naturalWidth)"
    for side in ("fan", "account"):
        pictures = said(page, side).locator("img")
        eventually(lambda pictures=pictures: all(pictures.evaluate_all(widths)), what="the pictures")
        assert sorted(pictures.evaluate_all(widths)) == [512, 512, 640]
    assert said(page, "fan").locator("img").evaluate_all(widths) == [512, 640, 512]
    picture = said(page, "account").locator("button").first  # whichever answer was the first
    width = picture.locator("img").evaluate("image => image.naturalWidth")
    picture.click()
    whole = page.get_by_role("dialog").get_by_role("img")
    assert whole.evaluate("async (image) => { await image.decode(); return image.width; }") == width
    page.keyboard.press("Escape")
    assert page.get_by_role("dialog").count() == 0


def test_paste(phone, open_page):
    page = open_page(phone.url, permissions=["clipboard-read", "clipboard-write"])
    page.get_by_label("Message").fill("words stay words")
    page.evaluate(
        """async () => {
          const canvas = document.createElement("canvas");
          canvas.getContext("2d").fillRect(10, 20, 30, 40);
          const picture = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
          await navigator.clipboard.write([new ClipboardItem({ "image/png": picture })]);
        }"""
    )
    page.get_by_label("Message").press("Control+V")
    wait_for(page, "account", 1)
    assert same_pixels(page, said(page, "fan").locator("img"), said(page, "account").locator("img"))
    assert page.get_by_label("Message").input_value() == "words stay words"


def test_drop_and_what_cannot_be_sent(page):
    files = page.evaluate_handle(
        """([picture]) => {
          const files = new DataTransfer();
          const bytes = Uint8Array.from(atob(picture), (one) => one.charCodeAt(0));
          files.items.add(new File([bytes], "照片.jpg", { type: "image/jpeg" }));
          files.items.add(new File(["words"], "notes.txt", { type: "text/plain" }));
          files.items.add(new File([bytes], "again.jpg", { type: "image/jpeg" }));
          return files;
        }""",
        [base64.b64encode(HOPPER.read_bytes()).decode()],
    )
    screen = page.locator("#screen")
    screen.dispatch_event("dragover", {"dataTransfer": files})
    assert "drop" in screen.get_attribute("class")
    screen.dispatch_event("drop", {"dataTransfer": files})
    wait_for(page, "account", 2)
    assert "drop" not in screen.get_attribute("class")
    page.get_by_role("alert").filter(has_text="notes.txt: Only pictures").wait_for()
    choose(page, {"name": "notes.mp3", "mimeType": "audio/mpeg", "buffer": MP3})
    page.get_by_role("alert").filter(has_text="notes.mp3: This is not a picture").wait_for()
    choose(page, HOPPER, kind="shortvideo")
    page.get_by_role("alert").filter(has_text="grace_hopper.jpg: This is not a video").wait_for()
    assert sorted(sides(page)) == ["account"] * 2 + ["fan"] * 2, "what cannot be sent is not in the chat"


def test_text_is_text(page):
    hostile = "<img src=x onerror=alert(1)> <b>bold</b> ]]> 你好 😀"
    page.get_by_label("Message").fill(hostile)
    page.get_by_role("button", name="Send").click()
    wait_for(page, "account", 1)
    assert hostile in said(page, "fan").inner_text()
    assert "发我一张图片" in said(page, "account").inner_text()
    assert page.locator("#chat img, #chat b").count() == 0
    assert hostile in page.locator("#pushes .what").inner_text()
    page.get_by_label("Message").fill("مرحبا!" + "😀" * 80)
    page.keyboard.press("Enter")
    wait_for(page, "fan", 2)
    assert (
        said(page, "fan").last.locator(".bubble").evaluate("one => getComputedStyle(one).direction") == "rtl"
    )
    assert page.locator("#pushes .what").first.evaluate("what => what.textContent.isWellFormed()")


def test_shift_and_input_methods_do_not_send(page):
    text = page.get_by_label("Message")
    text.press_sequentially("one")
    text.press("Shift+Enter")
    text.dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    assert text.input_value() == "one\n"
    text.press("Enter")
    wait_for(page, "account", 1)
    assert sides(page) == ["fan", "account"]


def test_follow_unfollow_and_menu(page):
    page.get_by_role("button", name="Follow", exact=True).click()
    wait_for(page, "account", 1)
    assert "Welcome! 欢迎关注" in said(page, "account").inner_text()
    page.get_by_label("Menu key").fill("K <1>")
    page.get_by_role("button", name="Tap the menu").click()
    wait_for(page, "system", 2)
    page.get_by_role("button", name="Unfollow").click()
    wait_for(page, "system", 3)
    page.get_by_text("This fan has unfollowed").wait_for()
    assert page.get_by_label("Message").is_disabled()
    assert page.get_by_role("button", name="Odd text").is_disabled()
    page.get_by_role("button", name="Follow", exact=True).wait_for()
    texts = said(page, "system").locator(".bubble").all_inner_texts()
    assert texts == [
        "You followed the account",
        "You tapped the menu: K <1>",
        "You unfollowed the account",
    ]
    assert sides(page) == ["system", "account", "system", "system"]
    page.get_by_role("button", name="Clear the history").click()
    page.locator("#chat .hint").wait_for()
    assert page.get_by_label("Message").is_disabled(), "the fan has not come back"


def test_voice_and_video(page):
    """The video by the bot's own upload: the platform shows none by the id that the fan's own came with."""
    choose(page, {"name": "voice.mp3", "mimeType": "audio/mpeg", "buffer": MP3}, kind="voice")
    wait_for(page, "account", 1)
    audio = said(page, "account").locator("audio")
    page.wait_for_function("audio => audio.readyState > 0", arg=audio.element_handle())
    assert audio.evaluate("audio => audio.duration") == pytest.approx(2.1, abs=0.2)

    choose(page, {"name": "voice.amr", "mimeType": "", "buffer": AMR}, kind="voice")
    wait_for(page, "account", 2)
    bubble = said(page, "account").nth(1)
    assert "voice · AMR · 2.0 s" in bubble.inner_text()
    with page.expect_download() as download:
        bubble.get_by_role("link", name="download").click()
    assert download.value.path().read_bytes() == AMR
    assert download.value.suggested_filename == "voice.amr"

    broken = b"\0\0\0\x18ftypisom" + bytes(100)
    choose(page, {"name": "film.mp4", "mimeType": "video/mp4", "buffer": broken}, kind="video")
    wait_for(page, "account", 3)
    said(page, "account").nth(2).get_by_text("cannot be shown here").wait_for()
    assert verdicts(newest(page)) == ["reply"]
    page.locator("#calls li", has_text="/cgi-bin/media/upload").wait_for()
    choose(page, {"name": "film.mp4", "mimeType": "video/mp4", "buffer": broken}, kind="shortvideo")
    wait_for(page, "account", 4)
    assert verdicts(newest(page)) == ["reply"]


HOSTILE = [
    b"<html><script>parent.hacked = document.title = 'hacked'</script>",
    b"<svg xmlns='http://www.w3.org/2000/svg'><script>document.title = 'hacked'</script></svg>",
]


def test_hostile_files_are_a_download_or_no_picture(page, phone):
    for count, data in enumerate(HOSTILE, 1):
        choose(page, {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": data})
        wait_for(page, "account", count)
        link = said(page, "account").last.get_by_role("link", name="download")
        served = requests.get(f"{phone.url}{link.get_attribute('href')}", timeout=10)
        assert served.content == data
        assert served.headers["Content-Type"] == "application/octet-stream"
        assert served.headers["X-Content-Type-Options"] == "nosniff"
        assert served.headers["Content-Disposition"].startswith("attachment")
        assert "sandbox" in served.headers["Content-Security-Policy"]
        with page.expect_download():
            link.click()
        assert page.title() == "WeChat sandbox"
        assert page.locator("#chat img").count() == 0
    choose(page, {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"\xff\xd8\xff\xe0<script>"})
    wait_for(page, "account", count + 1)
    said(page, "account").last.get_by_text("cannot be shown here").wait_for()


def test_an_answer_that_is_no_answer_ends_with_the_failure_text(page):
    apply_fault(page, "Answer garbled")
    page.locator("#fault-now", has_text="In force: Answer garbled").wait_for()
    choose(page, HOPPER)
    wait_for(page, "system", 1)
    assert FAILURE in said(page, "system").inner_text()
    push = newest(page)
    assert verdicts(push) == ["refused"]
    assert "not an XML reply" in push.inner_text()
    assert "<html>Bad Gateway</html>" in push.inner_text()
    apply_fault(page, "No fault")
    page.locator("#fault-now", has_text="No fault is in force").wait_for()
    choose(page, HOPPER)
    wait_for(page, "account", 1)


def test_a_lost_answer_shows_the_repeat(page):
    apply_fault(page, "Answer lost on its way, once")
    page.locator("#fault-now", has_text="In force").wait_for()
    choose(page, HOPPER)
    wait_for(page, "account", 1)
    push = newest(page)
    assert verdicts(push) == ["refused", "reply"]
    assert "the connection closed without an answer" in push.inner_text()
    page.locator("#fault-now", has_text="No fault is in force").wait_for()


def test_calls_show_request_and_answer_an_expired_token_and_no_secret(page):
    choose(page, HOPPER)
    good = page.locator("#calls summary", has_text="/cgi-bin/media/get").filter(has_text="ok")
    good.first.click()
    call = page.locator("#calls li", has_text="image/jpeg, ")
    assert "GET /cgi-bin/media/get?media_id=" in call.inner_text()
    assert "image/jpeg, " in call.inner_text()
    apply_fault(page, "Access token expires now")
    page.locator("#fault-done", has_text="Done: Access token expires now").wait_for()
    choose(page, HOPPER)
    good.nth(1).wait_for()
    calls = page.locator("#calls summary").all_inner_texts()[::-1]
    after = [" ".join(re.findall(r"/cgi-bin\S+|ok|\b[0-9]{5}\b", one)) for one in calls][-3:]
    assert after == ["/cgi-bin/media/get 42001", "/cgi-bin/stable_token ok", "/cgi-bin/media/get ok"]
    assert "access_token=" not in page.locator("#calls").inner_text()


def test_a_second_delivery_shows_one_answer(page):
    for count, delivery in enumerate(("three in turn, though answered", "three at once"), 1):
        page.get_by_label("Deliveries").select_option(label=delivery)
        choose(page, HOPPER)
        page.locator("#pushes > li").nth(count - 1).wait_for()
        assert verdicts(newest(page)) == ["reply"] * 3
        assert sides(page) == ["fan", "account"] * count


def test_places_links_codes_and_short_videos(page, phone):
    def act(name, **values):
        page.get_by_role("button", name=name, exact=True).click()
        for label, value in values.items():
            page.get_by_role("dialog").get_by_label(label, exact=True).fill(value)
        page.get_by_role("dialog").get_by_role("button", name="Send").click()

    act("Scan")
    wait_for(page, "account", 1)
    act("Location", Latitude="22.5", Longitude="114.1")
    act("Link", Title="A page")
    act("Scan")
    act("Menu link", Address="https://example.org/menu")
    choose(
        page, {"name": "a.mp4", "mimeType": "video/mp4", "buffer": b"\0\0\0\x18ftypisom"}, kind="shortvideo"
    )
    eventually(lambda: len(pushed(phone)) == 6, what="the sixth push")
    follow, location, link, scan, view, video = pushed(phone)
    assert "<EventKey><![CDATA[qrscene_42]]></EventKey>" in follow, "a stranger who scans follows"
    assert "<Location_X>22.5</Location_X><Location_Y>114.1</Location_Y>" in location
    assert "<Title><![CDATA[A page]]></Title>" in link
    assert "<Event><![CDATA[SCAN]]></Event><EventKey><![CDATA[42]]></EventKey>" in scan
    assert "<Event><![CDATA[VIEW]]></Event><EventKey><![CDATA[https://example.org/menu]]></EventKey>" in view
    assert "<MsgType><![CDATA[shortvideo]]></MsgType>" in video
    act("Location", Latitude="")
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()  # it was not sent
    assert len(pushed(phone)) == 6


def pushes(sandbox):
    """What the page is told of all pushes, oldest first."""
    so_far, stop = sandbox.state.listen(lambda name, facts: None)
    stop()
    return so_far["pushes"]


def pushed(phone):
    """The XML of all pushes, oldest first."""
    return [push["plain"] for push in pushes(phone)]


def test_odd_text(page, phone):
    def send(name):
        page.get_by_role("button", name="Odd text").click()
        page.get_by_label("Example").select_option(label=name)
        page.get_by_role("dialog").get_by_role("button", name="Send").click()

    send("Control characters")
    wait_for(page, "account", 1)
    assert "<Content><![CDATA[a\0\x02\x08\x0b\x1db]]></Content>" in pushed(phone)[0]
    send("A character cut in its middle")
    wait_for(page, "account", 2)
    assert "<Content><![CDATA[\\xe5\\xad]]></Content>" in pushed(phone)[1]


MENU = [
    {"type": "click", "name": "Song", "key": "V1"},
    {
        "name": "More",
        "sub_button": [
            {"type": "view", "name": "Page", "url": "https://example.org/"},
            {"type": "scancode_waitmsg", "name": "Code", "key": "S"},
            {"type": "pic_sysphoto", "name": "Photo", "key": "P"},
        ],
    },
    {"type": "location_select", "name": "Place", "key": "L"},
]


def test_the_menu_of_the_account_is_tapped(page, phone):
    menu = page.get_by_role("group", name="The account's menu")
    assert menu.count() == 0
    phone.state.create_menu({"button": MENU})
    menu.get_by_role("button", name="Song").click()
    menu.get_by_text("More").click()
    menu.get_by_role("button", name="Page").click()
    assert not menu.get_by_role("button", name="Page").is_visible()
    focused = "document.activeElement.textContent"
    assert page.evaluate(focused) == "More", "the keyboard goes on from there"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "Page"
    page.keyboard.press("Escape")
    assert page.evaluate(focused) == "More"
    menu.get_by_text("More").click()
    menu.get_by_role("button", name="Code").click()
    page.get_by_label("What the code says").fill("BOX-9")
    page.keyboard.press("Enter")
    menu.get_by_text("More").click()
    with page.expect_file_chooser() as chooser:
        menu.get_by_role("button", name="Photo").click()
    chooser.value.set_files(HOPPER)
    wait_for(page, "account", 1)
    menu.get_by_role("button", name="Place").click()
    page.get_by_role("dialog").get_by_role("button", name="Send").click()
    eventually(lambda: len(pushed(phone)) == 7, what="the seventh push")
    kinds = [re.findall(r"<(?:Event|MsgType)><!\[CDATA\[(.*?)]]>", xml)[-1] for xml in pushed(phone)]
    assert kinds == [
        "CLICK",
        "VIEW",
        "scancode_waitmsg",
        "pic_sysphoto",
        "image",
        "location_select",
        "location",
    ]
    assert "<ScanResult><![CDATA[BOX-9]]></ScanResult>" in pushed(phone)[2]
    phone.state.delete_menu()
    menu.wait_for(state="hidden")


def test_a_menu_message_is_answered_by_a_tap(page, phone):
    page.get_by_label("Message").fill("hello")
    page.keyboard.press("Enter")
    wait_for(page, "account", 1)
    fan = page.locator("#fans button").get_attribute("data-openid")
    part = {"head_content": "Solved?", "list": [{"id": "7", "content": "Yes"}]}
    phone.state.send_custom({"touser": fan, "msgtype": "msgmenu", "msgmenu": part})
    said(page, "account").get_by_role("button", name="Yes").click()
    wait_for(page, "fan", 2)
    assert "<bizmsgmenuid><![CDATA[7]]></bizmsgmenuid>" in pushed(phone)[-1]


def test_a_push_is_sent_again_edited_copied_and_saved(phone, open_page):
    needs_curl()
    page = open_page(phone.url, permissions=["clipboard-read", "clipboard-write"])
    page.get_by_label("Mode").select_option("plain")
    page.get_by_label("Message").fill(r"it's one in C:\x64")
    page.keyboard.press("Enter")
    first = newest(page)

    def press(name):
        first.get_by_role("button", name=name).click()
        return page.evaluate("navigator.clipboard.readText()")

    copied = press("Copy the XML")
    assert copied == pushed(phone)[0]
    with page.expect_download() as download:
        press("Save as a sample")
    assert download.value.suggested_filename == "message-text.xml"
    assert download.value.path().read_text(encoding="utf-8") == copied
    arguments = shlex.split(press("Copy as curl"))
    assert arguments[0] == "curl"
    assert arguments[-1] == copied
    answer = subprocess.run(arguments, capture_output=True, text=True, timeout=20, check=True).stdout
    assert "<MsgType>" in answer, "the bot takes it: the signature is still good"

    page.locator("#copied", has_text="Copied.").wait_for()
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('not now')); }")
    press("Copy the XML")
    page.locator("#copied", has_text="The browser does not allow copying.").wait_for()

    press("Send again")
    wait_for(page, "account", 2)
    older = page.locator("#pushes > li > details").nth(1).element_handle()
    assert not older.evaluate("older => older.open")
    assert older.evaluate("older => older.firstChild === document.activeElement")
    page.keyboard.press("Enter")
    assert pushed(phone)[1] == copied
    assert sides(page) == ["fan", "account", "account"], "the same message: no second one of the fan"
    newest(page).get_by_role("button", name="Send as new").click()
    wait_for(page, "fan", 2)
    assert older.evaluate("older => older.isConnected && older.open"), "the reader has opened it"
    newest(page).get_by_role("button", name="Edit and send").click()
    text = page.get_by_role("dialog").get_by_role("textbox")
    text.fill(text.input_value().replace("one", "two"))
    page.get_by_role("dialog").get_by_role("button", name="Send").click()
    wait_for(page, "fan", 3)
    ids = [re.search("<MsgId>([0-9]+)<", xml)[1] for xml in pushed(phone)]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    assert r"it's two in C:\x64" in said(page, "fan").last.inner_text()


def test_filter_and_clear(page, phone):
    for text in ("apples", "pears"):
        page.get_by_label("Message").fill(text)
        page.keyboard.press("Enter")
        page.locator("#pushes > li", has_text=text).locator(".facts", has_text="The fan saw").wait_for()
    page.get_by_label("Filter the pushes").fill("APPLES")
    assert [item.is_visible() for item in page.locator("#pushes > li").all()] == [False, True]
    page.get_by_label("Filter the pushes").fill("")
    assert page.locator("#pushes > li:visible").count() == 2
    page.get_by_label("Filter the calls").fill("nothing")
    assert page.locator("#calls > li:visible").count() == 0
    url = f"{phone.url}/sandbox/fans/oAnother/messages"
    requests.post(url, json={"type": "text", "content": "x"}, timeout=10)
    page.get_by_role("button", name="Fan 2 1 new").wait_for()
    page.get_by_role("button", name="Clear the history").click()
    page.get_by_text("Send a picture: it comes back.").wait_for()
    assert page.locator("#pushes > li, #calls > li, .dot").count() == 0


def test_a_fault_of_ones_own_and_every_other_in_force_is_named(page, phone):
    """Also beside or beyond a preset, and with a value that is empty."""
    page.get_by_role("button", name="Another fault").click()
    page.get_by_label("errcode", exact=True).fill("45011")
    page.get_by_label("How often").fill("1")
    page.get_by_role("dialog").get_by_role("button", name="Apply").click()
    page.locator("#fault-now", has_text="In force: /cgi-bin/media/get errcode 45011, times 1").wait_for()
    choose(page, HOPPER)
    page.locator("#calls li", has_text="45011").wait_for()
    page.locator("#fault-now", has_text="No fault is in force").wait_for()
    unknown = {"path": "/cgi-bin/media/get", "errcode": 40007}
    for faults, words in (
        ([unknown], "40007 media unknown"),
        ([unknown | {"delay": 3}], "/cgi-bin/media/get errcode 40007, delay 3"),
        ([unknown, {"path": "/x", "disconnect": True}], "get errcode 40007; /x disconnect true"),
        ([{"path": "/x", "truncate": 0}, {"path": "/y", "body": ""}], '/x truncate 0; /y body ""'),
    ):
        phone.state.replace_faults(faults)
        page.locator("#fault-now", has_text=words).wait_for()
    apply_fault(page, "Access token expires now")
    page.locator("#fault-done", has_text="Done: Access token expires now").wait_for()
    assert words in page.locator("#fault-now").inner_text()


def test_notes_are_shown(phone, open_page):
    page = open_page(phone.url)
    body = "\n<xml><ToUserName>{fan}</ToUserName><FromUserName>{account}</FromUserName>"
    body += "<CreateTime>1</CreateTime><MsgType>text</MsgType><Content>hi</Content></xml>"
    fan = page.locator("#fans button").get_attribute("data-openid")
    page.get_by_label("Mode").select_option("plain")
    body = body.format(fan=fan, account=phone.account.original_id)
    phone.state.replace_faults([{"path": "/wechat", "body": body}])
    page.get_by_label("Message").fill("x")
    page.keyboard.press("Enter")
    assert "Not by the book: white space before <xml>" in newest(page).inner_text()


def test_the_page_ends_where_its_content_ends(page, phone):
    """An unpositioned chat once made the page as long as all that was ever said in it."""
    fan = page.locator("#fans button").get_attribute("data-openid")
    url = f"{phone.url}/sandbox/fans/{fan}/messages"
    requests.post(url, json={"type": "text", "content": "\n".join(map(str, range(200)))}, timeout=10)
    wait_for(page, "account", 1)
    page.locator("#pushes .facts", has_text="The fan saw").wait_for()
    assert page.locator("#chat").evaluate("chat => chat.scrollHeight") > 4000
    page.locator("#pushes details[open]").evaluate_all("all => all.forEach((one) => one.open = false)")
    for viewport in (DESKTOP, NARROW):
        page.set_viewport_size(viewport)
        whole = page.evaluate("document.documentElement.scrollHeight")
        content = page.evaluate("document.querySelector('main').getBoundingClientRect().bottom + scrollY")
        assert whole <= max(content + 1, viewport["height"])


def test_long_words_are_broken(page, phone):
    """Those of a file's name, a fault, a choice of the account and a button of its menu: none is cut off."""
    word = "W" * 100
    page.locator("#follow").click()
    wait_for(page, "account", 1)
    choose(page, {"name": f"{word}.txt", "mimeType": "text/plain", "buffer": b"x"})
    page.get_by_role("alert").filter(has_text=word).wait_for()
    phone.state.replace_faults([{"path": f"/{word}", "disconnect": True}])
    page.locator("#fault-now", has_text=word).wait_for()
    fan = page.locator("#fans button").get_attribute("data-openid")
    part = {"head_content": "Which?", "list": [{"id": "1", "content": word}]}
    phone.state.send_custom({"touser": fan, "msgtype": "msgmenu", "msgmenu": part})
    said(page, "account").get_by_role("button", name=word).wait_for()
    place = {"type": "location_select", "name": word[:60], "key": "1"}
    phone.state.create_menu({"button": [{"name": "More", "sub_button": [place]}]})
    page.get_by_text("More", exact=True).click()
    page.locator("#menu").get_by_role("button").click()
    for viewport in (DESKTOP, NARROW):
        page.set_viewport_size(viewport)
        assert_fits(page)
        for part in ("#problem", "#fault-now", "#chat", "#asker"):
            assert page.locator(part).evaluate("part => part.scrollWidth <= part.clientWidth"), part


def test_many_fans_stay_in_one_row(page, phone):
    page.locator("#live.on").wait_for()
    for number in range(12):
        url = f"{phone.url}/sandbox/fans/oMany{number}/messages"
        requests.post(url, json={"type": "text", "content": "x"}, timeout=10)
    page.locator("#fans button").nth(12).wait_for()
    tops = page.locator("#fans button, #new-fan").evaluate_all(
        "all => all.map((one) => one.getBoundingClientRect().top)"
    )
    assert max(tops) - min(tops) < 5
    assert_fits(page)
    page.locator("#fans button").nth(12).click()
    assert sides(page) == ["fan", "account"]
    page.emulate_media(forced_colors="active")
    backs = page.locator("#fans button").evaluate_all(
        "all => all.map((one) => getComputedStyle(one).backgroundColor)"
    )
    page.emulate_media(forced_colors="none")
    assert backs[12] not in backs[:12], "the chosen one stands out"


def test_fans_have_chats_of_their_own(page, phone):
    choose(page, HOPPER)
    wait_for(page, "account", 1)
    page.get_by_role("button", name="New fan").click()
    assert sides(page) == []
    assert page.locator("#pushes > li").count() == 0
    page.get_by_label("Message").fill("I am the second")
    page.keyboard.press("Enter")
    wait_for(page, "account", 1)
    first = page.get_by_role("button", name="Fan 1").get_attribute("data-openid")
    url = f"{phone.url}/sandbox/fans/{first}/messages"
    requests.post(url, json={"type": "text", "content": "meanwhile"}, timeout=10)
    page.get_by_role("button", name="Fan 1 1 new").click()
    wait_for(page, "account", 2)
    assert sides(page) == ["fan", "account"] * 2
    assert "I am the second" not in page.locator("#chat").inner_text()


def test_two_windows_show_the_same_and_a_reload_shows_it_again(page, phone, open_page):
    other = open_page(phone.url)
    choose(page, HOPPER)
    for window in (page, other):
        wait_for(window, "account", 1)
    other.reload()
    wait_for(other, "account", 1)
    assert sides(other) == ["fan", "account"]
    assert verdicts(newest(other)) == ["reply"]
    requests.post(f"{phone.url}/sandbox/reset", timeout=10)
    for window in (page, other):
        window.get_by_text("Send a picture: it comes back.").wait_for()


def test_many_windows_leave_each_other_connections(page, phone):
    """A browser has six connections to a server. A page that nobody looks at may lose its feed until somebody does."""

    def look(window, hidden):
        window.evaluate(
            "hidden => Object.defineProperty(document, 'hidden', { value: hidden, configurable: true })",
            hidden,
        )
        window.evaluate("document.dispatchEvent(new Event('visibilitychange'))")

    page.locator("#live.on").wait_for()
    asked = []
    page.context.on(
        "request", lambda request: asked.append(request.url) if "/sandbox/events" in request.url else None
    )
    first = window = page
    for _ in range(7):
        window.locator("#live.on").wait_for()
        look(window, hidden=True)
        window = page.context.new_page()
        window.goto(phone.url)
    window.get_by_label("Message").fill("from the eighth")
    window.keyboard.press("Enter")
    wait_for(window, "account", 1)
    look(first, hidden=False)
    wait_for(first, "account", 1)
    assert len(asked) == 8, "the others wait"


def test_a_wrong_use_is_said(open_page):
    with running_sandbox() as sandbox:
        with socket.create_server(("127.0.0.1", 0)) as nobody:
            sandbox.callback = f"http://127.0.0.1:{nobody.getsockname()[1]}/wechat"
        page = open_page(sandbox.url)
        page.get_by_label("Message").fill("Is there anybody?")
        page.keyboard.press("Enter")
        wait_for(page, "system", 1)
        assert FAILURE in said(page, "system").inner_text()
        assert verdicts(newest(page)) == ["refused"] * 3
        assert "nothing listens at the callback" in newest(page).inner_text()


def test_a_bot_that_hangs_does_not_hold_up_the_page(open_page):
    """A browser has six connections to a server, and the feed holds one of them."""
    go_on = threading.Event()

    def bot(environ, start_response):
        go_on.wait(10)
        start_response("200 OK", [("Content-Length", "0")])
        return []

    with running_sandbox() as sandbox, serving(bot) as url:
        sandbox.callback = url

        def send(fan):
            address = f"{sandbox.url}/sandbox/fans/{fan}/messages"
            requests.post(address, json={"type": "text", "content": "x", "wait": False}, timeout=10)

        page = open_page(sandbox.url)
        page.locator("#live.on").wait_for()
        send("oAnother")
        page.locator("#fans button").nth(1).wait_for()
        choose(page, *[HOPPER, CHINA] * 3)
        assert page.get_by_role("button", name="Copy as curl").first.is_disabled(), "there is no delivery yet"
        page.locator("#fans button").nth(1).click()
        for number in range(6):
            page.get_by_label("Message").fill(f"text {number}")
            page.keyboard.press("Enter")
        wait_for(page, "fan", 7)
        apply_fault(page, "API slow: 3 s")
        page.locator("#fault-now", has_text="In force: API slow").wait_for()
        page.locator("#fans button").nth(0).click()
        wait_for(page, "fan", 6)  # to the fan for whom they were chosen
        assert said(page, "fan").locator("img").count() == 6
        for _ in range(49):
            send("oAnother")
        go_on.set()
        eventually(lambda: all(push["ended"] for push in pushes(sandbox)), what="the end of all pushes")
        send(page.locator("#fans button").nth(0).get_attribute("data-openid"))
        last = page.locator("#pushes > li", has_text="text · x")
        last.locator(".facts", has_text="The fan saw").wait_for()
        assert page.locator("#pushes > li").count() == 1, "of the latest 50 all others are another fan's"


def test_by_keyboard_alone(page):
    page.once("filechooser", lambda chooser: chooser.set_files(HOPPER))
    page.keyboard.press("Tab")
    link = page.get_by_role("link", name="Skip to the message")
    assert link.evaluate(
        "element => element === document.activeElement && element.getBoundingClientRect().top >= 0"
    )
    page.keyboard.press("Enter")
    page.keyboard.type("hello")
    page.keyboard.press("Enter")
    wait_for(page, "account", 1)
    tab_to(page, page.get_by_role("button", name="Pictures"))
    page.keyboard.press("Enter")
    wait_for(page, "account", 2)
    tab_to(page, page.get_by_label("Mode"))
    page.keyboard.press("p")
    assert page.get_by_label("Mode").input_value() == "plain"
    tab_to(page, page.get_by_label("Fault"))
    page.keyboard.type("Answer garb")
    tab_to(page, page.get_by_role("button", name="Apply"))
    page.keyboard.press("Space")
    page.locator("#fault-now", has_text="In force: Answer garbled").wait_for()
    summary = page.locator("#pushes summary", has_text="Signed query").first
    tab_to(page, summary)
    page.keyboard.press("Enter")
    assert page.get_by_role("group", name="Signed query").first.is_visible()
    tab_to(page, said(page, "account").locator("button.picture"))
    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    assert page.get_by_role("dialog").count() == 0
    tab_to(page, page.get_by_label("Message"))  # without the link as well


def fill(page):
    """Something of everything into the chat."""
    page.locator("#follow").click()
    wait_for(page, "account", 1)
    choose(page, HOPPER)
    wait_for(page, "account", 2)
    choose(page, {"name": "voice.amr", "mimeType": "", "buffer": AMR}, kind="voice")
    choose(page, {"name": "voice.mp3", "mimeType": "audio/mpeg", "buffer": MP3}, kind="voice")
    wait_for(page, "account", 4)
    page.locator("#fault").select_option("14")
    page.locator("#faults button:not([type])").click()
    page.locator("#fault-now.on").wait_for()
    page.locator("#text").fill("x" * 200)
    page.locator("#text").press("Enter")
    page.locator(".message.failure").wait_for()
    page.locator("#pushes .facts").first.wait_for()
    page.locator("#pushes details").evaluate_all("all => all.forEach((one) => one.open = true)")


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_everybody_can_use_it(phone, open_page, locale):
    page = open_page(phone.url, locale=locale)
    fill(page)
    look(page, locale)
    page.locator("#new-fan").click()
    page.locator("#free-fault").click()
    assert_accessible(page)
    page.keyboard.press("Escape")
    assert page.locator("html").get_attribute("lang") == ("zh-CN" if locale == "zh-CN" else "en")


def test_without_scripts_it_says_so(phone, browser):
    """Where it is seen at once, also on a small screen."""
    context = browser.new_context(java_script_enabled=False, viewport=NARROW)
    page = context.new_page()
    page.goto(phone.url)
    said_so = page.locator("noscript p", has_text="This page needs JavaScript.").bounding_box()
    context.close()
    assert said_so["y"] + said_so["height"] < NARROW["height"]


def test_in_chinese(phone, open_page):
    page = open_page(phone.url, locale="zh-TW")
    assert page.title() == "微信沙箱"
    untranslated = page.evaluate(
        """() => [...document.querySelectorAll("[data-t], option, [data-t-label]")]
          .map((one) => one.dataset.tLabel ? one.getAttribute("aria-label") : one.textContent)
          .filter((text) => !/[\\u4e00-\\u9fff]/.test(text))"""
    )
    assert untranslated == []
    page.locator("#follow").click()
    wait_for(page, "account", 1)
    page.locator("#pushes .facts", has_text="粉丝看到：").wait_for()
    words = page.locator("#pushes > li").inner_text()
    assert "第 1 次投递" in words
    assert "格式正确的文本回复" in words
    url = f"{phone.url}/sandbox/fans/oAnother/messages"
    requests.post(url, json={"raw": "<xml><MsgType>constructor</MsgType></xml>"}, timeout=10)
    page.get_by_role("button", name="粉丝 2").click()
    assert page.locator("#pushes .what").inner_text() == "constructor"


@pytest.mark.parametrize(
    ("locale", "no_callback", "no_path"),
    [
        ("zh-CN", "没有回调地址：请用 --callback URL 启动沙箱", "path：调用的完整路径，例如 /cgi-bin/token"),
        (
            "en-US",
            "no callback: start the sandbox with --callback URL",
            "path: the exact path of a call, like /cgi-bin/token",
        ),
    ],
)
def test_a_refused_action_in_the_language_of_the_page(open_page, locale, no_callback, no_path):
    with running_sandbox() as sandbox:
        page = open_page(sandbox.url, locale=locale, refused=400)
        page.locator("#live.on").wait_for()
        page.locator("#text").fill("x")
        page.locator("#text").press("Enter")
        page.get_by_role("alert").get_by_text(no_callback, exact=True).wait_for()
        assert page.locator("#text").input_value() == "x", "it is not lost"
        page.locator("#free-fault").click()
        page.locator("#ask-path").fill("nowhere")
        page.locator("#asker-done").click()
        page.get_by_role("alert").get_by_text(no_path, exact=True).wait_for()


@pytest.mark.parametrize(
    ("locale", "why"),
    [
        ("en-US", "MediaId is unknown or older than three days: 40007 invalid media_id"),
        ("zh-CN", "MediaId 不存在或已超过三天：40007 invalid media_id"),
    ],
)
def test_a_reply_that_names_an_unknown_media_id(open_page, locale, why):
    """The bot's own log cannot tell such an id from permanent material: the sandbox knows each id that it gave."""
    answer = (
        "<xml><ToUserName>oSandbox-FirstFan00000000001</ToUserName>"
        f"<FromUserName>{THROWAWAY.original_id}</FromUserName><CreateTime>1760000000</CreateTime>"
        "<MsgType>image</MsgType><Image><MediaId>nobodys</MediaId></Image></xml>"
    ).encode()

    def bot(environ, start_response):
        start_response("200 OK", [("Content-Length", str(len(answer)))])
        return [answer]

    with running_sandbox() as sandbox, serving(bot) as url:
        sandbox.callback = f"{url}/wechat"
        page = open_page(sandbox.url, locale=locale)
        page.locator("#mode").select_option("plain")
        page.locator("#text").fill("x")
        page.locator("#text").press("Enter")
        wait_for(page, "system", 1)
        page.locator("#pushes > li").first.get_by_text(why).first.wait_for()


def test_other_languages_are_english(phone, open_page):
    page = open_page(phone.url, locale="fr-FR")
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.get_by_role("button", name="Send").is_visible()


def test_the_page_connects_again(open_page):
    """A feed that ends (here: too many windows) begins anew, and nothing is lost or shown twice."""
    with running_sandbox() as sandbox:
        with socket.create_server(("127.0.0.1", 0)) as nobody:
            sandbox.callback = f"http://127.0.0.1:{nobody.getsockname()[1]}/"
        page = open_page(sandbox.url)
        page.locator("#live.on").wait_for()
        page.evaluate("() => { window.fetch = () => Promise.reject(new TypeError('no network')); }")
        page.get_by_label("Message").fill("not lost")
        page.keyboard.press("Enter")
        page.get_by_role("alert").filter(has_text="The sandbox does not answer").wait_for()
        with requests.Session() as many:
            feeds = [
                many.get(f"{sandbox.url}/sandbox/events", stream=True, timeout=10) for _ in range(CONNECTIONS)
            ]
            url = f"{sandbox.url}/sandbox/fans/oAnother/messages"
            requests.post(url, json={"type": "text", "content": "x", "attempts": 1}, timeout=10)
            page.locator("#fans button").nth(1).wait_for()
            for feed in feeds:
                feed.close()
        page.locator("#live.on").wait_for()
        page.locator("#problem:empty").wait_for(state="attached")
        assert page.get_by_label("Message").input_value() == "not lost"


def test_a_page_of_an_earlier_sandbox_is_loaded_again(open_page):
    other = Account(appid="wx2", appsecret="s", token="t", aes_key=None, original_id="gh_2")
    port = free_port()
    with running_sandbox(port=port, callback="http://127.0.0.1:9/one") as sandbox:
        page = open_page(sandbox.url)
        page.locator("#live.on").wait_for()
    with running_sandbox(port=port, callback="http://127.0.0.1:9/two", account=other):
        page.locator("#settings code", has_text="wx2").wait_for()
        page.locator("#settings code", has_text="/two").wait_for()
        assert page.locator("#mode option").count() == 1
        page.locator("#live.on").wait_for()


def test_a_page_whose_account_is_gone_says_so(open_page):
    first, second, third = Account.all_from_env(THREE)
    port = free_port()
    with running_sandbox(port=port, account=first, others=[second, third]) as sandbox:
        page = open_page(f"{sandbox.url}/?appid={second.appid}", refused=404)
        page.locator("#live.on").wait_for()
    with running_sandbox(port=port, account=first, others=[third]):
        page.get_by_text(f"The sandbox has no account {second.appid}").wait_for()
        page.get_by_text("沙箱中没有").wait_for()
        assert_accessible(page)
        page.get_by_role("link", name="The first account").click()
        page.locator("#settings code", has_text=first.appid).wait_for()
        page.locator("#live.on").wait_for()


def test_a_page_without_its_feed_pushes(phone, open_page):
    page = open_page("about:blank")
    page.route("**/sandbox/events", lambda route: None)  # it never comes
    page.goto(phone.url)
    page.get_by_role("button", name="Follow").click()
    eventually(lambda: [push["event"] for push in pushes(phone)] == ["subscribe"], what="the push")
    page.unroute("**/sandbox/events")


@pytest.mark.parametrize(("kind", "late"), [("video", "customer_service"), ("shortvideo", "redelivery")])
def test_a_film_comes_back_late(kind, late, open_page, tmp_path):
    """The upload takes longer than a delivery may, or than the bot waits: the film comes with a repeated push, or by
    customer service."""
    seconds, delay = ("4.5", 6) if late == "redelivery" else ("0.5", 1.5)
    with running_sandbox() as sandbox, running_bot(sandbox, tmp_path, LATE_REPLY=late, REPLY_SECONDS=seconds):
        slow = {"path": "/cgi-bin/media/upload", "times": 1, "delay": delay}
        requests.put(f"{sandbox.url}/sandbox/faults", json=[slow], timeout=10)
        page = open_page(sandbox.url)
        choose(page, {"name": "film.mp4", "mimeType": "video/mp4", "buffer": FILM}, kind=kind)
        page.locator("#chat .message.account video").wait_for(timeout=40_000)
        assert sides(page) == ["fan", "account"]
        eventually(lambda: all(push["ended"] for push in pushes(sandbox)), what="the end of the push")


def test_the_page_switches_between_accounts(tmp_path, open_page):
    first, *others = Account.all_from_env(THREE)
    unset = dict.fromkeys(ACCOUNT, "") | {"WECHAT_AES_KEY": ""}
    with (
        running_sandbox(account=first, others=others) as sandbox,
        running_bot(sandbox, tmp_path, **unset, **THREE),
    ):
        page = open_page(sandbox.url, refused=400, motion=True)
        links = page.get_by_role("navigation", name="Accounts").get_by_role("link")
        assert links.all_inner_texts() == ["shop", "club", "mini"]
        choose(page, HOPPER)
        wait_for(page, "account", 1)
        links.nth(1).click()
        page.locator("nav.accounts [aria-current]", has_text="club").wait_for()
        page.wait_for_load_state()  # the chooser needs the page's script
        assert said(page, "fan").count() == 0
        choose(page, CHINA)
        wait_for(page, "account", 1)
        assert_accessible(page)
        assert_fits(page)
        links.nth(0).click()
        wait_for(page, "account", 1)
        page.locator("#calls li", has_text="media/get").first.wait_for()
        links.nth(2).click()
        page.locator("#text").fill("hello")
        page.get_by_role("button", name="Send", exact=True).click()
        page.locator("#problem", has_text="callback").wait_for()
