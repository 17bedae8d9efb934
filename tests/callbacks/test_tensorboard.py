"""What TensorBoard is promised is in the event file, of every stage."""

import fnmatch
import json
import math
import re
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from segcft.callbacks.counterfactual_images import grid, used
from segcft.callbacks.tensorboard import memory
from segcft.callbacks.tensorboard_overview import flat
from segcft.cli.main import main
from segcft.hvae.hvae import HVAE
from segcft.hvae.stages import Stage
from segcft.plots.figures import raster, scatter
from tests.tasks.test_tasks import CONFIG, STAGES

KINDS = {  # of stage -> rows of the table of tags that are about it
    "segmentor": {"every stage", "judges", "segmentors", "guided"},
    "pretrain": {"every stage", "models", "pretraining"},
    "segcft": {"every stage", "models", "fine-tuning", "outlined", "guided"},
}
TABLE = Path(__file__).parents[2] / "docs/evaluation.md"


def promised(stage):
    """Patterns of tags by what they are of, from the documentation."""
    rows = re.findall(r"^\| (`.+`) \| ([a-z -]+) \|", TABLE.read_text().partition("## TensorBoard")[2], re.MULTILINE)
    assert len(rows) == 24
    return [tag for tags, kind in rows if kind in KINDS[stage] for tag in re.findall(r"`([^`]+)`", tags)]


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("board")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage, task, arguments in STAGES:
            text = CONFIG.format(dims=2, task=task, arguments=arguments).replace("  logger: false\n", "")
            (folder / f"{stage}.yaml").write_text(text)
            options = ["--trainer.log_every_n_steps=1", f"--model.init_args.stage={stage}"]
            assert main(["fit", f"--config={folder / f'{stage}.yaml'}", *options]) == 0
    return folder


@pytest.mark.parametrize("stage", list(KINDS))
def test_every_promised_tag_is_there_and_no_other(logged, stage):
    found = EventAccumulator(str(logged / f"logs/balls/{stage}/version_0"))
    found.Reload()
    tags = found.Tags()
    there = {name.removesuffix("/text_summary") for kind in ("scalars", "images", "tensors") for name in tags[kind]}
    there |= {
        f"_hparams_/{part}"
        for part in ("experiment", "session_start_info")
        if found.SummaryMetadata(f"_hparams_/{part}")
    }
    for tag in promised(stage):
        assert fnmatch.filter(there, tag), tag
    assert [name for name in there if not any(fnmatch.fnmatch(name, tag) for tag in promised(stage))] == []
    for name in tags["scalars"]:
        assert all(math.isfinite(event.value) for event in found.Scalars(name)), name
    assert [event.step for event in found.Scalars("pace/images_per_second")] == [1, 2, 3]
    assert len(found.Scalars("health/gradient")) == 3
    assert all(0 <= event.value <= 1 for event in found.Scalars("health/waiting"))
    text = found.Tensors("data/text_summary")[0].tensor_proto.string_val[0].decode()
    assert re.search("fingerprint `[0-9a-f]{16}`; subjects: train 24, val 24", text)
    assert "| left_size | continuous | mm² |" in text
    assert "optimisation" in found.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    starts = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"trainer.max_steps" in starts
    assert b"val/" in found.SummaryMetadata("_hparams_/experiment").plugin_data.content


@pytest.fixture(scope="module")
def served(logged):
    """A real TensorBoard about them: its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--load_fast=false", "--host=127.0.0.1", f"--port={port}"]
    process = subprocess.Popen([*command, "--logdir=logs/balls"], cwd=logged, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with suppress(OSError):
                if len(ask(f"http://127.0.0.1:{port}", "scalars/tags")) == len(KINDS):
                    break
            assert process.poll() is None
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def ask(address, question, body=None):
    """JSON of one of TensorBoard's plugins."""
    request = urllib.request.Request(f"{address}/data/plugin/{question}", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)


