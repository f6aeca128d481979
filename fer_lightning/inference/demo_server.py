"""The server of the demo page: this machine only, no other server contacted, uploaded photos deleted at the end."""

import logging
import os
import signal
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from types import FrameType

from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import real_path

log = logging.getLogger(__name__)

HOST = "127.0.0.1"


def serve(checkpoint: Path, port: int) -> None:
    """Serve the page for a model until SIGINT or SIGTERM.

    Raises:
        UserError: the port, the checkpoint or Gradio cannot be used.
    """
    with listen(port) as listener, tempfile.TemporaryDirectory(prefix="fer_lightning_demo_") as photos:
        folder = real_path(photos)
        # Gradio reads both when it is imported.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(folder)}
        signal.signal(signal.SIGTERM, _stop)
        with suppress(KeyboardInterrupt):  # raised while the page is built, before the server takes the signals
            _run_server(checkpoint, listener, folder)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # a second one would leave the photos
        log.info("stopped")


def listen(port: int) -> socket.socket:
    """Open a socket that only this machine can connect to.

    Raises:
        UserError: the port is taken, or must not be used.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port}: must be in 0..65535")
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise UserError(f"--port {port}: cannot be used ({error.strerror}); choose another, or 0 for any") from None
    return listener


def _run_server(checkpoint: Path, listener: socket.socket, photos: Path) -> None:
    try:
        import gradio
        import uvicorn
        from fastapi import FastAPI
        from starlette.middleware.trustedhost import TrustedHostMiddleware
    except ImportError:
        raise UserError("the page needs Gradio: pip install 'fer_lightning[demo]'") from None
    from fer_lightning.data.archives import MAX_PIECE
    from fer_lightning.evaluation.probabilities import pick_device
    from fer_lightning.inference import demo_page, demo_requests
    from fer_lightning.inference.demo_connections import BURST, BoundedProtocol
    from fer_lightning.inference.detect import check_detector
    from fer_lightning.model.classifier import EmotionClassifier

    model = EmotionClassifier.load(checkpoint)
    check_detector()
    page = demo_page.build(model, pick_device("auto"))
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(demo_requests.Guard, photos=photos)
    # Against DNS rebinding: another site must not reach this page under a host name of its own.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    gradio.mount_gradio_app(
        app,
        page,
        "/",
        footer_links=[],
        run_history=False,  # it would store the photos in the browser
        max_file_size=MAX_PIECE,
        show_error=False,  # errors of the library name files
        ssr_mode=False,
        theme=demo_page.theme(),
        css_paths=Path(__file__).with_name("demo.css"),
    )
    log.info("open http://%s:%d in a browser; Ctrl-C stops it", HOST, listener.getsockname()[1])
    settings = uvicorn.Config(
        app,
        log_level="warning",
        timeout_graceful_shutdown=1,
        http=BoundedProtocol,
        backlog=BURST,
        proxy_headers=False,
        server_header=False,
        ws="none",
    )
    server = uvicorn.Server(settings)

    def end(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    # Its own handler ends at once at a second Ctrl-C, with tracebacks of what it cut off.
    server.handle_exit = end  # type: ignore[assignment]
    # It restores these before its event loop is closed: a signal then must not interrupt that.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    server.run(sockets=[listener])


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
