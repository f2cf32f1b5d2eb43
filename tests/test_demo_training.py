"""The demo model is trained on what the server computes: same prompts, same embeddings, same logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from build_scripts.demo_model.train.answers import ABOUT_SCENES
from build_scripts.demo_model.train.course import Course, Steps, from_scratch, refinement
from build_scripts.demo_model.train.grading import nearly_the_same
from build_scripts.demo_model.train.network import DEMO, DemoModel, initialise
from build_scripts.demo_model.train.packing import PADDING, Layout, Packer, attention_mask
from build_scripts.demo_model.train.phrases import further_texts, phrases_of
from build_scripts.demo_model.train.phrasing import SMALL_TALK, templates, wrapped_templates
from build_scripts.demo_model.train.textures import make_bank
from build_scripts.demo_model.train.training import Trainer
from build_scripts.demo_model.train.words import LANGUAGES, Language
from build_scripts.train_demo_model import prepare_checkpoint
from internvideo_server.export.language_model import export_llm
from internvideo_server.export.tokenizer import export_tokenizer
from internvideo_server.limits import TOKENS_PER_FRAME
from internvideo_server.preprocessing.chat import ChatTokenizer, build_prompt, parse_messages
from internvideo_server.vit.vision import VisionModel


@pytest.fixture(scope="module")
def model() -> DemoModel:
    model = DemoModel(DEMO)
    initialise(model, seed=3)
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(model: DemoModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The untrained model as a checkpoint, in float32."""
    out = tmp_path_factory.mktemp("demo") / "checkpoint"
    prepare_checkpoint(out, seed=0)
    save_file({name: t.detach().contiguous() for name, t in model.checkpoint_tensors().items()}, out / "model.safetensors")
    return out


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> ChatTokenizer:
    export_tokenizer(checkpoint, checkpoint / "tokenizer.json")
    return ChatTokenizer.from_file(checkpoint / "tokenizer.json")


