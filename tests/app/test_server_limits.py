"""What a stranger or a greedy user can do to the server: over sockets, with limits made small."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from segcft.app import connections, requests
from segcft.app import server as app_server
from segcft.app.server import create
from segcft.app.temporary_folder import PREFIX, temporary_folder
from segcft.app.users import User
from tests.app.servers import running
from tests.cli.test_launch import environment

pytestmark = pytest.mark.filterwarnings("ignore:do\\(")
ALICE, BOB, MALLORY = (User(address) for address in ("192.0.2.1", "192.0.2.2", "192.0.2.3"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where temporary files go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def connect(address):
    found = urlsplit(address)
    connection = socket.create_connection((found.hostname, found.port))
    connection.settimeout(20)
    return connection


def head(path, length, *more):
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {length}", *more, "", ""]
    return "\r\n".join(lines).encode()


def answer(connection):
    """All that comes until the server closes the connection, or resets it."""
    read = bytearray()
    with suppress(ConnectionError):
        while piece := connection.recv(2**16):
            read += piece
    return bytes(read)


def status(address, path="/model"):
    with urllib.request.urlopen(address + path, timeout=20) as response:
        return response.status


def silent(capfd):
    """Nothing was written into the log."""
    out, err = capfd.readouterr()
    return out + err == ""


def eventually(truth, seconds=10.0):
    end = time.monotonic() + seconds
    while not truth() and time.monotonic() < end:
        time.sleep(0.05)
    return truth()


# ---- before any token ----
@pytest.mark.parametrize("length", [None, 10**12])
def test_an_endless_login_is_refused_before_it_is_read(length, app, capfd):
    with running(create(app, "secret", local=True)) as address, closing(connect(address)) as connection:
        sent = 0
        if length is None:
            connection.sendall(b"POST /login HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        else:
            connection.sendall(head("/login", length))
        with suppress(ConnectionError, TimeoutError):
            connection.settimeout(3)
            while sent < 2**28:
                connection.sendall(b"10000\r\n" + bytes(2**16) + b"\r\n" if length is None else bytes(2**16))
                sent += 2**16
        assert sent < 2**26, "the server read on"
        assert status(address, "/page.css") == 200
    assert silent(capfd)


def test_slow_headers_end_the_connection(app, monkeypatch, capfd):
    monkeypatch.setattr(connections, "HEADERS", 0.5)
    with running(create(app, None, local=True)) as address, closing(connect(address)) as connection:
        began = time.monotonic()
        with suppress(ConnectionError):
            for letter in "GET /model HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + "x" * 100:
                connection.sendall(letter.encode())
                time.sleep(0.1)
        assert time.monotonic() - began < 5
        assert answer(connection) == b""
    assert silent(capfd)


def test_half_open_connections_keep_nobody_out(app, monkeypatch, capfd):
    monkeypatch.setattr(connections, "MOST", 20)
    with running(create(app, None, local=True)) as address:
        held = [connect(address) for _ in range(60)]
        began = time.monotonic()
        assert [status(address) for _ in range(5)] == [200] * 5
        assert time.monotonic() - began < 5, "the others waited for a limit of time"
        for each in held:
            each.setblocking(False)
        closed = sum(each in ended(held) for each in held)
        assert closed >= 40
        for each in held:
            each.close()
    assert silent(capfd)


def ended(held):
    found = []
    for each in held:
        try:
            each.recv(1)
            found.append(each)
        except BlockingIOError:
            pass
        except ConnectionError:
            found.append(each)
    return found


def test_a_connection_that_waits_for_an_answer_is_not_closed_for_others(app, service, monkeypatch):
    monkeypatch.setattr(connections, "MOST", 10)
    monkeypatch.setattr(
        service, "open_case", lambda name, open_case=service.open_case: (time.sleep(1), open_case(name))[1]
    )
    with running(create(app, None, local=True)) as address, closing(connect(address)) as waiting:
        content = b'{"case": "test 1"}'
        waiting.sendall(head("/open", len(content), "Connection: close") + content)
        time.sleep(0.2)
        held = [connect(address) for _ in range(30)]
        assert answer(waiting).startswith(b"HTTP/1.1 200")
        for each in held:
            each.close()


def test_invalid_requests_do_not_fill_the_log(app, capfd):
    upgrade = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    with running(create(app, None, local=True)) as address:
        for content in (b"\x16\x03\x01junk\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", upgrade):
            with closing(connect(address)) as connection:
                connection.sendall(content)
                connection.shutdown(socket.SHUT_WR)
                answer(connection)
    assert silent(capfd)


def test_an_answer_that_is_not_read_ends_the_connection(monkeypatch, capfd):
    monkeypatch.setattr(connections, "ANSWER", 0.5)
    lost = threading.Event()
    lose = connections.Connection.connection_lost
    monkeypatch.setattr(connections.Connection, "connection_lost", lambda self, error: (lost.set(), lose(self, error)))

    async def large(scope, receive, send):
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"50000000")]})
        for part in range(50):
            await send({"type": "http.response.body", "body": bytes(10**6), "more_body": part < 49})

    with running(large) as address, closing(connect(address)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert lost.wait(10)
    assert silent(capfd)


# ---- uploads ----
ABOUT = f"X-About: {base64.b64encode(json.dumps({'name': 'a.png', 'parents': {'age': 40}}).encode()).decode()}"


def left(folder):
    return list(folder.glob("segcft-*"))


def test_an_upload_that_stalls_is_freed(app, folder, monkeypatch, capfd):
    monkeypatch.setattr(requests, "GRACE", 1.0)
    with running(create(app, None, local=True)) as address, closing(connect(address)) as connection:
        connection.sendall(head("/upload", 90_000, ABOUT) + bytes(1000))
        assert eventually(lambda: requests.bodies.count == 1)
        assert answer(connection).startswith(b"HTTP/1.1 408")
        assert eventually(lambda: requests.bodies.count == 0)
    assert not left(folder)
    assert silent(capfd)


def test_an_upload_whose_connection_is_closed_is_freed(app, folder, capfd):
    with running(create(app, None, local=True)) as address:
        with closing(connect(address)) as connection:
            connection.sendall(head("/upload", 90_000, ABOUT) + bytes(1000))
            assert eventually(lambda: requests.bodies.count == 1)
        assert eventually(lambda: requests.bodies.count == 0)
    assert not left(folder)
    assert silent(capfd)


def test_unfinished_uploads_do_not_keep_the_server_from_stopping(app, folder, capfd):
    began = None
    with running(create(app, None, local=True)) as address:
        held = [connect(address) for _ in range(5)]
        for each in held:
            each.sendall(head("/upload", 90_000, ABOUT) + bytes(1000))
        assert eventually(lambda: requests.bodies.count == 5)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert not left(folder)
    assert silent(capfd)
    for each in held:
        each.close()


def test_many_unfinished_bodies_keep_no_other_user_out(app, monkeypatch):
    monkeypatch.setattr(requests.bodies, "most", 4)
    with running(create(app, None, local=True)) as address:
        held = [connect(address) for _ in range(6)]
        for each in held:
            each.sendall(head("/open", 1000))
            time.sleep(0.05)
        content = b'{"case": "test 1"}'
        with closing(connect(address)) as connection:
            connection.sendall(head("/open", len(content), "Connection: close") + content)
            assert answer(connection).startswith(b"HTTP/1.1 200")
        assert held[0].recv(100).startswith(b"HTTP/1.1 408"), "the oldest gives way"
        for each in held:
            each.close()


def test_uploads_are_closed_after_their_hour_though_nobody_asks(app, folder, film, monkeypatch):
    monkeypatch.setattr(app_server, "TIDY", 0.1)
    app.sessions.idle = 1.0
    with running(create(app, None, local=True)) as address:
        uploaded = urllib.request.Request(
            f"{address}/upload", film.read_bytes(), dict([ABOUT.split(": ")]), method="POST"
        )
        assert urllib.request.urlopen(uploaded).status == 200
        assert left(folder)
        assert eventually(lambda: not left(folder))


def test_temporary_files_of_a_killed_server_are_removed_by_the_next(folder):
    code = (
        "import time, tempfile; from pathlib import Path; from segcft.app.temporary_folder import temporary_folder\n"
        "with temporary_folder() as folder:\n"
        "    Path(tempfile.mkdtemp(), 'upload.png').write_text('x'); print(folder, flush=True); time.sleep(60)"
    )
    told = {**environment(), "TMPDIR": str(folder)}
    killed, living = (
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=told) for _ in range(2)
    )
    folders = [Path(each.stdout.readline().strip()) for each in (killed, living)]
    assert all(any(each.iterdir()) for each in folders)
    killed.kill()
    killed.wait()
    foreign = folder / "elsewhere"
    foreign.mkdir()
    (folder / f"{PREFIX}link").symlink_to(foreign)
    with temporary_folder() as own:
        assert [each.exists() for each in folders] == [False, True]
        assert Path(tempfile.mkdtemp()).parent == own
    assert foreign.exists()
    assert not own.exists()
    assert tempfile.gettempdir() == str(folder)
    living.kill()
    living.wait()


# ---- the end ----
@pytest.mark.slow
def test_a_served_model_stops_at_a_signal_and_leaves_nothing(service, folder, film):
    from tests.inference.test_answer_file import save

    checkpoint = save(folder / "model.ckpt", service.model)
    command = [
        sys.executable,
        "-m",
        "segcft",
        "serve",
        str(checkpoint),
        "--port=0",
        "--host=127.0.0.2",
        "--token=a b&c",
    ]
    told = {**environment(), "TMPDIR": str(folder)}
    served = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=told)
    link = served.stdout.readline().split()[1]
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    assert opener.open(link).status == 200
    address = link.partition("/?")[0]
    upload = urllib.request.Request(f"{address}/upload", film.read_bytes(), dict([ABOUT.split(": ")]), method="POST")
    assert opener.open(upload).status == 200
    assert list(folder.glob(f"{PREFIX}*/segcft-*/upload"))
    stalled = connect(address)
    stalled.sendall(head("/login", 1000))
    os.kill(served.pid, signal.SIGTERM)
    assert served.wait(8) == 0
    assert not left(folder)
