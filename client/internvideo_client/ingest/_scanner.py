"""Cuts long ``data:`` strings out of JSON while it comes, and counts the rest before any object is built of it.

A video of 100 MB in a ``data:`` URL costs 0.4 s and twice its size to parse, and everybody's stream stands still meanwhile. Here
it is looked at once, by ``bytes.find``; what is left is small.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
from dataclasses import dataclass, field

_STRUCTURE = re.compile(rb'["{}\[\],]')
_OPEN_ESCAPE = re.compile(rb"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_PLAIN_BASE64 = re.compile(rb"data:(?P<mime>[^,]*?)(;[^,;=]+=[^,;]*)*;base64\Z", re.I)
_PREFIX = b"data:"
_HEAD_BYTES = 256  # of a data: URL until its comma; a longer one stays as it is
_BACKSLASH = 0x5C
_FIRST_LOOK = 256  # bytes of a string with escapes; then four times as many
_BLOCK = 64 * 1024  # characters decoded at once, a multiple of 4: a thousandth of a second


class ScanError(ValueError):
    """The document is beyond a limit, or no JSON that could be read on.

    Args:
        message: What is wrong.
        too_large: Whether less of the same would be right.
    """

    def __init__(self, message: str, *, too_large: bool = True) -> None:
        super().__init__(message)
        self.too_large = too_large


@dataclass
class Cut:
    """One string that was cut out.

    Attributes:
        mark: What stands in its place.
        head: ``data:TYPE;base64`` of a decoded one; empty for one whose text was kept as it came.
        pieces: Its decoded content, or the text.
    """

    mark: str
    head: bytes = b""
    pieces: list[bytes] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The string again."""
        content = b"".join(self.pieces)
        whole = self.head + b"," + base64.b64encode(content) if self.head else content
        text = whole.decode(
            "utf-8", "surrogatepass"
        )  # the two halves of an escaped character beyond the first 65,536 become one:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class JsonScanner:
    """Fed with a JSON document in pieces.

    Args:
        cut_from: Strings that begin with ``data:`` and are longer than this many bytes are cut out.
        max_rest_bytes: Most bytes beside them.
        max_values: Most values (items and members), the document's objects and lists among them.
        max_depth: Deepest nest.

    Raises (`feed`):
        ScanError: A limit is passed.
    """

    def __init__(
        self, *, cut_from: int = 4096, max_rest_bytes: int = 1 << 22, max_values: int = 200_000, max_depth: int = 64
    ) -> None:
        self._cut_from = cut_from
        self._limits = (max_rest_bytes, max_values, max_depth)
        self._rest = bytearray()
        self._nonce = secrets.token_hex(8)
        self._in_string = False
        self._escaped = False  # the last byte was a backslash
        self._string_at = 0  # where in the rest the open string begins
        self._sink: _Base64Sink | None = None  # of the open string, once it is being cut
        self._values = self._depth = 0
        self.cuts: list[Cut] = []

    def feed(self, data: bytes) -> None:
        """The next piece."""
        at = 0
        while at < len(data):
            at = self._string(data, at) if self._in_string else self._plain(data, at)
        if len(self._rest) > self._limits[0]:
            raise ScanError(f"the JSON beside its media is larger than {self._limits[0]} bytes")

    def finish(self) -> bytes:
        """The document without the cut strings, not parsed."""
        if self._sink is not None:
            raise ScanError("the body ends within a string", too_large=False)
        return bytes(self._rest)

    def _plain(self, data: bytes, at: int) -> int:
        """From outside of a string to its begin or the end of `data`."""
        end = data.find(b'"', at)
        stop = len(data) if end < 0 else end + 1
        span = data[at:stop]
        opened = span.count(b"{") + span.count(b"[")
        self._values += span.count(b",") + opened
        if self._values > self._limits[1]:
            raise ScanError(f"the JSON has more than {self._limits[1]} values")
        if opened + self._depth > self._limits[2]:
            self._count_depth(span)
        else:
            self._depth += opened - span.count(b"}") - span.count(b"]")
        self._rest += span
        if end >= 0:
            self._in_string, self._escaped = True, False
            self._string_at = len(self._rest)
        return stop

    def _count_depth(self, span: bytes) -> None:
        for found in _STRUCTURE.finditer(span):
            self._depth += {b"{": 1, b"[": 1, b"}": -1, b"]": -1}.get(found[0], 0)
            if self._depth > self._limits[2]:
                raise ScanError(f"the JSON is nested deeper than {self._limits[2]} levels", too_large=False)

    def _string(self, data: bytes, at: int) -> int:
        """From inside of a string to behind its end or to the end of `data`."""
        end = self._string_end(data, at)
        stop = len(data) if end < 0 else end
        piece = data[at:stop]
        if self._sink is not None:
            self._sink.push(piece)
        else:
            self._rest += piece
            self._begin_cut()
        if end < 0:
            return len(data)
        if self._sink is not None:
            self._sink.finish()
            self._rest += self._sink.cut.mark.encode()
            self._sink = None
        self._rest += b'"'
        self._in_string = False
        return end + 1

    def _string_end(self, data: bytes, at: int) -> int:
        """The closing quote's position, -1 where it is not in `data`."""
        if self._escaped:
            self._escaped = False
            at += 1
        quote = data.find(b'"', at)
        if quote == at or (quote > at and data[quote - 1] != _BACKSLASH):
            return quote
        size = _FIRST_LOOK
        while at < len(data):
            # Escapes that could hide the end are blotted out, all at once: a body may have hundreds of millions.
            seen = data[at : at + size].replace(rb"\\", b"  ").replace(rb"\"", b"  ")
            if (found := seen.find(b'"')) >= 0:
                return at + found
            at += len(seen)
            if seen.endswith(b"\\"):  # what it escapes comes behind
                self._escaped = at == len(data)
                at -= not self._escaped
            size *= 4
        return -1

    def _begin_cut(self) -> None:
        begun = len(self._rest) - self._string_at
        if begun <= self._cut_from or not self._rest.startswith(_PREFIX, self._string_at):
            return
        text = bytes(self._rest[self._string_at :])
        del self._rest[self._string_at :]
        cut = Cut(f"{self._nonce}:{len(self.cuts)}")
        self.cuts.append(cut)
        self._sink = _Base64Sink(cut, self._limits[0])
        self._sink.push(text)


