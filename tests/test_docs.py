"""The documents say what is there: settings, routes, metrics, commands, codes, log lines; and what they show runs.

A block ```sh is run, unless `<!-- not run: why -->` stands before it; a block ```diff is applied and ```python written
to the file that its first line names. That happens in copies of the project, beside what `make run` starts there.
"""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import requests

from app import create_app
from commands import COMMANDS
from config import NAMES, Settings, known_names
from tests import prepared
from tests.conftest import ACCOUNT, ROOT, Process, clean_environ, eventually, free_port, needs_curl
from tests.databases import sqlite_url
from tests.project import copy, sandbox_settings
from tests.test_layers import ALLOWED
from tests.test_ops import METRICS
from web.metrics import REASONS
from wechat import messages, replies
from wechat.codes import CODES

ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
READMES = [ENGLISH, CHINESE]
REFERENCES = [ROOT / "docs" / "reference.md", ROOT / "docs" / "reference.zh-CN.md"]
OURS = [
    "accounts",
    "architecture",
    "comparison",
    "deploy",
    "handlers",
    "operations",
    "reference",
    "token-server",
]
RUN = [*READMES, ROOT / "CONTRIBUTING.md", *(ROOT / "docs" / f"{name}.md" for name in OURS)]
PAIRS = [
    (path.with_name(path.name.replace(".zh-CN", "")), path)
    for path in [*sorted(ROOT.glob("*.zh-CN.md")), *sorted((ROOT / "docs").glob("*.zh-CN.md"))]
]
TEXTS = {".md", ".py", ".html", ".js", ".yml", ".yaml"}
LINKED = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.M | re.S)

both_readmes = pytest.mark.parametrize("readme", READMES, ids=["en", "zh"])
both_references = pytest.mark.parametrize("reference", REFERENCES, ids=["en", "zh"])


def read(path):
    return path.read_text(encoding="utf-8")


def without_code(text):
    return FENCE.sub("", text)


