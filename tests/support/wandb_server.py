"""A local stand-in for the W&B backend: as much of its protocol as ``wandb.init`` and ``wandb sync`` need.

It stores what it receives, as the real one does: runs by name, history lines by their offset, files. So a test can ask
what a user would see, and it can refuse a key, or fall silent or go away in the middle of a run.
"""

import json
import re
import socket
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

KEY = "0123456789abcdef" * 2 + "01234567"
"""The key that the server accepts."""


@dataclass
class ServerRun:
    """One run as the server knows it."""

    upserts: list[dict[str, Any]] = field(default_factory=list)
    lines: dict[str, dict[int, str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        """The logged rows, in the order of their offsets."""
        return [json.loads(line) for _, line in sorted(self.lines.get("wandb-history.jsonl", {}).items())]

    @property
    def summary(self) -> dict[str, Any]:
        """The last summary."""
        return json.loads(self.lines.get("wandb-summary.json", {}).get(0, "{}"))

    @property
    def config(self) -> dict[str, Any]:
        """The last configuration."""
        configs = [upsert["config"] for upsert in self.upserts if upsert.get("config")]
        return {key: item["value"] for key, item in json.loads(configs[-1]).items()} if configs else {}

    def column(self, key: str) -> list[Any]:
        """The values that were logged under ``key``, in order."""
        return [row[key] for row in self.history if key in row]


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # clients may hang up at any time
            super().handle_error(request, client_address)


class WandbServer:
    """Listens on a free port of this machine while inside the ``with`` block.

    Args:
        fails_with: from its first file-stream request (metrics of a running run) on, the server is ``gone`` (refuses
            connections) or ``silent`` (accepts them and never answers).
        accepts_key: whether ``KEY`` is valid; when not, every request is answered with 401.
    """

    def __init__(self, fails_with: str = "", accepts_key: bool = True) -> None:
        self.fails_with = fails_with
        self.accepts_key = accepts_key
        self.runs: dict[str, ServerRun] = {}
        self.requests: list[str] = []
        self.not_understood: list[str] = []
        self.failed = threading.Event()
        self.closed = threading.Event()
        self._connections: set[socket.socket] = set()
        self._http = _QuietServer(("127.0.0.1", 0), self._handler())

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to log here instead of at wandb.ai."""
        port = self._http.server_address[1]
        return {"WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": KEY}

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self._go_away()

    def _go_away(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        for connection in list(self._connections):
            connection.close()

    def _fail(self) -> None:
        self.failed.set()
        if self.fails_with == "gone":
            self._go_away()

    def answer(self, body: dict[str, Any]) -> dict[str, Any] | None:
        """The ``data`` of a GraphQL answer, or None for an operation that is not known here."""
        values = body.get("variables") or {}
        (operation,) = re.findall(r"(?:query|mutation)\s+(\w+)", body["query"])[:1]
        project = {"id": "p", "name": values.get("project"), "entity": {"id": "e", "name": "somebody"}}
        upload = {"id": "f", "uploadUrl": self._upload_url("manifest"), "uploadHeaders": []}
        match operation:
            case "Viewer":
                viewer = {"id": "u", "entity": "somebody", "username": "somebody", "email": "", "flags": "{}"}
                return {"viewer": {**viewer, "teams": {"edges": []}}}
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            case "RunResumeStatus":
                return {"model": {**project, "bucket": self._resumed(values["name"])}}
            case "UpsertBucket":
                run = self.runs.setdefault(values["name"], ServerRun())
                run.upserts.append(values)
                bucket = {"id": values["name"], "name": values["name"], "displayName": values.get("displayName")}
                bucket |= {"project": project, "historyLineCount": len(run.history), "config": values.get("config")}
                return {"upsertBucket": {"bucket": bucket, "inserted": len(run.upserts) == 1}}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": self._upload_url(name, values["run"])} for name in values["files"]]
                return {"createRunFiles": {"runID": values["run"], "uploadHeaders": [], "files": files}}
            case "CreateArtifact":
                artifact = {"id": "a", "digest": values["input"]["digest"], "state": "PENDING"}
                return {"createArtifact": {"artifact": {**artifact, "artifactSequence": {"id": "s"}}}}
            case "CreateArtifactManifest":
                return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": upload}}}
            case "UpdateArtifactManifest":
                return {"updateArtifactManifest": {"artifactManifest": {"id": "m", "file": upload}}}
            case "CreateArtifactFiles":
                names = [file["name"] for file in values["input"]["artifactFiles"]]
                node = {"uploadUrl": self._upload_url("entry"), "uploadHeaders": [], "artifact": {"id": "a"}}
                edges = [{"node": {**node, "storagePath": name}} for name in names]
                return {"createArtifactFiles": {"files": {"edges": edges}}}
            case "CommitArtifact":
                return {"commitArtifact": {"artifact": {"id": "a", "digest": "d"}}}
            case "XXHashDigestsEnabled":
                return {"entity": {"xxhashDigestsEnabled": False}}
            case "FetchArtifactDigestAlgorithm" | "ArtifactType":
                return {"project": None}
            case "OrganizationCoreWeaveOrganizationID":
                return {"entity": None}
        self.not_understood.append(operation)
        return None

    def stream(self, name: str, body: dict[str, Any]) -> None:
        """Take a piece of a run's history, summary, console and exit."""
        run = self.runs[name]
        for file, piece in (body.get("files") or {}).items():
            lines = run.lines.setdefault(file, {})
            lines |= {piece["offset"] + place: line for place, line in enumerate(piece["content"])}
        if body.get("complete"):
            run.exit_code = body.get("exitcode")

    def _upload_url(self, name: str, run: str = "") -> str:
        return f"{self.environment['WANDB_BASE_URL']}/upload/{run}/{name}"

    def _resumed(self, name: str) -> dict[str, Any] | None:
        if name not in self.runs:
            return None
        run = self.runs[name]
        first = run.upserts[0]
        return {
            "id": name,
            "name": name,
            "displayName": first.get("displayName"),
            "config": next(upsert["config"] for upsert in reversed(run.upserts) if upsert.get("config")),
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(run.history),
            "eventsLineCount": len(run.lines.get("wandb-events.jsonl", {})),
            "logLineCount": len(run.lines.get("output.log", {})),
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "eventsTail": "[]",
            "tags": first.get("tags"),
            "notes": None,
            "wandbConfig": json.dumps({"t": 1}),
        }

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                server._connections.add(self.request)
                super().setup()

            def finish(self) -> None:
                server._connections.discard(self.request)
                super().finish()

            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                server.requests.append(self.path)
                if server.failed.is_set():
                    server.closed.wait()
                    self.close_connection = True
                elif not server.accepts_key:
                    self._reply({"errors": [{"message": "user is not logged in"}]}, 401)
                elif self.path == "/graphql":
                    data = server.answer(json.loads(content))
                    self._reply({"data": data} if data is not None else {"errors": [{"message": "unknown"}]})
                elif stream := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
                    server.stream(stream[1], json.loads(content))
                    self._reply({})
                    if server.fails_with:
                        server._fail()
                else:
                    self._reply({}, 404)

            def do_PUT(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if server.failed.is_set():
                    server.closed.wait()
                    self.close_connection = True
                    return
                _, _, run, name = self.path.split("/", 3)
                if run:
                    server.runs[run].files[name] = content
                self._reply({})

            def _reply(self, content: dict[str, Any], status: int = 200) -> None:
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        return Handler
