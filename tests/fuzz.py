"""Throw thousands of mutated and hostile configurations, images, requests and checkpoints at segcft.

    python tests/fuzz.py FOLDER --inputs 5000 --seed 0

Every input must be taken, or refused with one sentence (a ValueError, exit code 2, status 4xx): no traceback, no status
of 500. An audit hook notes every attempt to reach a network or to start a program, hostile inputs try to touch a file
``ran``, and the peak memory is looked at in the end. Prints what was found, and fails if it is anything.
"""

import argparse
import base64
import contextlib
import copy
import io
import json
import os
import random
import resource
import signal
import sys
import time
import traceback
import warnings
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import torch
import yaml
from lightning.pytorch import Trainer
from PIL import Image
from pydicom.uid import JPEG2000Lossless, RLELossless

from segcft.app.server import App, create
from segcft.app.service import CounterfactualService
from segcft.causal.structural_causal_model import StructuralCausalModel
from segcft.cli.main import main
from segcft.core import checkpoints
from segcft.core.parsing import simplified
from segcft.core.recipes import TRUST
from segcft.counterfactual.model import CounterfactualModel
from segcft.guidance.judges import SegmentationModel
from segcft.io.readers import is_picture, read_labels, read_mask, read_picture
from tests import hostile, mutations
from tests.app.test_app import Client, cases_of
from tests.dicoms import write_dicom
from tests.inference.test_answer_file import description, make, save
from tests.stages import write

SHARES = {"configurations": 0.25, "images": 0.3, "requests": 0.25, "checkpoints": 0.2}
MEMORY = 1.5 * 2**30  # bytes at most
PATIENCE = 20  # seconds an input may take
FORBIDDEN = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request", "os.system", "os.exec",
             "os.posix_spawn", "os.spawn", "subprocess.Popen", "ftplib.connect", "http.client.connect")  # fmt: skip


class Findings:
    """What came of the inputs, and everything that should not have happened."""

    def __init__(self):
        self.counts, self.wrong, self.forbidden, self.input = Counter(), [], [], ""

    def watch(self, event, given):
        """As an audit hook; segcft itself asks git for its commit, and starts a process that decodes uploads."""
        ours = event == "subprocess.Popen" and (given[0] == "git" or "segcft.io.isolated_process" in given[1])
        if event in FORBIDDEN and not ours:
            self.forbidden.append(f"{event} {given!r:.200} by {self.input:.300}")

    def attempt(self, area, name, work):
        """Do ``work``, which returns what was said if it was refused, or raises a ValueError; an empty text is none."""
        self.input, said = f"{area}: {name}", ""
        signal.alarm(PATIENCE)
        try:
            said = work() or ""
            trouble = "" if one_sentence(said) else f"not one sentence: {said:.500}"
        except ValueError as error:
            said = simplified(str(error))
            plain = one_sentence(said) and not isinstance(error, UnicodeError | json.JSONDecodeError)
            trouble = "" if plain else f"not one sentence: {error!r:.500}"
        except BaseException:
            trouble = "".join(traceback.format_exc().splitlines(keepends=True)[-6:])
        signal.alarm(0)
        self.counts[f"{area} {'wrong' if trouble else 'refused' if said else 'taken'}"] += 1
        if trouble:
            self.wrong.append(f"{self.input:.300}\n  {trouble}")


def one_sentence(text):
    return "\n" not in text.strip() and len(text) < 2500 and "Traceback" not in text


