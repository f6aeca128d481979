"""A local web page to try a model on: ``python -m fer_lightning.demo CHECKPOINT [--port 7860]``.

The page is served to this machine only, loads nothing from other servers, and deletes every photo when it stops.
"""

import logging

from fer_lightning.config.command_line import Parser, run_tool
from fer_lightning.inference.demo_server import serve
from fer_lightning.runtime.run_folder import checkpoint_file


def main(arguments: list[str] | None = None) -> None:
    """Serve a local page that classifies photos or camera pictures; Ctrl-C stops it."""
    parser = Parser(prog="python -m fer_lightning.demo", description=main.__doc__)
    parser.add_argument("checkpoint", type=checkpoint_file, help="a run's folder, or its checkpoints/best.ckpt")
    parser.add_argument("--port", type=int, default=7860, help="port of the page; 0 for any free one; default: 7860")
    parsed = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    serve(parsed.checkpoint, parsed.port)


if __name__ == "__main__":
    run_tool(main)
