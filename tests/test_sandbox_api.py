"""The platform's API as the sandbox serves it: tokens, media, customer-service messages, the rest."""

import hashlib
import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from sandbox import THROWAWAY, Account, running_sandbox
from sandbox.errors import PlatformError
from sandbox.media import extension, voice_seconds
from sandbox.state import State

PHOTO = (Path(__file__).parent.parent / "sandbox/photos/grace_hopper.jpg").read_bytes()
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
GIF = b"GIF89a" + bytes(100)
MP4 = b"\0\0\0\x18ftypmp42" + bytes(100)
AMR = b"#!AMR\n" + (b"\x3c" + bytes(31)) * 50
MP3_FRAME = b"\xff\xfb\x90\x00" + bytes(413)  # MPEG-1 layer III, 128 kbit/s, 44.1 kHz: 417 bytes, 26 ms
FAN = "oTest-AbCdEfGhIjKlMnOpQrSt_1"
CREDENTIALS = {"grant_type": "client_credential", "appid": THROWAWAY.appid, "secret": THROWAWAY.appsecret}


class Platform:
    """Calls the sandbox as a bot and as a test would."""

    def __init__(self, sandbox):
        self.sandbox, self.url = sandbox, sandbox.url
        self.token = None

    def get(self, path, **query):
        return requests.get(self.url + path, params=self._with_token(query), timeout=10)

    def post(self, path, body=None, **query):
        return requests.post(self.url + path, params=self._with_token(query), json=body, timeout=10)

    def _with_token(self, query):
        return {"access_token": self.token, **query} if self.token else query

    def classic(self):
        return requests.get(f"{self.url}/cgi-bin/token", params=CREDENTIALS, timeout=10).json()

    def stable(self, **more):
        return requests.post(f"{self.url}/cgi-bin/stable_token", json=CREDENTIALS | more, timeout=10).json()

    def upload(self, kind, data, name="file.bin"):
        query = self._with_token({"type": kind})
        return requests.post(
            f"{self.url}/cgi-bin/media/upload", params=query, files={"media": (name, data)}, timeout=10
        ).json()

    def code(self, token):
        """What a call with this token is answered."""
        query = {"access_token": token}
        answer = requests.get(f"{self.url}/cgi-bin/getcallbackip", params=query, timeout=10).json()
        return answer.get("errcode", 0)

    def advance(self, seconds):
        assert requests.post(f"{self.url}/sandbox/clock", json={"advance": seconds}, timeout=10).ok

    def expire(self, **how):
        assert requests.post(f"{self.url}/sandbox/token/expire", json=how, timeout=10).ok

    def rules(self, **rules):
        assert requests.put(f"{self.url}/sandbox/rules", json=rules, timeout=10).ok

    def fan(self, kind, openid=FAN, files=None, **fields):
        """A fan acts; no bot is there to answer."""
        data = {"type": kind, "mode": "plain", "attempts": "1", **fields}
        answer = requests.post(
            f"{self.url}/sandbox/fans/{openid}/messages",
            data=data,
            files=files or {"x": ("", b"")},
            timeout=10,
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    def chat(self, openid=FAN):
        return requests.get(f"{self.url}/sandbox/fans/{openid}/messages", timeout=10).json()

    def send(self, kind, part, openid=FAN):
        body = {"touser": openid, "msgtype": kind, kind: part}
        return requests.post(
            f"{self.url}/cgi-bin/message/custom/send",
            params=self._with_token({}),
            data=json.dumps(body, ensure_ascii=False).encode(),
            timeout=10,
        ).json()["errcode"]


@pytest.fixture(scope="module")
def running():
    with socket.socket() as nobody, running_sandbox() as sandbox:
        nobody.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        yield sandbox, f"http://127.0.0.1:{nobody.getsockname()[1]}/wechat"


@pytest.fixture
def platform(running):
    sandbox, sandbox.callback = running
    sandbox.state.reset()
    return Platform(sandbox)


@pytest.fixture
def authorised(platform):
    platform.token = platform.stable()["access_token"]
    return platform


# access_token


def test_a_token_looks_like_a_real_one(platform):
    answer = requests.get(f"{platform.url}/cgi-bin/token", params=CREDENTIALS, timeout=10)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json; encoding=utf-8"
    assert set(answer.json()) == {"access_token", "expires_in"}
    assert answer.json()["expires_in"] == 7200
    assert re.fullmatch(r"\d+_[\w-]{130,}", answer.json()["access_token"])


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"grant_type": "x"}, 40002),
        ({"appid": ""}, 41002),
        ({"secret": ""}, 41004),
        ({"appid": "wxffffffffffffffff"}, 40013),
        ({"secret": "0" * 32}, 40125),
    ],
)
def test_wrong_credentials(platform, wrong, code):
    classic = platform.get("/cgi-bin/token", **{**CREDENTIALS, **wrong}).json()
    stable = platform.post("/cgi-bin/stable_token", body={**CREDENTIALS, **wrong}).json()
    assert classic["errcode"] == stable["errcode"] == code
    assert re.search(r" rid: [0-9a-f]{8}-[0-9a-f]{8}-[0-9a-f]{8}$", classic["errmsg"])


