"""docs/deploy.md, tried: the Procfile's processes, and nginx and Caddy before a bot.

Only what is each machine's own is changed in the files: ports, addresses, the certificate, where the log goes. Without
nginx or Caddy their tests are skipped, or fail where CI=true is set.
"""

import datetime
import hashlib
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import boto3
import psutil
import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sandbox import running_sandbox
from tests import pushing
from tests.browser import running_bot
from tests.conftest import ROOT, eventually, free_port, missing
from tests.test_many import push_many

KEY = "a-key-for-other-teams"
FAKED = "203.0.113.9"


# -- PaaS --


def test_the_procfiles_processes_with_postgresql_and_s3(sandbox, make_bot, postgresql, s3_url):
    bot = make_bot(
        sandbox,
        DATABASE_URL=postgresql.new().replace("postgresql://", "postgres://"),  # as platforms write it
        MEDIA_STORE=s3_url,
        WORKER="external",
        PROXY_HOPS="1",
        LOG_FORMAT="json",
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    )
    for line in (ROOT / "Procfile").read_text(encoding="utf-8").splitlines():
        name, _, command = line.partition(": ")
        process = bot.run(["sh", "-c", f"exec {command.replace('0.0.0.0', '127.0.0.1')}"], name)
        if name == "web":
            bot.answers(process)
    ((sha256, answer),) = push_many(sandbox, 1)
    assert [attempt["verdict"] for attempt in answer["attempts"]] == ["reply"]
    bucket, _, prefix = s3_url.removeprefix("s3://").partition("/")
    store = boto3.client("s3")
    stored = eventually(
        lambda: store.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents"), what="the picture in S3"
    )
    data = store.get_object(Bucket=bucket, Key=stored[0]["Key"])["Body"].read()
    assert hashlib.sha256(data).hexdigest() == sha256
    store.close()
    assert [process.stop() for process in bot.processes] == [0, 0]
    assert "botocore" not in bot.logs()


# -- nginx and Caddy --


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """(certificate, key), files: of localhost, and its own authority."""
    folder = tmp_path_factory.mktemp("certificate")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "fullchain.pem", folder / "privkey.pem"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files


