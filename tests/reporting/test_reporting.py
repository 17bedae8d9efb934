"""Reports and figures say what the results folder says, to strangers and to hostile names."""

import json
import re
import shutil
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from segcft.cli.main import main
from segcft.core.provenance import commit, hardware
from segcft.evaluation.command import conclusions
from segcft.evaluation.protocol import Answers, EvaluatedMethod, Method, gather, interventions, perfect, unchanged
from segcft.evaluation.result_tables import write_json
from segcft.evaluation.rows import rows
from segcft.evaluation.traversal_file import Sweeps
from segcft.evaluation.traversals import STEPS, sweep
from segcft.reporting.findings import Findings, headline
from segcft.reporting.load_results import read
from segcft.reporting.report import report
from tests.balls import Balls
from tests.evaluation.test_evaluation import Seeing

GOOD, LAZY, GAMED = "good_one", "lazy", "x<script>alert(1)</script>"
VOID = {"meta", "img", "input", "br", "hr", "link"}


class Still:
    """Answers every question with the image as it is."""

    def __init__(self, parents):
        self.parents = parents

    def act(self, values, do):
        return {**values, **do}

    def open(self, image, values):
        pixels = SimpleNamespace(loc=image)
        return SimpleNamespace(
            answer=lambda cf_values, **options: SimpleNamespace(seen=image),
            abduction=lambda: SimpleNamespace(pixels=pixels),
        )


def measured(dims=2):
    data = Balls(subjects=24, spatial_dims=dims)
    judge = Seeing(data.description)
    cohort = gather(data, data.dataset("test"), judge, 16, seed=0)
    evaluated = EvaluatedMethod(Still(data.description.parents), None, Method(""))
    kept = sweep({GOOD: evaluated, LAZY: evaluated}, cohort, data.dataset("test"), judge, 2, "true_counterfactual")
    return cohort, judge, kept


def write(folder, cohort, judge, kept, gamed=False, name="balls & <b>"):
    nothing = unchanged(cohort).images
    answers = {"identity": unchanged(cohort), "true_counterfactual": perfect(cohort), GOOD: perfect(cohort)}
    if gamed:
        answers[GAMED] = Answers(nothing, {}, None, None, dict(cohort.do))
    answers[LAZY] = Answers(nothing, {}, None, None, {})
    frame = pd.concat([rows(given, cohort, judge).assign(method=key) for key, given in answers.items()])
    found = conclusions(frame, {}, dict.fromkeys(cohort.do, 1.0), 3.0, [GOOD, *([GAMED] if gamed else []), LAZY])
    folder.mkdir(parents=True)
    frame.assign(refinement="").to_csv(folder / "subjects.csv", index=False)
    interventions(cohort).to_csv(folder / "interventions.csv", index=False)
    training = {key: {"pretrain": 600.0, key: 750.0} for key in found["methods"]}
    facts = {"experiment": name, "split": "test", "seed": 0, "seconds": {"pretrain": 600.0}, "training": training}
    write_json(folder / "metrics.json", {**facts, "hardware": hardware(), "commit": "abc123", **found})
    if kept is not None:
        kept.write(folder / "sweeps.npz")
    return folder


@pytest.fixture(scope="module")
def material():
    with torch.inference_mode():
        return measured()


@pytest.fixture(scope="module")
def folder(material, tmp_path_factory):
    return write(tmp_path_factory.mktemp("results") / "one", *material)


@pytest.fixture(scope="module")
def alarming(material, tmp_path_factory):
    return write(tmp_path_factory.mktemp("results") / "two", *material[:2], None, gamed=True)


