"""Many people at the app, some of them malicious: how long the others wait, and whether anything is mixed or kept.

    .venv/bin/python -m benchmarks.app_users                  # 50 users for two minutes, first in peace, then attacked

A server of a small untrained model of the chest phantom, the users who behave and the attackers are a process each.
Every user opens a case or uploads a film, and asks at random times; answers are compared with those that were given
before, to one user alone. In the second run a tenth of the users attack instead: slow headers, half-open connections,
endless /login bodies, unfinished uploads, huge and deep JSON, and numbers of 400 digits. All come from one address, so
that only cookies tell them apart. Prints and writes what is in ``Run``.
"""

import argparse
import asyncio
import base64
import gc
import hashlib
import io
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

TOKEN, HOST = "benchmark", "127.0.0.1"
COOKIE = f"segcft_token={hashlib.sha256(TOKEN.encode()).hexdigest()}"
IMAGES, SHARES = 8, (-20, -10, 10, 20)  # different images, and changes of an area in percent
WAIT = 24.0  # seconds between two questions of a user, on average
PAUSE = 0.5  # seconds between two attacks of one kind by one user, who has 100 connections besides
Reply = tuple[int, dict[str, Any]]


@dataclass
class Run:
    """What came out.

    Attributes:
        users: That behaved well.
        malicious: That did not.
        answers: Of the former.
        median: Seconds of an answer.
        p95: Seconds that 95 % of answers did not exceed.
        refused: Answers that were errors.
        mixed: Answers that were not those of their image and question.
        memory_before: MB of the server before the run.
        memory_after: MB after it, when images were closed.
        log: Characters that the server wrote.
        files: Folders of uploads that are left.
    """

    users: int
    malicious: int
    answers: int = 0
    median: float = 0.0
    p95: float = 0.0
    refused: int = 0
    mixed: int = 0
    memory_before: float = 0.0
    memory_after: float = 0.0
    log: int = 0
    files: list[str] = field(default_factory=list)


# ---- the server ----
def serve(told: Connection, log: str) -> None:
    """In a process of its own; tells its port and the folder of its temporary files."""
    import socket

    import torch

    from segcft.app.connections import server
    from segcft.app.server import App, create
    from segcft.app.service import CounterfactualService
    from segcft.app.temporary_folder import temporary_folder

    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    listening = socket.create_server((HOST, 0))
    with temporary_folder() as folder:
        app = App(CounterfactualService(*model()), "benchmark", 2**24)
        gc.freeze()  # as segcft serve
        told.send((listening.getsockname()[1], str(folder)))
        server(create(app, TOKEN, local=True), local=True).run(sockets=[listening])


def model() -> tuple[Any, list[Any]]:
    """An untrained model of the chest phantom with a segmentor, and cases."""
    import torch

    from benchmarks.paths import UNET
    from data_modules.chest_phantom import ChestPhantom
    from segcft.app.command import cases
    from segcft.counterfactual.model import CounterfactualModel
    from segcft.guidance.judges import Segmentor
    from segcft.hvae.hvae import HVAE
    from segcft.hvae.stages import Stage

    data = ChestPhantom(size=32, subjects=dict.fromkeys(("train", "val", "test"), 64))
    about = data.description
    stages = [Stage(16, 0, resolution=32), Stage(16), Stage(32, 1, 4)]
    found = CounterfactualModel(about, HVAE(2, 1, about.parents.dim, stages)).eval()
    found.segmentor = Segmentor(about, "monai.UNet", UNET).eval()
    with torch.no_grad():
        for weight in found.parameters():
            weight += 0.02 * torch.randn_like(weight)
    return found, cases(found, data, IMAGES)


def memory(process: int) -> float:
    """Resident memory of a process, MB."""
    return int(subprocess.run(["ps", "-o", "rss=", "-p", str(process)], capture_output=True, check=True).stdout) / 1024


# ---- HTTP ----
def packed(method: str, path: str, content: bytes = b"", *more: str, length: int | None = None) -> bytes:
    """A request."""
    size = len(content) if length is None else length
    lines = [f"{method} {path} HTTP/1.1", f"Host: {HOST}", f"Content-Length: {size}", "Connection: close", *more]
    return ("\r\n".join([*lines, "", ""])).encode() + content


