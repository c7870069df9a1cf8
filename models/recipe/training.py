"""The training loop: time-boxed, resumed to the same numbers, and its last checkpoints averaged.

A run lives in a folder: ``sentencepiece.model``, ``checkpoint.pt`` (all that is needed to go on) and the last KEPT
``weights-STEP.pt``. Started again with the same folder, it goes on from the checkpoint. On a CPU the resumed run gives
exactly the weights of one that was not interrupted; an accelerator's own sums may differ in the last bit.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from models.recipe.network import Network, Shape, seed_dropout
from models.recipe.pairs import Pair
from models.recipe.schedule import Plan
from models.recipe.stream import Batch, Place, Stream, encode, pack

KEPT: Final = 8  # weights kept for the average
SMOOTHING: Final = 0.1
CLIP: Final = 1.0
LOG_EVERY: Final = 20  # steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a network is trained."""

    batch_tokens: int
    peak: float
    warmup: int
    save_every: int  # steps
    dropout: float = 0.1
    bf16: bool = True
    helpers: int = 0
    seed: int = 1


@dataclass(slots=True)
class Progress:
    """Where a run is; part of the checkpoint."""

    plan: Plan
    step: int = 0
    place: Place = field(default_factory=Place)
    spent_s: float = 0.0
    tokens: int = 0
    losses: list[tuple[int, float]] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)


