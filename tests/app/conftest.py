"""A small model behind the app, and a film to upload."""

import numpy as np
import pytest
from PIL import Image

from segcft.app.service import CounterfactualService
from tests.app.servers import Client, cases_of
from tests.inference.test_answer_file import description, make


@pytest.fixture(scope="module")
def service():
    model = make(description(2, age=True))
    return CounterfactualService(model, cases_of(model))


@pytest.fixture
def film(tmp_path):
    levels = np.random.default_rng(0).integers(0, 255, (40, 30)).astype(np.uint8)
    Image.fromarray(levels).save(tmp_path / "film.png")
    return tmp_path / "film.png"


@pytest.fixture
def app(service):
    pytest.importorskip("uvicorn")
    pytest.importorskip("starlette")
    from segcft.app.server import App

    app = App(service, "balls", upload_limit=10**5)
    yield app
    app.sessions.tidy(everyone=True)


@pytest.fixture
def client(app):
    from segcft.app.server import create

    return Client(create(app, None, local=True))
