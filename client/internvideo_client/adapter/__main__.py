"""``python -m internvideo_client.adapter``: the adapter as a process, or several."""

from __future__ import annotations

import typer

from internvideo_server.settings import AdapterSettings, options_from

from ._process import run_adapter


@options_from(AdapterSettings)
def main(settings: AdapterSettings) -> None:
    """Serve the OpenAI API in front of a running Triton."""
    run_adapter(settings)


if __name__ == "__main__":
    typer.run(main)
