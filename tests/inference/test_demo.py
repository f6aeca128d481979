"""The demo page: a real server in a real browser, with a simulated camera."""

import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest
from command_line import TINY, with_first
from playwright.sync_api import Browser, Page, Playwright, expect, sync_playwright

from fer_lightning.data.faces import EMOTIONS
from fer_lightning.data.synthetic import draw
from fer_lightning.inference.detect import find_faces

QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def checkpoint(trained_once: Callable[..., Path]) -> Path:
    return trained_once(*TINY) / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def photo(folder: Path) -> np.ndarray:
    """Gray, with two drawn faces that the detector finds."""
    canvas = np.full((300, 560), 128, np.uint8)
    found = 0
    for image in draw(200).images:
        face = cv2.GaussianBlur(cv2.resize(image, (200, 200), interpolation=cv2.INTER_CUBIC), (0, 0), 3)
        tried = np.full((300, 280), 128, np.uint8)
        tried[50:250, 40:240] = face
        if len(find_faces(tried)) == 1:
            canvas[:, 280 * found : 280 * (found + 1)] = tried
            found += 1
        if found == 2:
            break
    assert len(find_faces(canvas)) == 2
    return canvas


@dataclass
class Server:
    url: str
    process: subprocess.Popen[str]
    temporary: Path

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])


def start(checkpoint: Path, temporary: Path, port: int = 0) -> Server:
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "fer_lightning.demo", str(checkpoint), "--port", str(port)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert process.stderr is not None
    output = ""
    for line in process.stderr:
        output += line
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            return Server(found[0], process, temporary)
    raise AssertionError(output)


def stop(server: Server, number: int, impatient: bool = False) -> tuple[int, str]:
    server.process.send_signal(number)
    until = time.monotonic() + 120
    while impatient and server.process.poll() is None and time.monotonic() < until:
        server.process.send_signal(number)
        time.sleep(0.001)
    assert server.process.stderr is not None
    return server.process.wait(120), server.process.stderr.read()


@pytest.fixture(scope="module")
def server(checkpoint: Path, folder: Path) -> Iterator[Server]:
    server = start(checkpoint, folder / "temporary")
    yield server
    try:
        assert stop(server, signal.SIGINT, impatient=True) == (0, "stopped\n")
        left = [path for path in server.temporary.rglob("*") if path.is_file()]
        assert left == [], "photos are kept"
    finally:
        server.process.kill()


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as playwright:
        yield playwright


def launch(playwright: Playwright, *arguments: str) -> Browser:
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not found:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    return playwright.chromium.launch(executable_path=found[0], args=[*QUIET, *arguments])


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    browser = launch(playwright)
    yield browser
    browser.close()