def test_stable_token_wants_a_json_post(platform):
    url = f"{platform.url}/cgi-bin/stable_token"
    assert requests.get(url, timeout=10).json()["errcode"] == 43002
    assert requests.post(url, timeout=10).json()["errcode"] == 44002
    for body in (b"{", b"[]", b"\xff", b"[" * 100_000):
        assert requests.post(url, data=body, timeout=10).json()["errcode"] == 47001
    assert platform.stable(force_refresh="true")["errcode"] == 47001
    assert platform.post("/cgi-bin/token").json()["errcode"] == 43001


def test_a_classic_token_replaces_the_one_before_within_five_minutes(platform):
    first, second = platform.classic()["access_token"], platform.classic()["access_token"]
    assert first != second
    assert platform.code(first) == platform.code(second) == 0
    platform.advance(299)
    assert platform.code(first) == 0
    platform.advance(2)
    assert platform.code(first) == 40001
    assert platform.code(second) == 0


def test_only_one_earlier_token_works(platform):
    first, second, third = (platform.classic()["access_token"] for _ in range(3))
    assert [platform.code(token) for token in (first, second, third)] == [40001, 0, 0]


def test_the_slots_do_not_disturb_each_other(platform):
    stable = platform.stable()["access_token"]
    for _ in range(3):
        classic = platform.classic()["access_token"]
    assert platform.stable()["access_token"] == stable
    assert platform.code(stable) == platform.code(classic) == 0


def test_stable_token_gives_the_same_until_its_last_five_minutes(platform):
    first = platform.stable()
    assert first["expires_in"] == 7200
    platform.advance(6800)
    again = platform.stable()
    assert again["access_token"] == first["access_token"]
    assert 398 <= again["expires_in"] <= 400
    platform.advance(101)
    new = platform.stable()
    assert new["access_token"] != first["access_token"]
    assert new["expires_in"] == 7200
    assert platform.code(first["access_token"]) == platform.code(new["access_token"]) == 0
    platform.advance(300)
    assert platform.code(first["access_token"]) == 42001
    assert platform.code(new["access_token"]) == 0


def test_a_token_expires(platform):
    token = platform.stable()["access_token"]
    platform.advance(7200)
    assert platform.code(token) == 42001
    assert platform.stable()["access_token"] != token


def test_force_refresh_kills_the_old_one_and_has_limits(platform):
    since_midnight = (time.time() + 8 * 3600) % 86400  # Beijing's, where a new day's count begins
    platform.advance(86400 - since_midnight + 1)
    first = platform.stable()["access_token"]
    second = platform.stable(force_refresh=True)["access_token"]
    assert second != first
    assert platform.code(first) == 40001
    assert platform.stable(force_refresh=True)["access_token"] == second, "within 30 s nothing is refreshed"
    for _ in range(19):
        platform.advance(30)
        third, second = second, platform.stable(force_refresh=True)["access_token"]
        assert third != second
    platform.advance(30)
    assert platform.stable(force_refresh=True)["access_token"] == second, "20 a day"
    platform.advance(24 * 3600)
    assert platform.stable(force_refresh=True)["access_token"] != second


def test_expire_kills_both_slots(platform):
    tokens = [
        platform.classic()["access_token"],
        platform.classic()["access_token"],
        platform.stable()["access_token"],
    ]
    platform.expire()
    assert [platform.code(token) for token in tokens] == [42001] * 3
    assert platform.stable()["access_token"] not in tokens
    assert platform.classic()["access_token"] not in tokens


