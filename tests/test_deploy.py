"""deploy/, scripts/ and what else surrounds the project: as far as it can be checked without the tools themselves."""

import configparser
import fnmatch
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from config import NAMES, Settings
from storage import writable
from storage.folders import user_name
from tests.conftest import ROOT
from tests.test_layers import ALLOWED, imports
from tests.test_ops import METRICS
from web import server

DEPLOY = ROOT / "deploy"


def read(path):
    return (ROOT / path).read_text(encoding="utf-8")


# -- proxies --


@pytest.mark.parametrize("path", ["nginx.conf", "Caddyfile"])
def test_braces_match(path):
    text = re.sub(r"#.*|\{[\w.\[\]]+\}", "", (DEPLOY / path).read_text(encoding="utf-8"))
    depth = 0
    for brace in re.findall(r"[{}]", text):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0


def test_the_proxies_limits_are_the_bots():
    assert Settings.model_fields["max_push_bytes"].default == 256 * 1024
    assert "client_max_body_size 256k;" in read("deploy/nginx.conf")
    assert "max_size 256KiB" in read("deploy/Caddyfile")
    port = Settings.model_fields["port"].default
    assert f"server 127.0.0.1:{port};" in read("deploy/nginx.conf")
    assert f"reverse_proxy 127.0.0.1:{port} " in read("deploy/Caddyfile")


def test_nginx_leaves_no_forwarded_header_of_the_caller():
    # What app.py believes with PROXY_HOPS: each has to be set anew, or taken away.
    believed = re.findall(r"x_(\w+)=hops", read("app.py"))
    assert len(believed) == 4
    for name in believed:
        assert re.search(rf"proxy_set_header X-Forwarded-{name} ", read("deploy/nginx.conf"), re.I), name


def test_what_stays_inside_is_not_let_through():
    for path in ("deploy/nginx.conf", "deploy/Caddyfile"):
        lines = [line.partition("#")[0] for line in read(path).splitlines()]
        assert not [line for line in lines if "/metrics" in line or "/readyz" in line]
        assert any("/wechat" in line for line in lines)


# -- systemd --


def unit(path):
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters="=", comment_prefixes="#")
    parser.optionxform = str
    parser.read(path, encoding="utf-8")
    return parser


@pytest.mark.parametrize(
    ("name", "process"), [("tushangwanglai-web", "web"), ("tushangwanglai-worker@", "worker")]
)
def test_the_units_start_what_the_procfile_starts(name, process):
    service = unit(DEPLOY / f"{name}.service")["Service"]
    (command,) = re.findall(rf"^{process}: (.*)$", read("Procfile"), re.M)
    command = command.replace(" --bind 0.0.0.0:$PORT", "").replace('"', "")
    assert service["ExecStart"] == f"{service['WorkingDirectory']}/.venv/bin/{command}"
    assert service["User"] == "tushangwanglai"
    assert service["ProtectSystem"] == "strict"
    assert f"/var/lib/{service['StateDirectory']}/" in read("docs/deploy.md")


def test_the_units_give_work_in_hand_its_time():
    graceful = int(re.findall(r"^graceful_timeout = (\d+)", read("gunicorn.conf.py"), re.M)[0])
    grace = float(re.findall(r"^GRACE_SECONDS = ([\d.]+)", read("answers/steps.py"), re.M)[0])
    assert int(unit(DEPLOY / "tushangwanglai-web.service")["Service"]["TimeoutStopSec"]) > graceful
    assert int(unit(DEPLOY / "tushangwanglai-worker@.service")["Service"]["TimeoutStopSec"]) > 2 * grace


# -- containers --


def in_the_image():
    """What lies at the top of the tree and is not left out by .dockerignore, whose names here are plain patterns."""
    left_out = [line for line in read(".dockerignore").splitlines() if line and not line.startswith("#")]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {name.partition("/")[0] for name in tracked.splitlines()}
    return {name for name in top if not any(fnmatch.fnmatch(name, pattern) for pattern in left_out)}


