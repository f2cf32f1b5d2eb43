"""The committed demo model understands video files: the library's own code, without a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from build_scripts.demo_model.train.film import Format, film
from build_scripts.demo_model.train.scene import Scene, Thing
from internvideo_server.checkpoint import Checkpoint
from internvideo_server.export.language_model import Dtype, export_llm
from internvideo_server.preprocessing.chat import ChatTokenizer, build_prompt, parse_messages
from internvideo_server.vit.vision import VisionModel

CHECKPOINT = Path(__file__).resolve().parent.parent / "build_scripts" / "demo_model"
FORMATS = {
    "landscape": Format("libx264", ".mp4", 640, 360, 24, 3, 28),
    "portrait": Format("libvpx-vp9", ".webm", 270, 480, 15, 3, 34),
    "square": Format("libx265", ".mp4", 360, 360, 25, 3, 28),
}
Ask = Callable[..., str]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """Answer a question about frames, greedily, with the committed checkpoint."""
    from transformers import LlamaForCausalLM

    engine = tmp_path_factory.mktemp("engine")
    export_llm(CHECKPOINT, engine, dtype=Dtype.FLOAT32)
    llama = LlamaForCausalLM.from_pretrained(engine / "llama", dtype=torch.float32).eval()
    tokenizer = ChatTokenizer.from_file(engine / "tokenizer.json")
    vision = VisionModel.from_checkpoint(CHECKPOINT, "cpu", torch.float32)
    end = tokenizer.token_id("<|im_end|>")

    def answer(question: str, *videos: torch.Tensor) -> str:
        parts = [{"type": "video_url", "video_url": {"url": "file:///v.mp4"}} for _ in videos]
        content = [*parts, {"type": "text", "text": question}]
        conversation = parse_messages(json.dumps([{"role": "user", "content": content}]))
        counts, keys = [len(frames) for frames in videos], [bytes(32)] * len(videos)
        prompt = build_prompt(conversation, counts, tokenizer, tokenizer.vocab_size, keys)
        ids = torch.from_numpy(prompt.input_ids).long()
        visual = ids >= tokenizer.vocab_size
        with torch.no_grad():
            embedded = llama.get_input_embeddings()(torch.where(visual, 0, ids))
            if videos:
                embedded[visual] = torch.cat([vision.embed(frames) for frames in videos])
            made = llama.generate(
                inputs_embeds=embedded[None], attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=64,
                do_sample=False, eos_token_id=end, pad_token_id=end,
            )[0]  # fmt: skip
        return tokenizer._text.decode([token for token in made.tolist() if token != end])

    return answer


def watch(path: Path, frames: int) -> torch.Tensor:
    """Frames as the model's own sampling and resizing make them: uint8 [T, 3, 448, 448]."""
    with av.open(str(path)) as container:  # not decord: its libvpx and PyAV's do not live in one process
        shown = [frame.to_image() for frame in container.decode(video=0)]
    last = len(shown) - 1
    numbers = [int(last / frames / 2 + np.round(last / frames * i)) for i in range(frames)]
    pictures = [shown[number].resize((448, 448), Image.Resampling.BICUBIC) for number in numbers]
    return torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures])


RED_CIRCLE = Thing("circle", "red", "left", (0.75, 0.3), (0.25, 0.3), (0.12, 0.12), (0.1, 0.9))
BLUE_SQUARE = Thing("square", "blue", "appear", (0.5, 0.72), (0.5, 0.72), (0.12, 0.12), (0.78, 0.78))


@pytest.fixture(scope="module", params=list(FORMATS))
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """A red circle that moves to the left, and a blue square that appears late; as a real file of some codec, 8 frames."""
    video_format = FORMATS[request.param]
    path = tmp_path_factory.mktemp("video") / f"video{video_format.suffix}"
    film(Scene((RED_CIRCLE, BLUE_SQUARE), video_format.height / video_format.width, backdrop=4), video_format, path)
    return watch(path, 8)


def test_it_names_what_is_there_in_both_languages(ask: Ask, video: torch.Tensor) -> None:
    assert ask("Which way does the red circle move?", video) == "It moves to the left."
    assert ask("蓝色方形什么时候出现？", video) == "在结尾。"
    assert ask("what color is the circle", video) == "It is red."
    assert ask("Is there a green star?", video) == "No."


def test_reversing_the_frames_reverses_the_answers(ask: Ask, video: torch.Tensor) -> None:
    backwards = video.flip(0)
    assert ask("Which way does the red circle move?", backwards) == "It moves to the right."
    assert ask("What happens to the blue square?", backwards) == "It disappears."


def test_two_videos_in_one_message_are_told_apart(ask: Ask, video: torch.Tensor) -> None:
    question = "Which way does the red circle move in the {} video?"
    assert ask(question.format("first"), video, video.flip(0)) == "It moves to the left."
    assert ask(question.format("second"), video, video.flip(0)) == "It moves to the right."


def test_footage_without_shapes_and_other_questions_are_answered_honestly(ask: Ask, tmp_path: Path) -> None:
    film(Scene((), 9 / 16, backdrop=11), FORMATS["landscape"], tmp_path / "empty.mp4")
    empty = watch(tmp_path / "empty.mp4", 8)
    assert ask("Describe this video.", empty) == "I see no simple shapes in this video."
    assert ask("What is the capital of France?", empty) == "I can only answer questions about simple shapes in a video."
    assert "demo model" in ask("Who are you?")


def test_real_footage_is_no_shape(ask: Ask, shared_dir: Path) -> None:
    footage = watch(shared_dir / "data" / "red-panda.mp4", 16)
    assert ask("Describe this video in detail.", footage) == "I see no simple shapes in this video."
    assert ask("详细描述一下这个视频的内容。", footage) == "我在视频中没有看到简单图形。"


def test_an_event_cut_off_is_not_told(ask: Ask, tmp_path: Path) -> None:
    early = replace(BLUE_SQUARE, colour="green", shape="star", start=(0.3, 0.3), end=(0.3, 0.3), window=(0.2, 0.2))
    film(Scene((early, BLUE_SQUARE), 9 / 16, backdrop=4), FORMATS["landscape"], tmp_path / "order.mp4")
    frames = watch(tmp_path / "order.mp4", 16)
    assert ask("What happens first?", frames) == "The green star appears."
    assert ask("What happens first?", frames[8:]) == "The blue square appears."


def test_the_checkpoint_is_small_and_in_the_real_layout() -> None:
    checkpoint = Checkpoint.open(CHECKPOINT)
    assert checkpoint.dtype == "bfloat16"
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) < 16e6
    assert checkpoint.config["architectures"] == ["InternVLChatModel"]
