"""Train the demo model: a small InternVideo2.5 that understands videos of simple shapes.

The videos are rendered on the fly, the questions written beside them; see `build_scripts/demo_model/train`. A run is a fixed
number of steps, done in one or several stretches: called again with the same options, it goes on where it stopped::

    python build_scripts/train_demo_model.py --out build_scripts/demo_model --state /tmp/demo --stretch-seconds 530

A run from a checkpoint leaves the vision tower alone, and asks more about long videos, times and pairs of videos::

    python build_scripts/train_demo_model.py --init build_scripts/demo_model --out OUT --state /tmp/refined --steps 6000 --seed 1
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from safetensors.torch import load_file, save_file

from build_scripts.checkpoint_sizes import model_config
from build_scripts.demo_model.train.course import Course, Steps, from_scratch, layouts, refinement
from build_scripts.demo_model.train.network import DEMO
from build_scripts.demo_model.train.packing import Packer
from build_scripts.demo_model.train.scoring import TEST_SEED, score
from build_scripts.demo_model.train.textures import find_photos, make_bank
from build_scripts.demo_model.train.training import REFINING_RATE, Trainer
from build_scripts.demo_model.train.vocabulary import write_demo_tokenizer
from internvideo_server.export.tokenizer import export_tokenizer
from internvideo_server.preprocessing.chat import ChatTokenizer

TEXTURE_SIDE = 512  # pixels
_LEAST_SEQUENCES = 16  # in the last evaluation, for each of its batches
console = Console(stderr=True, highlight=False, soft_wrap=True)


def prepare_checkpoint(out: Path, seed: int) -> None:
    """Write everything of the checkpoint but the weights: tokenizer, configuration."""
    out.mkdir(parents=True, exist_ok=True)
    end_ids = write_demo_tokenizer(out, seed)
    generation = {"_from_model_config": True, "eos_token_id": end_ids, "transformers_version": "4.37.2"}
    _write_json(out / "generation_config.json", generation)
    _write_json(out / "config.json", model_config(DEMO, "bfloat16"))


def write_weights(trainer: Trainer, out: Path) -> None:
    """Write ``model.safetensors`` in bfloat16; the file appears whole or not at all."""
    tensors = {name: t.detach().to("cpu", torch.bfloat16).contiguous() for name, t in trainer.model.checkpoint_tensors().items()}
    part = out / "model.safetensors.part"
    save_file(tensors, part, metadata={"format": "pt"})
    part.chmod(0o644)
    part.replace(out / "model.safetensors")


def train_stretch(
    trainer: Trainer, packer: Packer, course: Course, *, workers: int, stretch_seconds: float, check_every: int
) -> None:
    """Train until the run is over, or the time is."""
    data = Steps(packer, course, trainer.steps)
    loader = torch.utils.data.DataLoader(
        data,
        batch_size=None,
        sampler=range(trainer.step, trainer.steps),
        num_workers=workers,
        prefetch_factor=3 if workers else None,
        pin_memory=trainer.device.type == "cuda",
    )
    checks = Packer(packer.tokenizer, TEST_SEED - 1)
    check_layout = course.layouts["8"]
    started = noted = time.monotonic()
    sums = torch.zeros(4, device=trainer.device)
    since = 0
    batches: Any = loader
    for batch in batches:
        losses = trainer.train(batch.to(trainer.device))
        sums += torch.stack([losses.text, losses.present, losses.patches, losses.places])
        since += 1
        last = trainer.step == trainer.steps or time.monotonic() - started > stretch_seconds
        if trainer.step % 200 == 0 or last:
            text, present, patches, places = (sums / since).tolist()
            now = time.monotonic()
            console.print(
                f"step {trainer.step}/{trainer.steps} text {text:.4f} present {present:.4f} patches {patches:.4f} "
                f"places {places:.4f} {since / (now - noted):.1f} steps/s {now - started:.0f} s"
            )
            sums.zero_()
            since, noted = 0, now
        if check_every and trainer.step % check_every == 0:
            console.print(
                f"check at {trainer.step}: {json.dumps(score(trainer, checks, check_layout, [trainer.step]).to_document())}"
            )
        if last:
            return


def evaluate(trainer: Trainer, tokenizer: ChatTokenizer, frames: int, batches: int) -> dict[str, Any]:
    """Score every kind of step, with the trained phrasings and with those held out."""
    result: dict[str, Any] = {}
    for held_out in (False, True):
        packer = Packer(tokenizer, TEST_SEED, held_out=held_out)
        for name, layout in layouts(frames).items():
            least = -(-_LEAST_SEQUENCES * batches // len(layout.videos))  # steps of long videos have few
            scores = score(trainer, packer, layout, range(max(batches, least))).to_document()
            result[f"{name}{' held out' if held_out else ''}"] = scores
            console.print(f"{name:>4} frames{', held-out phrasings' if held_out else ''}: {json.dumps(scores)}")
    return result


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(
    out: Annotated[Path, typer.Option(help="The checkpoint directory: made, or its weights replaced.")],
    state: Annotated[Path, typer.Option(help="Directory of the training state; a run found there goes on.")],
    steps: Annotated[int, typer.Option(min=1, help="Of the whole run.")] = 19000,
    stretch_seconds: Annotated[float, typer.Option(help="Stop after this long and save; call again to go on.")] = 1e9,
    seed: Annotated[int, typer.Option(help="Of weights, tokenizer and data.")] = 0,
    device: Annotated[str, typer.Option(help="cuda, or cpu (for trying out: with few --frames-per-step).")] = "cuda",
    frames_per_step: Annotated[int, typer.Option(min=8, help="A multiple of 8; 512 trains well.")] = 512,
    workers: Annotated[int, typer.Option(min=0, help="Processes that make batches.")] = 12,
    check_every: Annotated[int, typer.Option(help="Steps between checks on unseen videos; 0: none.")] = 1000,
    evaluation_batches: Annotated[
        int, typer.Option(help="Batches of each frame count in the last evaluation; more where videos are long. 0: none.")
    ] = 4,
    init: Annotated[
        Path | None, typer.Option(help="Start from this checkpoint: a run of its own, with another mix and the tower fixed.")
    ] = None,
    rate: Annotated[float, typer.Option(help="With --init: the highest learning rate.")] = REFINING_RATE,
) -> None:
    """Train the demo model, in one stretch or several."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # workers are forked
    began = time.monotonic()
    state.mkdir(parents=True, exist_ok=True)
    if init is not None and not (out / "tokenizer.model").exists():
        shutil.copytree(init, out, ignore=shutil.ignore_patterns("*.md", "*.safetensors"), dirs_exist_ok=True)
    elif not (out / "tokenizer.model").exists():
        prepare_checkpoint(out, seed)
    export_tokenizer(out, state / "tokenizer.json")
    tokenizer = ChatTokenizer.from_file(state / "tokenizer.json")
    try:
        photos = find_photos()
    except FileNotFoundError as error:
        console.print(f"error: {error}", style="red", markup=False)
        raise typer.Exit(1) from error
    start = load_file(init / "model.safetensors") if init else None
    trainer = Trainer(steps, seed, make_bank(photos, TEXTURE_SIDE, seed), torch.device(device), start, rate)
    course = refinement(frames_per_step) if init else from_scratch(frames_per_step)
    saved = state / "state.pt"
    if saved.exists():
        trainer.load(saved)
    console.print(f"from step {trainer.step}, ready after {time.monotonic() - began:.0f} s")
    train_stretch(
        trainer,
        course.packer(tokenizer, seed),
        course,
        workers=workers,
        stretch_seconds=stretch_seconds,
        check_every=check_every,
    )
    trainer.save(saved)
    write_weights(trainer, out)
    if device == "cuda":
        console.print(f"memory: {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
    if trainer.step == steps and evaluation_batches:
        _write_json(state / "evaluation.json", evaluate(trainer, tokenizer, frames_per_step, evaluation_batches))
    console.print(
        f"{'done' if trainer.step == steps else 'to be continued'} at step {trainer.step}, {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    typer.run(main)
