"""Requests that no page sends: each is refused with a sentence, and the log stays empty."""

import base64
import json
from urllib.parse import urlencode

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from segcft.app.server import create
from segcft.app.users import VISITOR
from tests.app.servers import Client

pytestmark = pytest.mark.filterwarnings("ignore:do\\(")


def silent(capfd):
    """Nothing was written into the log."""
    out, err = capfd.readouterr()
    return out + err == ""


HUGE = "9" * 400
MALFORMED = [
    ("/open", b"[" * 60_000),
    ("/open", b'{"case":' * 10_000),
    ("/open", b'{"case": [[[[["deep"]]]]]}'),
    ("/open", b'{"case": "\\ud800"}'),
    ("/open", b'\xff\xfe{"case": 1}'),
    ("/open", b'{"case": ' + b"9" * 5000 + b"}"),
    ("/open", b'{"case": "' + b"x" * 70_000 + b'"}'),
    ("/ask", f'{{"do": [{HUGE}]}}'.encode()),
    ("/ask", b'{"do": [["left_size=1"]]}'),
    ("/ask", b'{"do": {"left_size": 1}}'),
    ("/ask", b'{"do": "left_size=1"}'),
    ("/ask", f'{{"do": ["left_size={HUGE}"]}}'.encode()),
    ("/ask", f'{{"do": ["left_size=+{HUGE}%"]}}'.encode()),
    ("/ask", b'{"do": ["left_size=1e99999"]}'),
    ("/ask", b'{"do": ["left_size=\\u0000"]}'),
    ("/ask", json.dumps({"do": ["left_size=1"] * 100}).encode()),
    ("/ask", json.dumps({"do": ["left_size=1", "left_size=2"]}).encode()),
    ("/ask", b'{"effect": ["total"]}'),
    ("/ask", b'{"slice": NaN}'),
    ("/ask", b'{"slice": 1e999}'),
    ("/download", b'{"kind": ["png"]}'),
    ("/download", b'{"kind": {"png": 1}}'),
]  # fmt: skip


@pytest.mark.parametrize(("path", "content"), MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_questions_are_refused_with_a_sentence(path, content, client, capfd):
    if path != "/open":
        session = client.post("/open", {"case": "test 1"})[1]["session"]
        content = content.replace(b"{", b'{"session": "' + session.encode() + b'", ', 1)
    found, told, _ = client("POST", path, content)
    assert found in (400, 413), told
    assert 10 < len(told["error"]) < 1000
    assert silent(capfd)


NUMBERS = [HUGE, f"-{HUGE}", "1e999", "NaN", "true", '"4"', "null", "[1]", '{"a": 1}', "1e300"]
FORMS = [
    '{"parents": {"age": %s}}',
    '{"window": [0, %s], "parents": {"age": 40}}',
    '{"spacing": [%s, 1], "parents": {"age": 40}}',
    '{"parents": {"%s": 1}}',
]


@pytest.mark.parametrize("given", NUMBERS)
@pytest.mark.parametrize("form", FORMS)
def test_malformed_facts_about_an_upload_are_refused_with_a_sentence(form, given, client, film, capfd):
    text = (form % given).encode()
    found, told, _ = client("POST", "/upload", film.read_bytes(), x_about=base64.b64encode(text).decode())
    if found == 200:  # a window may end beyond every film, and a model that counts pixels needs no spacing
        assert given == "1e300"
        assert "40" in form
        return
    assert found == 400, told
    assert 10 < len(told["error"]) < 2000
    assert silent(capfd)


def test_the_same_error_is_written_once(app, client, monkeypatch, capfd):
    monkeypatch.setattr(app.service, "open_case", lambda name: 1 / 0)
    for _ in range(20):
        assert client.post("/open", {"case": "test 1"})[0] == 500
    assert capfd.readouterr().err.count("Traceback") == 1


# ---- who comes in ----
@pytest.mark.parametrize("token", ["a+b c&d=e%20?#/", 'say "x"; path=/', "gehört\N{SNOWMAN}", "x=1;y=2", "\\", "%41"])
def test_tokens_may_have_any_characters(token, app):
    guarded = Client(create(app, token, local=True))
    for found in (
        guarded("GET", f"/?{urlencode({'token': token})}"),
        guarded("POST", "/login", urlencode({"token": token}).encode()),
        guarded("POST", "/login", urlencode({"token": f" {token}\n"}).encode()),
    ):
        assert found[0] == 303
        cookie = found[2]["set-cookie"].partition(";")[0]
        assert guarded("GET", "/model", cookie=cookie)[0] == 200
    assert guarded("POST", "/login", urlencode({"token": token[:-1]}).encode())[0] == 401


def test_every_address_of_this_computer_is_its_own(app):
    local = Client(create(app, None, local=True))
    hosts = ("127.0.0.2:80", "127.0.0.2", "[::1]:80", "[::1]", "localhost", "127.1.2.3:7860")
    assert [local("GET", "/", host=host)[0] for host in hosts] == [200] * 6
    foreign = ("evil.example", "127.0.0.2.evil.example", "[", "", "192.168.0.1", "localhost.evil:80")
    assert [local("GET", "/", host=host)[0] for host in foreign] == [421] * 6


def test_visitors_are_told_apart_by_a_cookie(client):
    cookie = client("GET", "/")[2]["set-cookie"]
    assert cookie.startswith(f"{VISITOR}=")
    assert "HttpOnly" in cookie
    assert "set-cookie" not in client("GET", "/", cookie=cookie.partition(";")[0])[2]


def test_a_download_whose_image_is_closed_meanwhile_is_answered(app, client, film, monkeypatch):
    session = client.upload(film.read_bytes(), name="a.png", parents={"age": 40})[1]["session"]
    file, ask = app.sessions.get(session).subject.file, app.service.ask

    def closed(subject, question):
        app.sessions.close(session)
        return ask(subject, question)

    monkeypatch.setattr(app.service, "ask", closed)
    assert client.post("/download", {"session": session, "do": ["left_size=+20%"], "kind": "png"})[0] == 200
    assert not file.exists()


def test_a_long_name_is_quoted_in_part(client):
    status, answer = client.upload(b"no image", name=f"{'x' * 5000}.png", parents={"age": 40})
    assert status == 400
    assert "xxx.png" in answer["error"]
    assert len(answer["error"]) < 600
