"""How often the answer is exactly the wanted one, on videos and phrasings that training never saw."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from build_scripts.demo_model.train.packing import Layout, Packer
from build_scripts.demo_model.train.training import Trainer

TEST_SEED = 2_000_000_000  # far from the seeds of training


@dataclass
class Score:
    """Right answers and questions of one group."""

    right: int = 0
    asked: int = 0

    @property
    def share(self) -> float:
        """0..1."""
        return self.right / max(self.asked, 1)


@dataclass
class Scores:
    """By kind and by language."""

    kinds: dict[str, Score] = field(default_factory=lambda: defaultdict(Score))
    languages: dict[str, Score] = field(default_factory=lambda: defaultdict(Score))

    @property
    def total(self) -> Score:
        """Over all kinds."""
        return Score(sum(s.right for s in self.kinds.values()), sum(s.asked for s in self.kinds.values()))

    def to_document(self) -> dict[str, object]:
        """For JSON: shares with their numbers of questions."""
        groups = {"all": self.total, **self.languages, **dict(sorted(self.kinds.items()))}
        return {name: [round(score.share, 4), score.asked] for name, score in groups.items()}


@torch.no_grad()  # not inference_mode: what is compiled for training serves here as well
def score(trainer: Trainer, packer: Packer, layout: Layout, batches: Iterable[int]) -> Scores:
    """Ask everything in these batches. Every token right under teacher forcing is the same as greedy decoding right."""
    scores = Scores()
    for number in batches:
        batch = packer.batch(layout, number)
        turns = batch.turns
        on_device = batch.to(trainer.device)
        with torch.autocast(trainer.device.type, torch.bfloat16):
            said = trainer.say(on_device, trainer.see(on_device)).argmax(1)
        wrong = (said != on_device.labels.flatten()[on_device.said]).cpu()
        of_turn = batch.asked.flatten()[batch.said]
        failed = set(of_turn[wrong].tolist())
        for index, turn in enumerate(turns):
            for group in (scores.kinds[turn.kind], scores.languages[turn.language]):
                group.asked += 1
                group.right += index not in failed
    return scores
