"""Turns the corpus into token ids: rows to train on, padded batches to measure with.

A row is cut from one long shuffled stream in which every text follows a BOS; a BOS therefore also ends the
text before it. Each epoch shuffles anew and words its questions differently.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from corpus import BOS, Corpus
from tokenizers import Tokenizer
from torch import Tensor

IGNORED = -100


class Rows:
    """An endless, reproducible supply of training batches, [rows, length + 1]."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, seed: int) -> None:
        (self.bos,) = tokenizer.encode(BOS).ids
        self.plain = encode(tokenizer, corpus.plain)
        self.chats = [encode(tokenizer, chats) for chats in corpus.chats]
        self.epoch = 0
        self._random = random.Random(seed)
        self._stream = np.empty(0, dtype=np.int64)

    @property
    def epoch_tokens(self) -> int:
        """Tokens of one pass over everything, in one wording."""
        return sum(len(ids) + 1 for ids in self.plain + self.chats[0])

    def take(self, rows: int, length: int) -> Tensor:
        """The next batch; rows overlap by one token, so that each token is predicted once."""
        needed = rows * length + 1
        while len(self._stream) < needed:
            self._stream = np.concatenate([self._stream, self._next_epoch()])
        window = self._stream[:needed]
        self._stream = self._stream[needed - 1 :]
        starts = np.arange(rows)[:, None] * length
        return torch.from_numpy(window[starts + np.arange(length + 1)])

    def _next_epoch(self) -> np.ndarray:
        """Every text once, in a new order."""
        texts = self.plain + self.chats[self.epoch % len(self.chats)]
        self._random.shuffle(texts)
        self.epoch += 1
        return np.array([token for ids in texts for token in (self.bos, *ids)], dtype=np.int64)


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of every text, special tokens recognised."""
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]


def padded_batches(
    texts: Sequence[list[int]], bos: int, context: int, tokens: int = 16_384
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets; each text starts after a BOS and is asked to end with one.

    Texts longer than the context continue in a further row, after a BOS of its own.
    """
    rows = []
    for ids in texts:
        whole = [*ids, bos]
        rows += [[bos, *whole[at : at + context]] for at in range(0, len(whole), context)]
    rows.sort(key=len)
    while rows:
        count = max(1, tokens // len(rows[-1]))
        batch, rows = rows[-count:], rows[:-count]
        width = len(batch[-1])
        full = torch.full((len(batch), width), IGNORED)
        for index, row in enumerate(batch):
            full[index, : len(row)] = torch.tensor(row)
        yield full[:, :-1].clamp_min(0), full[:, 1:]
