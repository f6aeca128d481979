"""Which requests reach Gradio: those that the demo page makes itself, from the page itself, bounded in size and rate.

Gradio has some seventy routes, and its own check that a named file was uploaded is off in an application that it is
mounted in. So the few routes that the page needs are listed here, and a call may name nothing but an upload.
"""

import asyncio
import json
import logging
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fer_lightning.data.archives import MAX_PIECE
from fer_lightning.runtime.files import check_characters

log = logging.getLogger(__name__)

FILE, UPLOAD, CALL = "/gradio_api/file=", "/gradio_api/upload", "/gradio_api/queue/join"

PAGES = ("/", "/theme.css", "/favicon.ico", "/gradio_api/queue/data", "/gradio_api/upload_progress")
FOLDERS = ("/assets/", "/static/")
"""Gradio's own scripts, styles and fonts."""

MAX_CALL = 2**16
"""Bytes of a call, which is a few hundred."""

MAX_UPLOAD = MAX_PIECE + 2**16
"""Bytes of an upload: the largest picture that is read, and the form around it."""

BODY_SECONDS = 60.0
"""Time for the body of a request to arrive."""

BURST, PER_SECOND = 120, 2.0
"""Uploads and calls accepted at once, and their rate after that, over all clients."""

MAX_KEPT, MAX_FILES = 2**28, 1024
"""Bytes and number of uploads and answers kept on disk; the oldest are deleted."""

# Forbids everything from other servers; Gradio's own scripts need both "unsafe" sources.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "base-uri 'self'; form-action 'none'; object-src 'none'; frame-ancestors 'none'"
)
SENT = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

Refusal = tuple[int, str]
"""Status and text of an answer; the texts are constant, so that they say nothing about files."""

NOT_FOUND: Refusal = (404, "not found")
CROSS_SITE: Refusal = (403, "requests from other pages are refused")
BAD_CALL: Refusal = (400, "only a photo that was uploaded through the page is read")


def is_kept(path: str, photos: Path) -> bool:
    """Whether a path, written without detours, is a regular file in the server's own folder of photos."""
    if "\0" in path or os.path.normpath(path) != path or not Path(path).is_relative_to(photos):
        return False
    try:
        return os.path.realpath(path) == path and os.path.isfile(path)
    except (OSError, ValueError):
        return False


def refuse(method: str, path: str, headers: Headers, photos: Path) -> Refusal | None:
    """Judge a request by its first lines.

    Args:
        method: such as ``GET``.
        path: decoded, without the query.
        headers: of the request.
        photos: the server's folder of photos.

    Returns:
        The refusal, or None for a request that the page makes.
    """
    if _is_cross_site(method, path, headers):
        return CROSS_SITE
    if method in ("GET", "HEAD"):
        if path in PAGES or path.startswith(FOLDERS):
            return None
        return None if path.startswith(FILE) and is_kept(path.removeprefix(FILE), photos) else NOT_FOUND
    limit = {UPLOAD: MAX_UPLOAD, CALL: MAX_CALL}.get(path) if method == "POST" else None
    if limit is None:
        return NOT_FOUND
    length = headers.get("content-length", "")
    if "transfer-encoding" in headers or not re.fullmatch("[0-9]{1,18}", length):
        return 411, "the length of the request is missing"
    if int(length) > limit:
        return 413, f"larger than {limit:,} bytes"
    kind = "application/json" if path == CALL else "multipart/form-data"
    if headers.get("content-type", "").partition(";")[0].strip().lower() != kind:
        return 415, f"must be {kind}"
    return None


def _is_cross_site(method: str, path: str, headers: Headers) -> bool:
    """Whether another page made the request; its owner may still follow a link to the front page."""
    own = f"http://{headers.get('host')}"
    if any(origin != own for origin in headers.getlist("origin")):
        return True
    if method == "POST" and any(not f"{page}/".startswith(f"{own}/") for page in headers.getlist("referer")):
        return True
    elsewhere = any(site in ("cross-site", "same-site") for site in headers.getlist("sec-fetch-site"))
    followed = method == "GET" and path == "/" and headers.get("sec-fetch-mode") == "navigate"
    return elsewhere and not followed