class Run:
    """One run in ``folder``; it goes on from the checkpoint there, if there is one."""

    def __init__(self, network: Network, settings: Settings, folder: Path, held_out: Sequence[Batch]) -> None:
        self.network = network
        self.progress = Progress(Plan(settings.peak, settings.warmup))
        self._settings = settings
        self._folder = folder
        self._held_out = held_out
        self._device = network.positions.device
        self._parameters = list(network.parameters())
        # A thread for each core, each with a part of the batch: threads within each operation wait for one another
        # thousands of times a step, and are slower by a third, or by far more beside other work.
        self._parts = torch.get_num_threads() if self._device.type == "cpu" else 1
        self._threads = ThreadPoolExecutor(self._parts, initializer=torch.set_num_threads, initargs=(1,))
        self._optimizer = torch.optim.AdamW(_groups(network), betas=(0.9, 0.98), eps=1e-9, fused=True, lr=settings.peak)
        if self.checkpoint.exists():
            self._load()

    @property
    def checkpoint(self) -> Path:
        return self._folder / "checkpoint.pt"

    def train(self, stream: Stream, *, minutes: float, steps: int | None = None, until: int | None = None) -> None:
        """Train for ``minutes``, over all resumptions, or for ``steps``. ``until``: stop there, as if interrupted."""
        progress = self.progress
        if steps:
            progress.plan = progress.plan.of(steps)
        batches = stream.batches(progress.place, self._settings.helpers)
        total, done = (steps, progress.step) if steps else (round(minutes * 60), round(progress.spent_s))
        with tqdm(total=total, initial=done, unit="step" if steps else "s", mininterval=1.0) as bar:
            while not progress.plan.done(progress.step) and progress.step != until:
                began = time.monotonic()
                loss = self._step(batches)
                progress.spent_s += time.monotonic() - began
                if not steps:
                    progress.plan = progress.plan.told(progress.step, progress.spent_s, minutes)
                self._report(bar, loss, steps)
                if progress.step % self._settings.save_every == 0:
                    self.save()
        self.save()

    def _step(self, batches: Iterator[tuple[Place, Batch]]) -> Tensor:
        progress = self.progress
        place, batch = next(batches)
        self.network.train()
        for group in self._optimizer.param_groups:
            group["lr"] = progress.plan.rate(progress.step)
        tokens = scored(batch)
        with self._attending():
            parts = list(self._threads.map(self._slope, split(batch, self._parts), itertools.count()))
        for number, parameter in enumerate(self._parameters):
            parameter.grad = sum(slopes[number] for _, slopes in parts) / tokens
        torch.nn.utils.clip_grad_norm_(self._parameters, CLIP)
        self._optimizer.step()
        progress.step += 1
        progress.place = place
        progress.tokens += tokens
        return sum(loss for loss, _ in parts) / tokens

    def _slope(self, part: Batch, number: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The loss of a part of a batch, and what each parameter has to do with it."""
        # Of the step alone, so that a resumed run needs to know nothing of chance
        chance = random.Random(f"{self._settings.seed} step {self.progress.step} part {number}")
        seed_dropout(chance.getrandbits(63))
        with self._computing():
            loss = self.network.loss(part.sources, part.targets, SMOOTHING)
        return loss.detach(), torch.autograd.grad(loss, self._parameters)

    def _report(self, bar: Any, loss: Tensor, steps: int | None) -> None:
        progress = self.progress
        bar.update((progress.step if steps else min(bar.total, round(progress.spent_s))) - bar.n)
        if progress.step % LOG_EVERY == 0:  # to read a loss is to wait for the accelerator
            progress.losses.append((progress.step, round(float(loss), 4)))
            rate = progress.plan.rate(progress.step - 1)
            speed = progress.tokens / progress.spent_s
            bar.set_postfix_str(f"step {progress.step}, loss {float(loss):.3f}, rate {rate:.1e}, {speed:.0f} tokens/s")

    def _computing(self) -> torch.autocast:
        """bf16 where it is wanted. Nothing is shared with other threads."""
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._settings.bf16, cache_enabled=False)

    def _attending(self) -> AbstractContextManager[None]:
        """On a CPU plain attention, which is faster there for sentences this short."""
        return sdpa_kernel(SDPBackend.MATH) if self._device.type == "cpu" else nullcontext()

    @torch.no_grad()
    def evaluate(self) -> float:
        """Cross-entropy for each target token of the pairs held out, without smoothing."""
        self.network.eval()
        with self._attending(), self._computing():
            total = sum(float(self.network.loss(batch.sources, batch.targets, 0.0)) for batch in self._held_out)
        return total / max(sum(map(scored, self._held_out)), 1)

    def save(self) -> None:
        """Write the checkpoint and the weights; a crash leaves the ones before."""
        progress = self.progress
        if not progress.held_out or progress.held_out[-1][0] != progress.step:
            progress.held_out.append((progress.step, round(self.evaluate(), 4)))
        weights = {name: value.detach().cpu() for name, value in self.network.state_dict().items()}
        _write(weights, self._folder / f"weights-{progress.step:07}.pt")
        state = {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "progress": asdict(progress) | {"place": list(progress.place)},
            "shape": asdict(self.network.shape),
        }
        _write(state, self.checkpoint)
        for old in snapshots(self._folder)[:-KEPT]:
            old.unlink()

    def _load(self) -> None:
        state = torch.load(self.checkpoint, map_location=self._device, weights_only=True)
        if Shape(**state["shape"]) != self.network.shape:
            raise ValueError(f"{self.checkpoint} is of another size of network: choose another folder")
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        told = state["progress"]
        plan, place = Plan(**told.pop("plan")), Place(*told.pop("place"))
        self.progress = Progress(plan=plan, place=place, **told)

    def best_average(self) -> tuple[dict[str, Tensor], int, float]:
        """The average of the last checkpoints, of as many as give the lowest loss on what is held out.

        Returns the weights, how many they are of, and that loss. The network has them then.
        """
        found: tuple[dict[str, Tensor], int, float] | None = None
        paths = snapshots(self._folder)
        for count in range(1, len(paths) + 1):
            weights = average(paths[-count:])
            self.network.load_state_dict(weights)
            loss = self.evaluate()
            if found is None or loss < found[2]:
                found = weights, count, loss
        assert found is not None
        self.network.load_state_dict(found[0])
        return found


def _groups(network: Network) -> list[dict[str, Any]]:
    """Weight decay is for matrices only."""
    matrices = [p for p in network.parameters() if p.dim() > 1]
    vectors = [p for p in network.parameters() if p.dim() <= 1]
    return [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]


def snapshots(folder: Path) -> list[Path]:
    """The weights kept in ``folder``, the oldest first."""
    return sorted(folder.glob("weights-*.pt"))


def average(paths: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of several weights."""
    states = [torch.load(path, weights_only=True) for path in paths]
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}


def scored(batch: Batch) -> int:
    """How many tokens of a batch count for the loss: all but the start marks."""
    return sum(map(len, batch.targets)) - len(batch.targets)


def split(batch: Batch, parts: int) -> list[Batch]:
    """A batch in so many parts of about the same size and widths, or fewer."""
    return [Batch(batch.sources[at::parts], batch.targets[at::parts]) for at in range(min(parts, len(batch.sources)))]


def held_out_batches(pairs: Sequence[Pair], processor: Any, batch_tokens: int) -> list[Batch]:
    return pack(encode(pairs, processor), batch_tokens)


def _write(state: object, path: Path) -> None:
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    os.replace(temporary, path)