def test_a_stuck_token_is_repeated_until_it_is_forced(platform):
    dead = platform.stable()["access_token"]
    platform.expire(stuck=True)
    assert platform.code(dead) == 40001
    assert platform.stable()["access_token"] == dead
    platform.advance(7100)
    assert platform.stable() == {"access_token": dead, "expires_in": 300}
    forced = platform.stable(force_refresh=True)["access_token"]
    assert forced != dead
    assert platform.code(forced) == 0
    assert platform.stable()["access_token"] == forced


def test_stuck_without_any_token_changes_nothing(platform):
    platform.expire(stuck=True)
    assert platform.code(platform.stable()["access_token"]) == 0


def test_the_token_belongs_into_the_query(platform):
    token = platform.stable()["access_token"]
    url = f"{platform.url}/cgi-bin/getcallbackip"
    assert requests.get(url, timeout=10).json()["errcode"] == 41001
    headers = {"Authorization": f"Bearer {token}"}
    assert (
        requests.get(url, headers=headers, data={"access_token": token}, timeout=10).json()["errcode"]
        == 41001
    )
    assert platform.code("unknown") == 40001


def test_the_life_of_a_token_is_a_rule(platform):
    platform.rules(token_life=310)
    assert platform.stable()["expires_in"] == 310
    assert platform.classic()["expires_in"] == 310


def test_quotas_of_the_day_and_the_minute(tmp_path):
    now = [1_760_000_000.0]
    state = State(THROWAWAY, tmp_path, clock=lambda: now[0])
    for _ in range(2000):
        token = state.fetch_token(CREDENTIALS)["access_token"]
    with pytest.raises(PlatformError, match="45009"):
        state.fetch_token(CREDENTIALS)
    for _ in range(10_000):
        state.fetch_stable_token(CREDENTIALS)
    with pytest.raises(PlatformError, match="45011"):
        state.fetch_stable_token(CREDENTIALS)
    now[0] += 60
    state.fetch_stable_token(CREDENTIALS)
    state.enter("/cgi-bin/clear_quota", token)
    for _ in range(10):
        state.clear_quota(THROWAWAY.appid)
    state.fetch_token(CREDENTIALS)
    with pytest.raises(PlatformError, match="48006"):
        state.clear_quota(THROWAWAY.appid)
    for _ in range(1999):
        state.fetch_token(CREDENTIALS)
    with pytest.raises(PlatformError, match="45009"):
        state.fetch_token(CREDENTIALS)
    now[0] += 24 * 3600
    state.fetch_token(CREDENTIALS)


# media


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("image", PHOTO),
        ("image", PNG),
        ("image", GIF),
        ("voice", AMR),
        ("voice", b"ID3" + bytes(50)),
        ("voice", MP3_FRAME * 4),
        ("video", MP4),
        ("thumb", PHOTO),
        ("image", PHOTO + bytes(10 * 1024 * 1024 - len(PHOTO))),
    ],
)
def test_upload_and_get_back(authorised, kind, data):
    answer = authorised.upload(kind, data)
    name = "thumb_media_id" if kind == "thumb" else "media_id"
    assert set(answer) == {"type", name, "created_at"}
    assert answer["type"] == kind
    media_id = answer[name]
    assert re.fullmatch(r"[A-Za-z0-9][\w-]{63}", media_id)
    got = authorised.get("/cgi-bin/media/get", media_id=media_id)
    if kind == "video":
        assert set(got.json()) == {"video_url"}
        assert "access_token" not in got.json()["video_url"]
        assert urlsplit(got.json()["video_url"]).netloc == urlsplit(authorised.url).netloc
        got = requests.get(got.json()["video_url"], timeout=10)
        assert got.headers["Content-Type"] == "video/mpeg4"
    assert hashlib.sha256(got.content).digest() == hashlib.sha256(data).digest()


def test_the_headers_of_a_picture(authorised):
    media_id = authorised.upload("image", PHOTO)["media_id"]
    got = authorised.get("/cgi-bin/media/get", media_id=media_id)
    assert got.status_code == 200
    assert got.headers["Connection"] == "close"
    assert got.headers["Content-Type"] == "image/jpeg"
    assert got.headers["Content-disposition"] == f'attachment; filename="{media_id}.jpg"'
    assert got.headers["Cache-Control"] == "no-cache, must-revalidate"
    assert got.headers["Content-Length"] == str(len(PHOTO))


