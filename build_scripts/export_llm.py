"""Make the engine directory of the embedded engine from a checkpoint (:mod:`internvideo_server.export`)."""

from __future__ import annotations

import typer

from internvideo_server.export.__main__ import main

if __name__ == "__main__":
    typer.run(main)