def test_the_image_has_all_that_runs_and_no_more():
    needed, rest = set(), {"app", "gunicorn.conf"}
    while rest:
        part = rest.pop()
        needed.add(part)
        file = ROOT / f"{part}.py"
        for path in [file] if file.exists() else (ROOT / part).rglob("*.py"):
            rest |= {name for name, _ in imports(path) if name in ALLOWED} - needed
    names = {f"{part}.py" if (ROOT / f"{part}.py").exists() else part for part in needed}
    assert in_the_image() == names | {"requirements.txt"}


def test_the_image_is_without_what_git_leaves_out():
    """Data, and backups made and restored as the documents say."""
    left_out = read(".dockerignore").splitlines()
    ours = [line.strip("/") for line in read(".gitignore").splitlines()]
    folders = [name for name in ours if not name.startswith(".") and "*" not in name]
    assert {"data", "backup", "restored"} <= set(folders)
    assert [
        name for name in folders if name.partition("/")[0] not in left_out and f"**/{name}" not in left_out
    ] == ["handlers/own.py"]


def test_the_image_is_without_what_only_tests_need():
    lines = [line for line in read("requirements.txt").splitlines() if "--hash" not in line]
    # pip-compile writes under each package who wants it.
    alone = {
        line.partition("==")[0] for line, why in itertools.pairwise(lines) if why.strip() == "# via pytest"
    }
    (taken_out,) = re.findall(r"pip uninstall .*?=ignore (.*?) \\$", read("deploy/Containerfile"), re.M)
    assert set(taken_out.split()) == alone | {"pytest"}


def test_the_image_and_compose_are_asked_the_same_and_leave_no_volume():
    web = yaml.safe_load(read("deploy/compose.yaml"))["services"]["web"]["healthcheck"]["test"]
    (image,) = re.findall(r"^  CMD (\[.*\])$", read("deploy/Containerfile"), re.M)
    assert "/healthz" in web[-1]
    assert json.loads(image)[:2] == web[1:3]
    assert "VOLUME" not in read("deploy/Containerfile")
    assert "--format docker" in read("docs/deploy.md")


def test_the_image_runs_what_the_procfile_runs():
    (web,) = re.findall(r"^web: (.*)$", read("Procfile"), re.M)
    assert f"exec {web.replace(chr(34), chr(39))}" in read("deploy/Containerfile")
    assert re.search(r"^USER \d+:\d+$", read("deploy/Containerfile"), re.M)


def test_the_compose_file_holds_together():
    compose = yaml.safe_load(read("deploy/compose.yaml"))
    services = compose["services"]
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in compose["volumes"]
        assert service["logging"]["options"]["max-size"]
    web = services["web"]
    assert (
        DEPLOY / web["build"]["context"] / web["build"]["dockerfile"]
    ).resolve() == DEPLOY / "Containerfile"
    ours = {name: value for name, value in web["environment"].items() if not name.startswith("AWS_")}
    assert set(ours) <= set(NAMES)
    filled = {name: re.sub(r"\$\{[^}]*\}", "letters", value) for name, value in ours.items()}
    account = {"WECHAT_APPID": "wx1", "WECHAT_APPSECRET": "s", "WECHAT_TOKEN": "token"}
    settings = Settings.from_env(account | filled, Path("/nowhere"))
    assert settings.database_url.get_secret_value() == "postgresql+psycopg://bot:letters@database/bot"
    assert services["worker"]["command"] == ["flask", "worker"]


def test_the_store_of_the_compose_file_knows_its_keys(tmp_path):
    store = yaml.safe_load(read("deploy/compose.yaml"))["services"]["store"]
    script = store["command"][0].replace("$$", "$").replace("/etc/seaweedfs", str(tmp_path / "etc"))
    weed = tmp_path / "weed"
    weed.write_text('#!/bin/sh\necho "$@"\n')
    weed.chmod(0o755)
    keys = {"S3_ACCESS_KEY": "access1", "S3_SECRET_KEY": "secret2"}
    environ = keys | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = subprocess.run(
        [*store["entrypoint"], script], env=environ, check=True, capture_output=True, text=True
    )
    assert set(store["environment"]) == set(keys)
    assert f"-s3.config={tmp_path}/etc/s3.json" in said.stdout
    (identity,) = json.loads((tmp_path / "etc" / "s3.json").read_text())["identities"]
    assert identity["credentials"] == [{"accessKey": "access1", "secretKey": "secret2"}]