async def send(port: int, request: bytes) -> Reply:
    """Status and JSON of an answer, over a connection of its own."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(request)
        answer = await reader.read()
    finally:
        writer.close()
    top, _, content = answer.partition(b"\r\n\r\n")
    return int(top.split()[1]), json.loads(content) if b"application/json" in top.lower() else {}


async def post(port: int, path: str, content: Any, visitor: str = "") -> Reply:
    """Ask the server."""
    return await send(port, packed("POST", path, json.dumps(content).encode(), cookies(visitor)))


def cookies(visitor: str) -> str:
    """Header of a user who has the token."""
    return f"Cookie: {COOKIE}" + (f"; segcft_visitor={visitor}" if visitor else "")


# ---- users ----
def film(number: int) -> bytes:
    """A film of noise, as PNG."""
    from PIL import Image

    levels = np.random.default_rng(number).integers(0, 255, (48, 40)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, format="PNG")
    return file.getvalue()


async def opened(port: int, image: int, uploaded: bool, visitor: str) -> str:
    """The session of a case, or of an upload."""
    if not uploaded:
        status, told = await post(port, "/open", {"case": f"test {image + 1}"}, visitor)
    else:
        _, about_model = await send(port, packed("GET", "/model", b"", cookies(visitor)))
        needed = dict.fromkeys(about_model["needed"], 50)
        about = base64.b64encode(json.dumps({"name": "a.png", "parents": needed, "spacing": [1, 1]}).encode()).decode()
        request = packed("POST", "/upload", film(image), cookies(visitor), f"X-About: {about}")
        status, told = await send(port, request)
    if status != 200:
        raise RuntimeError(f"{status}: {told}")
    return str(told["session"])


def question(session: str, share: int) -> dict[str, Any]:
    """As the page asks it while a slider moves."""
    return {"session": session, "do": [f"heart_area={share:+d}%"], "refined": False}


def content(told: dict[str, Any]) -> str:
    """What must be the same in every answer to the same question."""
    return hashlib.sha256(f"{told['image']}{told['rows']}".encode()).hexdigest()


async def expected(port: int) -> dict[str, str]:
    """Answers, asked for by one user alone."""
    found = {}
    for image in range(IMAGES):
        for uploaded in (False, True):
            session = await opened(port, image, uploaded, "")
            for share in SHARES:
                found[f"{image} {uploaded} {share}"] = content((await post(port, "/ask", question(session, share)))[1])
            await post(port, "/close", {"session": session})
    return found


async def behave(port: int, number: int, end: float, known: dict[str, str], run: Run, spent: list[float]) -> None:
    """One user: opens an image and asks; everything is counted."""
    chance, visitor = random.Random(number), f"benchmark-{number:06d}"
    image, uploaded = number % IMAGES, number % 2 == 1
    await asyncio.sleep(chance.uniform(0, WAIT))
    session = await opened(port, image, uploaded, visitor)
    while time.monotonic() < end:
        share, began = chance.choice(SHARES), time.monotonic()
        status, told = await post(port, "/ask", question(session, share), visitor)
        spent.append(time.monotonic() - began)
        run.refused += status != 200
        run.mixed += status == 200 and content(told) != known[f"{image} {uploaded} {share}"]
        await asyncio.sleep(min(chance.uniform(0.5, 1.5) * WAIT, max(0.0, end - time.monotonic())))
    await post(port, "/close", {"session": session}, visitor)


# ---- attackers ----
async def hold(port: int, end: float, start: bytes, drip: bytes = b"") -> None:
    """Keep a connection open without finishing a request."""
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(start)
    while time.monotonic() < end and not reader.at_eof():
        with suppress(TimeoutError):
            await asyncio.wait_for(reader.read(2**16), 0.5)
        if drip:
            writer.write(drip)
    writer.close()


async def pour(port: int, end: float, start: bytes, piece: bytes) -> None:
    """Send a body without an end."""
    _, writer = await asyncio.open_connection(HOST, port)
    writer.write(start)
    with suppress(TimeoutError):
        while time.monotonic() < end:
            writer.write(piece)
            await asyncio.wait_for(writer.drain(), 5)
    writer.transport.abort()


async def again(end: float, pause: float, attack: Callable[[], Awaitable[Any]]) -> None:
    """Repeat an attack."""
    while time.monotonic() < end:
        with suppress(OSError, ValueError, IndexError, asyncio.IncompleteReadError):
            await attack()
        await asyncio.sleep(pause)


async def attack(port: int, end: float) -> None:
    """One malicious user: everything at the same time."""
    session = await opened(port, 0, False, "")
    huge, deep = "9" * 400, "[" * 30_000
    asked = [
        f'{{"session": "{session}", "do": [{huge}], "slice": {huge}}}',
        f'{{"session": {deep}',
        f'{{"do": {huge}}}',
    ]
    about = base64.b64encode(f'{{"parents": {{"heart_area": {huge}}}}}'.encode()).decode()
    chunked = b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    upload = packed("POST", "/upload", bytes(1000), cookies(""), "X-About: e30=", length=10**7)
    holds = [*[(b"", b"")] * 60, *[(b"GET / HTTP/1.1\r\nX-Slow: ", b"x")] * 20, *[(upload, b"")] * 20]
    jobs = [again(end, PAUSE, lambda start=start, drip=drip: hold(port, end, start, drip)) for start, drip in holds]
    jobs += [again(end, PAUSE, lambda text=text: send(port, packed("POST", "/ask", text.encode(), cookies(""))))
             for text in asked]  # fmt: skip
    jobs.append(again(end, PAUSE, lambda: pour(port, end, chunked, b"10000\r\n" + bytes(2**16) + b"\r\n")))
    jobs.append(again(end, PAUSE, lambda: pour(port, end, packed("POST", "/ask", length=10**9), bytes(2**16))))
    jobs.append(
        again(end, PAUSE, lambda: send(port, packed("POST", "/upload", film(0), cookies(""), f"X-About: {about}")))
    )
    await asyncio.gather(*jobs)


def attackers(port: int, count: int, seconds: float) -> None:
    """In a process of their own."""

    async def all_of_them() -> None:
        await asyncio.gather(*(attack(port, time.monotonic() + seconds) for _ in range(count)))

    asyncio.run(all_of_them())


# ---- a run ----
async def users(port: int, seconds: float, known: dict[str, str], run: Run) -> None:
    """All who behave; their waits are summarised in ``run``."""
    spent: list[float] = []
    end = time.monotonic() + seconds
    await asyncio.gather(*(behave(port, number, end, known, run, spent) for number in range(run.users)))
    run.answers, run.median = len(spent), statistics.median(spent)
    run.p95 = sorted(spent)[int(0.95 * (len(spent) - 1))]


def measure(port: int, process: int, folder: Path, seconds: float, known: dict[str, str], run: Run) -> Run:
    """One run; the last images are closed, and the server has some seconds, before memory is looked at."""
    run.memory_before = memory(process)
    evil = multiprocessing.get_context("spawn").Process(target=attackers, args=(port, run.malicious, seconds))
    if run.malicious:
        evil.start()
        time.sleep(2)
    asyncio.run(users(port, seconds, known, run))
    if run.malicious:
        evil.join(30)
        evil.kill()
    time.sleep(3)
    run.memory_after, run.files = memory(process), [str(each) for each in folder.glob("segcft-*")]
    return run


def compare(seconds: float, people: int, malicious: int, log: Path) -> list[Run]:
    """A run in peace and one under attack, with the same users that behave."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    served = context.Process(target=serve, args=(theirs, str(log)))
    served.start()
    try:
        theirs.close()  # a server that ends at once is an EOFError, and not waited for
        port, folder = ours.recv()
        assert served.pid is not None
        known = asyncio.run(expected(port))
        runs = []
        for count in (0, malicious):
            run = Run(people - malicious, count)
            runs.append(measure(port, served.pid, Path(folder), seconds, known, run))
            run.log = log.stat().st_size
    finally:
        served.terminate()
        served.join(30)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="of each of the two runs")
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--malicious", type=int, default=5, help="of the users, in the second run")
    parser.add_argument("--out", type=Path, default=Path("results/app_users.json"))
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    log = options.out.with_suffix(".log")
    log.unlink(missing_ok=True)
    runs = [asdict(run) for run in compare(options.seconds, options.users, options.malicious, log)]
    for run in runs:
        print(json.dumps(run), flush=True)
    options.out.write_text(json.dumps({"seconds": options.seconds, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