@pytest.mark.parametrize(
    ("kind", "data", "code"),
    [
        ("sticker", PHOTO, 40004),
        ("", PHOTO, 40004),
        ("image", b"", 44001),
        ("image", PHOTO + bytes(10 * 1024 * 1024 + 1 - len(PHOTO)), 40009),
        ("voice", AMR + bytes(2 * 1024 * 1024), 40010),
        ("video", MP4 + bytes(10 * 1024 * 1024), 40011),
        ("thumb", PHOTO + bytes(64 * 1024), 40012),
        ("video", MP4 + bytes(21 * 1024 * 1024), 45001),
        ("image", b"BM" + bytes(100), 40005),
        ("voice", PHOTO, 40005),
        ("video", PHOTO, 40005),
        ("thumb", PNG, 40005),
        ("voice", b"#!AMR\n" + (b"\x3c" + bytes(31)) * 3001, 45007),
    ],
)
def test_uploads_that_are_refused(authorised, kind, data, code):
    assert authorised.upload(kind, data)["errcode"] == code


def test_an_upload_just_over_the_platforms_cap_is_45001(authorised):
    state = authorised.sandbox.state
    with pytest.raises(PlatformError, match="45001"):
        state.upload("video", MP4 + bytes(20 * 1024 * 1024))


def test_a_form_that_the_platform_cannot_read(authorised):
    url = f"{authorised.url}/cgi-bin/media/upload"
    query = {"access_token": authorised.token, "type": "image"}

    def post(**how):
        return requests.post(url, params=query, timeout=10, **how).json()["errcode"]

    head = {"Content-Type": "multipart/form-data; boundary=b"}

    def part(disposition):
        return (
            f"--b\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode()
            + PHOTO
            + b"\r\n--b--\r\n"
        )

    assert post() == 41005
    assert post(files={"file": ("a.jpg", PHOTO)}) == 41005
    assert post(files={"media": ("照片.jpg", PHOTO)}) == 41005
    assert post(data=part('name="media"'), headers=head) == 41005
    assert post(files={"media": (None, PHOTO + bytes(600_000))}) == 41005, "also a large one"
    assert post(data=part("name=\"media\"; filename*=utf-8''a.jpg"), headers=head) == 41005
    assert post(data=iter([part('name="media"; filename="a.jpg"')]), headers=head) == 41005, "chunked"
    good = requests.post(
        url, params=query, data=part('name="media"; filename="a.jpg"'), headers=head, timeout=10
    ).json()
    assert "media_id" in good
    assert requests.get(url, params=query, timeout=10).json()["errcode"] == 43002


def test_a_crash_is_no_answer_of_the_platform(authorised):
    media_id = authorised.upload("image", PHOTO)["media_id"]
    authorised.sandbox.state.find_media(media_id).path.unlink()
    answer = authorised.get("/cgi-bin/media/get", media_id=media_id)
    assert answer.status_code == 500
    assert "errcode" not in answer.json()
    calls = requests.get(f"{authorised.url}/sandbox/calls", timeout=10).json()
    assert calls["/cgi-bin/media/get"] == {"HTTP 500": 1}


def test_media_live_three_days(authorised):
    media_id = authorised.upload("image", PHOTO)["media_id"]
    video = authorised.upload("video", MP4)["media_id"]
    video_url = authorised.get("/cgi-bin/media/get", media_id=video).json()["video_url"]
    authorised.advance(3 * 24 * 3600)
    authorised.token = authorised.stable()["access_token"]
    got = authorised.get("/cgi-bin/media/get", media_id=media_id)
    assert got.status_code == 200
    assert got.json()["errcode"] == 40007
    assert requests.get(video_url, timeout=10).status_code == 404
    assert authorised.get("/cgi-bin/media/get").json()["errcode"] == 41006