def test_the_bucket_of_the_compose_file_is_made_once(s3_settings):
    import boto3

    compose = yaml.safe_load(read("deploy/compose.yaml"))
    _, option, script = compose["services"]["bucket"]["command"]
    assert option == "-c"
    for _ in range(2):
        environ = os.environ | s3_settings
        subprocess.run([sys.executable, "-c", script], env=environ, check=True, timeout=60)
    client = boto3.client("s3")
    assert "media" in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]
    client.close()


# -- what a start must be able to write --


@pytest.fixture
def nobody():
    """Tests may run as root, who may write everywhere."""
    if os.geteuid() != 0:
        yield os.geteuid()
        return
    os.seteuid(65534)
    yield 65534
    os.seteuid(0)


def refusal(database, store="s3://bucket"):
    with pytest.raises(writable.NotWritableError) as caught:
        writable.check(database, store)
    return str(caught.value)


def test_a_folder_of_root_ends_the_start_with_what_to_do(nobody):
    said = refusal("sqlite:////usr/bot.db")
    assert said.startswith("DATABASE_URL: /usr belongs to root")
    assert f"chown -R {user_name(nobody)} /usr " in said
    said = refusal("postgresql+psycopg://database/bot", "/usr")
    assert said.startswith("MEDIA_STORE: /usr belongs to root")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of another user")
def test_a_folder_of_another_user_may_be_that_of_a_bot_that_runs(nobody):
    os.seteuid(0)
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, 1, 1)
        os.seteuid(nobody)
        said = refusal(f"sqlite:///{folder}/bot.db")
        owner = user_name(1)
        assert re.search(f"runuser -u {owner} -- .*or, if no bot runs as {owner}, chown -R", said)
        os.seteuid(0)


@pytest.mark.parametrize(
    "places", [("sqlite:///{}/bot.db", "s3://bucket"), ("postgresql+psycopg://database/bot", "{}")]
)
def test_root_does_not_start_where_another_user_works(tmp_path, monkeypatch, places):
    if os.geteuid() == 0:
        os.chown(tmp_path, 65534, 65534)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    said = refusal(*(place.format(tmp_path) for place in places))
    assert f"runuser -u {user_name(tmp_path.stat().st_uid)} -- " in said


def test_a_folder_that_is_missing_under_one_of_root_is_to_be_made(nobody):
    said = refusal("postgresql+psycopg://database/bot", "/usr/bot/media")
    assert "chown" not in said  # of /usr, with all that is in it
    assert f"install -d -m 700 -o {user_name(nobody)} /usr/bot/media " in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of another user")
def test_a_folder_below_one_that_is_closed_to_this_user(nobody):
    os.seteuid(0)
    with tempfile.TemporaryDirectory() as closed:  # its mode is 700
        os.makedirs(f"{closed}/own/media")
        os.seteuid(nobody)
        try:
            for said in (
                refusal(f"sqlite:///{closed}/own/bot.db"),
                refusal("postgresql+psycopg://database/bot", f"{closed}/own/media"),
            ):
                assert f"{closed} belongs to root" in said
                assert f"chmod o+x {closed} " in said
        finally:
            os.seteuid(0)


def test_a_user_without_a_name_is_a_number_for_chown():
    assert user_name(4_000_000) == "4000000"


def test_what_is_merely_away_stops_no_start(tmp_path):
    writable.check("postgresql+psycopg://bot@127.0.0.1:1/bot", "s3://nowhere")
    writable.check(f"sqlite:///{tmp_path}/new/bot.db", f"{tmp_path}/new/media")


def test_without_a_temporary_folder_the_start_says_what_is_needed(tmp_path, monkeypatch):
    def none_usable():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none_usable)
    assert "--tmpfs /tmp" in refusal(f"sqlite:///{tmp_path}/bot.db")


def test_a_port_of_root_is_said_plainly(monkeypatch):
    class Refusing(socket.socket):
        def bind(self, address):
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "socket", Refusing)
    with pytest.raises(PermissionError, match=r"^PORT: .* take a higher one"):
        server.check_port(80)
    server.check_port(8000)


# -- watching --


def alerts():
    (group,) = yaml.safe_load(read("deploy/alerts.yml"))["groups"]
    return group["rules"]