def command(*words):
    """A command of segcft; what it said if it refused."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(list(words))
    lines = [line for line in said.getvalue().splitlines() if line and not line.startswith("segcft: warning: ")]
    assert code in (0, 2), f"exit code {code}"
    if code == 0:
        return ""
    place = next(number for number, line in enumerate(lines) if line.startswith("segcft: error: "))
    return "\n".join(lines[place:])


def configurations(findings, count, chance):
    """As a file of any name for every command that reads one, and as options; half are mutated valid ones."""
    write(".", ("segmentor", "pretrain"), subjects=6, steps=1)
    torch.save({"hyper_parameters": {"_class_path": "evil.Task"}, "state_dict": {}}, "plain.ckpt")
    valid = [yaml.safe_load(Path(f"{stage}.yaml").read_text()) for stage in ("segmentor", "pretrain")]
    written, templates = [yaml.safe_dump(tree) for tree in valid], list(hostile.texts())
    for number in range(count):
        name = chance.choice(hostile.NAMES)
        if number % 4 < 2:
            text = chance.choice(templates)
        elif number % 4 == 2:
            text = json.dumps(mutations.of_tree(copy.deepcopy(chance.choice(valid)), chance), default=str)
        else:
            text = mutations.of_bytes(chance.choice(written).encode(), chance, [b"!!python", b"*a", b"evil.Task"])
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
        words = ways(name, chance)
        findings.attempt("configurations", f"{words}, {text!r}", partial(command, *words))


def ways(name, chance):
    """A command that reads a file as its configuration, or takes a hostile option."""
    fit = chance.choice(("fit", "validate", "test", "predict"))
    return chance.choice(
        (
            *[(fit, f"--config={name}", "--trainer.accelerator=cpu")] * 6,
            *[(fit, "--config=pretrain.yaml", "--trainer.accelerator=cpu", chance.choice(hostile.OPTIONS))] * 2,
            *[("sweep", name, "--out=swept"), ("sweep", name, "--out=swept"), ("study", name), ("info", name)],
            *[(fit, f"--model={name}"), (fit, f"--data={name}"), (fit, "--trainer.callbacks", name)],
            ("evaluate", f"--config={name}", "--evaluator=x", "--methods={}", "--out=o"),
            *[("serve", "none.ckpt", f"--config={name}"), ("prepare", f"--config={name}", "--out=made")],
            ("counterfactual", "--checkpoint=none.ckpt", f"--image={name}", "--out=x", "--do=a=1"),
        )
    )


def images(findings, count, chance):
    """Mutated PNG, JPEG, DICOM and NIfTI files, under the name of their kind or of another one."""
    valid = dict(films())
    readers = (read_picture, lambda path: read_picture(path, (0, 255)), read_labels, read_mask, is_picture)
    for _ in range(count):
        kind = chance.choice(list(valid))
        name = f"in{chance.choice(list(valid)) if chance.random() < 0.2 else kind}"
        Path(name).write_bytes(mutations.of_bytes(valid[kind], chance, list(valid.values())))
        reader = chance.choice(readers)
        findings.attempt("images", f"{kind} as {name}", partial(looked_at, reader, name))


def looked_at(reader, name):
    reader(Path(name))
    return ""


def films():
    """Ending -> a valid file, and some that hold what the ending does not say."""
    levels = np.random.default_rng(0).integers(0, 255, (64, 48)).astype(np.uint8)
    Image.fromarray(levels).save("film.png")
    Image.fromarray(levels.astype(np.uint16) * 100).save("film.16.png")
    Image.fromarray(levels).convert("P").save("film.p.png")
    Image.fromarray(levels).save("film.jpg")
    for kind in ("EPS", "TIFF", "GIF", "PDF", "BMP", "WEBP", "ICO", "PCX"):
        Image.fromarray(levels).convert("RGB").save(f"film.{kind.lower()}.png", format=kind)
    write_dicom(Path("film.dcm"), levels.astype(np.uint16))
    for number, syntax in enumerate((RLELossless, JPEG2000Lossless)):
        data = pydicom.dcmread("film.dcm")
        data.compress(syntax)
        data.save_as(f"film.{number}.dcm")
    for end in (".nii", ".nii.gz"):
        nibabel.Nifti1Image(levels[:, :, None].repeat(3, 2), np.diag([-1.0, -1, 1, 1])).to_filename(f"film{end}")
    return [(path.name.removeprefix("film"), path.read_bytes()) for path in sorted(Path(".").glob("film.*"))]


def requests(findings, count, chance):
    """To every address of the app, with and without a session, as JSON, as bytes, as an upload."""
    model = make(description(2, age=True))
    app = App(CounterfactualService(model, cases_of(model)), "fuzz", 2**20)
    client, guarded = (Client(create(app, token, local=True)) for token in (None, "secret"))
    session, film = client.post("/open", {"case": "test 1"})[1]["session"], dict(films())
    asked = [
        ("/open", {"case": "test 1"}),
        ("/ask", {"session": session, "do": ["left_size=+20%"], "effect": "total", "refined": False, "seen": True}),
        ("/download", {"session": session, "do": ["left_size=-20%"], "refined": False, "kind": "png"}),
        ("/close", {"session": "none"}),
        ("/upload", {"name": "a.png", "parents": {"age": 40}, "window": [0, 255], "spacing": [1, 1]}),
        ("/login", {"token": "secret"}),
    ]
    for _ in range(count):
        path, tree = copy.deepcopy(chance.choice(asked))
        body, headers = sent(path, mutations.of_tree(tree, chance), film, chance)
        asks, what = chance.choice((client, client, client, guarded)), f"{path} {headers} {body[:200]!r}"
        findings.attempt("requests", what, partial(told, asks, path, body, headers, chance))
    app.sessions.tidy(everyone=True)


def sent(path, tree, film, chance):
    """Body and headers of a request."""
    text = json.dumps(tree, default=str).encode()
    if chance.random() < 0.3:
        text = mutations.of_bytes(text, chance)
    if chance.random() < 0.05:
        text = chance.choice((b"[" * 10**4, b'{"a":' * 10**4, b'{"do": ' + b"9" * 400 + b"}", b"\xff\xfe"))
    if path != "/upload":
        return text, {}
    body = mutations.of_bytes(film[chance.choice(list(film))], chance, list(film.values()))
    return body, {"x_about": base64.b64encode(text).decode() if chance.random() < 0.9 else text.decode("latin-1")}


def told(client, path, body, headers, chance):
    """What the app says to a request that it refuses."""
    method = chance.choice(("POST",) * 8 + ("GET", "PUT"))
    place = path if chance.random() < 0.9 else chance.choice(("/", "/model", "/..", "/page.js", f"{path}?token=%ff"))
    with contextlib.redirect_stderr(io.StringIO()) as said:
        status, answer, _ = client(method, place, body, **headers)
    assert status < 500 or status == 503, f"status {status}: {said.getvalue()[-600:]}"
    return answer["error"] if isinstance(answer, dict) and "error" in answer else ""


def saved_model():
    """A small checkpoint with a mechanism and a segmentor: its bytes, and what it holds."""
    about = description(2, age=True)
    save("a.ckpt", make(about, StructuralCausalModel(about.parents, {"left_size": ["age"]})))
    return Path("a.ckpt").read_bytes(), torch.load("a.ckpt", weights_only=True)


def models(findings, count, chance):
    """Checkpoints with changed bytes, recipes or weights, and hostile files under their name."""
    data, content = saved_model()
    templates = [("file", each) for each in hostile.pickles()] + [("large", None)] * 2
    templates += [("class", name) for name in hostile.CLASSES]
    for number in range(count):
        kinds = [(kind, None) for kind in ("bytes", "pickle", "recipe", "weights")]
        kind, given = templates[number] if number < len(templates) else chance.choice(kinds)
        Path("b.ckpt").write_bytes(given if kind == "file" else changed(kind, given, data, content, chance))
        what = f"{kind} {given if kind == 'class' else ''}"
        findings.attempt("checkpoints", what, partial(opened, "b.ckpt", number))


def changed(kind, given, data, content, chance):
    """Bytes of a checkpoint that differs in its bytes, in its pickle (its checksum is right), in recipes or weights."""
    if kind == "bytes":
        return mutations.of_bytes(data, chance)
    if kind == "pickle":
        return repickled(data, chance)
    about, weights, file = copy.deepcopy(content["segcft"]), dict(content["state_dict"]), io.BytesIO()
    part = about["parts"]["model"]
    if kind == "large":
        part["init_args"][chance.choice(("profile", "new"))] = hostile.nested()
    elif kind == "class":
        chance.choice((part, part["init_args"]["hvae"]))["class_path"] = given
    elif kind == "recipe":
        about = mutations.of_tree(about, chance, (*hostile.SCALARS, 10**5, 10**6))
    else:
        name = chance.choice(list(weights))
        values = (torch.nan, torch.inf, "x", None, torch.zeros(3), torch.zeros(1).expand(2**40), hostile.nested(), 1j)
        value = chance.choice(values)
        weights[name] = torch.full(weights[name].shape, value) if isinstance(value, float) else value
    torch.save({"segcft": about, "state_dict": weights}, file)
    return file.getvalue()


def repickled(data, chance):
    """The same archive with changes in the pickle that says what its tensors are."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as whole, zipfile.ZipFile(file, "w") as other:
        for entry in whole.infolist():
            inner = whole.read(entry.filename)
            pickled = entry.filename.endswith("data.pkl")
            other.writestr(entry.filename, mutations.of_bytes(inner, chance) if pickled else inner)
    return file.getvalue()


