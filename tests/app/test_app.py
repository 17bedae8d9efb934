"""The app without a browser: an image is abducted once, answers agree with the model's, and nobody sees another's."""

import base64
import io
import sys
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from PIL import Image

from segcft.app.addresses import is_local
from segcft.app.command import cases, title
from segcft.app.downloads import download, kinds
from segcft.app.opened_image import Question
from segcft.app.responses import introduce
from segcft.app.service import CounterfactualService
from segcft.causal.structural_causal_model import StructuralCausalModel
from segcft.cli.main import main
from segcft.counterfactual.model import CounterfactualModel
from segcft.inference.answer_file import busiest, plane
from segcft.io.readers import read_picture
from tests.app.servers import Client, cases_of
from tests.balls import Balls
from tests.dicoms import write_dicom
from tests.inference.test_answer_file import description, make, save

pytestmark = pytest.mark.filterwarnings("ignore:do\\(")  # an untrained segmentor measures anything
PLUS = ("left_size=+20%",)


def test_answers_are_those_of_the_model(service):
    case = service.cases["test 1"]
    expected = service.model.counterfactual(case.image, case.values, {"left_size": "+20%"})
    found = service.ask(service.open_case("test 1"), Question(PLUS))
    torch.testing.assert_close(found.answer.image, expected.image, atol=1e-5, rtol=0)
    assert all(torch.equal(found.answer.values[name], value) for name, value in expected.values.items())
    row = next(row for row in found.rows if row["variable"] == "left_size")
    assert row["intervened"]
    assert row["target"] == pytest.approx(1.2 * row["factual"])
    assert row["measured"] is not None


def test_an_image_is_encoded_once_and_a_live_move_is_one_decoder_pass(service):
    subject, encoded, drawn = service.open_case("test 1"), [], []
    hooks = [
        service.model.hvae.stem.register_forward_hook(lambda *_: encoded.append(1)),
        service.model.prediction.register_forward_hook(lambda *_: drawn.append(1)),
    ]
    for share in (5, 10, 15):
        service.ask(subject, Question((f"left_size=+{share}%",), refined=False))
    assert (len(encoded), len(drawn)) == (0, 3)
    service.ask(subject, Question(PLUS, particles=True))
    service.ask(subject, Question(PLUS, particles=True))
    assert len(encoded) == 1, "the particles, once"
    for hook in hooks:
        hook.remove()


def test_asking_nothing_changes_nothing(service):
    reply = service.ask(service.open_case("test 2"), Question())
    assert not reply.change.any()
    assert not any(row["intervened"] for row in reply.rows)


def test_the_same_question_gets_the_same_answer_and_takes_no_chance_from_others(service):
    subject, question = service.open_case("test 1"), Question(PLUS, particles=True)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = service.ask(subject, question)
    assert torch.equal(torch.get_rng_state(), before)
    other = service.ask(service.open_case("test 1"), question)
    assert torch.equal(one.answer.image, other.answer.image)
    assert torch.equal(one.answer.posterior_deviation, other.answer.posterior_deviation)
    assert one.answer.posterior_deviation.max() > 0


def test_effects_follow_their_causes_unless_held():
    about = description(2, age=True)
    mechanism = StructuralCausalModel(about.parents, {"left_size": ["age"]})
    for weight in mechanism.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    model = make(about, mechanism)
    service = CounterfactualService(model, cases_of(model))
    assert service.graph["left_size"] == ["age"]
    subject = service.open_case("test 1")
    for effect, same in (("total", False), ("direct", True)):
        values = service.ask(subject, Question(("age=+10",), effect)).answer.values
        assert torch.equal(values["left_size"], subject.opened.values["left_size"]) == same


def test_a_file_comes_back_as_the_command_line_writes_it(service, film, tmp_path):
    subject = service.open_file(film, "me.png", {"age": 40.0})
    assert subject.opened.given == {"age"}
    reply = service.ask(subject, Question(PLUS))
    name, content = download(reply, "png")
    assert name == "counterfactual.png"
    checkpoint = save(tmp_path / "a.ckpt", service.model)
    command = ["counterfactual", f"--checkpoint={checkpoint}", f"--image={film}", "--parent=age=40"]
    assert main([*command, "--do=left_size=+20%", f"--out={tmp_path / 'out'}"]) == 0
    written = np.asarray(Image.open(tmp_path / "out/0001/counterfactual.png"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), written)
    table = pd.read_csv(io.BytesIO(download(reply, "csv")[1]))
    theirs = pd.read_csv(tmp_path / "out/answers.csv")
    assert np.allclose(table["target"], theirs["target"])
    assert list(table["source"]) == list(theirs["source"])
    (tmp_path / "a.nii.gz").write_bytes(download(reply, "nifti")[1])
    assert np.allclose(read_picture(tmp_path / "a.nii.gz", (0, 255)).levels.round(), written, atol=1)