def test_formats_and_lengths():
    assert extension(b"Speex   1.2") == "speex"
    assert extension(b"OggS" + bytes(24) + b"Speex   ") == "speex"
    assert extension(b"\xff") == extension(b"") == "bin"
    assert voice_seconds(AMR) == pytest.approx(1)
    assert voice_seconds(b"#!AMR-WB\n" + (b"\x44" + bytes(60)) * 50) == pytest.approx(1)
    assert voice_seconds(b"#!AMR\n\x60") == 0, "a reserved frame type"
    assert voice_seconds(MP3_FRAME * 100) == pytest.approx(2.612, abs=0.01)
    assert voice_seconds(b"ID3\x04\0\0\0\0\0\x05" + bytes(5) + MP3_FRAME * 100) == pytest.approx(
        2.612, abs=0.01
    )
    assert voice_seconds(b"ID3") == 0
    frame = b"\xff\xf3\x80\x00" + bytes(204)  # MPEG-2, 64 kbit/s, 22.05 kHz: 208 bytes, 26 ms
    assert voice_seconds(frame * 100) == pytest.approx(2.612, abs=0.01)
    assert voice_seconds(b"\xff\xeb\x90\x00") == 0, "the version that does not exist"


def test_many_large_pictures_at_once(authorised):
    data = PHOTO + bytes(1024 * 1024)
    ids = [authorised.upload("image", data + bytes([n]))["media_id"] for n in range(4)]

    def fetch(number):
        return hashlib.sha256(authorised.get("/cgi-bin/media/get", media_id=ids[number % 4]).content).digest()

    with ThreadPoolExecutor(64) as threads:
        found = list(threads.map(fetch, range(128)))
    assert found == [hashlib.sha256(data + bytes([n % 4])).digest() for n in range(128)]
    calls = requests.get(f"{authorised.url}/sandbox/calls", timeout=10).json()
    assert calls["/cgi-bin/media/get"] == {"ok": 128}


# customer-service messages


def test_five_messages_for_48_hours_after_a_message(authorised):
    authorised.fan("text", content="hello")
    for number in range(5):
        assert authorised.send("text", {"content": f"第 {number} 条 🚀"}) == 0
    assert authorised.send("text", {"content": "六"}) == 45047
    authorised.fan("text", content="again")
    assert authorised.send("text", {"content": "again"}) == 0
    authorised.advance(48 * 3600)
    authorised.token = authorised.stable()["access_token"]
    assert authorised.send("text", {"content": "late"}) == 45015
    shown = [message for message in authorised.chat() if message["by"] == "custom"]
    assert [message["content"] for message in shown][:2] == ["第 0 条 🚀", "第 1 条 🚀"]
    assert {message["from"] for message in shown} == {"account"}


@pytest.mark.parametrize("event", ["CLICK", "scancode_push", "scancode_waitmsg", "subscribe", "SCAN"])
def test_three_messages_for_a_minute_after_a_press(authorised, event):
    authorised.fan("event", event=event, event_key="KEY")
    assert [authorised.send("text", {"content": "x"}) for _ in range(4)] == [0, 0, 0, 45047]
    authorised.advance(60)
    assert authorised.send("text", {"content": "x"}) == 45015


def test_rights_of_several_actions(authorised):
    authorised.fan("text", content="hello")
    authorised.fan("event", event="CLICK", event_key="KEY")
    assert [authorised.send("text", {"content": "x"}) for _ in range(9)] == [0] * 8 + [45047]
    authorised.fan("event", event="VIEW", event_key="https://example.org")
    assert authorised.send("text", {"content": "x"}) == 45047, "a view gives no right"


def test_an_entry_of_a_menu_message_is_a_press(authorised):
    sent = authorised.fan("text", content="是", event_key="7")["attempts"][0]["sent"]
    assert "<Content><![CDATA[是]]></Content>" in sent
    assert sent.endswith("<bizmsgmenuid><![CDATA[7]]></bizmsgmenuid></xml>")
    assert [authorised.send("text", {"content": "x"}) for _ in range(4)] == [0, 0, 0, 45047]


def test_a_fan_who_left_gets_nothing(authorised):
    authorised.fan("text", content="hello")
    authorised.fan("event", event="unsubscribe")
    assert authorised.send("text", {"content": "x"}) == 45015
    assert authorised.send("text", {"content": "x"}, openid="oNobody") == 40003
    assert authorised.send("text", {"content": "x"}, openid=7) == 40003


