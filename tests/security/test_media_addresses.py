"""Addresses and paths that only look harmless."""

from __future__ import annotations

import os

import numpy as np
import pytest

from internvideo_server.errors import ErrorCode, ServingError
from internvideo_server.preprocessing.attachments import Attachments
from internvideo_server.preprocessing.media import MediaPolicy, fetch
from internvideo_server.preprocessing.media._addresses import is_own, is_public


@pytest.mark.parametrize("address", ["168.63.129.16", "192.0.0.192", "192.0.0.8", "3fff::1", "3fff:fff::1"])
def test_hosts_of_the_cloud_and_reserved_networks_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["168.63.129.17", "192.0.1.1", "2600::1", "8.8.8.8"])
def test_their_neighbours_are(address: str) -> None:
    assert is_public(address)


def test_the_machines_own_addresses_are_known() -> None:
    assert is_own("127.0.0.1")
    assert not is_own("192.0.2.1")  # of documentation: no machine's


@pytest.mark.parametrize("path", ["/proc/1/cwd/x", "/proc/1/root/etc/passwd", "/proc/self/root/etc/passwd"])
def test_links_of_proc_lead_nowhere(path: str) -> None:
    with pytest.raises(ServingError) as caught:
        fetch(f"file://{path}", MediaPolicy(), "url")
    assert caught.value.code is ErrorCode.PERMISSION_DENIED


@pytest.mark.parametrize("url", ["file:///" + "a/" * 3_000_000, "http://" + "a" * 3_000_000, "file:///" + "%41" * 2_000_000])
def test_an_address_of_millions_of_characters_is_not_looked_at(url: str) -> None:
    """Where the links of such a path lead took a minute, in the process that serves everybody."""
    with pytest.raises(ServingError, match="more than 16384 characters"):
        fetch(url, MediaPolicy(), "url")


def test_a_list_of_millions_of_pictures_is_not_taken_apart() -> None:
    with pytest.raises(ServingError, match="more than 65536 pictures"):
        fetch("data:video/jpeg;base64," + "QUJD," * 100_000, MediaPolicy(), "url")


def test_media_that_come_together_are_found_by_their_number() -> None:
    content = np.arange(200, dtype=np.uint8)
    media = Attachments(content, np.array([150, 0, 50]))
    with media.open("attachment:2", MediaPolicy(), "url") as last:
        assert os.pread(last.fd, 100, 0) == content[150:].tobytes()
    for url in ("attachment:3", "attachment:-1", "attachment:" + "9" * 5000):
        with pytest.raises(ServingError, match="there is no attachment"):
            media.open(url, MediaPolicy(), "url")
    with pytest.raises(ServingError, match=r"video_sizes \[150, 1\] do not add up"):
        Attachments(content, np.array([150, 1])).open("attachment:0", MediaPolicy(), "url")