def clean_call(body: bytes, photos: Path) -> bytes | None:
    """Rewrite a call of the page's only function with nothing in it but what the function needs.

    Args:
        body: JSON of Gradio's client.
        photos: the server's folder of photos.

    Returns:
        The JSON for Gradio; None where it names another function, or a file that is not an upload.
    """
    try:
        text = body.decode("utf-8")
        call = json.loads(text)
        check_characters(text, call)
        (upload,) = call["data"]
        session, trigger = call["session_hash"], call.get("trigger_id")
        path = None if upload is None else upload["path"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    known = isinstance(session, str) and re.fullmatch("[0-9A-Za-z_-]{1,64}", session)
    if not known or call.get("fn_index") != 0 or not (trigger is None or type(trigger) is int):
        return None
    if path is not None and not (isinstance(path, str) and is_kept(path, photos)):
        return None
    photo = None if path is None else {"path": path, "meta": {"_type": "gradio.FileData"}}
    cleaned = {"data": [photo], "fn_index": 0, "trigger_id": trigger, "session_hash": session}
    return json.dumps(cleaned).encode()


def make_room(photos: Path) -> None:
    """Delete the oldest uploads and answers beyond ``MAX_KEPT`` bytes or ``MAX_FILES`` files."""
    kept = []
    for path in photos.rglob("*"):
        with suppress(OSError):  # another request deletes too
            if path.is_file():
                kept.append((path.stat().st_mtime, path.stat().st_size, path))
    kept.sort(reverse=True)
    total = 0
    for number, (_, length, path) in enumerate(kept, start=1):
        total += length
        if total > MAX_KEPT or number > MAX_FILES:
            with suppress(OSError):
                path.unlink()
                path.parent.rmdir()


class Guard:
    """ASGI application in front of Gradio's.

    Args:
        app: the application that is guarded.
        photos: its folder of photos, resolved.
    """

    def __init__(self, app: ASGIApp, photos: Path) -> None:
        self.app = app
        self.photos = photos
        self.credit = float(BURST)
        self.counted = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        headers = Headers(scope=scope)
        refusal = refuse(scope["method"], scope["path"], headers, self.photos)
        if refusal is None and scope["method"] == "POST" and not self._has_credit():
            refusal = 429, "too many requests; try again in a minute"
        if refusal is not None:
            return await _answer(refusal, scope, receive, send)
        await self._pass_on(scope, _in_time(receive), send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_with_policy(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if scope["path"] == UPLOAD and message["status"] >= 500:  # what Gradio cannot read
                    message = {**message, "status": 400}
                MutableHeaders(scope=message).update(SENT)
            await send(message)

        # Gradio believes the headers that a proxy adds, and there is no proxy. Nothing here is sent in parts.
        left_out = (b"x-", b"forwarded", b"range")
        kept = [(name, value) for name, value in scope["headers"] if not name.startswith(left_out)]
        scope = {**scope, "headers": kept}
        if scope["path"] == "/":
            scope["query_string"] = b""  # Gradio opens files that it names; the theme is read in the browser
        try:
            if scope["path"] == UPLOAD:
                make_room(self.photos)
            elif scope["path"] == CALL:
                make_room(self.photos)
                body = clean_call(await _read(receive), self.photos)
                if body is None:
                    return await _answer(BAD_CALL, scope, receive, send)
                MutableHeaders(scope=scope)["content-length"] = str(len(body))
                receive = _replay(body, receive)
            await self.app(scope, receive, send_with_policy)
        except Exception as error:
            no_file = isinstance(error, OSError) and scope["path"].startswith(FOLDERS)  # such as a name too long
            if not (no_file or isinstance(error, ClientDisconnect)):
                log.warning("a request failed (%s)", type(error).__name__)
            if not started:
                await _answer(NOT_FOUND if no_file else (500, "the request failed"), scope, receive, send)

    def _has_credit(self) -> bool:
        now = time.monotonic()
        self.credit = min(float(BURST), self.credit + PER_SECOND * (now - self.counted))
        self.counted = now
        if self.credit < 1:
            return False
        self.credit -= 1
        return True


async def _answer(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    status, text = refusal
    # The rest of the body is not read, so the connection cannot be used again.
    response = PlainTextResponse(text, status, {**SENT, "Connection": "close"})
    try:
        await response(scope, receive, send)
    except Exception as error:  # the server has answered already, as it does a malformed body
        log.warning("a request failed (%s)", type(error).__name__)


def _in_time(receive: Receive) -> Receive:
    """Treat a client as gone whose body has not arrived within ``BODY_SECONDS``."""
    end, complete = time.monotonic() + BODY_SECONDS, False

    async def receive_in_time() -> Message:
        nonlocal complete
        if complete:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
        except TimeoutError:
            return {"type": "http.disconnect"}
        complete = not message.get("more_body", False)
        return message

    return receive_in_time


async def _read(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _replay(body: bytes, receive: Receive) -> Receive:
    """Receive ``body``, then what follows it."""
    sent = False

    async def receive_body() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_body
