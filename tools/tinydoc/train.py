"""Trains tinydoc on one core and keeps a checkpoint from the first minutes on.

Muon moves the matrices, AdamW the embedding and the norms; the learning rate warms up, then falls in a
straight line to zero. What is measured and kept is a running average of the weights. The forward pass runs
in bfloat16, the weights stay in float32.

    python tools/tinydoc/train.py --minutes 38 --out tinydoc.pt
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from corpus import build_corpus
from data import IGNORED, Rows
from measure import evaluate
from model import Shape, TinyDoc
from tokenizer import train_tokenizer
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

REPORT_EVERY = 50
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that shapes the result, beside the corpus and the sizes."""

    steps: int = 8000
    minutes: float = 38.0
    batch_tokens: int = 4096
    muon_lr: float = 0.02
    adam_lr: float = 0.003
    weight_decay: float = 0.1
    dropout: float = 0.1
    average: float = 0.995  # how much of the averaged weights every step keeps
    warmup: int = 100
    seed: int = 1
    evaluate_every: int = 1000

    def progress(self, step: int, minutes: float) -> float:
        """How much of the run is over, 0 to 1: by steps, or by time where that is further."""
        return max(step / self.steps, minutes / self.minutes)

    def rate(self, step: int, progress: float) -> float:
        """The factor on both learning rates: up within the warm-up, then straight to zero."""
        return min((step + 1) / self.warmup, 1 - progress)


def make_optimizers(model: TinyDoc, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for the rest."""
    named = list(model.named_parameters())
    matrices = [weight for name, weight in named if weight.ndim == 2 and "embedding" not in name]
    vectors = [weight for _, weight in named if weight.ndim == 1]
    adam = [
        {"params": [model.embedding.weight], "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(adam, lr=recipe.adam_lr, betas=(0.9, 0.98), fused=True),
    ]


def make_loss(model: TinyDoc) -> Loss:
    """The compiled mean cross-entropy; one specialised version per row length."""

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(inputs)
        return F.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED
        )

    return torch.compile(loss, dynamic=False)


def set_rates(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Scale every group's learning rate from the one it was made with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("full_lr", group["lr"]) * factor


def train(
    model: TinyDoc, averaged: AveragedModel, rows: Rows, recipe: Recipe, watch: Progress
) -> None:
    """Run the whole schedule; it ends on time, however busy the machine is."""
    optimizers, loss_of = make_optimizers(model, recipe), make_loss(model)
    batches, step = rows.batches(recipe.batch_tokens), 0
    while (progress := recipe.progress(step, watch.minutes())) < 1:
        set_rates(optimizers, recipe.rate(step, progress))
        loss = loss_of(*next(batches))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        averaged.update_parameters(model)
        step += 1
        watch.step(step, loss.item(), rows.epoch)
    watch.save(step)


class Progress:
    """Prints where the run is, and has it measured and saved now and then."""

    def __init__(self, recipe: Recipe, save: Callable[[int], None]) -> None:
        self.recipe, self.save = recipe, save
        self.started = self.reported = time.perf_counter()
        self.losses: list[float] = []

    def minutes(self) -> float:
        """Since the start."""
        return (time.perf_counter() - self.started) / 60

    def step(self, step: int, loss: float, epoch: int) -> None:
        """Called after every step."""
        self.losses.append(loss)
        if step % REPORT_EVERY == 0:
            self._print(step, epoch)
        if step % self.recipe.evaluate_every == 0:
            self.save(step)

    def _print(self, step: int, epoch: int) -> None:
        """One line: step, loss, speed, time left."""
        seconds = (time.perf_counter() - self.reported) / REPORT_EVERY
        minutes = self.minutes()
        left = min((self.recipe.steps - step) * seconds / 60, self.recipe.minutes - minutes)
        print(
            f"{step:6}/{self.recipe.steps} loss {sum(self.losses) / len(self.losses):.4f}"
            f" epoch {epoch:3} {self.recipe.batch_tokens / seconds:6.0f} tok/s"
            f" elapsed {minutes:5.1f} min, left {left:5.1f} min",
            flush=True,
        )
        self.reported, self.losses = time.perf_counter(), []


def save_checkpoint(
    path: Path, model: TinyDoc, tokenizer: Tokenizer, facts: dict[str, object]
) -> None:
    """All that export needs, in one file, replaced whole."""
    content = {
        "shape": asdict(model.shape),
        "weights": model.state_dict(),
        "tokenizer": tokenizer.to_str(),
        "facts": facts,
    }
    partial = path.with_suffix(".part")
    torch.save(content, partial)
    partial.replace(path)


def run(recipe: Recipe, out: Path) -> None:
    """From nothing to a checkpoint."""
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    corpus = build_corpus()
    tokenizer = train_tokenizer([*corpus.plain, *corpus.chats[0]])
    rows = Rows(corpus, tokenizer, recipe.seed)
    model = TinyDoc(Shape(), recipe.dropout)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.average))
    print(f"corpus {corpus.digest()[:16]}, {rows.epoch_tokens} tokens per epoch,", end=" ")
    print(f"{model.parameter_count()} parameters, {recipe}", flush=True)

    def save(step: int) -> None:
        facts = {
            part: str(evaluate(averaged.module, tokenizer, texts))
            for part, texts in corpus.held_out().items()
        }
        print("       held out:", facts, flush=True)
        facts |= {"step": step, "minutes": watch.minutes()}
        save_checkpoint(out, averaged.module, tokenizer, facts)

    watch = Progress(recipe, save)
    train(model, averaged, rows, recipe, watch)


def main() -> None:
    """Read the command line; every field of the recipe is an option."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("tinydoc.pt"))
    for name, value in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = vars(parser.parse_args())
    out = options.pop("out")
    run(Recipe(**options), out)


if __name__ == "__main__":
    main()
