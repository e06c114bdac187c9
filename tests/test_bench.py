"""The measurements still measure: a tiny run of each, and a contestant that answers wrongly is caught."""

import json
import random
import re
import socket
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest
from werkzeug.serving import WSGIRequestHandler

from bench import __main__ as bench
from bench import contestants, load, pushes, scale, servers
from bench.contestants import ROOT, copy_of, express, express_lacks, ours
from bench.simulate import Cost, simulate
from bench.simulate import main as simulation
from tests.serving import serving


def constant(body, status="200 OK"):
    def app(environ, start_response):
        start_response(status, [("Content-Length", str(len(body)))])
        return [body]

    return app


def test_a_small_round(tmp_path, capsys, monkeypatch, full):
    """Of all with --full; else of the quickest to start, and of those that always come along, in one worker class."""
    if not full:
        monkeypatch.setattr(bench, "WORKER_CLASSES", bench.WORKER_CLASSES[:1])
    ours_too = [bench.FULL, bench.NORMAL, bench.SAFE, bench.POSTGRESQL, bench.REPEATED, "WeRoBot"]
    some = [] if full else ["--only", "raw WSGI"]
    assert bench.main(["--rounds", "1", "--messages", "40", "--results", str(tmp_path), *some]) == 0
    shown = capsys.readouterr().out
    assert "at most 10 minutes" in shown.splitlines()[0]
    for name in (bench.WECHATPY, "raw WSGI", *(ours_too if full else [])):
        assert name in shown
    (figures,) = tmp_path.glob("bench-*.json")
    turns = json.loads(figures.read_text())["turns"]
    assert all(turn["messages"] == 40 for taken in turns.values() for turn in taken)
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".json", ".md"]


@pytest.mark.parametrize("mode", ["plain", "safe"])
def test_ours_alone(tmp_path, mode, full):
    if not full and mode == "plain":
        pytest.skip("with --full: safe mode does the same, and more")
    tree = copy_of(ROOT, tmp_path / "tree")
    with ours("ours", tree, tmp_path / "ours", mode=mode) as contestant:
        sent = [pushes.new(mode) for _ in range(20)]
        kept = set()
        turn, bodies = bench.take_turn(contestant, sent, kept)
        assert turn.messages == len(kept) == 20
        again, _ = bench.take_turn(contestant, [pushes.again(push) for push in sent], kept)
        assert again.messages == len(kept) == 20
        lost = replace(contestant, msg_ids=lambda: contestant.msg_ids()[1:])
        with pytest.raises(bench.WrongAnswerError, match="21 messages answered, 20 rows"):
            bench.take_turn(lost, [pushes.new(mode)], kept)
    assert not pushes.faults(sent, bodies, None)
    assert pushes.faults(sent, bodies[1:] + bodies[:1], None)


def test_express_checks_signatures_and_echoes(tmp_path):
    if lacks := express_lacks():
        pytest.skip(f"npm wechat on express: {lacks}")
    sent = [pushes.new() for _ in range(20)]
    with express("express", tmp_path / "express") as contestant:
        turn, _ = bench.take_turn(contestant, sent, set())
        assert turn.messages == 20
        assert len(contestant.server.processes()) == 1 + contestants.PROCESSES
        unsigned = re.sub(rb"signature=\w+", b"signature=0", pushes.new().request)
        with pytest.raises(load.LoadError, match="401"):
            load.drive(contestant.server.port, [unsigned], 1)