def test_a_large_film_is_shown_smaller_and_written_whole(service, tmp_path):
    pixels = np.full((900, 1200), 90, np.uint8)
    pixels[300:600] = 120
    Image.fromarray(pixels).save(tmp_path / "large.jpg")
    subject = service.open_file(tmp_path / "large.jpg", "large.jpg", {"age": 40.0})
    assert subject.levels.shape == (384, 512)
    reply = service.ask(subject, Question(PLUS))
    assert Image.open(io.BytesIO(download(reply, "png")[1])).size == (1200, 900)


def test_dicom_and_volumes(service, tmp_path):
    write_dicom(
        tmp_path / "a.dcm", np.arange(1600, dtype=np.uint16).reshape(40, 40), WindowCenter=800, WindowWidth=1600
    )
    subject = service.open_file(tmp_path / "a.dcm", "a.dcm", {"age": 40.0})
    assert kinds(subject) == ["png", "nifti", "dicom", "csv"]
    data = pydicom.dcmread(io.BytesIO(download(service.ask(subject, Question(PLUS)), "dicom")[1]))
    assert (data.Rows, data.Columns) == (40, 40)
    model = make(description(3))
    deep = CounterfactualService(model, cases_of(model, 3))
    reply = deep.ask(deep.open_case("test 1"), Question(PLUS, particles=True))
    index = busiest([reply.change])
    assert 0 <= index < 16
    assert plane(reply.change, index).shape == (16, 16)
    (tmp_path / "v.nii.gz").write_bytes(download(reply, "nifti")[1])
    assert nibabel.load(tmp_path / "v.nii.gz").shape == (16, 16, 16)
    assert Image.open(io.BytesIO(download(reply, "png")[1])).size == (16, 16)


@pytest.mark.parametrize(
    ("content", "given", "window", "message"),
    [
        (b"", {"age": 40}, None, "me.png cannot be read as an image"),
        (b"\x89PNG\r\n\x1a\nnonsense", {"age": 40}, None, "me.png cannot be read as an image"),
        (None, {}, None, "age: not given"),
        (None, {"age": float("nan")}, None, "age = nan is not a finite number"),
        (None, {"height": 3, "age": 40}, None, "height"),
        (None, {"age": 40}, (9.0, 3.0), "black must lie below white"),
    ],
)
def test_bad_files_are_named_as_their_owner_does(service, film, content, given, window, message):
    if content is not None:
        film.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        service.open_file(film, "me.png", given, window)
    assert str(film.parent) not in str(caught.value)


def test_deep_files_ask_for_levels_in_the_words_of_the_page(service, tmp_path):
    Image.fromarray(np.zeros((20, 20), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="say which levels are black and white"):
        service.open_file(tmp_path / "deep.png", "deep.png", {"age": 40.0})


@pytest.mark.parametrize("request_", ["left_size", "left_size=20%", "spleen=+1%", "left_size=+1e999"])
def test_bad_requests_are_quoted(service, request_):
    with pytest.raises(ValueError, match=request_.split("=")[0]):
        service.ask(service.open_case("test 1"), Question((request_,)))


def test_targets_out_of_range_are_answered_with_a_reason(service):
    reply = service.ask(service.open_case("test 1"), Question(("left_size=99",)))
    assert any(reason.startswith("left_size = 99") for reason in reply.reasons)


def test_a_foreign_picture_is_doubted_when_it_is_opened(service, film):
    subject = service.open_file(film, "noise.png", {"age": 50})
    assert any("looks like noise" in reason for reason in introduce(subject)["reasons"])
    reply = service.ask(subject, Question(PLUS))
    assert any("looks like noise" in reason for reason in reply.reasons)
    assert all("looks like noise" in row["warning"] for row in reply.rows)


def test_cases_come_from_the_test_split():
    data, model = Balls(), make(description(2, age=True))
    found = cases(model, data, 3)
    assert [case.name for case in found] == ["test 1", "test 2", "test 3"]
    assert torch.equal(found[2].image[0], data.dataset("test").read(torch.arange(3))["image"][2])
    assert cases(model, None, 3) == []


def test_names_and_addresses(tmp_path):
    assert title(tmp_path / "seed0/segcft/last.ckpt") == "seed0 segcft"
    assert [is_local(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "192.168.1.2", "me.org")] == [
        *[True] * 3,
        *[False] * 3,
    ]


def test_without_the_extra_the_command_that_installs_it_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", "somewhere"]) == 2
    assert "pip install starlette uvicorn" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port=70000"], "--port 70000: 0 to 65535 is needed"),
        (["--upload-limit=0"], "--upload-limit 0"),
        ([], "nowhere does not exist"),
    ],
)
def test_wrong_options_are_named(options, message, capsys):
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    assert main(["serve", "nowhere", *options]) == 2
    assert message in capsys.readouterr().err