def opened(path, number):
    """One of the ways in which a checkpoint is opened."""
    if number % 4 == 0:
        return command("info", path)
    if number % 4 == 1:
        checkpoints.search(path, SegmentationModel)
        checkpoints.seconds(path)
    else:
        CounterfactualModel.load(path)
    return ""


def fuzz(count, seed, areas):
    """Everything, in this process; true if nothing was found."""
    findings, chance = Findings(), random.Random(seed)
    sys.addaudithook(findings.watch)
    signal.signal(signal.SIGALRM, too_long)
    Path("evil.py").write_text(hostile.EVIL)
    sys.path.insert(0, os.getcwd())
    Trainer.fit = Trainer.validate = Trainer.test = Trainer.predict = lambda *_, **__: None  # valid ones need not train
    work = {"configurations": configurations, "images": images, "requests": requests, "checkpoints": models}
    for area in areas:
        began = time.process_time()
        work[area](findings, round(count * SHARES[area]), chance)
        print(f"{area}: {time.process_time() - began:.0f} s, {peak() / 2**20:.0f} MiB at most", flush=True)
    return verdict(findings)


def too_long(*_):
    raise TimeoutError(f"more than {PATIENCE} s")


def peak():
    """Bytes that this process or a child of it has used at most."""
    own = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * max(int(own.split()[1]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def verdict(findings):
    """Print what was found; true if it is nothing."""
    print(f"{findings.counts.total()} inputs: {dict(sorted(findings.counts.items()))}")
    found = [*findings.wrong, *(f"forbidden: {each}" for each in findings.forbidden)]
    found += ["a hostile input ran code: 'ran' is there"] if list(Path(".").rglob("ran")) else []
    found += [f"{peak() / 2**20:.0f} MiB of memory"] if peak() > MEMORY else []
    print("\n".join(found[:40]), f"\n{len(found)} findings")
    return not found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--inputs", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--areas", nargs="+", choices=SHARES, default=list(SHARES))
    options = parser.parse_args()
    Path(options.folder).mkdir(parents=True, exist_ok=True)
    os.chdir(options.folder)
    os.environ[TRUST] = "tests.balls"
    warnings.simplefilter("ignore")
    sys.exit(0 if fuzz(options.inputs, options.seed, options.areas) else 1)
