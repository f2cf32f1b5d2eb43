"""What one request has cost and seen: `preprocessing` begins it, `vit` completes it and tells whoever has the request's id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from pydantic import TypeAdapter


@dataclass(frozen=True)
class PreprocessingReport:
    """Seconds and bytes of a request's time in `preprocessing`.

    Attributes:
        queue_seconds: Waiting for a worker.
        fetch_seconds: Opening, downloading and hashing.
        fetch_bytes: Of the media.
        decode_seconds: Decoding and resizing what this request was the first to want.
        began_at, ended_at: When it came and was answered, seconds of CLOCK_MONOTONIC.
    """

    queue_seconds: float = 0.0
    fetch_seconds: float = 0.0
    fetch_bytes: float = 0.0
    decode_seconds: float = 0.0
    began_at: float = 0.0
    ended_at: float = 0.0


@dataclass(frozen=True)
class VitReport:
    """Of a request's time in `vit`.

    Attributes:
        queue_seconds: Waiting for a worker.
        work_seconds: At work, waiting for the tower included.
        vision_seconds: This request's share of the tower's chunks.
        vision_frames: Frames that went through the tower for it.
        began_at, ended_at: As in `preprocessing`.
    """

    queue_seconds: float = 0.0
    work_seconds: float = 0.0
    vision_seconds: float = 0.0
    vision_frames: float = 0.0
    began_at: float = 0.0
    ended_at: float = 0.0


@dataclass(frozen=True)
class MediumReport:
    """One medium, as it was sampled.

    Attributes:
        frames: T.
        cached_frames: How many of them were not decoded for this request.
        frame_numbers: In the video, T of them.
        frame_seconds: When they are shown, T of them; empty where that is not known.
        damaged_frames: How many show damage.
        fps: Frames a second that were taken, where the request asked for more than fit; None: as asked.
    """

    frames: int
    cached_frames: int
    frame_numbers: list[int] = field(default_factory=list)
    frame_seconds: list[float] = field(default_factory=list)
    damaged_frames: int = 0
    fps: float | None = None


@dataclass(frozen=True)
class Report:
    """Of one request. A part that is None is not known: the request did not come that far, or `vit` was called alone.

    Attributes:
        preprocessing: Its stages there.
        vit: Its stages there.
        media: In the order of the conversation.
    """

    preprocessing: PreprocessingReport | None = None
    vit: VitReport | None = None
    media: list[MediumReport] = field(default_factory=list)

    @classmethod
    def of_preprocessing(cls, figures: Mapping[str, float], media: list[MediumReport]) -> Report:
        """Begin it with what a meter's tally says."""
        return cls(PreprocessingReport(**_known(PreprocessingReport, figures)), media=media)

    def with_vit(self, figures: Mapping[str, float]) -> Report:
        """Complete it."""
        return replace(self, vit=VitReport(**_known(VitReport, figures)))

    def with_decoding(self, endings: Sequence[tuple[int, float] | None]) -> Report:
        """Complete it with what is known only once all frames are there.

        Args:
            endings: Of each medium its damaged frames and the seconds that decoding took; None: it was complete.
        """
        media, seconds = list(self.media), 0.0
        for place, ending in enumerate(endings[: len(media)]):
            if ending is not None:
                seconds += ending[1] if not media[place].cached_frames else 0.0
                media[place] = replace(media[place], damaged_frames=ending[0])
        began = self.preprocessing
        if began is not None:
            began = replace(began, decode_seconds=began.decode_seconds + seconds)
        return replace(self, preprocessing=began, media=media)

    def to_json(self) -> bytes:
        """As it travels."""
        return _ADAPTER.dump_json(self)

    @classmethod
    def from_json(cls, raw: bytes) -> Report:
        """What :meth:`to_json` wrote.

        Raises:
            ValueError: It is something else.
        """
        return _ADAPTER.validate_json(raw)


_ADAPTER: TypeAdapter[Report] = TypeAdapter(Report)


def _known(kind: type[PreprocessingReport] | type[VitReport], figures: Mapping[str, float]) -> dict[str, float]:
    return {each.name: figures[each.name] for each in fields(kind) if each.name in figures}