def test_the_kinds_of_messages(authorised):
    image = authorised.fan("image", files={"file": ("a.jpg", PHOTO)})["media_id"]
    voice = authorised.upload("voice", AMR)["media_id"]
    video = authorised.upload("video", MP4)["media_id"]
    thumb = authorised.upload("thumb", PHOTO)["thumb_media_id"]
    article = {"title": "t", "description": "d", "url": "https://example.org", "picurl": ""}
    assert authorised.send("image", {"media_id": image}) == 0
    assert authorised.send("voice", {"media_id": voice}) == 0
    own = authorised.fan("video", files={"file": ("a.mp4", MP4)})["media_id"]
    assert authorised.send("video", {"media_id": own}) == 40007, "a fan's own video is not kept for sending"
    assert authorised.send("video", {"media_id": video, "title": "clip"}) == 0
    assert authorised.send("video", {"media_id": video, "thumb_media_id": thumb}) == 0
    assert authorised.send("music", {"thumb_media_id": thumb, "title": "song"}) == 0
    authorised.fan("text", content="more")
    assert authorised.send("news", {"articles": [article]}) == 0
    menu = {"head_content": "Solved?", "list": [{"id": "7", "content": "是"}, {"id": "8", "content": "否"}]}
    page = {"title": "t", "appid": "wx1", "pagepath": "pages/index", "thumb_media_id": image}
    assert authorised.send("msgmenu", {**menu, "tail_content": "Tap one"}) == 0
    assert authorised.send("mpnewsarticle", {"article_id": "A1"}) == 0
    assert authorised.send("wxcard", {"card_id": "C1"}) == 0
    assert authorised.send("miniprogrampage", page) == 0
    shown = [message for message in authorised.chat() if message["by"] == "custom"]
    assert [(message["type"], message["content"]) for message in shown] == [
        ("image", None),
        ("voice", None),
        ("video", "clip"),
        ("video", None),
        ("music", "song"),
        ("news", "t\nd\nhttps://example.org"),
        ("msgmenu", "Solved?\n是\n否\nTap one"),
        ("mpnewsarticle", "A1"),
        ("wxcard", "C1"),
        ("miniprogrampage", "t\npages/index"),
    ]
    assert shown[0]["sha256"] == hashlib.sha256(PHOTO).hexdigest()


def test_messages_that_are_refused_and_cost_no_right(authorised):
    authorised.fan("text", content="hello")
    image = authorised.upload("image", PHOTO)["media_id"]
    voice = authorised.upload("voice", AMR)["media_id"]
    wrong = [
        ("text", {"content": ""}, 44004),
        ("text", {}, 44004),
        ("text", {"content": "字" * 683}, 45002),
        ("text", "no object", 47001),
        ("image", {"media_id": "unknown"}, 40007),
        ("image", {"media_id": voice}, 40007),
        ("image", {}, 40007),
        ("voice", {"media_id": image}, 40007),
        ("video", {"media_id": image}, 40007),
        ("video", {"media_id": image, "thumb_media_id": image}, 40007),
        ("music", {"title": "song"}, 40007),
        ("news", {"articles": []}, 44003),
        ("news", {"articles": [{}, {}]}, 45008),
        ("news", {"articles": ["x"]}, 47001),
        ("hologram", {}, 40008),
        ("msgmenu", {}, 47001),
        ("msgmenu", {"list": [{"id": "1"}]}, 44004),
        ("mpnews", {"media_id": image}, 40007),
        ("mpnewsarticle", {}, 40035),
        ("wxcard", {"card_id": 7}, 40035),
        ("miniprogrampage", {"appid": "wx1", "pagepath": "p", "thumb_media_id": voice}, 40007),
        ("miniprogrampage", {"appid": "wx1", "thumb_media_id": image}, 40035),
    ]
    for kind, part, code in wrong:
        assert authorised.send(kind, part) == code, (kind, part)
    assert [authorised.send("text", {"content": "x" * 2048}) for _ in range(6)] == [0] * 5 + [45047]


