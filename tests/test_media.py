"""Fetching from files and data URLs: what is allowed, and what is refused with which code."""

import base64
import os
import resource
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import internvideo_server.preprocessing.media as media
from internvideo_server.deadline import Deadline
from internvideo_server.errors import ErrorCode, ServingError
from internvideo_server.preprocessing.media import Media, MediaPolicy, fetch

CONTENT = b"not really a video, but bytes"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "allowed"
    folder.mkdir()
    (folder / "a video.mp4").write_bytes(CONTENT)
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    return folder


@pytest.fixture
def policy(root: Path) -> MediaPolicy:
    return MediaPolicy(allowed_local_roots=(root,), max_bytes=1000)


def read(medium: Media) -> bytes:
    with medium:
        return os.pread(medium.fd, medium.size, 0)


def refusal(url: str, policy: MediaPolicy) -> ServingError:
    with pytest.raises(ServingError) as caught:
        fetch(url, policy, "messages.0.content.0.video_url.url").close()
    assert caught.value.param == "messages.0.content.0.video_url.url"
    return caught.value


def test_the_public_surface() -> None:
    assert set(media.__all__) == {"Digests", "Identity", "Media", "MediaPolicy", "fetch"}


@pytest.mark.parametrize("form", ["file://{}", "file://localhost{}", "FILE://{}"])
def test_a_file_under_an_allowed_root_is_read(form: str, root: Path, policy: MediaPolicy) -> None:
    url = form.format(str(root / "a video.mp4").replace(" ", "%20"))
    assert read(fetch(url, policy)) == CONTENT


def test_a_symlink_inside_the_root_is_followed(root: Path, policy: MediaPolicy) -> None:
    (root / "link.mp4").symlink_to(root / "a video.mp4")
    assert read(fetch(f"file://{root}/link.mp4", policy)) == CONTENT


def test_a_root_given_through_a_symlink_works(root: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(root)
    policy = MediaPolicy(allowed_local_roots=(tmp_path / "linked",))
    assert read(fetch(f"file://{tmp_path}/linked/a%20video.mp4", policy)) == CONTENT


@pytest.mark.parametrize("path", ["/../secret.mp4", "/x/../../secret.mp4", "/%2e%2e/secret.mp4", "/../allowed2/x.mp4"])
def test_dots_do_not_lead_out_of_the_root(path: str, root: Path, policy: MediaPolicy, tmp_path: Path) -> None:
    (root / "x").mkdir()
    (tmp_path / "allowed2").mkdir()  # shares the root's name as a prefix
    (tmp_path / "allowed2" / "x.mp4").write_bytes(b"secret")
    assert refusal(f"file://{root}{path}", policy).code is ErrorCode.PERMISSION_DENIED


@pytest.mark.parametrize("through", ["file", "folder"])
def test_symlinks_do_not_lead_out_of_the_root(through: str, root: Path, policy: MediaPolicy, tmp_path: Path) -> None:
    (root / "file").symlink_to(tmp_path / "secret.mp4")
    (root / "folder").symlink_to(tmp_path)
    path = root / "file" if through == "file" else root / "folder" / "secret.mp4"
    assert refusal(f"file://{path}", policy).code is ErrorCode.PERMISSION_DENIED


def test_whether_a_path_outside_exists_is_not_told(policy: MediaPolicy, tmp_path: Path) -> None:
    there, not_there = refusal(f"file://{tmp_path}/secret.mp4", policy), refusal(f"file://{tmp_path}/nothing", policy)
    assert there.text == not_there.text
    assert there.code is ErrorCode.PERMISSION_DENIED


def test_a_dangling_symlink_out_of_the_root_is_as_forbidden_as_a_good_one(root: Path, policy: MediaPolicy) -> None:
    (root / "dangling").symlink_to("/no/such/file")
    assert refusal(f"file://{root}/dangling", policy).code is ErrorCode.PERMISSION_DENIED


def test_a_missing_file_is_not_found(root: Path, policy: MediaPolicy) -> None:
    assert refusal(f"file://{root}/missing.mp4", policy).code is ErrorCode.NOT_FOUND


def test_without_roots_no_file_is_read(root: Path) -> None:
    assert refusal(f"file://{root}/a%20video.mp4", MediaPolicy()).code is ErrorCode.PERMISSION_DENIED


def test_a_fifo_is_refused_without_waiting_for_its_writer(root: Path, policy: MediaPolicy) -> None:
    os.mkfifo(root / "pipe")
    assert refusal(f"file://{root}/pipe", policy).code is ErrorCode.INVALID_ARGUMENT


@pytest.mark.parametrize("name", ["", "empty.mp4", "large.mp4"])
def test_folders_empty_and_large_files_are_refused(name: str, root: Path, policy: MediaPolicy) -> None:
    (root / "empty.mp4").touch()
    (root / "large.mp4").write_bytes(bytes(1001))
    error = refusal(f"file://{root}/{name}", policy)
    assert error.code is ErrorCode.INVALID_ARGUMENT
    assert ("1000" in error.message) == (name == "large.mp4")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "video.mp4",
        "/etc/passwd",
        "ftp://example.com/a.mp4",
        "rtsp://example.com/a",
        "concat:/a|/b",
        "file:relative.mp4",
        "file://otherhost/a.mp4",
        "file://[/a.mp4",
        "file:///a%00b.mp4",
        "file:///a.mp4?x=1",
        "file:///a.mp4#x",
        "javascript:alert(1)",
        "\0",
    ],
)
def test_other_urls_are_the_clients_fault(url: str, policy: MediaPolicy) -> None:
    assert refusal(url, policy).code is ErrorCode.INVALID_ARGUMENT


