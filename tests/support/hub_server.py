"""A stand-in for the Hugging Face Hub on loopback that answers an upload's requests and records its files."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """Attributes: ``files`` by path, as committed; ``created``: bodies of create_repo; ``token`` it accepts."""

    token: str
    endpoint: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    created: list[dict[str, Any]] = field(default_factory=list)
    commits: int = 0

    def answer(self, path: str, body: bytes) -> Any:
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return {"url": f"{self.endpoint}/somebody/faces"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path == "/api/models/somebody/faces/preupload/main":
            names = [file["path"] for file in json.loads(body)["files"]]
            return {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
        if path == "/api/models/somebody/faces/commit/main":
            self.commits += 1
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return {"commitUrl": f"{self.endpoint}/somebody/faces/commit/1", "commitOid": "1" * 40}
        return None


@contextmanager
def hub_server(token: str) -> Iterator[Hub]:
    """Serve until the block ends."""
    hub = Hub(token)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            allowed = self.headers.get("Authorization") == f"Bearer {hub.token}"
            answer = hub.answer(self.path.split("?")[0], body) if allowed else {"error": "Invalid user token."}
            content = json.dumps(answer).encode()
            self.send_response(401 if not allowed else 404 if answer is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