def panels():
    return json.loads(read("deploy/grafana.json"))["panels"]


def asked_for(expressions):
    """The bot's metrics in these expressions, as its /metrics calls them."""
    names = set(re.findall(r"\bwechat_\w+", " ".join(expressions)))
    return {name.removesuffix("_bucket") for name in names}


def test_alerts_and_dashboard_ask_for_metrics_that_the_bot_has():
    shown = asked_for(target["expr"] for panel in panels() for target in panel["targets"])
    assert shown == METRICS
    assert asked_for(rule["expr"] for rule in alerts()) <= METRICS


def test_every_alert_says_in_two_languages_what_to_do():
    for rule in alerts():
        assert set(rule["annotations"]) == {"summary", "summary_zh", "todo"}, rule["alert"]
        assert re.search("[一-鿿]", rule["annotations"]["summary_zh"])
    assert {"WeChatBotDown", "WeChatNoPushes"} <= {rule["alert"] for rule in alerts()}


def test_the_dashboards_panels_do_not_overlap():
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels()]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in panels()}) == len(places)


needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed"
)
FIRE = """\
rule_files: [alerts.yml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'up{job="tushangwanglai", instance="a"}', values: '1x20 0x20'}
      - {series: 'wechat_deliveries_total{job="tushangwanglai", instance="a", type="text"}', values: '0+1x600 600x400'}
      - {series: 'wechat_last_claim_seconds{job="tushangwanglai", instance="a"}', values: '5x20 90x20'}
    alert_rule_test:
      - {eval_time: 15m, alertname: WeChatBotDown}
      - eval_time: 30m
        alertname: WeChatBotDown
        exp_alerts: [{exp_labels: {severity: critical, job: tushangwanglai, instance: a}, exp_annotations: DOWN}]
      - {eval_time: 500m, alertname: WeChatNoPushes}
      - eval_time: 800m
        alertname: WeChatNoPushes
        exp_alerts: [{exp_labels: {severity: warning}, exp_annotations: NONE}]
      - {eval_time: 15m, alertname: WeChatNoWorker}
      - eval_time: 30m
        alertname: WeChatNoWorker
        exp_alerts: [{exp_labels: {severity: critical}, exp_annotations: WORKER}]
"""


# After a restart there is no such counter until the first push.
RESTARTED = """\
rule_files: [alerts.yml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'wechat_deliveries_total{job="tushangwanglai", instance="a", type="text"}', values: '0+1x600 _x400'}
    alert_rule_test:
      - {eval_time: 500m, alertname: WeChatNoPushes}
      - eval_time: 800m
        alertname: WeChatNoPushes
        exp_alerts: [{exp_labels: {severity: warning}, exp_annotations: NONE}]
"""