def test_escaped_characters_are_refused(authorised):
    authorised.fan("text", content="hello")
    url = f"{authorised.url}/cgi-bin/message/custom/send"
    query = {"access_token": authorised.token}

    def post(content):
        body = f'{{"touser":"{FAN}","msgtype":"text","text":{{"content":"{content}"}}}}'
        return requests.post(url, params=query, data=body.encode(), timeout=10).json()["errcode"]

    assert post(r"\u4f60\u597d") == 40033
    assert post(r"\\\u4f60") == 40033
    assert post(r"C:\\users \n 你好") == 0
    assert authorised.chat()[-1]["content"] == "C:\\users \n 你好"


def test_typing(authorised):
    def typing(command="Typing", openid=FAN):
        body = {"touser": openid, "command": command}
        return authorised.post("/cgi-bin/message/custom/typing", body).json()["errcode"]

    assert typing() == 40003
    authorised.fan("text", content="hello")
    assert typing("Dancing") == 45072
    assert [typing(), typing()] == [0, 45081]
    authorised.advance(15)
    assert typing() == 0
    assert typing("CancelTyping") == 0
    assert typing() == 0
    assert authorised.send("text", {"content": "done"}) == 0
    assert typing() == 0, "a message ends it"
    authorised.advance(31)
    assert typing() == 45080
    authorised.fan("event", event="unsubscribe")
    assert typing() == 45015


# the rest


def test_addresses(authorised):
    assert authorised.get("/cgi-bin/getcallbackip").json() == {"ip_list": ["127.0.0.1"]}
    assert authorised.get("/cgi-bin/get_api_domain_ip").json() == {"ip_list": ["127.0.0.1"]}


def test_callback_check(authorised):
    def check(**body):
        return authorised.post("/cgi-bin/callback/check", body).json()

    dns = [{"ip": "127.0.0.1", "real_operator": "UNICOM"}]
    assert check(action="dns", check_operator="DEFAULT") == {"dns": dns}
    assert check(action="ping", check_operator="CAP")["ping"][0]["package_loss"] == "100%"
    with socket.create_server(("127.0.0.1", 0)) as listening:
        authorised.sandbox.callback = f"http://127.0.0.1:{listening.getsockname()[1]}/wechat"
        answer = check(action="all")
    assert answer["dns"] == dns
    assert answer["ping"][0]["package_loss"] == "0%"
    assert re.fullmatch(r"\d+\.\d{3}ms", answer["ping"][0]["time"])
    assert check(action="look")["errcode"] == 40202
    assert check(action="all", check_operator="MARS")["errcode"] == 40203
    authorised.sandbox.callback = "http://no-such-host.invalid/wechat"
    assert check(action="all") == {"dns": [], "ping": []}
    authorised.sandbox.callback = None
    assert check(action="all")["errcode"] == 40201


def test_clear_quota(authorised):
    def clear(appid):
        return authorised.post("/cgi-bin/clear_quota", body={"appid": appid}).json()["errcode"]

    assert clear("wxffffffffffffffff") == 40013
    assert [clear(THROWAWAY.appid) for _ in range(11)] == [0] * 10 + [48006]


def test_a_call_is_made_by_the_account_of_its_token():
    other = Account(appid="wx2", appsecret="s", token="t", aes_key=None, original_id="gh_2")
    with running_sandbox(others=[other]) as sandbox:
        query = CREDENTIALS | {"appid": other.appid, "secret": other.appsecret}
        token = requests.get(f"{sandbox.url}/cgi-bin/token", params=query, timeout=10).json()["access_token"]

        def call(method, path, query, **how):
            url, query = f"{sandbox.url}/cgi-bin/{path}", query | {"access_token": token}
            return requests.request(method, url, params=query, timeout=10, **how).json().get("errcode")

        assert call("POST", "clear_quota", {}, json={"appid": THROWAWAY.appid}) == 40013
        assert call("POST", "clear_quota", {}, json={"appid": other.appid}) == 0
        assert call("GET", "getcallbackip", {"appid": THROWAWAY.appid}) is None