@pytest.mark.slow
def test_the_server_has_every_promised_tag_and_no_chart_without_data(served):
    tags = {kind: ask(served, f"{kind}/tags") for kind in ("scalars", "images", "text")}
    for stage in KINDS:
        run = f"{stage}/version_0"
        there = {name.removesuffix("/text_summary") for found in tags.values() for name in found[run]}
        for tag in promised(stage):
            assert fnmatch.filter(there, tag) or tag.startswith(("custom_scalars", "_hparams_")), (stage, tag)
        for name in tags["images"][run]:
            query = ask(served, f"images/images?{urllib.parse.urlencode({'run': run, 'tag': name, 'sample': 0})}")[0]
            with urllib.request.urlopen(f"{served}/data/plugin/images/individualImage?{query['query']}") as reply:
                assert np.ptp(np.asarray(Image.open(reply).convert("L"))) > 0, f"{name} of {stage} is empty"
    scalars = {name for found in tags["scalars"].values() for name in found}
    charts = [chart for part in ask(served, "custom_scalars/layout")["category"] for chart in part["chart"]]
    assert len(charts) > 15
    for chart in charts:
        for pattern in chart["multiline"]["tag"]:
            assert any(re.search(pattern, name) for name in scalars), chart["title"]
    whole = {"startIndex": 0, "sliceSize": 9, "allowedStatuses": ["STATUS_SUCCESS", "STATUS_UNKNOWN", "STATUS_RUNNING"]}
    groups = ask(served, "hparams/session_groups", json.dumps({"colParams": [], **whole}).encode())["sessionGroups"]
    final = {group["name"]: {each["name"]["tag"] for each in group["sessions"][0]["metricValues"]} for group in groups}
    assert {"val/guidance", "effectiveness/left_size", "truth/right_size"} <= final["segcft/version_0"]
    assert {"model.optimisation.lr", "trainer.max_steps", "data.subjects"} <= set(groups[0]["hparams"])


@pytest.mark.slow
def test_its_pages_show_what_they_have(served, browser, tmp_path):
    charts = [chart["title"] for part in ask(served, "custom_scalars/layout")["category"] for chart in part["chart"]]
    page, wrong = browser.new_page(viewport={"width": 1200, "height": 900}), []
    page.set_default_timeout(120_000)
    page.on("pageerror", lambda error: wrong.append(str(error)))

    def opened(tab, card):
        page.goto(f"{served}/?{tab}#{tab}")  # another address, or the page would stay as it is
        page.locator(card).first.wait_for(state="attached")
        return page.locator(card)

    def drawn(card):
        card.scroll_into_view_if_needed()  # what cannot be seen is not drawn
        card.locator(".xy-plot path[d^=M]").first.wait_for(state="attached")

    cards = opened("custom_scalars", "tf-custom-scalar-multi-line-chart-card")
    for title in charts:
        drawn(cards.filter(has_text=title))
    page.screenshot(path=tmp_path / "custom_scalars.png")
    drawn(opened("scalars", "tf-scalar-card").first)
    page.screenshot(path=tmp_path / "scalars.png")
    pictures = opened("images", "tf-image-loader img")
    page.wait_for_function("e => e.complete && e.naturalWidth > 300", arg=pictures.first.element_handle())
    first = page.locator("tf-image-loader .heading-label.name").first
    assert first.inner_text().startswith("counterfactuals/"), "what matters comes first"
    page.screenshot(path=tmp_path / "images.png")
    page.close()
    assert wrong == []
    print(f"screenshots: {tmp_path}")


def test_pictures_take_nothing_from_the_training_generator(logged, monkeypatch):
    monkeypatch.chdir(logged)
    options = ["--trainer.max_steps=6", "--trainer.check_val_every_n_epoch=1", "--experiment=again"]
    weights = []
    for logger in ("null", "false"):
        assert main(["fit", "--config=pretrain.yaml", *options, f"--trainer.logger={logger}"]) == 0
        content = torch.load("checkpoints/again/pretrain/last.ckpt", weights_only=True)
        weights.append(content["current_model_state"])
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_parts():
    assert flat({"a": {"b": True}, "c": list(range(100)), "d": "x"}) == {"a.b": True, "d": "x"}
    assert 0.01 < memory(torch.device("cpu")) < 1000
    assert grid([torch.zeros(3, 1, 4, 5), torch.ones(3, 1, 4, 5)]).shape == (1, 8, 15)
    assert grid([torch.zeros(2, 1, 3, 4, 5)]).shape == (1, 4, 10)
    picture = raster(scatter({"a": (torch.rand(5), torch.rand(5)), "b": (torch.zeros(0), torch.zeros(0))}))
    assert picture.shape[2] == 3
    hvae = HVAE(2, 1, 1, [Stage(8, 0, resolution=16), Stage(8, latent_channels=2, resolution=4)])
    with torch.no_grad():
        same = hvae.abduct(torch.zeros(4, 1, 16, 16), torch.zeros(4, 1), 0.0, 1)
    assert used(same) == {"4x4": 0.0}, "equal images, equal latents"