def test_express_is_left_out_where_it_cannot_run(tmp_path, monkeypatch):
    monkeypatch.setattr(contestants, "NODE_MODULES", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert express_lacks() == "node is not installed"
    node, npm = (tmp_path / name for name in ("node", "npm"))
    node.touch(0o755)
    assert express_lacks() == "npm is not installed"
    npm.touch(0o755)
    assert express_lacks() == f"its packages are not in {tmp_path}: make bench has npm install them"
    npm.unlink()
    (tmp_path / ".package-lock.json").touch()
    assert not express_lacks()


def test_what_express_needs_is_pinned_and_names_no_registry():
    folder = ROOT / "bench" / "apps" / "express"
    wanted = json.loads((folder / "package.json").read_text())["dependencies"]
    frozen = json.loads((folder / "package-lock.json").read_text())["packages"]
    assert frozen[""]["dependencies"] == wanted
    for name, version in wanted.items():
        assert frozen[f"node_modules/{name}"]["version"] == version
    packages = [package for path, package in frozen.items() if path]
    assert all("integrity" in package and "resolved" not in package for package in packages)


def test_the_figures_of_a_table():
    turn = bench.Turn(
        messages=1000, seconds=1.0, cpu_seconds=0.5, database_cpu_seconds=0.0, load_cpu_seconds=0.01
    )
    slow = replace(turn, seconds=2.0, cpu_seconds=0.6)
    peers = {
        f"{name} ({worker_class})": [turn, turn]
        for name in (bench.WECHATPY, bench.WECHATPY_SAFE)
        for worker_class in bench.WORKER_CLASSES
    }
    repeated = {f"{bench.FULL}: {bench.REPEATED}": [turn, turn]}
    table = bench.report({bench.FULL: [slow, slow]} | repeated | peers)
    assert f"| {bench.FULL} | 500 (500 to 500) | 0.50 | 600 (600 to 600) | 1.20 |" in table
    assert f"| {bench.FULL}: CPU × wechatpy | 1.20 | ≤ 1.30 | 1.10 |" in table
    assert "| a repeated delivery: CPU × a first one | 0.83 | < 1 | |" in table
    assert bench.EXPRESS not in table
    fast = replace(turn, seconds=0.8, cpu_seconds=0.4)
    table = bench.report({bench.FULL: [slow, slow]} | repeated | peers | {bench.EXPRESS: [fast, fast]})
    assert f"| {bench.EXPRESS} | 1250 (1250 to 1250) | 1.25 | 400 (400 to 400) | 0.80 |" in table
    _, beside = table.split(f"| × {bench.EXPRESS} | messages/s | server CPU |")
    assert f"| {bench.FULL} | 0.40 | 1.50 |" in beside


def test_the_cpu_time_of_a_process_holds_that_of_children_that_have_ended():
    spends = "import time\nwhile time.process_time() < 0.3: pass"
    child = f"subprocess.run([sys.executable, '-c', {spends!r}])"
    starts = f"import subprocess, sys; {child}; print('ended', flush=True); input()"
    parent = subprocess.Popen(
        [sys.executable, "-c", starts], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout.readline() == "ended\n"
    assert servers.cpu_seconds(psutil.Process(parent.pid)) >= 0.3
    parent.communicate("\n")


def test_an_answer_that_is_none_ends_the_load():
    with serving(constant(b"no", "503 Service Unavailable")) as url:
        port = int(url.rpartition(":")[2])
        with pytest.raises(load.LoadError, match="503"):
            load.drive(port, [pushes.new().request], 1)


def test_connections_are_opened_anew_when_the_server_closes_them():
    with serving(constant(b"success")) as url:  # werkzeug's server closes after each answer
        port = int(url.rpartition(":")[2])
        outcome = load.drive(port, [pushes.new().request for _ in range(10)], 3)
    assert outcome.bodies == [b"success"] * 10


class InChunks(WSGIRequestHandler):
    """Answers as node does when it does not know the length, and in pieces; keeps the connection."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.rfile.read(int(self.headers["Content-Length"]))
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        for piece in (
            head,
            b"3\r",
            b"\nsuc\r\n",
            b"1",
            b"1\r\ncess, and",
            b" no more",
            b"\r\n0\r\n",
            b"\r\n",
        ):
            self.wfile.write(piece)


def test_an_answer_in_chunks_is_read_to_its_end():
    with serving(None, InChunks) as url:
        port = int(url.rpartition(":")[2])
        outcome = load.drive(port, [pushes.new().request for _ in range(10)], 2)
    assert outcome.bodies == [b"success, and no more"] * 10


@pytest.mark.parametrize("part", scale.PARTS)
def test_each_part_of_the_scale_run_in_small(tmp_path, monkeypatch, capsys, part, full):
    # The others start servers, and take up to a quarter of a minute each.
    if not full and part not in ("rows", "tokens"):
        pytest.skip("with --full: pytest --full tests/test_bench.py, after a change in bench/")
    small = {"rows": (0, 200), "records": 5, "rounds": 1, "soak": 100, "downloads": 4, "account_pushes": 20}
    monkeypatch.setattr(scale, "SMALL", replace(scale.SMALL, **small, large_picture=scale.MB))
    monkeypatch.setattr(scale, "MANY_ACCOUNTS", 3)
    monkeypatch.setattr(scale, "IDLE_SECONDS", 0.5)
    assert scale.main(["--small", "--only", part, "--results", str(tmp_path)]) == 0
    assert "these figures prove nothing" in capsys.readouterr().out
    (lines,) = tmp_path.glob("scale-*.json")
    assert json.loads(lines.read_text())["lines"]


def simulated(cores, seconds=20):
    cost = Cost([1000.0], [100.0])
    return simulate(
        1000,
        seconds,
        web_cores=cores,
        database_cores=1,
        first=cost,
        again=Cost([400.0], [50.0]),
        chance=random.Random(1),
    )


def test_simulated_with_enough_cores_everybody_is_answered_at_once():
    outcome = simulated(1.1)
    assert outcome.answered_at_once == pytest.approx(1)
    assert outcome.deliveries == pytest.approx(1)
    assert outcome.longest_wait < 0.2


def test_simulated_an_overload_feeds_itself():
    few, fewer = simulated(0.8, 60), simulated(0.5, 60)
    assert 1 > few.answered > fewer.answered > 0
    assert 1 < few.deliveries < fewer.deliveries <= 3
    assert few.longest_wait > 5


def test_the_simulation_takes_the_result_of_a_run(tmp_path, capsys):
    turn = {"messages": 100, "cpu_seconds": 0.05, "database_cpu_seconds": 0.01}
    names = [bench.POSTGRESQL, f"{bench.POSTGRESQL}: {bench.REPEATED}"]
    result = tmp_path / "bench.json"
    result.write_text(json.dumps({"turns": {name: [turn] for name in names}}))
    assert simulation(["--result", str(result), "--rate", "1000", "--seconds", "10"]) == 0
    table = capsys.readouterr().out
    assert "500 µs of the web processes and 100 µs of PostgreSQL" in table
    assert "| 1 | 1 | 100.0% | 100.0% | 1.00 |" in table