def test_training_embeds_frames_as_the_server_does(model: DemoModel, checkpoint: Path) -> None:
    frames = torch.randint(0, 256, (8, 3, 448, 448), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    served = VisionModel.from_checkpoint(checkpoint, "cpu", torch.float32).embed(frames)
    with torch.no_grad():
        trained = model.embed(model.look(frames))
    assert trained.shape == served.shape == (8 * TOKENS_PER_FRAME, DEMO.llm_hidden)
    assert (trained - served).abs().max() < 1e-4


def test_packed_sequences_are_the_servers_prompts_with_the_engines_logits(
    model: DemoModel, checkpoint: Path, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    from transformers import LlamaForCausalLM

    packer = Packer(tokenizer, seed=8)  # a sequence with the default system text
    layout = Layout("test", ((4, 8),), 700, later=True)
    batch = packer.batch(layout, 0)
    visual = torch.randn(12 * TOKENS_PER_FRAME, DEMO.llm_hidden, generator=torch.Generator().manual_seed(2))
    mask = attention_mask(batch.segments, torch.float32)
    with torch.no_grad():
        hidden = model(batch.ids, batch.seen, batch.positions, mask, visual)
        packed = model.language.output(hidden)[0]

    export_llm(checkpoint, tmp_path / "engine")
    llama = LlamaForCausalLM.from_pretrained(tmp_path / "engine" / "llama", dtype=torch.float32).eval()
    first = batch.turns[0]  # the question between the two videos
    video = {"type": "video_url", "video_url": {"url": "file:///v.mp4"}}
    head = [
        {"role": "user", "content": [video, {"type": "text", "text": first.question}]},
        {"role": "assistant", "content": first.answer},
    ]
    segments = batch.segments[0]
    for segment in (1, 2):
        places = torch.nonzero((segments == 0) | (segments == segment)).flatten()
        asked = [batch.turns[i] for i in batch.asked[0][segments == segment].unique().tolist() if i > 0]
        messages = list(head)
        for number, turn in enumerate(asked):
            text = {"type": "text", "text": turn.question}
            messages += [{"role": "user", "content": [video, text] if number == 0 else [text]}]
            messages += [{"role": "assistant", "content": turn.answer}]
        conversation = parse_messages(json.dumps(messages[:-1]))
        prompt = build_prompt(conversation, [4, 8], tokenizer, tokenizer.vocab_size, [bytes(32)] * 2)
        rows = batch.rows[0][places]
        ours = torch.where(rows >= 0, rows + tokenizer.vocab_size, batch.ids[0][places])
        length = len(prompt.input_ids)
        assert ours[:length].tolist() == prompt.input_ids.tolist()
        assert ours[length:].tolist() == [*tokenizer.encode_text(asked[-1].answer), tokenizer.token_id("<|im_end|>")]
        embedded = llama.get_input_embeddings()(torch.where(rows >= 0, 0, ours))
        embedded = torch.where((rows >= 0)[:, None], visual[rows.clamp_min(0)], embedded)
        with torch.no_grad():
            plain = llama(inputs_embeds=embedded[None]).logits[0]
        assert (plain - packed[places]).abs().max() < 1e-3


def test_labels_are_the_answers_and_their_end(tokenizer: ChatTokenizer) -> None:
    batch = Packer(tokenizer, seed=6).batch(Layout("test", ((4,), ()), 400), 0)
    for index, turn in enumerate(batch.turns):
        said = batch.labels[batch.asked == index].tolist()
        assert said == [*tokenizer.encode_text(turn.answer), tokenizer.token_id("<|im_end|>")]
    assert bool(((batch.labels >= 0) == (batch.asked >= 0)).all())
    assert bool((batch.labels[batch.segments == PADDING] < 0).all())


def test_a_run_goes_on_where_it_was_saved(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    bank = make_bank([], 64, 0)
    packer, layout = Packer(tokenizer, seed=1), Layout("test", ((4,),), 256)

    def losses(trainer: Trainer, steps: range) -> list[float]:
        return [trainer.train(packer.batch(layout, step)).text.item() for step in steps]

    through = Trainer(4, 0, bank, torch.device("cpu"))
    expected = losses(through, range(4))
    first = Trainer(4, 0, bank, torch.device("cpu"))
    losses(first, range(2))
    first.save(tmp_path / "state.pt")
    second = Trainer(4, 0, bank, torch.device("cpu"))
    second.load(tmp_path / "state.pt")
    assert losses(second, range(2, 4)) == pytest.approx(expected[2:], abs=1e-3)
    with pytest.raises(ValueError, match="belongs to the run"):
        Trainer(5, 0, bank, torch.device("cpu")).load(tmp_path / "state.pt")


def test_a_batch_is_the_same_for_the_same_step_and_another_for_the_next(tokenizer: ChatTokenizer) -> None:
    layout = Layout("test", ((8,), (8,)), 400)
    one, again = (Packer(tokenizer, seed=1).batch(layout, 7) for _ in range(2))
    other = Packer(tokenizer, seed=1).batch(layout, 8)
    assert torch.equal(one.ids, again.ids) and torch.equal(one.drawings["slots"], again.drawings["slots"])
    assert not torch.equal(one.ids, other.ids)


def test_a_run_from_a_checkpoint_starts_at_its_weights_and_leaves_its_tower(model: DemoModel, tokenizer: ChatTokenizer) -> None:
    start = {name: tensor.clone() for name, tensor in model.checkpoint_tensors().items()}
    trainer = Trainer(4, 0, make_bank([], 64, 0), torch.device("cpu"), start)
    layout = Layout("test", ((4,),), 256)
    for step in range(2):
        losses = trainer.train(Packer(tokenizer, seed=1).batch(layout, step))
        assert losses.patches == 0
    after = trainer.model.checkpoint_tensors()
    changed = {name for name, tensor in start.items() if not torch.equal(tensor, after[name])}
    assert changed and not any(name.startswith("vision_model") for name in changed)
    assert any(name.startswith("mlp1") for name in changed) and any(name.startswith("language_model") for name in changed)
    with pytest.raises(ValueError, match="no checkpoint of the demo model"):
        trainer.model.load_checkpoint(dict(list(start.items())[1:]))


@pytest.mark.parametrize("course", [from_scratch, refinement])
def test_every_step_of_a_course_has_the_same_number_of_frames(course: Callable[[int], Course], tokenizer: ChatTokenizer) -> None:
    shown = course(512)
    assert shown.shares.keys() <= shown.layouts.keys()
    assert {layout.frames for layout in shown.layouts.values()} == {0, 512}
    steps = Steps(shown.packer(tokenizer, 3), shown, 100)
    for step in (0, 99):
        batch = steps[step]
        assert not batch.drawings or len(batch.drawings["slots"]) == 512


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_trained_phrasing_is_a_held_out_one(language: Language) -> None:
    for topic in [*ABOUT_SCENES, "unknown", *SMALL_TALK]:
        if topic == "absent":  # takes the templates of others
            continue
        trained = [*templates(language, topic, held_out=False), *wrapped_templates(language, topic)]
        held_out = templates(language, topic, held_out=True)
        assert held_out and not {plain(text) for text in trained} & {plain(text) for text in held_out}


@pytest.mark.parametrize("language", LANGUAGES)
def test_further_phrasings_keep_away_from_the_held_out_ones(language: Language) -> None:
    further = further_texts(language)
    for topic, phrasings in further["more"].items():
        held_out = templates(language, topic, held_out=True)
        assert not [text for text in phrasings if any(nearly_the_same(text, other) for other in held_out)]
    assert not {*further["nouns"]} & {*phrases_of(language).held_out_nouns}


def plain(template: str) -> str:
    return "".join(char for char in template.lower() if char.isalnum() or char in "{}")