def test_calls_that_are_not_played_are_said_to_be(authorised):
    answer = authorised.get("/cgi-bin/media/get/jssdk")
    assert answer.status_code == 200
    assert answer.json()["errcode"] == 40066
    assert "the sandbox does not play /cgi-bin/media/get/jssdk" in answer.json()["errmsg"]
    assert authorised.post("/datacube/getusersummary", {}).json()["errcode"] == 40066
    assert requests.get(f"{authorised.url}/cgi-bin/unknown", timeout=10).json()["errcode"] == 41001
    authorised.code("unknown")
    calls = requests.get(f"{authorised.url}/sandbox/calls", timeout=10).json()
    assert calls == {
        "/cgi-bin/stable_token": {"ok": 1},
        "/cgi-bin/media/get/jssdk": {"40066": 1},
        "/datacube/getusersummary": {"40066": 1},
        "/cgi-bin/unknown": {"41001": 1},
        "/cgi-bin/getcallbackip": {"40001": 1},
    }


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_the_wrong_method_is_said_to_be(platform, method):
    for path, code in (
        ("/cgi-bin/token", 43001),
        ("/cgi-bin/stable_token", 43002),
        ("/cgi-bin/menu/create", 43002),
    ):
        answer = requests.request(method, platform.url + path, timeout=10)
        assert (answer.status_code, answer.json()["errcode"]) == (200, code)


def test_user_info(authorised):
    def info(openid):
        return authorised.get("/cgi-bin/user/info", openid=openid).json()

    assert info(FAN)["errcode"] == 40003
    authorised.fan("event", event="subscribe")
    assert info(FAN)["subscribe"] == 1
    assert info(FAN)["openid"] == FAN
    assert abs(info(FAN)["subscribe_time"] - time.time()) < 10
    authorised.fan("event", event="unsubscribe")
    assert info(FAN)["subscribe"] == 0
    assert "subscribe_time" not in info(FAN)
    assert authorised.get("/cgi-bin/user/info").json()["errcode"] == 40003


# the menu

CLICK = {"type": "click", "name": "今日歌曲", "key": "V1001"}
VIEW = {"type": "view", "name": "网页", "url": "https://example.org/"}


def test_a_menu_is_made_given_back_and_deleted(authorised):
    def create(*buttons):
        body = json.dumps({"button": list(buttons)}, ensure_ascii=False).encode()
        url, query = f"{authorised.url}/cgi-bin/menu/create", {"access_token": authorised.token}
        return requests.post(url, params=query, data=body, timeout=10).json()["errcode"]

    def get():
        return authorised.get("/cgi-bin/menu/get").json()

    assert get()["errcode"] == 46003
    sub = {
        "name": "更多",
        "sub_button": [VIEW, {"type": "scancode_push", "name": "扫码", "key": "K", "sub_button": []}],
    }
    assert create(CLICK, sub) == 0
    assert get() == {
        "menu": {
            "button": [
                {**CLICK, "sub_button": []},
                {
                    "name": "更多",
                    "sub_button": [
                        {**VIEW, "sub_button": []},
                        {"type": "scancode_push", "name": "扫码", "key": "K", "sub_button": []},
                    ],
                },
            ]
        }
    }
    for wrong, code in (
        ([], 40016),
        ([CLICK] * 4, 40016),
        ([{**CLICK, "name": ""}], 40018),
        ([{**CLICK, "name": "一二三四五六"}], 40018),
        ([{**CLICK, "type": "dance"}], 40017),
        ([{"name": "x"}], 40017),
        ([{**CLICK, "key": "k" * 129}], 40019),
        ([{**CLICK, "key": None}], 40019),
        ([{**VIEW, "url": "u" * 1025}], 40020),
        ([{"name": "x", "sub_button": [CLICK] * 6}], 40023),
        ([{"name": "x", "sub_button": [{**CLICK, "type": "dance"}]}], 40024),
        ([{"name": "x", "sub_button": [{**CLICK, "name": "x" * 61}]}], 40025),
        ([{"name": "x", "sub_button": [{**CLICK, "key": ""}]}], 40026),
        ([{"name": "x", "sub_button": [{**VIEW, "url": ""}]}], 40027),
        ([{"name": "x", "sub_button": [{"name": "y", "sub_button": [CLICK]}]}], 40022),
        (["x"], 47001),
    ):
        assert create(*wrong) == code, wrong
    escaped = authorised.post("/cgi-bin/menu/create", {"button": [CLICK]})  # requests writes \\u4eca
    assert escaped.json()["errcode"] == 40033
    assert len(get()["menu"]["button"]) == 2, "what was refused changed nothing"
    assert authorised.get("/cgi-bin/menu/delete").json()["errcode"] == 0
    assert get()["errcode"] == 46003
