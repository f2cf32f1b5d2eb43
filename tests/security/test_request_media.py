"""What the media of one request may hold together."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from internvideo_server.deadline import Deadline
from internvideo_server.errors import ErrorCode, ServingError
from internvideo_server.limits import EngineLimits
from internvideo_server.metrics import Meter
from internvideo_server.preprocessing.frame_store import FrameStore
from internvideo_server.preprocessing.media import MediaPolicy
from internvideo_server.preprocessing.pipeline import Preprocessed, Preprocessor
from internvideo_server.preprocessing.video import FrameDecoder
from tests.test_preprocessing_handover import Vit
from tests.tokenizer_files import small_tokenizers
from tests.video_decoding import V0, V1


class Host(ThreadingHTTPServer):
    """Serves a video, and counts how often."""

    def __init__(self) -> None:
        self.served: list[str] = []
        super().__init__(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server_port}"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.served.append(self.path)
                content = (V1 if "v1" in self.path else V0).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host() as host:
        thread = threading.Thread(target=host.serve_forever)
        thread.start()
        yield host
        host.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def decoder() -> Iterator[FrameDecoder]:
    with FrameDecoder(1) as decoder:
        yield decoder


def ask(decoder: FrameDecoder, urls: list[str], **limits: int) -> Preprocessed:
    tokenizer, meter = small_tokenizers().chat, Meter()
    engine = EngineLimits("float32", tokenizer.vocab_size, 64, 2, 8000, 8192, 8000, 2 * 4096)
    policy = MediaPolicy(private_hosts=("127.0.0.1",), **limits)
    vit: Any = Vit()
    preprocessor = Preprocessor(tokenizer, engine, policy, FrameStore(decoder, 1 << 30, meter), 128, vit, meter)
    parts = [{"type": "video_url", "video_url": {"url": url, "num_frames": 4}} for url in urls]
    messages = json.dumps([{"role": "user", "content": parts}]).encode()
    return preprocessor(messages, 8, None, Deadline(), "request")


def test_equal_urls_are_fetched_once(decoder: FrameDecoder, host: Host) -> None:
    """2.5 KB with one URL thirty-two times held 16 GiB."""
    host.served.clear()
    prepared = ask(decoder, [f"{host.url}/v0"] * 32, max_bytes=V0.stat().st_size, max_total_bytes=V0.stat().st_size)
    assert host.served == ["/v0"]
    assert [medium.frame_count for medium in prepared.media] == [4] * 32


def test_all_media_of_a_request_have_a_limit(decoder: FrameDecoder, host: Host) -> None:
    most = V0.stat().st_size + V1.stat().st_size
    assert len(ask(decoder, [f"{host.url}/v0", f"{host.url}/v1"], max_total_bytes=most).media) == 2
    with pytest.raises(ServingError, match="together") as caught:
        ask(decoder, [f"{host.url}/v0", f"{host.url}/v1"], max_total_bytes=most - 1)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