@dataclass
class Opened:
    page: Page
    server: Server
    troubles: list[str] = field(default_factory=list)
    """Errors in the console, exceptions, and requests that leave this page's server."""

    def __post_init__(self) -> None:
        self.page.set_default_timeout(30_000)
        self.page.on("console", lambda message: self.troubles.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("request", lambda request: self._check(request.url))
        self.page.on("websocket", lambda request: self._check(request.url.replace("ws:", "http:")))
        self.page.goto(self.server.url)

    def _check(self, url: str) -> None:
        if not url.startswith((f"{self.server.url}/", "data:", f"blob:{self.server.url}/")):
            self.troubles.append(url)

    def give(self, image: np.ndarray, path: Path) -> None:
        cv2.imwrite(str(path), image)
        self.page.locator("#photo input[type=file]").first.set_input_files(path)


@pytest.fixture(params=[pytest.param(1280, id="wide"), pytest.param(400, id="narrow", marks=pytest.mark.nightly)])
def opened(browser: Browser, server: Server, request: pytest.FixtureRequest) -> Iterator[Opened]:
    context = browser.new_context(viewport={"width": request.param, "height": 900}, color_scheme="light")
    opened = Opened(context.new_page(), server)
    yield opened
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= request.param
    context.close()
    assert opened.troubles == []


def headings(page: Page) -> list[str]:
    return page.locator("#answers h3").all_inner_texts()


@pytest.mark.slow  # a browser
def test_a_photo_is_answered_face_by_face(opened: Opened, photo: np.ndarray, tmp_path: Path) -> None:
    page = opened.page
    expect(page.locator("#scorecard")).to_contain_text("This model: test accuracy")
    expect(page.locator("#scorecard")).to_contain_text("drawn faces")
    opened.give(photo, tmp_path / "two.png")
    expect(page.locator("#answers .face")).to_have_count(2)
    for number, heading in enumerate(headings(page), start=1):
        assert re.fullmatch(rf"Face {number}: ({'|'.join(EMOTIONS)}) \d+ %", heading)
    for face in page.locator("#answers .face").all():
        shares = [int(text.removesuffix(" %")) for text in face.locator("td:last-child").all_inner_texts()]
        assert len(shares) == 7
        assert sum(shares) == pytest.approx(100, abs=4)
        widths = [box["width"] for bar in face.locator(".bar").all() if (box := bar.bounding_box())]
        assert np.argmax(widths) == np.argmax(shares)
        for image in face.locator("img").all():
            assert image.evaluate("image => image.naturalWidth") == 192
        assert "Test recall of" in face.inner_text()
    expect(page.locator("#boxes img")).to_be_visible()
    assert page.locator(".notice").count() == 0

    page.get_by_label("Remove Image").click()
    expect(page.locator("#answers .face")).to_have_count(0)
    expect(page.locator("#boxes")).not_to_be_visible()


@pytest.mark.slow  # a browser
def test_without_a_face_the_central_square_is_used(opened: Opened, tmp_path: Path) -> None:
    opened.give(np.full((200, 400, 3), (90, 120, 150), np.uint8), tmp_path / "none.png")
    notice = opened.page.locator("#answers .notice")
    expect(notice).to_be_visible()
    expect(notice).to_contain_text("No face was detected. The central square of the picture is used instead")
    assert len(headings(opened.page)) == 1
    expect(opened.page.locator("#boxes img")).to_be_visible()
    opened.give(np.full((200, 200, 3), (90, 120, 150), np.uint8), tmp_path / "square.png")
    expect(opened.page.locator("#boxes")).not_to_be_visible()
    expect(opened.page.locator("#answers .face")).to_have_count(1)


@pytest.mark.slow  # a browser
def test_a_broken_photo_is_reported(browser: Browser, server: Server, tmp_path: Path) -> None:
    opened = Opened(browser.new_page(), server)
    whole = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8))[1].tobytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    notice = opened.page.locator("#answers .notice")
    files = opened.page.locator("#photo input[type=file]").first
    files.set_input_files(tmp_path / "cut.jpg")
    expect(notice).to_have_text("The file is cut short: replace or remove it")
    opened.page.get_by_label("Remove Image").click()
    expect(notice).to_have_count(0)
    files.set_input_files(tmp_path / "text.png")
    expect(notice).to_have_text("The file is not an image that can be read: replace or remove it")
    assert opened.troubles == []
    opened.page.close()


@pytest.mark.slow  # a browser
def test_camera(playwright: Playwright, server: Server, photo: np.ndarray, tmp_path: Path) -> None:
    """Chromium plays a film of one picture as its camera."""
    film = tmp_path / "film.mjpeg"
    frame = cv2.imencode(".jpg", cv2.resize(photo, (640, 480)))[1].tobytes()
    film.write_bytes(frame * 30)
    browser = launch(
        playwright,
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-video-capture={film}",
    )
    opened = Opened(browser.new_page(), server)
    page = opened.page
    page.get_by_label("Capture from camera").click()
    page.get_by_text("Click to Access Webcam").click()
    page.get_by_label("capture photo").click()
    expect(page.locator("#answers .face").first).to_be_visible()
    assert headings(page)
    expect(page.locator("#boxes img")).to_be_visible()
    browser.close()
    assert opened.troubles == []