def tables(path):
    """Each table as a list of rows; a row is a list of cells, the first row is the head."""
    found, rows = [], []
    for line in [*without_code(read(path)).splitlines(), ""]:
        if line.startswith("|"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if not re.fullmatch(r"-+", cells[0]):
                rows.append(cells)
        elif rows:
            found.append(rows)
            rows = []
    return found


def table(path, *heads):
    """The rows, without the head, of the tables whose first column is called so."""
    found = [row for rows in tables(path) if rows[0][0] in heads for row in rows[1:]]
    assert found, f"{path.name} has no table of {heads[0]}"
    return found


def code(cell):
    found = re.fullmatch(r"`([^`]+)`", cell)
    assert found, f"{cell} is not one name"
    return found[1]


def first_column(path, *heads):
    names = [code(row[0]) for row in table(path, *heads)]
    assert len(names) == len(set(names)), f"{path.name} has a name twice"
    return set(names)


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    given = ACCOUNT | {"TOKEN_SERVER_KEY": "key-of-the-documents", "ADMIN_PASSWORD": "password"}
    given |= {"DATABASE_URL": sqlite_url(folder / "bot.db"), "MEDIA_STORE": f"{folder}/media"}
    return create_app(Settings.from_env(given, folder))


# -- what is there is documented, and nothing else --


def default_of(name):
    field = Settings.model_fields[name.lower()]
    if name in ("WECHAT_APPID", "WECHAT_APPSECRET", "WECHAT_TOKEN"):
        return ("none, required", "无，必填")
    if name == "WEB_CONCURRENCY":
        return ("cores, at most 4", "核数，最多 4")
    value = field.default
    if value is None:
        return ("none", "无")
    if hasattr(value, "get_secret_value"):
        value = value.get_secret_value()
    if isinstance(value, tuple):
        value = ",".join(value)
    if isinstance(value, bool):
        value = int(value)
    return tuple(f"`{value:g}`" if isinstance(value, float) else f"`{value}`" for _ in REFERENCES)


@both_references
def test_every_setting_is_documented_with_its_default(reference):
    documented = {code(row[0]): row[1] for row in table(reference, "setting", "设置")}
    assert set(documented) == set(NAMES)
    language = REFERENCES.index(reference)
    assert documented == {name: default_of(name)[language] for name in documented}


def test_the_example_of_env_names_settings_only():
    named = set(re.findall(r"^([A-Z_]+)=", read(ROOT / ".env.example"), re.M))
    assert named <= set(NAMES)


def test_every_route_is_documented(app):
    routes = set()
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<int[^>]*>", "ID", rule.rule)
        path = re.sub(r"<path:\w+>", "FILE", path)
        routes |= {f"{method} {path}" for method in rule.methods - {"HEAD", "OPTIONS"}}
    assert first_column(ROOT / "docs" / "operations.md", "route") == routes


def test_every_metric_is_documented(app):
    assert first_column(ROOT / "docs" / "operations.md", "metric") == METRICS
    shown = app.test_client().get("/metrics").text
    assert set(re.findall(r"^# TYPE (wechat_\w+)", shown, re.M)) - {
        f"{name}_created" for name in METRICS
    } <= {
        *METRICS,
        *(name.removesuffix("_total") + "_created" for name in METRICS),
    }


def commands(group, prefix="flask"):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


@both_references
def test_every_command_is_documented_with_its_options(reference):
    ours = click.Group(commands={each.name: each for each in COMMANDS})
    there = dict(commands(ours))
    rows = [code(row[0]) for row in table(reference, "command", "命令") if row[0].startswith("`flask")]
    documented = {re.sub(r" [\[A-Z-].*", "", row): row for row in rows}
    assert set(documented) == set(there)
    for name, command in there.items():
        options = {
            option for each in command.params for option in each.opts if isinstance(each, click.Option)
        }
        shown = set(re.findall(r"\[(--?[\w-]+)", documented[name]))
        assert shown | ({"--account"} if name != "flask worker" else set()) == options, name


def test_commands_and_options_explain_themselves_in_chinese_too():
    ours = click.Group(commands={each.name: each for each in COMMANDS})
    texts = {name: command.help for name, command in commands(ours)}
    for name, command in commands(ours):
        options = [each for each in command.params if isinstance(each, click.Option)]
        texts |= {f"{name} {each.opts[0]}": each.help for each in options}
    assert [name for name, text in texts.items() if not re.search("[\u4e00-\u9fff]", text or "")] == []


def test_the_application_has_these_commands(app):
    assert {name for name, _ in commands(app.cli)} >= {
        re.sub(r" [\[A-Z-].*", "", code(row[0]))
        for row in table(REFERENCES[0], "command")
        if "flask" in row[0]
    }


def make_targets():
    return set(" ".join(re.findall(r"^\.PHONY:(.*)$", read(ROOT / "Makefile"), re.M)).split())


@both_references
def test_every_make_target_is_documented(reference):
    rows = [code(row[0]) for row in table(reference, "command", "命令") if row[0].startswith("`make")]
    assert {row.split()[1] for row in rows} == make_targets()


def test_every_code_of_the_platform_is_documented():
    rows = {int(row[0]): row for row in table(ROOT / "docs" / "operations.md", "code")}
    assert set(rows) == set(CODES) - {0}
    for number, (_, meaning, _, hint) in rows.items():
        known = CODES[number]
        assert meaning == known.meaning
        assert hint == known.hint_en + ("" if known.confirmed else " (unconfirmed)")


def test_every_code_of_the_platform_is_documented_in_chinese():
    english = {row[0]: row[2] for row in table(ROOT / "docs" / "operations.md", "code")}
    chinese = {row[0]: row[1:] for row in table(ROOT / "docs" / "operations.zh-CN.md", "错误码")}
    words = {"retried": "重试", "token renewed": "更换 token", "**act**": "**需处理**", "given up": "放弃"}
    for number, does in english.items():
        known = CODES[int(number)]
        assert chinese[number] == [words[does], known.hint_zh + ("" if known.confirmed else "（未证实）")]


def test_every_reason_of_a_refusal_is_documented():
    (line,) = re.findall(
        r"^Reasons of `wechat_refusals_total`: (.*)\.$", read(ROOT / "docs" / "operations.md"), re.M
    )
    assert set(re.findall(r"`(\w+)`", line)) == set(REASONS)


def logged():
    """What log lines begin with: the constant part of each message."""
    for name in sorted(set(ALLOWED) - {"sandbox", "run", "gunicorn.conf"}):
        file = ROOT / f"{name}.py"
        for path in [file] if file.exists() else sorted((ROOT / name).rglob("*.py")):
            for node in ast.walk(ast.parse(read(path))):
                if not isinstance(node, ast.Call):
                    continue
                function = node.func
                of_log = isinstance(function, ast.Attribute) and ast.unparse(function.value) == "log"
                # The worker's loops give their line to a function.
                place = {"try_step": 0, "repeat": 2}.get(getattr(function, "id", ""), 0 if of_log else None)
                if place is not None and isinstance(line := node.args[place : place + 1][0], ast.Constant):
                    yield line.value.partition("%")[0]


def test_every_log_line_is_documented():
    documented = first_column(ROOT / "docs" / "operations.md", "message")
    documented = {re.sub(r":$", ": ", each) for each in documented}
    assert documented == set(logged())


def test_every_message_and_reply_is_documented():
    path = ROOT / "docs" / "handlers.md"
    message_table, reply_table = (rows for rows in tables(path) if rows[0][0] == "class")
    common = set(messages.Event.__dataclass_fields__)
    for rows, module, root in ((message_table, messages, messages.Message), (reply_table, replies, None)):
        classes = {
            name: each
            for name, each in vars(module).items()
            if isinstance(each, type) and hasattr(each, "__dataclass_fields__") and not name.startswith("_")
            if each.__module__ == module.__name__ and name not in ("Message", "Event", "Article")
            if root is None or issubclass(each, root)
        }
        documented = {code(row[0]): row[-1] for row in rows[1:]}
        assert set(documented) == set(classes)
        for name, each in classes.items():
            own = set(each.__dataclass_fields__) - common
            assert own <= set(re.findall(r"`(\w+)`", documented[name])) | {"raw"}, name


def test_the_arrows_in_the_architecture_are_those_that_are_held():
    rows = table(ROOT / "docs" / "architecture.md", "part")
    assert {code(row[0]): set(re.findall(r"`([\w.]+)`", row[2])) for row in rows} == ALLOWED


# -- the documents among themselves --


def shape(path):
    """Headings by level, code without its comments, links by where they lead: in order."""
    parts = re.compile(r"^(#+) |^ *```(\w*)\n(.*?)^ *```$|\]\(([^)]+)\)|src=\"([^\"]+)\"", re.M | re.S)
    for level, language, block, link, source in parts.findall(read(path)):
        if level:
            yield "heading", level
        elif block:
            # Of settings the names: what to fill in is said in the document's own language.
            block = re.sub(r"=.*", "=", block) if language == "ini" else re.sub(r" +# .*", "", block)
            yield "code", language, block
        else:
            yield "link", (link or source).partition("#")[0].replace(".zh-CN.md", ".md")


pairs = pytest.mark.parametrize(("english", "chinese"), PAIRS, ids=lambda path: path.name)


@pairs
def test_the_languages_are_in_step(english, chinese):
    assert list(shape(english)) == list(shape(chinese))
    found = [[[row[0] for row in rows[1:]] for rows in tables(path)] for path in (english, chinese)]
    name = re.compile(r"`[^`]+`(, `[^`]+`)*|-?\d+")
    names = [[[cell for cell in rows if name.fullmatch(cell)] for rows in each] for each in found]
    assert names[0] == names[1]
    assert list(map(len, found[0])) == list(map(len, found[1]))


def numbers(path):
    """Those in each row of each table. The platform's codes have texts of their own in each language, held above."""
    known = [rows for rows in tables(path) if rows[0][0] not in ("code", "错误码")]
    return [[re.findall(r"\d[\d,.]*\d|\d", " ".join(row)) for row in rows] for rows in known]


@pairs
def test_the_languages_have_the_same_figures(english, chinese):
    for one, other in zip(numbers(english), numbers(chinese), strict=True):
        assert list(map(sorted, one)) == list(map(sorted, other))


@pairs
def test_each_language_leads_to_the_other(english, chinese):
    for path, other in ((english, chinese), (chinese, english)):
        assert f"]({other.name})" in read(path).partition("\n## ")[0], path.name


@pairs
def test_a_chinese_document_leads_to_chinese_ones(english, chinese):
    translated = {each.resolve() for each, _ in PAIRS} - {english}
    links = re.findall(r"\]\(([^)#]+\.md)", without_code(read(chinese)))
    assert [link for link in links if (chinese.parent / link).resolve() in translated] == []


#: One word for each thing, as WeChat's console and its developers say it: what not to write, and what instead.
WORDS = {
    "网页进程": "Web 进程",
    "账本": "消息记录",
    "聊天背后": "推送详情",
    "开关": "设置",
    "不接受": "拒绝, 被平台拒绝",
    "点菜单": "点击菜单",
    "隧道": "内网穿透",
    "媒体": "素材",
    "关注者": "粉丝",
    "答复": "回复",
    "应答": "回复",
    "您": "你",
    "后台": "公众平台",
    "(?<!接口)测试号(?!二维码)": "接口测试号",
    r"（EncodingAESKey）": "消息加解密密钥(EncodingAESKey)",
}


def test_chinese_has_one_word_for_each_thing():
    folders = [ROOT / name for name in (*ALLOWED, "docs", "deploy", ".github")]
    texts = [path for folder in (ROOT, *folders) for path in folder.glob("*" if folder == ROOT else "**/*")]
    texts = [path for path in texts if path.suffix in TEXTS and path.name != "own.py"] + [
        ROOT / ".env.example"
    ]
    assert {"README.zh-CN.md", ".env.example", "codes.py", "zh.js", "entry.html"} <= {
        path.name for path in texts
    }
    found = [
        f"{path.relative_to(ROOT)}: {word} is {better}"
        for path in texts
        for word, better in WORDS.items()
        if re.search(word, read(path))
    ]
    assert found == []


def anchors(path):
    heads = re.findall(r"^#+ (.*)$", without_code(read(path)), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", LINKED, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    text = without_code(read(path))
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"src=\"([^\"]+)\"", text)
    missing = []
    for target in targets:
        if re.match(r"https?:|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            missing.append(target)
    assert not missing


@pytest.mark.parametrize("path", LINKED, ids=lambda path: path.name)
def test_commands_in_the_text_are_there(path):
    there = {name for name, _ in commands(create_app(Settings.from_env(ACCOUNT, Path("/nowhere"))).cli)}
    groups = {name.rpartition(" ")[0] for name in there} | {"flask", "flask ..."}
    text = read(path)
    for name in re.findall(r"`(?:\.venv/bin/)?(flask [a-z]+(?: [a-z]+)?)", text):
        assert any(name == each or name.startswith(f"{each} ") for each in there) or name in groups, name
    for name in re.findall(r"`make ([a-z][a-z-]*)", text):
        assert name in make_targets(), f"make {name}"


# -- what they show runs --


def blocks(path):
    """(language, text, whether it is to be run) of each block of code."""
    text = read(path)
    for found in FENCE.finditer(text):
        indent, language, block = found.groups()
        before = text[: found.start()].rstrip().rpartition("\n")[2]
        yield language, re.sub(f"^{indent}", "", block, flags=re.M), not before.startswith("<!-- not run: ")


class Project:
    """A copy of the project in which `make run` runs, and what the documents show is done."""

    def __init__(self, folder):
        self.folder = copy(folder)
        self.port = free_port(neighbours=1)
        self.output = folder / "run.log"
        self.settings = {
            "PORT": str(self.port),
            "TOKEN_SERVER_KEY": "the documents' key, + and & in it",
            "WEB_CONCURRENCY": "1",
        }
        self._process = None

    def environ(self):
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return clean_environ() | {"PATH": path, "PYTHONPATH": "", "TERM": "dumb"}

    def run(self):
        """`make run`, until it has shown what it shows."""
        (self.folder / ".env").write_text(
            "".join(f"{name}={value}\n" for name, value in self.settings.items())
        )
        environ = self.environ() | {"DATABASE_URL": "sqlite:///data/bot.db", "MEDIA_STORE": "data/media"}
        self._process = Process([sys.executable, "run.py"], environ, self.output, self.folder)

        def said():
            assert self._process.popen.poll() is None, read(self.output)
            return "Ctrl-C ends it" in read(self.output)

        eventually(said, 60, "make run")
        self.appid = sandbox_settings(self.folder)["WECHAT_APPID"]
        return read(self.output)

    def stop(self):
        if self._process is not None:
            self._process.stop()

    def local(self, text):
        return text.replace("127.0.0.1:8000", f"127.0.0.1:{self.port}").replace(
            "127.0.0.1:8001", f"127.0.0.1:{self.port + 1}"
        )

    def sh(self, text):
        """What a ```sh block does, each part as it ends; of `make` only whether the target is there. A line that is one
        command of the bot and nothing else starts prepared."""
        environ = self.environ() | {"TOKEN_SERVER_KEY": self.settings["TOKEN_SERVER_KEY"]}
        # Script, command, script, and so on.
        for number, part in enumerate(
            re.split(r"^\.venv/bin/(flask [\w -]+)\n", self.local(text), flags=re.M)
        ):
            if number % 2:
                yield prepared.run([sys.executable, "-m", *part.split()], environ, folder=self.folder)
                continue
            script = re.sub(r"^make ", "make --dry-run --silent ", part, flags=re.M)
            yield subprocess.run(
                ["bash", "-euo", "pipefail", "-c", f"WECHAT_APPID={self.appid}\n{script}"],
                cwd=self.folder,
                env=environ,
                capture_output=True,
                text=True,
                timeout=60,
            )

    def write(self, language, text):
        """What a ```python or ```diff block says, in the file that its first line names; True if it names one."""
        first, _, rest = text.partition("\n")
        found = re.fullmatch(r"# (handlers/\w+\.py)", first)
        if not found:
            return False
        path = self.folder / found[1]
        if language == "python":
            path.write_text(text, encoding="utf-8")
            return True
        lines, place = read(path).splitlines(), None
        for line in rest.splitlines():
            sign, words = line[0], line[1:]
            if sign == "+":
                lines.insert(place, words)
                place += 1
            else:
                assert lines.count(words) == 1, f"{path.name} does not have, once: {words}"
                place = lines.index(words) + (sign == " ")
                if sign == "-":
                    lines.remove(words)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return True

    def send(self, **message):
        """What the fan gets to see for that message."""
        url = f"http://127.0.0.1:{self.port + 1}/sandbox/fans/oDocs-AbCdEfGhIjKlMnOpQrSt_1/messages"
        answer = requests.post(url, json=message, timeout=30)
        assert answer.ok, answer.text
        return [each["content"] for each in answer.json()["shown"]]

    def rewrite(self, document):
        """Change the copy as the document shows."""
        for language, text, _ in blocks(document):
            if language in ("python", "diff"):
                service = f"http://127.0.0.1:{self.port}"
                self.write(language, text.replace("https://weather.example.com", service))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Changed as the README shows."""
    project = Project(tmp_path_factory.mktemp("docs") / "project")
    project.rewrite(ENGLISH)
    project.said = project.run()
    yield project
    project.stop()


@pytest.fixture
def another(tmp_path):
    """Changed as docs/handlers.md shows."""
    project = Project(tmp_path / "project")
    project.rewrite(ROOT / "docs" / "handlers.md")
    project.run()
    yield project
    project.stop()


def masked(text):
    text = re.sub(r"(?<=ADMIN_PASSWORD=)\S+", "*", text)
    text = re.sub(r"(?<=image )\S+|\b[0-9a-f]{64}\b|\b[0-9a-f]{4}\.\.\.", "*", text)
    text = re.sub(r"\bwx[0-9a-f]{16}\b", "wx*", text)
    text = re.sub(r"data/\S*?(?=sandbox\.log|/?wx)", "data/", text)
    return re.sub(r"\d+", "0", text)


@pytest.mark.xdist_group("docs")
@both_readmes
def test_make_run_shows_what_the_readme_shows(readme, project):
    (shown,) = [block for language, block, _ in blocks(readme) if language == "text"]
    said = masked(project.said).splitlines()
    assert [line for line in masked(shown).splitlines() if line not in said] == []


@pytest.mark.xdist_group("docs")
@pytest.mark.parametrize("path", RUN, ids=lambda path: path.stem)
def test_every_command_shown_runs(path, project):
    for language, text, to_be_run in blocks(path):
        if language == "sh" and to_be_run:
            if "curl" in text:
                needs_curl()
            for done in project.sh(text):
                assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
                assert '"error"' not in done.stdout, done.stdout
                assert '"errcode"' not in done.stdout, done.stdout
    made = [folder for name in ("backup", "restored") if (folder := project.folder / name).exists()]
    assert [folder.name for folder in made if folder.stat().st_mode & 0o077] == []


@pytest.mark.xdist_group("docs")
def test_a_backup_can_be_made_every_day(project):
    found = blocks(ROOT / "docs" / "operations.md")
    (backup,) = [text for language, text, _ in found if language == "sh" and "VACUUM INTO" in text]
    for _ in range(2):
        for done in project.sh(backup):
            assert done.returncode == 0, done.stderr


@pytest.mark.xdist_group("docs")
def test_the_sandbox_command_of_the_reference_runs(project):
    port = free_port()
    english, chinese = map(read, REFERENCES)
    (command,) = re.findall(r"`(\.venv/bin/python -m sandbox [^`]+)`", english)
    assert command in chinese
    process = subprocess.Popen(
        command.replace("8002", str(port)).split(),
        cwd=project.folder,
        env=project.environ(),
        stdout=subprocess.PIPE,
    )
    try:
        assert str(port) in process.stdout.readline().decode()
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


def test_settings_shown_are_settings():
    names = set(NAMES)
    for path in RUN:
        for language, text, _ in blocks(path):
            if language == "ini":
                given = dict(line.split("=", 1) for line in text.splitlines())
                assert set(given) <= {*names, *known_names(given)}, path.name
                ini = ACCOUNT | {name: value for name, value in given.items() if "YOUR" not in value}
                Settings.from_env(ini | {"WECHAT_TOKEN_SOURCE_KEY": "key"}, Path("/nowhere"))


def lint(project):
    handlers = project.folder / "handlers"
    options = ["--select", "E,F,W,I,B,UP,G,S", "--config", ROOT / "pyproject.toml", "--quiet"]
    done = subprocess.run([sys.executable, "-m", "ruff", "check", *options, handlers], timeout=60)
    return done.returncode == 0


@pytest.mark.xdist_group("docs")
def test_the_handlers_of_the_readme_answer(project):
    assert lint(project)
    place = project.send(type="location", content="31.23,121.47,16,The Bund")
    assert place == ["The Bund: 31.23, 121.47"]
    assert project.send(type="event", event="CLICK", event_key="weather healthz") == ["ok\n"]
    assert project.send(type="text", content="hours") == ["9:00 - 18:00"]


@pytest.mark.xdist_group("docs")
def test_the_handlers_of_their_document_answer(another):
    assert lint(another)
    assert another.send(type="text", content="hello") == ["You said: hello"]
    assert another.send(type="text", content="psst, hello") == []
    assert another.send(type="text", content="a tea") == ["Say: order"]
    assert another.send(type="event", event="CLICK", event_key="order") == ["What would you like?"]
    assert another.send(type="text", content="a tea") == ["Your order: tea"]
    assert another.send(type="text", content="20 + 22") == ["42"]
    described = another.send(type="link", content="A page\nabout much\nhttps://example.com")
    assert described == ["A page: 10 characters"]


@pytest.mark.xdist_group("docs")
def test_the_client_for_wechatpy_works(project):
    (source,) = [
        text for language, text, _ in blocks(ROOT / "docs" / "token-server.md") if language == "python"
    ]
    space = {}
    exec(compile(source, "central.py", "exec"), space)
    client = space["CentralClient"](
        project.appid, f"http://127.0.0.1:{project.port}", project.settings["TOKEN_SERVER_KEY"]
    )
    platform = f"http://127.0.0.1:{project.port + 1}"
    client.API_BASE_URL = f"{platform}/cgi-bin/"
    first = client.access_token
    requests.post(f"{platform}/sandbox/token/expire", json={}, timeout=5).raise_for_status()
    uploaded = client.once_more(
        lambda: client.media.upload("image", ("photo.png", (ROOT / "docs/images/phone.png").read_bytes()))
    )
    assert uploaded["media_id"]
    assert client.access_token != first


def test_the_procfile_is_what_the_deployment_shows():
    assert read(ROOT / "Procfile") in [text for _, text, _ in blocks(ROOT / "docs" / "deploy.md")]


def test_json_shown_is_json():
    for path in RUN:
        for language, text, _ in blocks(path):
            if language == "json":
                json.loads(text)
