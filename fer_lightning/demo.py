"""A local page to try a model on: ``python -m fer_lightning.demo CHECKPOINT [--port 7860]``.

The page is served to this machine alone, loads nothing from elsewhere, and forgets every photo when it ends.
"""

import logging
import os
import signal
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from types import FrameType

from fer_lightning.config import command_line
from fer_lightning.config import schema as schema
from fer_lightning.config.command_line import Parser
from fer_lightning.runtime.errors import UserError

log = logging.getLogger(__name__)

HOST = "127.0.0.1"

# Nothing of a page that names another server would be loaded; the scripts are Gradio's own, which needs both "unsafe".
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "frame-ancestors 'none'"
)


def main(arguments: list[str] | None = None) -> None:
    """Try a model on photos or the camera, on a page of this machine; Ctrl-C ends it."""
    parser = Parser(prog="python -m fer_lightning.demo", description=main.__doc__)
    parser.add_argument("checkpoint", type=Path, help="a run's checkpoints/best.ckpt")
    parser.add_argument("--port", type=int, default=7860, help="of the page; 0 takes any free one; default: 7860")
    parsed = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with listen(parsed.port) as listener, tempfile.TemporaryDirectory(prefix="fer_lightning_demo_") as photos:
        # Read by Gradio when it is imported.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": photos}
        signal.signal(signal.SIGTERM, _stop)
        with suppress(KeyboardInterrupt):  # which Uvicorn passes on, or not
            serve(parsed.checkpoint, listener)
        log.info("stopped")


def listen(port: int) -> socket.socket:
    """A socket that only this machine can reach.

    Raises:
        UserError: when the port is taken, or may not be used.
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


def serve(checkpoint: Path, listener: socket.socket) -> None:
    """Answer until a signal ends it."""
    try:
        import gradio
        import uvicorn
        from fastapi import FastAPI, Request, Response
        from starlette.middleware.base import RequestResponseEndpoint
        from starlette.middleware.trustedhost import TrustedHostMiddleware
    except ImportError:
        raise UserError("the page needs Gradio: pip install 'fer_lightning[demo]'") from None
    from fer_lightning.data.archives import MAX_PIECE
    from fer_lightning.evaluation.probabilities import pick_device
    from fer_lightning.inference import demo_page
    from fer_lightning.inference.detect import check_detector
    from fer_lightning.model.classifier import EmotionClassifier

    model = EmotionClassifier.load(checkpoint)
    check_detector()
    page = demo_page.build(model, pick_device("auto"))
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    # Another site's page must not reach this one under a name of its own that points here.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])

    @app.middleware("http")
    async def add_policy(request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    gradio.mount_gradio_app(
        app,
        page,
        "/",
        footer_links=[],
        run_history=False,  # which would keep the photos in the browser
        max_file_size=MAX_PIECE,
        ssr_mode=False,
        theme=demo_page.theme(),
        css_paths=Path(__file__).parent / "inference" / "demo.css",
    )
    log.info("open http://%s:%d in a browser; Ctrl-C ends it", HOST, listener.getsockname()[1])
    settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    uvicorn.Server(settings).run(sockets=[listener])


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    command_line.run_tool(main)
