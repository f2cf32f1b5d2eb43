"""Faults of the chain as OpenAI errors: one map of codes, one place that renders ``{"error": {...}}``.

Triton's gRPC streams carry an error as text alone, so the models put a coded form into it, which an ensemble may wrap::

    in ensemble 'internvideo2_5', [INVALID_ARGUMENT param=messages.0.content.1] num_frames must be a multiple of 4, got 3

The few messages of Triton and TensorRT-LLM themselves are recognised by their words.
"""

from __future__ import annotations

import re
from typing import Any

import grpc

_STATUS = {
    "INVALID_ARGUMENT": 400,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 422,  # a medium; a router would take a 404 for a wrong deployment and close it
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
_TYPES = {
    400: "invalid_request_error",
    401: "invalid_request_error",
    422: "invalid_request_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
}
_TYPES |= {405: "invalid_request_error", 415: "invalid_request_error", 429: "rate_limit_error", 499: "cancelled_error"}

_CODED = re.compile(rf"\[(?P<code>{'|'.join(_STATUS)})(?: param=(?P<param>[^\]\s]+))?\] (?P<message>.*)", re.DOTALL)

_MEDIUM = re.compile(r"\.url$")  # of a param: a fault of what it names is the client's, whatever its kind
_OVERFLOW = re.compile(r"maximum context length", re.I)
_FOREIGN_OVERFLOW = re.compile(r"prompt length \((\d+)\) exceeds maximum input length \((\d+)\)", re.I)

# Words of Triton 2.51 and of the TensorRT-LLM executor, which know no coded form.
_FOREIGN = (
    (re.compile(r"exceeds maximum queue size|maximum queue size of \d+ has been reached", re.I), "RESOURCE_EXHAUSTED"),
    (re.compile(r"request timeout expired", re.I), "DEADLINE_EXCEEDED"),
    (
        re.compile(
            r"stub process .* is not healthy|unknown model|is not ready|failed to connect|stream removed|socket closed|"
            r"increase the shared memory pool|initialize shared memory key",
            re.I,
        ),
        "UNAVAILABLE",
    ),
)
#: The one text of a 429, whichever queue is full.
QUEUE_FULL = "the server's queue is full: try again after the seconds that Retry-After says"

_FOREIGN_MESSAGES = {
    "RESOURCE_EXHAUSTED": QUEUE_FULL,
    "DEADLINE_EXCEEDED": "the request waited too long for its turn: try again when the server is less busy",
    "UNAVAILABLE": "a model of the server is not available at the moment",
    "CANCELLED": "the request was cancelled",
    "UNIMPLEMENTED": "the server does not know this call",
    "INTERNAL": "the server failed to answer this request; its log holds the reason",
}


class ApiError(Exception):
    """An error as a client of the OpenAI API sees it.

    Args:
        status: HTTP status.
        message: What is wrong and what would be right.
        param: The request field at fault (``messages.0.content.1.video_url.url``).
        code: A stable word for programs, for example ``model_not_found``.
        retry_after_s: When trying again makes sense, for a 429 or 503.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, retry_after_s: int = 1
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s
        self.message = message
        self.param = param
        self.code = code

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object. Lone surrogates of the request are escaped, so that it can always be encoded."""
        return {
            "error": {
                "message": _encodable(self.message),
                "type": _TYPES.get(self.status, "server_error"),
                "param": None if self.param is None else _encodable(self.param),
                "code": self.code,
            }
        }

    @property
    def headers(self) -> dict[str, str]:
        """``Retry-After`` where trying again makes sense, and OpenAI's word for where it does not."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        if self.status == 504:  # the same work would take as long again
            return {"x-should-retry": "false"}
        return {"Retry-After": str(self.retry_after_s)} if self.status in (429, 503) else {}


def bad_request(message: str, param: str | None = None, code: str = "invalid_argument") -> ApiError:
    """A 400, by far the most frequent kind."""
    return ApiError(400, message, param, code)


def renamed(error: ApiError, name: str) -> ApiError:
    """The same fault under another name of its field, in the text too where that begins with it."""
    if error.param and error.message.startswith(f"{error.param}: "):
        error.message = name + error.message.removeprefix(error.param)
    error.param = name
    return error


def from_code(code: str, message: str, param: str | None = None) -> ApiError:
    """The error of one of the chain's codes (gRPC's status names)."""
    return ApiError(_STATUS.get(code, 500), message, param, code.lower())


def from_triton(error: BaseException | str) -> ApiError:
    """What Triton reported, by the coded text in it, by gRPC's status, or by the words of Triton's own messages.

    A text that is not recognised stays in the server's log: it may name paths and internals.
    """
    text = error if isinstance(error, str) else reason_of(error)
    if coded := _CODED.search(text):
        return _of_chain(coded["code"], coded["message"], coded["param"])
    if overflow := _FOREIGN_OVERFLOW.search(text):
        length, limit = overflow.groups()
        return _overflow(f"This model's maximum context length is {limit} tokens, but the prompt has {length}", "messages")
    for pattern, code in _FOREIGN:
        if pattern.search(text):
            return from_code(code, _FOREIGN_MESSAGES[code])
    code = _grpc_status(error)
    return from_code(code, _FOREIGN_MESSAGES.get(code, _FOREIGN_MESSAGES["INTERNAL"]))


def is_coded(text: str) -> bool:
    """Whether one of our models said it."""
    return _CODED.search(text) is not None


def _of_chain(code: str, message: str, param: str | None) -> ApiError:
    if param and _MEDIUM.search(param) and code in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
        return ApiError(422, message, param, code.lower())
    if code == "INVALID_ARGUMENT" and _OVERFLOW.search(message):
        return _overflow(message, param)
    return from_code(code, message, param)


def _overflow(message: str, param: str | None) -> ApiError:
    # litellm knows an overflow by "maximum context length", LangChain by "prompt is too long": neither looks at the code.
    return bad_request(f"{message} (the prompt is too long)", param, "context_length_exceeded")


def reason_of(error: BaseException) -> str:
    """One line about a failed call: gRPC's details, without its pages of debug text."""
    return str(error.details() if isinstance(error, grpc.aio.AioRpcError) else error)


def _grpc_status(error: BaseException | str) -> str:
    """The name of gRPC's status, INTERNAL where there is none or one that this API does not use."""
    name = error.code().name if isinstance(error, grpc.aio.AioRpcError) else ""
    # An INVALID_ARGUMENT or NOT_FOUND of Triton itself means that adapter and model repository do not fit: no client fault.
    return name if name in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "RESOURCE_EXHAUSTED") else "INTERNAL"


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