@needs_promtool
@pytest.mark.parametrize("series", [FIRE, RESTARTED], ids=["running", "restarted"])
def test_promtool_takes_alerts_and_dashboard_and_the_alerts_fire(tmp_path, series):
    shutil.copy(DEPLOY / "alerts.yml", tmp_path)
    shown = [target["expr"] for panel in panels() for target in panel["targets"]]
    rules = [{"record": f"shown:{number}", "expr": expression} for number, expression in enumerate(shown)]
    (tmp_path / "shown.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    subprocess.run(["promtool", "check", "rules", "alerts.yml", "shown.yml"], cwd=tmp_path, check=True)
    fire = series
    for word, name in {"DOWN": "WeChatBotDown", "NONE": "WeChatNoPushes", "WORKER": "WeChatNoWorker"}.items():
        (rule,) = (rule for rule in alerts() if rule["alert"] == name)
        texts = json.dumps(rule["annotations"]).replace("{{ $labels.instance }}", "a")
        fire = fire.replace(f"exp_annotations: {word}", f"exp_annotations: {texts}")
    (tmp_path / "fire.yml").write_text(fire)
    subprocess.run(["promtool", "test", "rules", "fire.yml"], cwd=tmp_path, check=True)


# Two machines show the same figures of the database; `a` and `b` are accounts.
TWO_ACCOUNTS = """\
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
SERIES
    promql_expr_test:
EXPECTED
"""


@needs_promtool
def test_the_dashboard_adds_up_accounts_and_takes_each_machine_once(tmp_path):
    figures = {
        "wechat_media": ('state="stored"', '{state="stored"}'),
        "wechat_queue_depth": ("", "{}"),
        "wechat_token_fetches_total": ('result="ok"', '{result="ok"}'),
    }
    given, expected = [], []
    for name, (label, labels) in figures.items():
        for machine in ("m1:8000", "m2:8000"):
            for account, value in {"a": 3, "b": 4}.items():
                named = f'{name}{{job="bot",instance="{machine}",account="{account}",{label}}}'
                grows = f"0+{value}x120" if name.endswith("_total") else f"{value}x120"
                given.append(f"      - {{series: '{named}', values: '{grows}'}}")
        (shown,) = (
            target["expr"] for panel in panels() for target in panel["targets"] if name in target["expr"]
        )
        total = 7 * 60 if name.endswith("_total") else 7
        samples = f"[{{labels: '{labels}', value: {total}}}]"
        asked = json.dumps(shown.replace("$job", "bot"))
        expected.append(f"      - {{expr: {asked}, eval_time: 90m, exp_samples: {samples}}}")
    test = TWO_ACCOUNTS.replace("SERIES", "\n".join(given)).replace("EXPECTED", "\n".join(expected))
    (tmp_path / "shown.yml").write_text(test)
    subprocess.run(["promtool", "test", "rules", "shown.yml"], cwd=tmp_path, check=True)


# -- contributors --


def test_the_workflow_and_the_suite_know_the_same_pythons():
    workflow = yaml.safe_load(read(".github/workflows/test.yml"))
    pythons = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    (listed,) = re.findall(r"^for version in (.*); do$", read("scripts/test-all.sh"), re.M)
    assert listed.split() == pythons
    assert f'requires-python = ">={pythons[0]}"' in read("pyproject.toml")
    assert (ROOT / ".ci" / "run").exists()
    assert workflow["jobs"]["test"]["steps"][-1]["run"] == "bash .ci/run"


def test_process_platforms_get_a_python_that_is_tried():
    assert (
        read(".python-version").strip()
        in yaml.safe_load(read(".github/workflows/test.yml"))["jobs"]["test"]["strategy"]["matrix"]["python"]
    )


@pytest.mark.xdist_group("groups")
def test_tests_that_share_a_server_stay_together(request):
    together = request.node.nodeid.endswith("@groups") or "PYTEST_XDIST_WORKER" not in os.environ
    assert together, "this pytest and this pytest-xdist lose the groups: install requirements-dev.txt"


def test_the_hooks_are_those_of_make_check():
    hooks = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"][0]["hooks"]
    for hook in hooks:
        tool = hook["entry"].split()[0].rpartition("/")[2]
        assert f"$(BIN)/{tool}" in read("Makefile")


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem
)
def test_the_issue_forms_are_complete(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.stem == "config":
        return
    assert form["name"]
    assert form["description"]
    ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert ids
    assert len(ids) == len(set(ids))


# -- a release --


@pytest.fixture
def clone(tmp_path):
    """A repository of its own with what a release touches."""
    folder = tmp_path / "clone"
    (folder / "scripts").mkdir(parents=True)
    for name in ("CHANGELOG.md", "pyproject.toml", "scripts/release.sh"):
        shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "Begin")
    return folder


WHO = {"NAME": "Tester", "EMAIL": "tester@example.com"}


def environ():
    who = {f"GIT_{role}_{name}": value for role in ("AUTHOR", "COMMITTER") for name, value in WHO.items()}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return clean | who | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}


def git(folder, *arguments):
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=environ(), check=True, capture_output=True, text=True
    )
    return done.stdout


def release(folder, *arguments):
    return subprocess.run(
        ["bash", "scripts/release.sh", *arguments], cwd=folder, env=environ(), capture_output=True, text=True
    )


