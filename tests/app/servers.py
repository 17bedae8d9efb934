"""Servers in this process: one that is called, one that listens."""

import asyncio
import base64
import json
import socket
import threading
from contextlib import contextmanager

from segcft.app.opened_image import Case
from tests.inference.test_answer_file import films


def cases_of(model, dims=2, count=2):
    batch = films(dims, count)
    values = {name: batch[name] for name in model.parents.names}
    return [
        Case(f"test {place + 1}", batch["image"][place][None], {n: v[place][None] for n, v in values.items()})
        for place in range(count)
    ]


@contextmanager
def running(served, local=True):
    """The address of a server in a thread, as ``segcft serve`` starts it."""
    from segcft.app.connections import server

    listening = socket.create_server(("127.0.0.1", 0))
    served = server(served, local)
    thread = threading.Thread(target=served.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        served.should_exit = True
        thread.join(15)
        assert not thread.is_alive()


class Client:
    """Speaks ASGI to a server in this process."""

    def __init__(self, server):
        self.server = server

    def __call__(self, method, path, body=b"", **headers):
        return asyncio.run(self.send(method, path, body, headers))

    async def send(self, method, path, body, headers):
        headers = {"host": "127.0.0.1:7860", **{name.replace("_", "-"): value for name, value in headers.items()}}
        path, _, query = path.partition("?")
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }  # fmt: skip
        sent = []

        async def receive():
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            sent.append(message)

        await self.server(scope, receive, send)
        answer = b"".join(message.get("body", b"") for message in sent)
        told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], json.loads(answer) if "json" in told.get("content-type", "") else answer, told

    def post(self, path, content, **headers):
        return self("POST", path, json.dumps(content).encode(), **headers)[:2]

    def upload(self, content, **about):
        told = base64.b64encode(json.dumps(about).encode()).decode()
        return self("POST", "/upload", content, x_about=told)[:2]