class _Base64Sink:
    """Takes the escaped text of one string, gives its cut the decoded content.

    Args:
        cut: Takes it.
        max_text_bytes: What is longer, and no base64 in the end, is refused.
    """

    def __init__(self, cut: Cut, max_text_bytes: int) -> None:
        self.cut = cut
        self._max_text_bytes = max_text_bytes
        self._strange_bytes = 0  # of pieces with characters that no base64 has
        self._escaped = b""  # the begin of an escape at the end of a piece
        self._text = b""  # not decoded yet
        self._head_seen = False
        self._padded = False

    def push(self, piece: bytes) -> None:
        if self._escaped or b"\\" in piece:
            piece = self._escaped + piece
            open_escape = _OPEN_ESCAPE.search(piece) if _ends_in_escape(piece) else None
            self._escaped = b"" if open_escape is None else open_escape[0]
            piece = self._unescaped(piece[: len(piece) - len(self._escaped)])
        self._text += piece
        if not self._head_seen:
            self._read_head()
        if self.cut.head:
            self._decode(len(self._text) // 4 * 4)
        else:
            self.cut.pieces.append(self._text)
            self._text = b""

    def finish(self) -> None:
        if self.cut.head:
            self._decode(len(self._text))

    def _read_head(self) -> None:
        self._head_seen = True
        head, comma, _ = self._text[:_HEAD_BYTES].partition(b",")
        found = _PLAIN_BASE64.match(head) if comma else None
        # What is not plain base64 (frames in a row, percent signs) is kept as text: preprocessing knows all the forms.
        if (
            found
            and found["mime"].lower() not in (b"video/jpeg", b"video/png")
            and not _UNUSUAL.search(self._text, len(head) + 1)
        ):
            self.cut.head = head
            self._text = self._text[len(head) + 1 :]

    def _decode(self, count: int) -> None:
        for start in range(0, count, _BLOCK):
            block = self._text[start : min(start + _BLOCK, count)]
            try:
                if self._padded:
                    raise binascii.Error("more behind the padding")
                self.cut.pieces.append(binascii.a2b_base64(block, strict_mode=True))
            except binascii.Error:
                self._keep_text(block + self._text[start + len(block) :])
                return
            self._padded = block.endswith(b"=")
        self._text = self._text[count:]

    def _unescaped(self, piece: bytes) -> bytes:
        """By json's own scanner: a call of Python for each escape would take minutes for a body of nothing else."""
        if piece.isascii():
            return _unescaped(piece)
        self._strange_bytes += len(piece)
        if self._strange_bytes > self._max_text_bytes:
            raise ScanError(_NOT_BASE64, too_large=False)
        return _ASCII.sub(lambda found: _unescaped(found[0]), piece)

    def _keep_text(self, rest: bytes) -> None:
        """Go back to the text: line breaks or another alphabet appeared in it; it is judged where all the forms are known.

        Those appear at once. Where they come after more than a text may have, putting it together again would stop everybody.
        """
        if sum(map(len, self.cut.pieces)) > self._max_text_bytes:
            raise ScanError(_NOT_BASE64, too_large=False)
        self.cut.pieces = [self.cut.head, b",", *map(base64.b64encode, self.cut.pieces), rest]
        self.cut.head = self._text = b""


_UNUSUAL = re.compile(rb"[^A-Za-z0-9+/=]")
_ASCII = re.compile(rb"[\x00-\x7f]+")
_NOT_BASE64 = "a data: URL's content is not valid base64: encode the whole file again"


def _unescaped(piece: bytes) -> bytes:
    try:
        text: str = json.loads(f'"{piece.decode()}"', strict=False)
    except ValueError as error:
        raise ScanError(f"the body is not valid JSON: {str(error)[:100]}", too_large=False) from None
    return text.encode("utf-8", "surrogatepass")


def _ends_in_escape(piece: bytes) -> bool:
    """Whether the last escape of a piece may go on in the next one."""
    tail = piece[-6:]
    at = tail.rfind(b"\\")
    if at < 0:
        return False
    # An even run of backslashes is complete in itself.
    position = len(piece) - len(tail) + at
    run = len(piece[: position + 1]) - len(piece[: position + 1].rstrip(b"\\"))
    return run % 2 == 1
