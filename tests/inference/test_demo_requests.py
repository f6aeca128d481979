"""Which requests the demo's server lets through to Gradio, shown on an application that says what reached it."""

import io
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from fer_lightning.inference import demo_page, demo_requests
from fer_lightning.inference.demo_requests import CALL, FILE, UPLOAD, Guard, make_room
from fer_lightning.runtime.errors import UserError

PAGE = "http://127.0.0.1:7860"
FORM = {"Content-Type": "multipart/form-data; boundary=x"}


async def reached(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the body that it was given."""
    body = (await receive()).get("body", b"") if scope["method"] == "POST" else scope["query_string"]
    names = b",".join(name for name, _ in scope["headers"])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"names", names)]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path.resolve() / "photos"
    (folder / "a1").mkdir(parents=True)
    (folder / "a1" / "me.png").write_bytes(b"png")
    (tmp_path / "private.png").write_bytes(b"png")
    return folder


@pytest.fixture
def client(photos: Path) -> TestClient:
    return TestClient(Guard(reached, photos), base_url=PAGE)


def call(client: TestClient, path: object, **changed: object) -> tuple[int, str]:
    content = {"data": [{"path": path, "url": "http://elsewhere/"}], "fn_index": 0, "session_hash": "s1", **changed}
    answer = client.post(CALL, json=content)
    return answer.status_code, answer.text


def test_an_upload_reaches_the_model_with_nothing_else(client: TestClient, photos: Path) -> None:
    status, text = call(client, str(photos / "a1" / "me.png"), event_data="x", trigger_id=4)
    assert status == 200
    photo = {"path": str(photos / "a1" / "me.png"), "meta": {"_type": "gradio.FileData"}}
    assert json.loads(text) == {"data": [photo], "fn_index": 0, "trigger_id": 4, "session_hash": "s1"}
    assert call(client, None, data=[None])[0] == 200


def test_an_upload_that_gradio_cannot_read_is_the_clients_mistake(photos: Path) -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("Internal Server Error", 500)(scope, receive, send)

    client = TestClient(Guard(fails, photos), base_url=PAGE)
    assert client.post(demo_requests.UPLOAD, files={"files": b"x"}).status_code == 400


def test_a_name_that_no_file_can_have_is_not_found(photos: Path) -> None:
    async def opens(scope: Scope, receive: Receive, send: Send) -> None:
        (photos / scope["path"].removeprefix("/assets/")).stat()

    client = TestClient(Guard(opens, photos), base_url=PAGE)
    assert client.get(f"/assets/{'a' * 300}").status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        *("{tmp}/private.png", "/dev/zero", "/etc/passwd", "/no/such/file", "me.png", "", "http://127.0.0.1:1/a.png"),
        *("{photos}", "{photos}/a1/../../private.png", "{photos}/a1/me.png\0", "{photos}//a1/me.png", "{photos}/none"),
        *("{photos}/a1/link.png", "file://{photos}/a1/me.png"),
    ],
)
def test_no_other_path_is_read_and_the_answer_says_nothing_about_it(
    client: TestClient, photos: Path, tmp_path: Path, path: str
) -> None:
    (photos / "a1" / "link.png").symlink_to(tmp_path / "private.png")
    named = path.format(tmp=tmp_path, photos=photos)
    assert call(client, named) == demo_requests.BAD_CALL
    if named and "\0" not in named:
        answer = client.get(FILE + named)
        assert (answer.status_code, answer.text) == demo_requests.NOT_FOUND


@pytest.mark.parametrize(
    "changed",
    [
        *({"fn_index": 1}, {"fn_index": None}, {"data": []}, {"data": [None, None]}, {"data": [[None]]}, {"data": "x"}),
        *({"session_hash": "../x"}, {"session_hash": None}, {"session_hash": "s" * 65}, {"trigger_id": {}}),
    ],
)
def test_other_calls_are_refused(client: TestClient, changed: dict[str, object]) -> None:
    assert call(client, None, **{"data": [None], **changed}) == demo_requests.BAD_CALL


HALF = rb'{"data": [{"path": "\ud800"}], "fn_index": 0, "session_hash": "s"}'
"""Names a file by half of a character, which no file system can look up."""


@pytest.mark.parametrize("body", [b"", b"[" * 60_000, b"null", b"\xff", b'{"data": [{"path": ["x"]}]}', HALF])
def test_damaged_calls_are_refused(client: TestClient, body: bytes) -> None:
    answer = client.post(CALL, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.text) == demo_requests.BAD_CALL


@pytest.mark.parametrize(
    "path",
    ["run/predict", "call/predict", "api/predict", "component_server", "vibe-edit", "process_recording", "cancel"],
)
def test_gradios_other_routes_are_closed(client: TestClient, path: str) -> None:
    assert client.post(f"/gradio_api/{path}", json={"data": [None]}).status_code == 404
    assert client.get(f"/gradio_api/{path}").status_code == 404
    assert client.get("/config").status_code == client.get("/gradio_api/proxy=http://x/").status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        *({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:7861"}),
        *({"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Referer": f"{PAGE}.evil.example/"}),
    ],
    ids=str,
)
def test_other_sites_are_refused(client: TestClient, photos: Path, headers: dict[str, str]) -> None:
    content = {"data": [None], "fn_index": 0, "session_hash": "s1"}
    refused = client.post(CALL, json=content, headers=headers)
    assert (refused.status_code, refused.text) == demo_requests.CROSS_SITE
    assert client.post(UPLOAD, content=b"x", headers={**FORM, **headers}).status_code == 403
    assert "access-control-allow-origin" not in client.options(CALL, headers=headers).headers
    own = {"Origin": PAGE, "Referer": f"{PAGE}/", "Sec-Fetch-Site": "same-origin"}
    assert client.post(CALL, json=content, headers=own).status_code == 200
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/", headers=link).status_code == 200


def test_sizes_and_rates_are_bounded(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_requests, "MAX_UPLOAD", 1000)
    assert client.post(UPLOAD, content=b"x" * 1000, headers=FORM).status_code == 200
    assert client.post(UPLOAD, content=b"x" * 1001, headers=FORM).status_code == 413
    assert client.post(UPLOAD, content=iter([b"x"]), headers=FORM).status_code == 411  # of unknown length
    assert client.post(CALL, json=["x" * 70_000]).status_code == 413
    assert client.post(CALL, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    statuses = [client.post(UPLOAD, content=b"", headers=FORM).status_code for _ in range(demo_requests.BURST + 50)]
    assert statuses[0] == 200
    assert statuses.count(429) > 20  # a slow machine earns a request now and then


def test_headers_of_a_proxy_or_for_a_part_and_the_pages_query_are_not_passed_on(client: TestClient) -> None:
    answer = client.get(
        "/?deep_link=../x",
        headers={"X-Forwarded-Host": "evil.example", "Forwarded": "host=evil", "Range": "bytes=0-1,3-4"},
    )
    assert answer.text == ""
    assert "forwarded" not in answer.headers["names"]
    assert "range" not in answer.headers["names"]
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]


def test_the_oldest_files_make_room(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        folder = photos / str(number)
        folder.mkdir()
        (folder / "a.png").write_bytes(b"x" * 100)
        os.utime(folder / "a.png", (number, number))
    monkeypatch.setattr(demo_requests, "MAX_KEPT", 250)
    make_room(photos)
    assert sorted(path.parent.name for path in photos.rglob("*.png")) == ["4", "5", "a1"]
    assert not (photos / "0").exists()
    monkeypatch.setattr(demo_requests, "MAX_FILES", 1)
    make_room(photos)
    assert [path.parent.name for path in photos.rglob("*.png")] == ["a1"]


class TestPhotos:
    def test_a_missing_or_endless_photo_is_not_named(self, tmp_path: Path) -> None:
        for path, words in ((tmp_path / "gone.png", "no longer here"), (Path("/dev/zero"), "too large")):
            with pytest.raises(UserError, match=words) as refused:
                demo_page.read_photo(str(path))
            assert str(path) not in str(refused.value)

    def test_a_large_photo_is_reduced_and_a_long_one_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(demo_page, "MAX_PIXELS", 5000)
        cv2.imwrite(str(tmp_path / "large.png"), np.zeros((100, 200), np.uint8))
        assert demo_page.read_photo(str(tmp_path / "large.png")).shape == (50, 100)
        cv2.imwrite(str(tmp_path / "long.png"), np.zeros((10, 200), np.uint8))
        with pytest.raises(UserError, match="8 times as long as wide"):
            demo_page.read_photo(str(tmp_path / "long.png"))

    @pytest.mark.parametrize(("scans", "accepted"), [(0, True), (20, True), (300, False)])
    def test_a_jpeg_of_endless_scans_is_refused(self, scans: int, accepted: bool, tmp_path: Path) -> None:
        stream = io.BytesIO()
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(stream, "JPEG", progressive=True)
        whole = stream.getvalue()
        last = whole[whole.rindex(b"\xff\xda") : -2]
        (tmp_path / "a.jpg").write_bytes(whole[:-2] + scans * last + whole[-2:] + 300 * last)
        if accepted:
            assert demo_page.read_photo(str(tmp_path / "a.jpg")).shape == (64, 64)
        else:
            with pytest.raises(UserError, match="too large"):
                demo_page.read_photo(str(tmp_path / "a.jpg"))