class Page(HTMLParser):
    """Every tag closed in order; keeps attributes, scripts and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.tags, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def page_of(*folders):
    out = folders[0].parent / "report.html"
    report([str(one) for one in folders], str(out))
    text = out.read_text()
    return text, Page(text)


@pytest.mark.parametrize("dims", [2, 3])
def test_sweeps_hold_what_was_asked_and_come_back_from_their_file(dims, tmp_path):
    with torch.inference_mode():
        cohort, _, kept = measured(dims)
    assert list(kept.methods) == ["true_counterfactual", GOOD, LAZY]
    assert kept.frames.shape == (3, 2, 2, STEPS, 16, 16)
    assert kept.outlines.shape == (3, 2, 2, STEPS, 2, 16, 16)
    for frame in kept.frames[2].transpose(0, 2, 1, 3, 4).reshape(-1, 2, 16, 16):
        np.testing.assert_array_equal(frame, kept.factual)
    away = np.abs(kept.measured - kept.targets[None, :, None]).mean((1, 2, 3))
    assert away[0] < 0.2 * away[2], "the truth is what was asked, the unchanged image is not"
    assert (np.diff(kept.targets) > 0).all()
    np.testing.assert_allclose(kept.values[0], cohort.batch["left_size"][:2].numpy())
    kept.write(tmp_path / "sweeps.npz")
    again = Sweeps.read(tmp_path / "sweeps.npz")
    np.testing.assert_array_equal(again.outlines, kept.outlines)
    assert list(again.variables) == ["left_size", "right_size"]
    assert [path.name for path in tmp_path.iterdir()] == ["sweeps.npz"]
    (tmp_path / "sweeps.npz").write_bytes(b"PK nonsense")
    with pytest.raises(ValueError, match=r"sweeps\.npz holds no sweeps"):
        Sweeps.read(tmp_path / "sweeps.npz")


def test_the_page_needs_nothing_but_itself_and_its_numbers_are_those_of_the_file(folder):
    text, page = page_of(folder)
    assert not re.search(r"https?://|@import|url\(", text)
    for tag, name, value in page.attributes:
        if name in ("src", "href"):
            assert value.startswith(("data:image/png;base64,", "#")), (tag, value[:40])
    content = json.loads((folder / "metrics.json").read_text())
    shown = {value for tag, name, value in page.attributes if (tag, name) == ("td", "data-value") and value}
    for method in ("identity", "true_counterfactual", GOOD, LAZY):
        for do in ("left_size", "right_size"):
            for metric in ("mape", "slope", "leakage_mean", "truth_ratio"):
                assert repr(content["metrics"][method][do][metric]["value"]) in shown, (method, do, metric)
    assert "good one hits its targets best" in page.text
    assert "Its training took 22 min" in page.text
    assert "No guide to compare with" in page.text, "neither method has one"
    assert "abc123" in page.text
    assert page.tags.count("circle") >= 2 * 2 * 16, "every subject, method and variable has its point"
    assert len(re.findall('class="block"', text)) == 4


@pytest.mark.slow
def test_its_first_screen_answers_a_stranger_with_the_network_off(folder, browser, tmp_path):
    """Which is best, by how much, at what cost, and may I trust it: on 1280 x 800 pixels, from the disk."""
    page_of(folder)
    context = browser.new_context(viewport={"width": 1280, "height": 800}, offline=True)
    page, wrong = context.new_page(), []
    page.on("request", lambda each: None if each.url.startswith(("file:", "data:")) else wrong.append(each.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto((folder.parent / "report.html").as_uri())
    for part, words in {
        ".answer": r"good one.* hits its targets best: .* % off .* ahead of lazy by .* points.* training took 22 min",
        ".checks h2": r"May I trust it\? With \d reservation",
        ".methods tr.best": "good one",
    }.items():
        shown = page.locator(part).first
        assert re.search(words, shown.inner_text(), re.S), part
        box = shown.bounding_box()
        assert box["y"] + box["height"] <= 800, f"{part} is below the first screen"
    broken = "[...document.images].filter(each => !each.complete || !each.naturalWidth).length"
    assert page.evaluate("document.images.length") > 10
    assert page.evaluate(broken) == 0
    page.screenshot(path=tmp_path / "report.png")
    context.close()
    assert wrong == []


def test_means_over_variables_are_those_of_the_file_and_pairs_stay_pairs(folder):
    findings = Findings(read(folder))
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    for method, by_do in metrics.items():
        wanted = np.mean([values["mape"]["value"] for values in by_do.values()])
        assert findings.pooled[method]["mape"].value == pytest.approx(wanted, rel=1e-4)
    lead = findings.less(GOOD, LAZY)
    own, other = (findings.pooled[name]["mape"].value for name in (GOOD, LAZY))
    assert lead.value == pytest.approx(own - other)
    assert lead.low <= lead.value <= lead.high < 0
    assert f"{-lead.value:.2f}" in " ".join(headline(findings))


def test_alarms_are_loud_and_disqualify(alarming):
    text, page = page_of(alarming)
    run = read(alarming)
    assert run.alarmed == {GAMED}
    assert Findings(run).best == GOOD
    assert GAMED not in Findings(run).ranked
    assert 'class="alarms" role="alert"' in text
    assert "May I trust it? Not all of it: 1 alarm." in page.text
    for line in json.loads((alarming / "metrics.json").read_text())["health"]["warnings"]:
        assert line in page.text
    assert text.index('role="alert"') < text.index('class="checks"') < text.index("<table")


def test_a_run_of_nothing_but_alarms_has_no_best(alarming, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(alarming, copy)
    content = json.loads((copy / "metrics.json").read_text())
    content["health"]["warnings"] = [f"{name}, do(left_size): gamed" for name in (GOOD, LAZY, GAMED)]
    (copy / "metrics.json").write_text(json.dumps(content))
    findings = Findings(read(copy))
    assert findings.best is None
    _, page = page_of(copy)
    assert "No method is free of health alarms" in page.text
    assert "best" not in [value for _, name, value in page.attributes if name == "class"]


def test_names_cannot_break_out_of_the_page(alarming):
    text, page = page_of(alarming)
    assert page.tags.count("script") == 1, "the page's own"
    assert "<script>alert" not in text
    assert "x<script>alert(1)</script>" in page.text
    assert "balls & <b>" in page.text
    out = alarming.parent / "report.md"
    report([str(alarming)], str(out))
    assert "<script" not in out.read_text()


def test_several_runs_stand_side_by_side(folder, alarming, material, tmp_path):
    _, page = page_of(folder, alarming)
    assert "Runs side by side" in page.text
    assert "All runs asked the same subjects the same." in page.text
    cohort, judge, _ = material
    other = SimpleNamespace(**{**vars(cohort), "do": {name: value.flip(0) for name, value in cohort.do.items()}})
    other.truth = {}
    with torch.inference_mode():
        found = rows(unchanged(other), other, judge)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    frame = pd.read_csv(copy / "subjects.csv")
    frame["target"] = np.tile(found["target"].to_numpy(), len(frame) // len(found)) + 1
    frame.to_csv(copy / "subjects.csv", index=False)
    _, page = page_of(folder, copy)
    assert "no fair comparison" in page.text


def test_the_same_as_markdown(folder, tmp_path):
    out = tmp_path / "deep" / "report.md"
    (folder / "figure.png").write_bytes(b"\x89PNG")
    report([str(folder)], str(out))
    (folder / "figure.png").unlink()
    text = out.read_text()
    assert "`good_one` hits its targets best" in text
    link = re.search(r"\]\((.*figure\.png)\)", text).group(1)
    assert (out.parent / link).resolve().parent == folder.resolve()
    assert all(line.count(" | ") > 3 for line in text.splitlines() if line.startswith("| "))


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_a_figure_for_a_paper(folder, tmp_path, ending):
    out = tmp_path / f"figure.{ending}"
    options = ["--methods=lazy", "--variables=left_size", "--dpi=60"]
    assert main(["figure", str(folder), f"--out={out}", *options]) == 0
    assert out.read_bytes().startswith({"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[ending])
    once = out.read_bytes()
    assert main(["figure", str(folder), f"--out={out}", *options]) == 0
    assert out.read_bytes() == once


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--methods=nobody"], "no pictures of nobody"),
        (["--variables=age"], "no pictures of age"),
        (["--subjects=9"], "subjects = 9"),
        (["--steps=7"], "from 0 to 6"),
        (["--out=figure.gif"], "figure.gif"),
    ],
)
def test_figures_of_what_was_not_kept_are_refused(folder, tmp_path, capsys, monkeypatch, options, named):
    monkeypatch.chdir(tmp_path)
    assert main(["figure", str(folder), *options]) == 2
    assert named in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def in_metrics(change):
    def damage(folder):
        content = json.loads((folder / "metrics.json").read_text())
        change(content)
        (folder / "metrics.json").write_text(json.dumps(content))

    return damage


def in_rows(change):
    def damage(folder):
        change(pd.read_csv(folder / "subjects.csv")).to_csv(folder / "subjects.csv", index=False)

    return damage


DAMAGE = {
    "none": lambda folder: (folder / "metrics.json").unlink(),
    "json": lambda folder: (folder / "metrics.json").write_text("{"),
    "estimate": in_metrics(lambda content: content["metrics"][LAZY]["left_size"].update(mape=3)),
    "identity": in_metrics(lambda content: content["metrics"].pop("identity")),
    **{name: in_metrics(lambda content, name=name: content.pop(name)) for name in ("health", "metrics")},
    "evaluator_floor": in_metrics(lambda content: content.pop("evaluator_floor")),
    "rows": lambda folder: (folder / "subjects.csv").unlink(),
    "column": in_rows(lambda frame: frame.drop(columns="target")),
    "word": in_rows(lambda frame: frame.assign(error="many")),
    "absent": in_rows(lambda frame: frame[frame["method"] != LAZY]),
    "sweeps": lambda folder: (folder / "sweeps.npz").write_bytes(b"PK nonsense"),
}


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("none", "neither metrics.json nor benchmark.json"),
        ("json", "metrics.json is no JSON"),
        ("estimate", "metrics.json: an estimate"),
        ("identity", "'metrics' needs 'identity'"),
        ("health", "metrics.json lacks 'health'"),
        ("metrics", "metrics.json lacks 'metrics'"),
        ("evaluator_floor", "metrics.json lacks 'evaluator_floor'"),
        ("rows", "subjects.csv is missing"),
        ("column", "subjects.csv lacks the columns target"),
        ("word", "subjects.csv: the columns error"),
        ("absent", "subjects.csv has no rows of lazy"),
        ("sweeps", "sweeps.npz holds no sweeps"),
    ],
)
def test_a_bad_folder_is_named_in_one_line(folder, tmp_path, capsys, what, named):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    DAMAGE[what](copy)
    assert main(["report", str(copy), f"--out={tmp_path / 'report.html'}"]) == 2
    told = capsys.readouterr().err
    assert named in told
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "report.html").exists()


def test_a_report_needs_an_ending_that_it_knows(folder, tmp_path, capsys):
    assert main(["report", str(folder), f"--out={tmp_path / 'report.txt'}"]) == 2
    assert "report.txt" in capsys.readouterr().err


def test_where_numbers_come_from(tmp_path):
    assert {"processor", "cores", "python", "torch"} <= set(hardware())
    assert commit(tmp_path) is None
    (tmp_path / ".git").mkdir()
    assert commit(tmp_path) is None, "no repository, though it looks like one"