def _is_closed(connection: socket.socket) -> bool:
    """Wait until the server closes a connection."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.slow  # a server
class TestServer:
    def test_only_this_machine_gets_an_answer(self, server: Server) -> None:
        with urllib.request.urlopen(server.url, timeout=20) as answer:
            assert answer.status == 200
            assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        with pytest.raises(ConnectionRefusedError):  # 127.0.0.2 stands for every other address of this machine
            socket.create_connection(("127.0.0.2", server.port), timeout=5)
        strange = urllib.request.Request(server.url, headers={"Host": "elsewhere.example"})
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(strange, timeout=20)

    def test_connections_without_a_request_are_closed(self, server: Server) -> None:
        before = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (400, before[1]))
        connections = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(600)]
        connections[0].sendall(b"GET / HTTP/1.1\r\nHost: ")
        assert all(map(_is_closed, connections)), "those beyond 128 at once, the others after ten seconds"
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, before)
        assert urllib.request.urlopen(server.url, timeout=60).status == 200

    def test_taken_port_is_reported(self, server: Server, process, checkpoint: Path) -> None:
        done = process(str(checkpoint), "--port", str(server.port), module="fer_lightning.demo")
        assert done.code == 2
        assert done.error.startswith(f"error: --port {server.port}: cannot be used (Address already in use); choose")

    @pytest.mark.slow  # a server
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_many_signals_end_it_cleanly(self, checkpoint: Path, tmp_path: Path, number: int) -> None:
        server = start(checkpoint, tmp_path / "temporary")
        assert urllib.request.urlopen(server.url, timeout=60).status == 200  # its queue runs from now on
        assert stop(server, number, impatient=True) == (0, "stopped\n")
        assert [path for path in server.temporary.rglob("*") if path.is_file()] == []


@pytest.mark.slow  # a server
def test_a_malformed_request_is_one_line_on_the_terminal(checkpoint: Path, tmp_path: Path) -> None:
    server = start(checkpoint, tmp_path / "temporary")
    request = f"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(f"{request}Transfer-Encoding: chunked\r\n\r\nZZ\r\n".encode())
        assert client.recv(4096).startswith(b"HTTP/1.1 400 ")
    with urllib.request.urlopen(server.url, timeout=20) as answer:
        assert answer.status == 200
    code, shown = stop(server, signal.SIGTERM)
    assert code == 0
    assert "Invalid HTTP request" in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gone.ckpt", "--port", "0"], "gone.ckpt: no such checkpoint"),
        (["gone.ckpt", "--port", "70000"], "--port 70000: must be in 0..65535"),
    ],
)
def test_mistakes_end_in_one_line(forked, arguments: list[str], words: str) -> None:
    done = forked(*arguments, module="fer_lightning.demo")
    assert done.code == 2
    assert words in done.error


@pytest.mark.nightly
def test_without_gradio_the_extra_is_named(process, tmp_path: Path) -> None:
    (tmp_path / "gradio.py").write_text("raise ImportError")
    (tmp_path / "best.ckpt").write_bytes(b"")
    done = process("best.ckpt", "--port", "0", module="fer_lightning.demo", PYTHONPATH=with_first(tmp_path))
    assert done.code == 2
    assert done.error == "error: the page needs Gradio: pip install 'fer_lightning[demo]'"


def test_help_does_not_wait_for_gradio(process) -> None:
    helped = process("--help", module="fer_lightning.demo", PYTHONPROFILEIMPORTTIME="1")
    assert helped.code == 0
    imported = {line.split("|")[-1].strip() for line in helped.err.splitlines()}
    assert "argparse" in imported
    assert not imported & {"torch", "gradio", "captum", "cv2"}
