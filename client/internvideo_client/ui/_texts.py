"""The page's words, in English and Chinese."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ENGLISH = {
    "title": "InternVideo2.5",
    "welcome": "Drop a video or a picture below, or begin with its URL, and ask about it.",
    "entry": "Drop a video, or begin with its URL, and ask",
    "num_frames": "Frames",
    "num_frames_info": "a multiple of 4; 0: as the server is set",
    "start": "From second",
    "end": "To second",
    "end_info": "0: to the end",
    "max_tokens": "Longest answer, tokens",
    "max_tokens_info": "0: no limit of its own",
    "temperature": "Temperature",
    "temperature_info": "0: always the likeliest word",
    "describe": "Describe the video.",
    "stopped": "stopped",
    "cut": "cut at the limit of tokens",
    "gone": "the video is not there any more; drop it again",
    "bug": "the page failed to ask; its log holds the reason",
    "first_token": "first token after {seconds:.2f} s",
    "cached": "{cached} of {frames} frames from the cache",
    "stages": "where the time went",
    "queue_ms": "waiting for a decoder",
    "fetch_ms": "fetching and hashing the video",
    "decode_ms": "decoding, sampling, resizing",
    "vision_queue_ms": "waiting for the vision tower",
    "vision_ms": "vision tower and merging",
    "first_token_ms": "question to first token",
    "tokens": "{prompt_tokens} prompt tokens, {completion_tokens} generated",
}
CHINESE = {
    "title": "InternVideo2.5",
    "welcome": "把视频或图片拖到下面，或以其网址开头，然后提问。",
    "entry": "拖入视频，或以其网址开头，然后提问",
    "num_frames": "帧数",
    "num_frames_info": "4 的倍数；0：按服务器设置",
    "start": "起始秒",
    "end": "结束秒",
    "end_info": "0：到结尾",
    "max_tokens": "回答的最大词元数",
    "max_tokens_info": "0：不另设上限",
    "temperature": "温度",
    "temperature_info": "0：总是选最可能的词",
    "describe": "描述这个视频。",
    "stopped": "已停止",
    "cut": "已达词元数上限，回答被截断",
    "gone": "视频已不在，请重新拖入",
    "bug": "页面出错，原因见其日志",
    "first_token": "{seconds:.2f} 秒后出现第一个词元",
    "cached": "{frames} 帧中 {cached} 帧来自缓存",
    "stages": "时间分布",
    "queue_ms": "等待解码",
    "fetch_ms": "获取视频并计算摘要",
    "decode_ms": "解码、采样、缩放",
    "vision_queue_ms": "等待视觉模型",
    "vision_ms": "视觉模型与合并",
    "first_token_ms": "从提问到第一个词元",
    "tokens": "提示 {prompt_tokens} 个词元，生成 {completion_tokens} 个",
}


def words_for(accept_language: str | None) -> Mapping[str, str]:
    """The words for a browser, by its first language."""
    return CHINESE if (accept_language or "").lower().startswith("zh") else ENGLISH


def timing_title(usage: Mapping[str, Any], words: Mapping[str, str]) -> str:
    """Where the time went, in a line."""
    stages = usage.get("internvideo", {})
    said = []
    if "first_token_ms" in stages:
        said.append(words["first_token"].format(seconds=stages["first_token_ms"] / 1000))
    if stages.get("frames"):
        said.append(words["cached"].format(frames=stages["frames"], cached=stages["cached_frames"]))
    return " · ".join(said) or words["tokens"].format(**usage)


def timing_table(usage: Mapping[str, Any], words: Mapping[str, str]) -> str:
    """Where the time went, stage by stage, as a Markdown table."""
    stages = usage.get("internvideo", {})
    rows = [f"| {words[name]} | {stages[name]:,.1f} ms |" for name in words if name.endswith("_ms") and name in stages]
    tokens = words["tokens"].format(**usage)
    return "\n".join([f"| {words['stages']} | |", "|---|--:|", *rows, "", tokens] if rows else [tokens])
