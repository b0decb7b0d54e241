"""A W&B server on loopback, as much of one as wandb 0.31 asks for: what did a run really send?

::

    with FakeWandb() as server:
        ...  # a process with server.environment
    assert server.runs["abc"].exit_code == 0

It takes nothing but JSON and the right key; ``ail`` makes it fail as servers do.
"""

from __future__ import annotations

import base64
import gzip
import json
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789abcdef" * 3  # wandb takes 40 characters or more
HANG, GONE = "hang", "gone"


@dataclass
class FakeRun:
    """What the server was told about one run."""

    id: str
    name: str | None = None
    project: str | None = None
    group: str | None = None
    job_type: str | None = None
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None

    def values(self, name: str) -> list[Any]:
        """What was logged under a name, in order."""
        return [row[name] for row in self.history if name in row]


class FakeWandb:
    """The server: ``runs`` is what arrived, ``faults`` what no server could have read."""

    def __init__(self) -> None:
        self.runs: dict[str, FakeRun] = {}
        self.faults: list[str] = []
        self.begun: list[str] = []  # ids in the order in which runs were begun or resumed
        self._ailing: int | str | None = None
        self._end = threading.Event()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.environment = {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": KEY,
            "WANDB_MODE": "online",
        }

    def ail(self, how: int | str | None) -> None:
        """Answer every request with a status, or not at all (``HANG``), or be ``GONE``; None is health."""
        self._ailing = how
        if how == GONE:
            self._server.shutdown()
            self._server.server_close()

    def __enter__(self) -> FakeWandb:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._ailing != GONE:
            self.ail(GONE)
        assert not self.faults, self.faults

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self
        key = "Basic " + base64.b64encode(f"api:{KEY}".encode()).decode()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def answer(self) -> None:
                body = self.body()
                if fake._ailing == HANG:
                    fake._end.wait(120)
                if fake._ailing in (HANG, GONE):
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                elif isinstance(fake._ailing, int):
                    self.reply({"error": "ailing"}, fake._ailing)
                elif self.command == "PUT":
                    self.reply({}, 200)  # an uploaded file
                elif self.headers.get("Authorization") != key:
                    self.reply({"error": "who are you?"}, 401)
                else:
                    try:
                        self.reply(fake._answer(self.path, body), 200)
                    except (KeyError, ValueError) as error:
                        fake.faults.append(f"{self.path}: {error!r} in {body[:2000]!r}")
                        self.reply({"error": "not understood"}, 400)

            do_GET = do_POST = do_PUT = answer  # noqa: N815 (the names that http.server calls)

            def body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") == "chunked":
                    parts: list[bytes] = []
                    while size := int(self.rfile.readline(), 16):
                        parts.append(self.rfile.read(size))
                        self.rfile.readline()
                    self.rfile.readline()
                    data = b"".join(parts)
                else:
                    data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data

            def reply(self, content: Any, status: int) -> None:
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        return Handler

    def _answer(self, path: str, body: bytes) -> dict[str, Any]:
        if path.startswith("/graphql"):
            return {"data": self._graphql(_json(body))}
        if path.endswith("/file_stream"):
            self._stream(path.split("/")[-2], _json(body))
            return {"exitcode": None, "limits": {}}
        return {}  # wandb's own telemetry

    def _graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        query, given = request["query"], request.get("variables") or {}
        if "upsertBucket" in query:
            return self._upsert(given)
        if "RunResumeStatus" in query:
            self.begun.append(given["name"])
            return {"model": self._resume_status(given["name"], given["project"])}
        if "createRunFiles" in query:
            files = [
                {"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in given["files"]
            ]
            return {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}
        if "viewer" in query:
            viewer = {"id": "u", "entity": "team", "username": "tester", "flags": "{}"}
            return {"viewer": {**viewer, "teams": {"edges": []}}}
        if "RunStoppedStatus" in query:
            return {"project": {"run": {"stopped": False}}}
        return {}

    def _upsert(self, given: dict[str, Any]) -> dict[str, Any]:
        id = given["name"]
        inserted = id not in self.runs
        run = self.runs.setdefault(id, FakeRun(id))
        run.name = given.get("displayName") or run.name
        run.project = given.get("project") or run.project
        run.group = given.get("groupName") or run.group
        run.job_type = given.get("jobType") or run.job_type
        run.tags = given.get("tags") or run.tags
        if given.get("config"):
            config = _json(given["config"])
            run.config = {key: each["value"] for key, each in config.items() if key != "_wandb"}
        bucket = {
            "id": f"id-{id}",
            "name": id,
            "displayName": run.name,
            "historyLineCount": len(run.history),
            "sweepName": None,
            "project": _project(run.project),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _resume_status(self, id: str, project: str) -> dict[str, Any]:
        run = self.runs.get(id)
        if run is None:
            return {**_project(project), "bucket": None}
        config = {key: {"value": value} for key, value in run.config.items()}
        bucket = {
            "id": f"id-{id}",
            "name": id,
            "displayName": run.name,
            "tags": run.tags,
            "config": json.dumps(config),
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(run.history),
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "logLineCount": 0,
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {**_project(project), "bucket": bucket}

    def _stream(self, id: str, sent: dict[str, Any]) -> None:
        run = self.runs[id]
        for name, part in (sent.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                run.history[part["offset"] :] = [_json(line) for line in part["content"]]
            elif name == "wandb-summary.json":
                run.summary = _json(part["content"][-1])
        if sent.get("complete"):
            run.exit_code = sent["exitcode"]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


def _project(name: str | None) -> dict[str, Any]:
    return {"id": "p", "name": name, "entity": {"id": "e", "name": "team"}}


def _json(text: str | bytes) -> Any:
    """Parse what is JSON; Python's own dialect has NaN and Infinity besides."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)
