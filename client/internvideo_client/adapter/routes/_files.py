"""``/v1/files``: upload, list, read and delete."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from internvideo_client.adapter._context import context_of, owner_of
from internvideo_client.errors import ApiError, bad_request
from internvideo_client.state import FileRecord, Upload

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_MOST_FIELD_BYTES = 4096
_MOST_PARTS = 16
MOST_LISTED = 10_000


async def upload_file(request: Request) -> Response:
    """Keep a video or image, sent as multipart/form-data with the fields ``file`` and ``purpose``."""
    context = context_of(request)
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise ApiError(415, "the body must be multipart/form-data with a file", None, "unsupported_media_type")
    upload = context.state.files.begin(owner_of(request))
    try:
        form = _Form(upload)
        try:
            parser = MultipartParser(boundary, form.callbacks())
            async for chunk in request.stream():
                await asyncio.to_thread(parser.write, chunk)
            parser.finalize()
        except FormParserError as error:
            raise bad_request(f"the body is not valid multipart/form-data: {error}", None) from None
        if not form.complete:
            raise bad_request("file: is missing", "file")
        if lost := next((name for name in form.fields if name.startswith("expires_after")), None):
            message = "expires_after: not supported by this server: files go after --file-ttl, or when they are deleted"
            raise bad_request(message, lost, "unsupported_parameter")
        purpose = form.fields.get("purpose", b"vision").decode("utf-8", "replace")[:64]
        record = await upload.commit(form.filename, purpose)
    except BaseException:
        upload.abandon()
        raise
    return JSONResponse(record.json())


async def list_files(request: Request) -> Response:
    """The caller's files."""
    query = request.query_params
    limit = query.get("limit", str(MOST_LISTED))
    if not limit.isdecimal() or len(limit) > 9 or not 1 <= int(limit) <= MOST_LISTED:
        raise bad_request(f"limit: must be from 1 to {MOST_LISTED}", "limit")
    if query.get("order", "desc") not in ("asc", "desc"):
        raise bad_request("order: must be asc or desc", "order")
    count = int(limit)
    found = await context_of(request).state.files.listed(
        owner_of(request), query.get("purpose"), count + 1, query.get("after"), query.get("order") == "asc"
    )
    shown = [record.json() for record in found[:count]]
    ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
    return JSONResponse({"object": "list", "data": shown, **ends, "has_more": len(found) > count})


async def get_file(request: Request) -> Response:
    """What is known of a file."""
    return JSONResponse((await _record(request)).json())


async def file_content(request: Request) -> Response:
    """A file's content, always as a download: it is never shown as a page of this server."""
    record = await _record(request)
    path = context_of(request).state.files.path(record)
    headers = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox"}
    return FileResponse(path, media_type="application/octet-stream", filename=record.filename, headers=headers)


async def delete_file(request: Request) -> Response:
    """Remove a file."""
    file_id = request.path_params["file_id"]
    if not await context_of(request).state.files.delete(file_id, owner_of(request)):
        raise _missing(file_id)
    return JSONResponse({"id": file_id, "object": "file", "deleted": True})


async def _record(request: Request) -> FileRecord:
    file_id = request.path_params["file_id"]
    record = await context_of(request).state.files.get(file_id, owner_of(request))
    if record is None:
        raise _missing(file_id)
    return record


def _missing(file_id: str) -> ApiError:
    return ApiError(404, f"there is no file {file_id[:64]!r} of yours here", "file_id", "file_not_found")


class _Form:
    """The parts of a form as they come: the file to disk, small fields to memory."""

    def __init__(self, upload: Upload) -> None:
        self._upload = upload
        self._header_name = self._header_value = b""
        self._name = b""
        self._parts = 0
        self.fields: dict[str, bytes] = {}
        self.filename = "video"
        self.complete = False

    def callbacks(self) -> MultipartCallbacks:
        """For the parser."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_header_name,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_part_data": self._on_data,
            "on_part_end": self._on_part_end,
        }

    def _begin(self) -> None:
        self._name = b""
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise bad_request(f"the form has more than {_MOST_PARTS} parts")

    def _on_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]
        if len(self._header_value) > _MOST_FIELD_BYTES:
            raise bad_request("a header of the form is too long")

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            _, options = parse_options_header(self._header_value)
            self._name = options.get(b"name", b"")
            if self._name == b"file":
                if self.complete:
                    raise bad_request("file: there is more than one", "file")
                name = options.get(b"filename", b"").decode("utf-8", "replace").replace("\\", "/").rpartition("/")[2]
                self.filename = "".join(c for c in name if c.isprintable())[:255] or self.filename
        self._header_name = self._header_value = b""

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == b"file":
            self._upload.write(data[start:end])
            return
        name = self._name.decode("utf-8", "replace")[:64]
        value = self.fields[name] = self.fields.get(name, b"") + data[start:end]
        if len(value) > _MOST_FIELD_BYTES:
            raise bad_request(f"{name}: is too long for a field; the part with the file's content is called file", name)

    def _on_part_end(self) -> None:
        self.complete = self.complete or self._name == b"file"
