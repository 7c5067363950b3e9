"""Measures how well a network predicts texts it has not read.

Every text is predicted on its own, after a BOS, in float32; its end counts as a token. Bits per byte compare
across vocabularies, perplexities per token do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from corpus import BOS
from data import IGNORED, encode, padded_batches
from model import TinyDoc
from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class Score:
    """How well texts are predicted."""

    nats: float
    tokens: int
    octets: int

    @property
    def perplexity(self) -> float:
        """Per token."""
        return math.exp(self.nats / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """Does not depend on the vocabulary."""
        return self.nats / math.log(2) / self.octets

    def __str__(self) -> str:
        return f"perplexity {self.perplexity:.2f}, {self.bits_per_byte:.4f} bits per byte"


@torch.no_grad()
def evaluate(model: TinyDoc, tokenizer: Tokenizer, texts: list[str]) -> Score:
    """Predict all texts; leaves the model in training mode."""
    model.eval()
    bos, nats, tokens = tokenizer.encode(BOS).ids[0], 0.0, 0
    for inputs, targets in padded_batches(encode(tokenizer, texts), bos, model.shape.context):
        logits = model(inputs).flatten(0, 1)
        nats += F.cross_entropy(
            logits, targets.flatten(), ignore_index=IGNORED, reduction="sum"
        ).item()
        tokens += int((targets != IGNORED).sum())
    model.train()
    return Score(nats, tokens, sum(len(text.encode("utf-8", "surrogatepass")) for text in texts))