def test_a_policy_with_a_missing_root_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a folder"):
        MediaPolicy(allowed_local_roots=(tmp_path / "missing",))


@given(st.binary(min_size=1, max_size=1000), st.booleans())
def test_data_urls_carry_any_bytes(content: bytes, percent: bool) -> None:
    encoded = base64.b64encode(content).decode()
    if percent:
        encoded = encoded.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
    assert read(fetch(f"data:video/mp4;base64,{encoded}", MediaPolicy(max_bytes=1000))) == content


def test_a_large_data_url_is_decoded_piece_by_piece() -> None:
    content = os.urandom(3 << 20) + b"end"
    assert read(fetch("data:;base64," + base64.b64encode(content).decode(), MediaPolicy())) == content


@pytest.mark.parametrize(
    "url",
    [
        "data:",
        "data:video/mp4,plain",
        "data:video/mp4;base64",
        "data:video/mp4;base64,",
        "data:video/mp4;base64,####",
        "data:video/mp4;base64,QUJDR",
        "data:video/mp4;base64,QQ==QUJD",
        "data:video/mp4;base64,QUJ.D",
        "data:video/mp4;base64,ÄÄÄÄ",
    ],
)
def test_broken_data_urls_are_the_clients_fault(url: str, policy: MediaPolicy) -> None:
    assert refusal(url, policy).code is ErrorCode.INVALID_ARGUMENT


@pytest.mark.parametrize("size", [1001, 1003, 5000])
def test_data_urls_over_the_limit_are_refused(size: int, policy: MediaPolicy) -> None:
    assert "1000" in refusal("data:;base64," + base64.b64encode(bytes(size)).decode(), policy).message


def test_uploads_become_media(policy: MediaPolicy) -> None:
    assert read(Media.from_chunks([b"", b"ab", memoryview(b"cd")], policy, None)) == b"abcd"


def test_a_medium_that_fails_leaves_no_file_open(policy: MediaPolicy, root: Path) -> None:
    before = os.listdir("/proc/self/fd")
    for url in (f"file://{root}/missing", f"file://{root}", "data:;base64,QUJDR", "data:;base64,"):
        refusal(url, policy)
    assert os.listdir("/proc/self/fd") == before


def test_a_passed_deadline_ends_a_fetch(root: Path, policy: MediaPolicy) -> None:
    cancelled = threading.Event()
    cancelled.set()
    url = f"file://{root}/a%20video.mp4"
    for deadline, code in (
        (Deadline(cancelled=cancelled.is_set), ErrorCode.CANCELLED),
        (Deadline(time.monotonic()), ErrorCode.DEADLINE_EXCEEDED),
    ):
        with pytest.raises(ServingError) as caught:
            fetch(url, policy, None, deadline)
        assert caught.value.code is code


def test_a_process_that_may_open_no_more_files_is_not_told_to_be_forbidden(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"video")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")), hard))
    held = []
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                held.append(fetch((tmp_path / "a.mp4").as_uri(), MediaPolicy(allowed_local_roots=(tmp_path,))))
    finally:
        for medium in held:
            medium.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
