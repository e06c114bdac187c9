"""What the sandbox shows of the bot's calls, and what it keeps for its next run: never a secret."""

import json
import socket

import pytest
import requests

from sandbox import THROWAWAY, running_sandbox
from tests.conftest import FAN, ROOT

PHOTO = (ROOT / "sandbox" / "photos" / "grace_hopper.jpg").read_bytes()
CREDENTIALS = {"grant_type": "client_credential", "appid": THROWAWAY.appid, "secret": THROWAWAY.appsecret}
MENU = {"button": [{"type": "click", "name": "song", "key": "K"}]}


@pytest.fixture
def callback():
    """An address where nobody listens."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{nobody.getsockname()[1]}/wechat"


@pytest.fixture
def sandbox(callback):
    with running_sandbox(callback=callback) as sandbox:
        yield sandbox


def token(sandbox):
    body = CREDENTIALS | {"force_refresh": False}
    return requests.post(f"{sandbox.url}/cgi-bin/stable_token", json=body, timeout=10).json()["access_token"]


def send(sandbox, **fields):
    fields = {"attempts": 1, "timeout": 1, "mode": "plain", **fields}
    file = fields.pop("file", None)
    url = f"{sandbox.url}/sandbox/fans/{fields.pop('fan', FAN)}/messages"
    if file is None:
        return requests.post(url, json=fields, timeout=10)
    return requests.post(url, data=fields, files={"file": ("a.jpg", file)}, timeout=10)


def told(sandbox):
    so_far, stop = sandbox.state.listen(lambda name, facts: None)
    stop()
    return so_far


def test_a_call_is_shown_with_request_answer_and_time(sandbox):
    query = {"access_token": token(sandbox), "media_id": "nothing"}
    requests.get(f"{sandbox.url}/cgi-bin/token", params=CREDENTIALS, timeout=10)
    requests.get(f"{sandbox.url}/cgi-bin/media/get", params=query, timeout=10)
    upload = {"access_token": query["access_token"], "type": "image"}
    form = {"media": ("a.jpg", PHOTO)}
    media_id = requests.post(
        f"{sandbox.url}/cgi-bin/media/upload", params=upload, files=form, timeout=10
    ).json()["media_id"]
    requests.get(f"{sandbox.url}/cgi-bin/media/get", params=query | {"media_id": media_id}, timeout=10)
    stable, classic, unknown, uploaded, got = told(sandbox)["calls"]
    assert (stable["method"], stable["path"], stable["outcome"]) == ("POST", "/cgi-bin/stable_token", "ok")
    assert json.loads(stable["request"]) == CREDENTIALS | {"secret": "***", "force_refresh": False}
    assert json.loads(stable["answer"]) == {"access_token": "***", "expires_in": 7200}
    assert 0 < stable["seconds"] < 10
    assert classic["query"] == f"grant_type=client_credential&appid={THROWAWAY.appid}"
    assert unknown["query"] == "media_id=nothing"
    assert "invalid media_id" in unknown["answer"]
    assert uploaded["request"].startswith("media: a.jpg, multipart/form-data, ")
    assert media_id in uploaded["answer"]
    assert got["answer"] == f"image/jpeg, {len(PHOTO)} bytes"


@pytest.mark.parametrize(
    "body",
    [
        '{{"a": "{secret}", "secret": "{secret}',
        "secret={secret}&appid=x",
        '{{"access_token":"typed\\"quote{token}"}}',
        "{token}",
        '{{"n": ["{aes_key}", "{callback_token}"]}}',
    ],
)
def test_no_secret_is_shown_of_a_call(sandbox, body):
    access_token = token(sandbox)
    secrets = {
        "secret": THROWAWAY.appsecret,
        "token": access_token,
        "aes_key": THROWAWAY.aes_key,
        "callback_token": THROWAWAY.token,
    }
    for path in ("/cgi-bin/stable_token", "/cgi-bin/message/custom/send", "/cgi-bin/unknown"):
        data = body.format(**secrets).encode()
        requests.post(
            sandbox.url + path,
            params={"access_token": access_token, "x": access_token},
            data=data,
            timeout=10,
        )
    requests.post(f"{sandbox.url}/sandbox/token/expire", timeout=10)
    shown = json.dumps(told(sandbox)["calls"])
    assert len(told(sandbox)["calls"]) == 4
    for secret in secrets.values():
        assert secret not in shown


def test_what_happened_outlives_the_program(tmp_path, callback):
    with running_sandbox(callback=callback, data=tmp_path) as sandbox:
        access_token = token(sandbox)
        send(sandbox, type="event", event="subscribe")
        first = send(sandbox, type="image", file=PHOTO).json()
        odd = send(sandbox, raw_base64="PHhtbD7/PC94bWw+").json()
        data = json.dumps({"touser": FAN, "msgtype": "image", "image": {"media_id": first["media_id"]}})
        query = {"access_token": access_token}
        for path, body in (("message/custom/send", data), ("menu/create", json.dumps(MENU))):
            url = f"{sandbox.url}/cgi-bin/{path}"
            assert requests.post(url, params=query, data=body, timeout=10).json()["errcode"] == 0
        before = told(sandbox)
        assert len(before["fans"][FAN]) == 7
    kept = (tmp_path / "history.jsonl").read_text(encoding="utf-8")
    assert (tmp_path / "history.jsonl").stat().st_mode & 0o077 == 0
    for secret in (access_token, THROWAWAY.appsecret, THROWAWAY.aes_key):
        assert secret not in kept
    cut = '["push", {"cut 字'.encode()[:-1]  # inside a character
    (tmp_path / "history.jsonl").write_bytes(kept.encode() + cut)
    for _ in range(2):  # the second run reads what the first has written anew
        with running_sandbox(callback=callback, data=tmp_path) as sandbox:
            after = told(sandbox)
            assert json.loads(json.dumps(after)) == json.loads(json.dumps(before))
            picture = requests.get(f"{sandbox.url}/sandbox/media/{first['media_id']}", timeout=10)
            assert picture.content == PHOTO
            again = requests.post(
                f"{sandbox.url}/sandbox/pushes/{first['msg_id']}/resend", json={"attempts": 1}, timeout=10
            )
            assert again.json()["attempts"][0]["sent"] == first["attempts"][0]["sent"]
            odd_id = after["pushes"][-1]["id"]
            url = f"{sandbox.url}/sandbox/pushes/{odd_id}/resend"
            again = requests.post(url, json={"attempts": 1}, timeout=10).json()
            assert again["attempts"][0]["sent"] == odd["attempts"][0]["sent"]
            before = told(sandbox)


def test_every_chat_outlives_the_program_and_the_page_shows_the_latest(tmp_path, callback):
    """There is room on the page for 50 fans: those who were active last, not those who came last."""
    everybody = [f"oFan{number}" for number in range(51)]
    with running_sandbox(callback=callback, data=tmp_path) as sandbox:
        for fan in [*everybody, everybody[0]]:
            send(sandbox, fan=fan, type="text", content="hello")
    for _ in range(2):  # the second run reads what the first has written anew
        with running_sandbox(callback=callback, data=tmp_path) as sandbox:
            assert list(told(sandbox)["fans"]) == [everybody[0], *everybody[2:]]
            assert [len(sandbox.state.chat(fan)) for fan in everybody] == [4, *[2] * 50]


def test_a_fan_who_left_is_still_gone_in_the_next_run(tmp_path, callback):
    with running_sandbox(callback=callback, data=tmp_path) as sandbox:
        assert send(sandbox, type="event", event="unsubscribe").ok
    with running_sandbox(callback=callback, data=tmp_path) as sandbox:
        assert send(sandbox, type="text", content="x").status_code == 400


@pytest.mark.parametrize("how", ["clear", "reset"])
def test_history_is_forgotten_on_request(tmp_path, callback, how):
    with running_sandbox(callback=callback, data=tmp_path) as sandbox:
        media_id = send(sandbox, type="image", file=PHOTO).json()["media_id"]
        query = {"access_token": token(sandbox)}
        requests.post(f"{sandbox.url}/cgi-bin/menu/create", params=query, data=json.dumps(MENU), timeout=10)
        if how == "clear":
            assert requests.delete(f"{sandbox.url}/sandbox/history", timeout=10).json() == {"ok": True}
        else:
            requests.post(f"{sandbox.url}/sandbox/reset", timeout=10)
        assert (told(sandbox)["pushes"], told(sandbox)["calls"]) == ([], [])
    with running_sandbox(callback=callback, data=tmp_path) as sandbox:
        assert (told(sandbox)["pushes"], told(sandbox)["calls"]) == ([], [])
        assert not any(told(sandbox)["fans"].values())
        kept = how == "clear"
        assert bool(told(sandbox)["menu"]) == kept
        assert (sandbox.state.find_media(media_id) is not None) == kept
        assert len(list((tmp_path / "media").iterdir())) == (1 if kept else 0)
