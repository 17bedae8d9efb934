"""``segcft serve``: the options, and the server."""

import errno
import gc
import secrets
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch

from data_modules.common.data_module import DataModule
from segcft.app.addresses import is_local
from segcft.app.opened_image import Case
from segcft.app.service import CounterfactualService
from segcft.app.temporary_folder import temporary_folder
from segcft.core.devices import device
from segcft.core.parsing import Parser
from segcft.counterfactual.model import CounterfactualModel

EXTRA = "segcft serve needs two more packages, those of the extra app: pip install starlette uvicorn"


def serve(arguments: list[str]) -> None:
    """Run the command until it is interrupted.

    Raises:
        ValueError: If an option, the model or the data are wrong, the extra is missing, or the address is taken.
    """
    try:
        import uvicorn  # noqa: F401  # of the extra

        from segcft.app.connections import server
        from segcft.app.server import App, create
    except ImportError as error:
        raise ValueError(EXTRA) from error
    parser = _parser()
    options = parser.instantiate_classes(parser.parse_args(arguments))
    _check(options)
    place = device(options.device)
    model = CounterfactualModel.load(options.model).to(place)
    service = CounterfactualService(model, cases(model, options.data, options.cases))
    service.decoders.start()
    local = is_local(options.host)
    token = options.token.strip() or (None if local else secrets.token_urlsafe(16))
    listening = _listen(options.host, options.port)
    app = App(service, title(Path(options.model)), int(options.upload_limit * 2**20))
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"segcft: http://{shown}:{port}/{f'?token={quote(token, safe=str())}' if token else ''}", flush=True)
    if token:
        print(f"segcft: token {token}; whoever has it may come in. Ctrl-C stops.", flush=True)
    else:
        print("segcft: for this computer alone. Ctrl-C stops.", flush=True)
    gc.freeze()  # or a collection among a million objects of libraries stops all answers for a second
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn hands it on when it has stopped
    with suppress(KeyboardInterrupt), temporary_folder():
        server(create(app, token, local), local).run(sockets=[listening])


def cases(model: CounterfactualModel, data: DataModule | None, count: int) -> list[Case]:
    """The first subjects of the test split; none without data.

    Raises:
        ValueError: If the data do not offer what the model was trained with.
    """
    if data is None or not count:
        return []
    split = data.dataset("test")
    batch = split.read(torch.arange(min(count, len(split))))
    values = model.parents.take(batch)
    return [
        Case(
            f"test {place + 1}", batch["image"][place : place + 1], {n: v[place : place + 1] for n, v in values.items()}
        )
        for place in range(len(batch["image"]))
    ]


def title(path: Path) -> str:
    """What the page calls a bundle, or the checkpoint of a stage of an experiment."""
    if path.is_dir():
        return path.resolve().name
    return " ".join(part.replace("_", " ") for part in path.resolve().parts[-3:-1])


def _check(options: Any) -> None:
    if not 0 <= options.port < 2**16:
        raise ValueError(f"--port {options.port}: 0 to 65535 is needed")
    if options.cases < 0:
        raise ValueError(f"--cases {options.cases}: 0 or more are needed")
    if options.upload_limit <= 0:
        raise ValueError(f"--upload-limit {options.upload_limit:g}: more than 0 MB is needed")


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = "it is taken, give another --port" if taken else error.strerror or str(error)
        raise ValueError(f"--host {host} --port {port}: {reason}") from error


def _parser() -> Parser:
    parser = Parser(prog="segcft serve", description="A page on which images are changed by sliders.")
    parser.add_argument("model", type=str, help="bundle or checkpoint, of Seg-CFT to have answers measured")
    parser.add_argument("--config", action="config", help="data.yaml of an experiment: its test subjects can be picked")
    parser.add_argument("--recipe", type=str, help="as data.yaml says it; unused")
    parser.add_argument("--cases", type=int, default=6, help="how many of them")
    parser.add_argument(
        "--host", type=str, default="127.0.0.1", help="another address than this computer's own needs a token"
    )
    parser.add_argument("--port", type=int, default=7860, help="0 takes a free one")
    parser.add_argument(
        "--token", type=str, default="", help="that visitors need; drawn and printed if --host needs one"
    )
    parser.add_argument("--upload-limit", "--upload_limit", type=float, default=64.0, help="MB of a file")
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda or mps")
    parser.add_subclass_arguments(DataModule, "data", required=False, help="test subjects to be picked")
    return parser