@pytest.fixture(scope="module")
def bot(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bot")
    more = {"PROXY_HOPS": "1", "TOKEN_SERVER_KEY": KEY, "ADMIN_PASSWORD": "behind a proxy"}
    with running_sandbox() as sandbox, running_bot(sandbox, folder, **more) as bot:
        yield bot


def changed(text, *changes):
    """The recipe with each (pattern, instead); each must be in it."""
    for pattern, instead in changes:
        text, times = re.subn(pattern, instead, text, flags=re.M)
        assert times, f"not in the recipe: {pattern}"
    return text


def nginx(program, folder, bot, port, certificate):
    """The command that runs it."""
    recipe = changed(
        (ROOT / "deploy" / "nginx.conf").read_text(encoding="utf-8"),
        (r"^.*listen \[::\].*\n", ""),
        (r"listen 80;", f"listen 127.0.0.1:{port + 1};"),
        (r"listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        (r"127\.0\.0\.1:8000;", f"127.0.0.1:{bot.settings.port};"),
        (r"/etc/letsencrypt/live/bot\.example\.com", str(certificate[0].parent)),
        (r"/var/log/nginx/tushangwanglai\.log", f"{folder}/access.log"),
        (r"/var/log/nginx/error\.log", f"{folder}/error.log"),
    )
    (folder / "tushangwanglai.conf").write_text(recipe, encoding="utf-8")
    own = [
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    ]
    own.append(f"access_log {folder}/default-access.log;")  # as Debian's nginx.conf has one
    around = ["events {}", "http {", *own, f"include {folder}/tushangwanglai.conf;", "}"]
    (folder / "nginx.conf").write_text("\n".join([f"pid {folder}/pid;", "daemon off;", *around]))
    return [program, "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]


def caddy(program, folder, bot, port, certificate):
    """The command that runs it."""
    recipe = changed(
        (ROOT / "deploy" / "Caddyfile").read_text(encoding="utf-8"),
        (r"^\tgrace_period", "\tadmin off\n\tauto_https off\n\tgrace_period"),
        (r"^\t\tformat filter", f"\t\toutput file {folder}/access.log\n\t\tformat filter"),
        (
            r"^bot\.example\.com \{",
            f"https://localhost:{port} {{\n\tlog\n\ttls {certificate[0]} {certificate[1]}",
        ),
        (r"127\.0\.0\.1:8000 \{", f"127.0.0.1:{bot.settings.port} {{"),
    )
    version = subprocess.run([program, "version"], capture_output=True, text=True, check=True).stdout
    if [int(number) for number in re.findall(r"\d+", version)[:2]] < [2, 7]:
        # As docs/deploy.md says.
        recipe = changed(recipe, (r"request_buffers 1MiB", "buffer_requests"), (r"\{args\[0\]\}", "{args.0}"))
    (folder / "Caddyfile").write_text(recipe, encoding="utf-8")
    return [program, "run", "--config", f"{folder}/Caddyfile", "--adapter", "caddyfile"]


@pytest.fixture(scope="module", params=[nginx, caddy], ids=["nginx", "caddy"])
def proxy(request, bot, certificate, tmp_path_factory):
    """A running proxy: its `url`, its `folder` and a `session` that knows its certificate."""
    name = request.param.__name__
    program = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if program is None:
        missing(
            f"deploy/ is tried with a real {name}: install {name} (on Debian or Ubuntu: apt-get install {name})"
        )
    folder, port = tmp_path_factory.mktemp(name), free_port(1)
    url, session = f"https://localhost:{port}", requests.Session()
    proxy = SimpleNamespace(name=name, folder=folder, port=port, url=url, session=session)
    proxy.session.trust_env = False  # REQUESTS_CA_BUNDLE would go before `verify`
    proxy.session.verify = proxy.certificate = str(certificate[0])
    command = request.param(program, proxy.folder, bot, proxy.port, certificate)
    output = proxy.folder / "output"
    with output.open("wb") as file:
        environ = {"HOME": str(proxy.folder), "PATH": "/usr/bin:/bin"}
        process = subprocess.Popen(command, env=environ, stdout=file, stderr=file)
    try:

        def answers():
            assert process.poll() is None, output.read_text()
            try:
                return proxy.session.get(f"{proxy.url}/healthz", timeout=2).ok
            except requests.RequestException:
                return False

        eventually(answers, what=name)
        yield proxy
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            process.kill()
            process.wait()
            proxy.session.close()


def push(proxy, msg_id):
    path, body = pushing.plain(pushing.image(msg_id))
    return proxy.session.post(f"{proxy.url}{path}", data=body, timeout=10)


def test_a_signed_push_goes_through_and_its_query_is_not_written_down(proxy):
    answer = push(proxy, "70000000000000001")
    assert answer.status_code == 200
    assert "<MsgType><![CDATA[image]]></MsgType>" in answer.text
    log = proxy.folder / "access.log"
    eventually(lambda: log.exists() and "/wechat" in log.read_text(), what="the line in the access log")
    assert "signature" not in log.read_text()


def test_the_callbacks_of_several_accounts_go_through(proxy, bot):
    before = len(bot.logs())
    path, _ = pushing.plain("")
    proxy.session.post(f"{proxy.url}{path.replace('/wechat', '/wechat/my-shop')}", data=b"<xml/>", timeout=10)
    logged = eventually(lambda: bot.logs()[before:], what="the bot's line: it has no such account")
    assert "/wechat/my-shop" in logged


def test_a_body_over_the_limit_is_refused(proxy):
    path, _ = pushing.plain("")
    answer = proxy.session.post(f"{proxy.url}{path}", data=b"x" * (1024 * 1024 + 1), timeout=10)
    assert answer.status_code in (413, 502)  # 502: Caddy 2.6


@pytest.mark.parametrize("path", ["/metrics", "/readyz", "/", "/sandbox"])
def test_what_stays_inside(proxy, path):
    assert proxy.session.get(proxy.url + path, timeout=10).status_code == 404


def test_the_bot_sees_the_caller_and_nothing_that_he_made_up(proxy, bot):
    before = len(bot.logs())
    faked = {"X-Forwarded-For": FAKED, "X-Forwarded-Host": "evil.example", "X-Forwarded-Prefix": "/evil"}
    answer = proxy.session.get(f"{proxy.url}/token", headers=faked, timeout=10)
    assert answer.status_code == 401
    logged = eventually(lambda: bot.logs()[before:], what="the line about the wrong key")
    assert "127.0.0.1" in logged
    assert FAKED not in logged
    page = proxy.session.get(f"{proxy.url}/gallery", headers=faked, timeout=10)
    assert page.status_code == 200
    assert "evil" not in page.url + page.text
    form = {"password": "behind a proxy"}
    page = proxy.session.post(f"{proxy.url}/gallery/sign-in", data=form, headers=faked, timeout=10)
    assert page.status_code == 200
    assert "evil" not in page.url + page.text
    assert all(cookie.secure for cookie in proxy.session.cookies)
    assert len(proxy.session.cookies) == 1


def test_the_token_for_ones_own_network(proxy):
    answer = proxy.session.get(f"{proxy.url}/token", headers={"Authorization": f"Bearer {KEY}"}, timeout=10)
    assert answer.json()["expires_in"] > 0


def test_the_key_of_a_refused_request_is_in_no_log(proxy):
    url = f"{proxy.url}/cgi-bin/token?secret={KEY}"
    answer = proxy.session.get(url, data=b"x" * (1024 * 1024 + 1), timeout=10)
    assert (
        answer.status_code == 413 or proxy.name == "caddy"
    )  # the bot may answer before Caddy sees the limit
    assert not [file.name for file in proxy.folder.iterdir() if file.is_file() and KEY in file.read_text()]


def test_the_query_of_a_call_without_tls_is_in_no_log(proxy):
    if proxy.name == "caddy":
        pytest.skip("here Caddy has no port without TLS")
    path, _ = pushing.plain("")
    url = f"http://127.0.0.1:{proxy.port + 1}{path}"
    answer = proxy.session.get(url, headers={"Host": "localhost"}, allow_redirects=False, timeout=10)
    assert (answer.status_code, answer.headers["Location"]) == (301, f"https://localhost{path}")

    def logs():
        return "".join(log.read_text() for log in proxy.folder.glob("*access.log"))

    eventually(lambda: " 301 " in logs(), what="the line in the access log")
    assert "signature" not in logs()


def test_slow_bodies_do_not_reach_the_bot(proxy, bot):
    context = ssl.create_default_context(cafile=proxy.certificate)
    slow = []
    try:
        for _ in range(50):
            plain = socket.create_connection(("localhost", proxy.port), timeout=10)
            slow.append(context.wrap_socket(plain, server_hostname="localhost"))
            slow[-1].sendall(b"POST /wechat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n<xml>")
        assert push(proxy, "70000000000000002").status_code == 200
        processes = [psutil.Process(process.pid) for process in bot.processes]
        processes += [child for process in processes for child in process.children(recursive=True)]
        open_ones = {
            connection.raddr
            for process in processes
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_ESTABLISHED and connection.laddr.port == bot.settings.port
        }
        assert len(open_ones) < 10
    finally:
        for one in slow:
            one.close()
