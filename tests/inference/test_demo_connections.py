"""Connections to the demo that bring no request, in front of an application that answers at once or late."""

import asyncio
from typing import Any

import pytest

uvicorn = pytest.importorskip("uvicorn")

from uvicorn.server import ServerState  # noqa: E402

from fer_lightning.inference import demo_connections  # noqa: E402

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\n"


async def exchange(*pieces: bytes, pause: float = 0.0, late: float = 0.0) -> bytes:
    """All that a client receives who sends pieces one after the other, until the connection is closed."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(late)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    config = uvicorn.Config(answer, lifespan="off", log_level="warning", timeout_keep_alive=1)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: demo_connections.BoundedProtocol(config, state, {}), "127.0.0.1", 0
    )
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(pause)
        received = b""
        try:
            while piece := await asyncio.wait_for(reader.read(4096), 10):
                received += piece
        except ConnectionResetError:
            pass
        writer.close()
    return received


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_connections, "HEAD_SECONDS", 0.3)


@pytest.mark.parametrize("before", [b"", REQUEST])
def test_a_head_that_is_not_completed_is_not_waited_for(before: bytes) -> None:
    assert asyncio.run(exchange(before, b"G", pause=0.1)).count(ANSWER) == bool(before)


def test_heads_in_pieces_and_late_answers_are_no_reason_to_close() -> None:
    pieces = (REQUEST[:5], REQUEST[5:], REQUEST[:5], REQUEST[5:] + REQUEST)
    assert asyncio.run(exchange(*pieces, pause=0.1, late=0.5)).count(ANSWER) == 3