def test_a_release_is_dated_committed_and_tagged(clone):
    assert release(clone, "7.8.9", "--check").returncode == 0
    assert git(clone, "tag") == ""
    done = release(clone, "7.8.9")
    assert done.returncode == 0, done.stderr
    assert "git push origin main v7.8.9" in done.stdout
    assert git(clone, "tag") == "v7.8.9\n"
    assert git(clone, "cat-file", "-t", "v7.8.9") == "tag\n"
    assert git(clone, "log", "-1", "--format=%s") == "Release 7.8.9\n"
    assert git(clone, "status", "--porcelain") == ""
    assert re.search(
        r"^## Unreleased\n\n## 7\.8\.9 \(\d{4}-\d\d-\d\d\)\n", (clone / "CHANGELOG.md").read_text(), re.M
    )
    assert '\nversion = "7.8.9"\n' in (clone / "pyproject.toml").read_text()
    again = release(clone, "7.8.10")
    assert again.returncode == 1
    assert "nothing under Unreleased" in again.stderr


@pytest.mark.parametrize("version", ["", "1.2", "v1.2.3", "1.2.3-rc1", "01.2.3"])
def test_a_release_needs_a_version(clone, version):
    done = release(clone, version)
    assert done.returncode == 1
    assert "make release VERSION=x.y.z" in done.stderr


def test_a_release_needs_a_clean_tree(clone):
    (clone / "new.py").write_text("")
    done = release(clone, "7.8.9")
    assert done.returncode == 1
    assert "not clean" in done.stderr