def test_what_a_page_does_over_http(client, film, app):
    status, page, headers = client("GET", "/")
    assert status == 200
    assert b"Research use only" in page
    assert "default-src 'none'" in headers["content-security-policy"]
    assert b"http" not in page.replace(b"http-equiv", b""), "nothing from elsewhere"
    assert [case["name"] for case in client("GET", "/model")[1]["cases"]] == ["test 1", "test 2"]
    one, other = (client.post("/open", {"case": f"test {place}"})[1]["session"] for place in (1, 2))
    before = [client.post("/ask", {"session": each, "do": list(PLUS)})[1] for each in (one, other)]
    after = client.post("/ask", {"session": one, "do": list(PLUS)})[1]
    assert before[0]["image"] != before[1]["image"]
    assert (after["image"], after["rows"]) == (before[0]["image"], before[0]["rows"]), "nobody's answer is another's"
    status, opened = client.upload(film.read_bytes(), name="me.png", parents={"age": 40})
    assert (status, opened["uploaded"], opened["shape"]) == (200, True, [40, 30])
    folder = app.sessions.get(opened["session"]).folder.name
    told = client.post("/download", {"session": opened["session"], "do": list(PLUS), "kind": "png"})[1]
    assert Image.open(io.BytesIO(base64.b64decode(told["content"]))).size == (30, 40)
    client.post("/close", {"session": opened["session"]})
    assert not Path(folder).exists()
    assert client.post("/ask", {"session": opened["session"]})[0] == 410


def test_http_errors_are_sentences(client, film):
    session = client.post("/open", {"case": "test 1"})[1]["session"]
    for path, content, status, message in (
        ("/open", {"case": "test 9"}, 400, "there is no case 'test 9'"),
        ("/open", [], 400, "no JSON object"),
        ("/ask", {"session": "guessed"}, 410, "open it again"),
        ("/ask", {"session": session, "do": "x"}, 400, "a list of requests"),
        ("/ask", {"session": session, "do": ["left_size=20%"]}, 400, "needs a sign"),
        ("/ask", {"session": session, "effect": "none"}, 400, "total or direct"),
        ("/download", {"session": session, "kind": "dicom"}, 400, "'dicom' is none of png, nifti, csv"),
    ):
        found = client.post(path, content)
        assert found[0] == status, found
        assert message in found[1]["error"]
    for content, about, status, message in (
        (b"junk", {"name": "a.png", "parents": {"age": 40}}, 400, "a.png cannot be read"),
        (b"junk", {"name": "a.exe", "parents": {"age": 40}}, 400, "a.exe cannot be read"),
        (b"", {"name": "a.png"}, 400, "a.png is empty"),
        (b"x" * (10**5 + 1), {"name": "a.png"}, 413, "larger than"),
        (film.read_bytes(), {"name": "../../a.png", "parents": {"age": "old"}}, 400, "age = 'old' is not a number"),
    ):
        found = client.upload(content, **about)
        assert found[0] == status, found
        assert message in found[1]["error"]


def test_strangers_are_kept_out(app):
    from segcft.app.server import create

    local = Client(create(app, None, local=True))
    assert local("GET", "/", host="evil.example")[0] == 421
    assert local("POST", "/open", b'{"case": "test 1"}', origin="http://evil.example")[0] == 403
    guarded = Client(create(app, "secret", local=False))
    assert guarded("GET", "/model")[0] == 401
    assert guarded("GET", "/")[0] == 401
    assert guarded("GET", "/?token=wrong")[0] == 401
    status, _, headers = guarded("GET", "/?token=secret&case=test+1&do=left_size%3D%2B20%25")
    assert (status, headers["location"]) == (303, "/?case=test+1&do=left_size%3D%2B20%25")
    assert "HttpOnly" in headers["set-cookie"]
    assert guarded("GET", "/model", cookie="segcft_token=secret")[0] == 401, "the cookie does not tell the token"
    assert guarded("GET", "/model", cookie=headers["set-cookie"].partition(";")[0])[0] == 200
    assert guarded("POST", "/login", b"token=secret")[0] == 303
    assert guarded("GET", "/model", host="[")[0] == 401


def test_idle_images_and_too_many_are_closed(service):
    pytest.importorskip("starlette")
    from segcft.app.requests import Refused
    from segcft.app.sessions import Session, Sessions

    subject = service.open_case("test 1")
    sessions = Sessions(room=2 * Session(subject).size, idle=60)
    first, second = (sessions.add(Session(subject)) for _ in range(2))
    sessions.get(first)
    third = sessions.add(Session(subject))
    with pytest.raises(Refused):
        sessions.get(second)
    sessions.get(first).used -= 61
    with pytest.raises(Refused):
        sessions.get(first)
    assert sessions.get(third)


def test_a_bundle_or_checkpoint_without_a_segmentor_is_served_too(tmp_path):
    model = CounterfactualModel.load(save(tmp_path / "a.ckpt", make(description(2)), judged=False))
    service = CounterfactualService(model, cases_of(model))
    assert service.model.hidden == ["left_size", "right_size"]
    reply = service.ask(service.open_case("test 1"), Question(PLUS))
    assert reply.rows[0]["measured"] is None
