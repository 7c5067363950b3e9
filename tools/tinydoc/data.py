"""Turns the corpus into token ids: rows to train on, padded batches to measure with.

A training row holds whole texts, each after a BOS; a BOS therefore also ends the text before it. Long texts
get long rows, what they leave free is filled with short ones, and only a text longer than the context is
cut. Each epoch shuffles anew and words its questions differently.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

import torch
from corpus import BOS, Corpus
from tokenizers import Tokenizer
from torch import Tensor

IGNORED = -100
ROW_LENGTHS = (256, 512, 1024)


class Rows:
    """An endless, reproducible supply of training batches."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, seed: int) -> None:
        (self.bos,) = tokenizer.encode(BOS).ids
        self.plain = encode(tokenizer, corpus.plain)
        self.chats = [encode(tokenizer, chats) for chats in corpus.chats]
        self.epoch = 0
        self._random = random.Random(seed)

    @property
    def epoch_tokens(self) -> int:
        """Tokens of one pass over everything, in one wording."""
        return sum(len(ids) + 1 for ids in self.plain + self.chats[0])

    def batches(self, tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets for ever, about so many tokens at a time, all rows of a batch equally long.

        What an epoch has left over, less than a batch of each length, waits for the next one.
        """
        waiting: dict[int, list[list[int]]] = {length: [] for length in ROW_LENGTHS}
        while True:
            for row in self._next_epoch():
                length = min(length for length in ROW_LENGTHS if len(row) <= length)
                waiting[length].append(row)
                if len(waiting[length]) * length >= tokens:
                    yield pad([[*row, self.bos] for row in waiting[length]], length + 1)
                    waiting[length].clear()

    def _next_epoch(self) -> list[list[int]]:
        """Every text once, in a new order."""
        texts = self.plain + self.chats[self.epoch % len(self.chats)]
        self._random.shuffle(texts)
        self.epoch += 1
        rows = pack([piece for ids in texts for piece in cut(ids, self.bos)])
        for row in rows:
            self._random.shuffle(row)
        self._random.shuffle(rows)
        return [[token for piece in row for token in piece] for row in rows]


def cut(ids: Sequence[int], bos: int) -> list[list[int]]:
    """A BOS and the text; if that is too long for a row, pieces with a BOS each."""
    size = ROW_LENGTHS[-1] - 1
    return [[bos, *ids[at : at + size]] for at in range(0, len(ids), size)]


def pack(pieces: Sequence[list[int]]) -> list[list[list[int]]]:
    """Rows of pieces: the longest first, each where it leaves the least room, or in a new row."""
    rows: list[list[list[int]]] = []
    room: list[tuple[int, int]] = []  # (what is free, which row), sorted
    for piece in sorted(pieces, key=len, reverse=True):
        at = bisect_left(room, (len(piece), 0))
        if at < len(room):
            free, index = room.pop(at)
        else:
            free = min(length for length in ROW_LENGTHS if len(piece) <= length)
            index = len(rows)
            rows.append([])
        rows[index].append(piece)
        insort(room, (free - len(piece), index))
    return rows


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
        yield pad(batch, len(batch[-1]))


def pad(rows: Sequence[list[int]], width: int) -> tuple[Tensor, Tensor]:
    """Inputs, and for each the token that follows; nothing is asked about the padding."""
    full = torch.full((len(rows), width), IGNORED)
    for index, row in enumerate(rows):
        full[index, : len(row)] = torch.tensor(row)
    return full[:, :-1].clamp_min(0), full[:, 1:]