def test_a_release_needs_somebody_who_commits(clone):
    git(clone, "config", "user.useConfigOnly", "true")
    nobody = {name: value for name, value in environ().items() if not name.endswith(("_NAME", "_EMAIL"))}
    done = subprocess.run(
        ["bash", "scripts/release.sh", "7.8.9", "--check"],
        cwd=clone,
        env=nobody,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "git config user.name" in done.stderr


def test_a_version_is_released_once(clone):
    git(clone, "tag", "v7.8.9")
    done = release(clone, "7.8.9")
    assert done.returncode == 1
    assert "there already" in done.stderr


@pytest.mark.parametrize("tag", ["v7.8.10", "v10.0.0"])
def test_a_release_is_newer_than_those_before(clone, tag):
    git(clone, "tag", "v7.8.2")
    git(clone, "tag", "old")
    assert release(clone, "7.8.9", "--check").returncode == 0
    git(clone, "tag", tag)
    done = release(clone, "7.8.9", "--check")
    assert done.returncode == 1
    assert f"{tag} is newer than v7.8.9" in done.stderr


def test_a_release_leaves_what_it_refuses_as_it_was(clone):
    (clone / "CHANGELOG.md").write_text("# Changes\n")
    git(clone, "commit", "--quiet", "--all", "--message", "No entries")
    assert release(clone, "7.8.9").returncode == 1
    assert git(clone, "status", "--porcelain") == git(clone, "tag") == ""


# -- the suite on every Python --


def test_all_pythons_that_are_found_are_used_and_the_others_told(tmp_path):
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "test-all.sh", tmp_path / "scripts")
    found = tmp_path / "home" / "versions"
    for place, answer in (("3.12.1", "3.12"), ("3.12.10", "3.12"), ("3.13.0", "3.13")):
        python = found / place / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f"#!/bin/sh\necho {answer}\n")
        python.chmod(0o755)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "sort", "cat"):
        (tools / name).symlink_to(shutil.which(name))
    (tools / "make").write_text('#!/bin/sh\necho "$@"\ncase "$*" in *3.13.0*) exit 1;; esac\n')
    (tools / "make").chmod(0o755)
    # A shim that is there but has no version behind it, as pyenv's are.
    (tools / "python3.11").write_text("#!/bin/sh\nexit 127\n")
    (tools / "python3.11").chmod(0o755)
    done = subprocess.run(
        ["bash", "scripts/test-all.sh"],
        cwd=tmp_path,
        env={"PATH": str(tools), "PYENV_ROOT": str(tmp_path / "home"), "MAKE": "make"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-4:] == [
        "Python 3.11: not run, it was not found",
        "Python 3.12: passed",
        "Python 3.13: FAILED",
        "Python 3.14: not run, it was not found",
    ]
    assert f"PYTHON={found}/3.12.10/bin/python VENV=.venv/3.12" in done.stdout


@pytest.mark.parametrize(
    ("folder", "stamps", "anew"),
    [
        ("here", [".folder", ".no-dotenv", ".run"], False),
        (None, [".no-dotenv", ".run"], False),
        (None, [], True),
        ("elsewhere", [".folder", ".no-dotenv", ".run"], True),
        ("gone", [".folder", ".no-dotenv", ".run"], True),
        ("upgraded", [".folder", ".no-dotenv", ".run"], True),
        ("linked", [".no-dotenv", ".run"], False),
    ],
    ids=[
        "whole",
        "of an earlier version",
        "half made",
        "of another folder",
        "its Python is gone",
        "its Python is newer now",
        "a link",
    ],
)
@pytest.mark.parametrize("asked", [[], [f"PYTHON={sys.executable}"]], ids=["any Python", "this Python"])
def test_a_venv_that_cannot_be_used_is_made_anew(tmp_path, folder, stamps, anew, asked):
    assert venv_is_made_anew(tmp_path, folder, stamps, asked) == anew


@pytest.mark.parametrize(("name", "value"), [("PYTHONIOENCODING", "gbk"), ("PYTHONHOME", "/nowhere")])
def test_what_the_environment_says_to_python_makes_no_venv_anew(tmp_path, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert not venv_is_made_anew(tmp_path, "here", [".folder", ".no-dotenv", ".run"], [])


def test_make_finds_our_modules_where_python_is_told_to_leave_out_its_folder(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / ".venv").symlink_to("venv")
    (tmp_path / "ours.py").touch()
    (tmp_path / "run.py").write_text("import ours")
    environ = {**os.environ, "PYTHONSAFEPATH": "1"}
    subprocess.run(["make", "-o", ".venv/.run", "run"], cwd=tmp_path, env=environ, check=True)


@pytest.mark.parametrize("name", ["another", "none"])
def test_a_venv_of_another_python_than_the_one_asked_for_is_made_anew(tmp_path, name):
    another = tmp_path / "another"
    another.write_text("#!/bin/sh\necho Python 3.99.0\n")
    another.chmod(0o700)
    assert venv_is_made_anew(tmp_path, "here", [".folder", ".run"], [f"PYTHON={tmp_path / name}"])


def test_a_venv_that_is_made_anew_gets_its_packages(tmp_path):
    for name in "Makefile", "requirements.txt":
        shutil.copy(ROOT / name, tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    python = tools / "python3"
    python.write_text(
        f"""#!/bin/sh
        case "$*" in
        *purelib*) echo .venv/lib ;;
        "-m venv --clear .venv") rm -rf .venv; mkdir -p .venv/bin .venv/lib; ln -s {python} .venv/bin/python ;;
        "-m pip install"*) touch .venv/lib/installed ;;
        esac
        """
    )
    python.chmod(0o700)
    os.utime(python, (0, 0))  # older than all that is made with it
    environ = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    for _ in range(2):
        subprocess.run(["make", ".venv/.run"], cwd=tmp_path, env=environ, check=True, capture_output=True)
        assert (tmp_path / ".venv/lib/installed").exists()
        assert (tmp_path / ".venv/lib/flask_skip_dotenv.pth").exists()
        (tmp_path / ".venv/.folder").write_text("/elsewhere")


def venv_is_made_anew(tmp_path, folder, stamps, asked):
    project = tmp_path / "a b 微信"
    project.mkdir()
    for name in "Makefile", "requirements.txt":
        shutil.copy(ROOT / name, project)
    made = (tmp_path if folder == "linked" else project) / ".venv"
    (made / "bin").mkdir(parents=True)
    if folder == "linked":
        (project / ".venv").symlink_to(made)
    (made / "bin/python").symlink_to("/nowhere/python" if folder == "gone" else sys.executable)
    if folder in ("here", "upgraded"):
        (made / "pyvenv.cfg").write_text(f"home = {sys.base_prefix}/bin\n")
        version = "3.4" if folder == "upgraded" else "{}.{}".format(*sys.version_info)
        (made / f"lib/python{version}/site-packages").mkdir(parents=True)
    for name in stamps:
        (made / name).touch()
    if ".folder" in stamps:
        (made / ".folder").write_text("/elsewhere" if folder == "elsewhere" else str(project))
    done = subprocess.run(
        ["make", "-n", ".venv/.run", *asked],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    anew = "-m venv --clear .venv" in done.stdout
    assert ("pip install" in done.stdout) == anew
    return anew
