"""Compares the exported file inside llama.cpp with the checkpoint it came from.

Does llama.cpp cut text into the same tokens, does it predict the same probabilities (a wrong rotary layout
or a lost tensor shows here at once), does it continue prompts with the same words? Then: how certain is it
while it answers, and how well does it predict what it has not read? Needs the package `xllamacpp`; its server
runs in this process, with one thread.

    python tools/tinydoc/verify.py tinydoc.pt src/ollama_adapter/embedded/tinydoc/tinydoc.gguf
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from corpus import BOS, END, START, build_corpus
from export import quantised
from measure import evaluate
from model import Shape, TinyDoc
from tokenizers import Tokenizer

QUESTIONS = (
    "What does os.path.join do?",
    "What does str.split do?",
    "What is collections.OrderedDict?",
    "Explain asyncio.gather.",
    "What does argparse.ArgumentParser.parse_args do?",
    "Who are you?",
    "Why is the sky blue?",
)
RAW = ("json.loads(s)\n\n", "class Queue(object)\n\nCreate a queue", "Return the number of")
AWKWARD = (
    "", " ", "   ", "\n", "\n\n\n", "\t\tx", "a  b   c    d", "line \n  next", "trailing   ", " lead",
    "don't we'll I'd they've it's I'm you're", "DON'T", "'s's", "x'y", "3.14159 1_000 0xFF 1e-9", "²³½ ١٢٣",
    "naïve café", "日本語のテキスト", "Привет, мир", "مرحبا", "👩‍👩‍👧 👍🏽", "e\u0301", "\u00a0nbsp\u2003em",
    "\u200bzero", "a\u2028b\u0085c", "\ufeffbom", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "____init____", "......",
    "def f(x: int) -> int:\n    return x ** 2\n",
    ">>> print('a' + \"b\")\nab", "if a==b!=c<=d>=e:", "{'k': [1, 2, {3}]}", "#!/usr/bin/env python3",
    "C:\\path\\to", "http://www.python.org/?q=1&r=%20#x", "<html><p>&nbsp;</p></html>",
    "a\r\nb\rc", "\x00\x01\x7f", "!!!???",
    "--- === ***", "x" * 100, " " * 50 + "x", "\n \n  \n   x", "ß ẞ ŉ ǆ",
    "1st 2nd 3rd", "ABCdefGHI", "한국어 조선말", "हिन्दी पाठ",
    "🇩🇪🇫🇷", "€100 £20 ¥3000", "\u3000ideographic\u3000",
)  # fmt: skip


class Engine:
    """llama.cpp's own HTTP server around one model."""

    def __init__(self, path: Path, context: int) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.n_batch = context, 1, 512
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.verbosity = 1
        self._server = xllamacpp.Server(params)
        self._base = self._server.listening_address

    def post(self, path: str, **body: object) -> Any:
        """One JSON request."""
        request = urllib.request.Request(
            self._base + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:
            return json.load(response)

    def tokenize(self, text: str) -> list[int]:
        """Ids without a BOS, special tokens recognised."""
        return list(
            self.post("/tokenize", content=text, add_special=False, parse_special=True)["tokens"]
        )

    def log_probabilities(self, ids: Sequence[int], count: int) -> dict[int, float]:
        """Of the token after these, before any sampling."""
        reply = self.post(
            "/completion",
            prompt=list(ids),
            n_predict=1,
            n_probs=count,
            temperature=0,
            cache_prompt=True,
        )
        best = reply["completion_probabilities"][0]["top_logprobs"]
        return {candidate["id"]: candidate["logprob"] for candidate in best}

    def greedy(self, ids: Sequence[int], count: int) -> tuple[str, str, float]:
        """Text, why it ended, tokens per second."""
        reply = self.post("/completion", prompt=list(ids), n_predict=count, temperature=0)
        return reply["content"], reply["stop_type"], reply["timings"]["predicted_per_second"]

    def sample(self, ids: Sequence[int], count: int, seed: int) -> tuple[str, list[list[float]]]:
        """A text at Ollama's defaults, and the five best probabilities at each token, best first."""
        reply = self.post(
            "/completion",
            prompt=list(ids),
            n_predict=count,
            n_probs=5,
            seed=seed,
            temperature=0.8,
            top_k=40,
            top_p=0.9,
            min_p=0,
        )
        steps = [step["top_logprobs"] for step in reply["completion_probabilities"]]
        best = [sorted((math.exp(c["logprob"]) for c in step), reverse=True) for step in steps]
        return reply["content"], best


def compare_tokens(engine: Engine, tokenizer: Tokenizer, texts: Sequence[str]) -> int:
    """How many texts are cut differently."""
    wrong = 0
    for text in texts:
        ours, theirs = tokenizer.encode(text).ids, engine.tokenize(text)
        if ours != theirs:
            wrong += 1
            print(f"  differs: {text[:60]!r} {ours[:12]} {theirs[:12]}")
    return wrong


@torch.no_grad()
def compare_predictions(
    engine: Engine, models: dict[str, TinyDoc], texts: Sequence[Sequence[int]]
) -> dict[str, float]:
    """Perplexity of the same tokens, and how far llama.cpp is from each of our models."""
    nats = dict.fromkeys(("llama.cpp", *models), 0.0)
    apart = dict.fromkeys(models, 0.0)
    count = 0
    for ids in texts:
        ours = {
            name: model(torch.tensor([ids]))[0].log_softmax(-1) for name, model in models.items()
        }
        for at in range(1, len(ids)):
            theirs = engine.log_probabilities(ids[:at], 2048)
            count += 1
            nats["llama.cpp"] -= theirs[ids[at]]
            for name, table in ours.items():
                nats[name] -= table[at - 1, ids[at]].item()
                gaps = [abs(value - table[at - 1, token].item()) for token, value in theirs.items()]
                apart[name] += sum(gaps) / len(gaps)
    result = {f"perplexity {name}": math.exp(total / count) for name, total in nats.items()}
    return result | {f"mean |difference| to {name}": total / count for name, total in apart.items()}


@torch.no_grad()
def continue_greedily(model: TinyDoc, ids: Sequence[int], count: int, ends: set[int]) -> list[int]:
    """The most probable token, again and again."""
    known = list(ids)
    while len(known) - len(ids) < count:
        best = int(model(torch.tensor([known]))[0, -1].argmax())
        if best in ends:
            break
        known.append(best)
    return known[len(ids) :]


def compare_texts(engine: Engine, model: TinyDoc, tokenizer: Tokenizer) -> None:
    """Print what both write, and where they part."""
    ends = set(tokenizer.encode(BOS + END).ids)
    for prompt in (*map(ask, QUESTIONS), *RAW):
        ids = [0, *tokenizer.encode(prompt).ids]
        ours = tokenizer.decode(continue_greedily(model, ids, 100, ends))
        theirs, stop, speed = engine.greedy(ids, 100)
        agreed = next((at for at in range(len(ours)) if ours[at] != theirs[at : at + 1]), len(ours))
        verdict = "same" if ours == theirs else f"part after {agreed} of {len(ours)} characters"
        print(f"--- {prompt!r}\n{theirs}\n[{stop}, {speed:.0f} tok/s, {verdict}]")


def show_certainty(engine: Engine, tokenizer: Tokenizer) -> None:
    """Print sampled answers, and how the probabilities vary from token to token."""
    steps = []
    for question in QUESTIONS:
        ids = [0, *tokenizer.encode(ask(question)).ids]
        for seed in range(5):
            text, best = engine.sample(ids, 120, seed)
            steps += best
            print(f"--- {question} (seed {seed})\n{text}")
    for label, count in (("best", 1), ("five best", 5)):
        values = torch.tensor([sum(step[:count]) for step in steps])
        levels = values.quantile(torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9]))
        shown = ", ".join(f"{value:.2f}" for value in levels)
        print(f"probability of the {label}, at 10, 25, 50, 75, 90 %: {shown}; {len(steps)} tokens")


def ask(question: str) -> str:
    """The prompt that the chat template makes."""
    return f"{START}user\n{question}{END}\n{START}assistant\n"


def check(checkpoint: dict[str, Any], path: Path, predictions: int) -> int:
    """Everything in turn; the number of texts that are cut differently."""
    shape, tokenizer = Shape(**checkpoint["shape"]), Tokenizer.from_str(checkpoint["tokenizer"])
    models = {name: TinyDoc(shape).eval() for name in ("f32", "q8_0")}
    for model in models.values():
        model.load_state_dict(checkpoint["weights"])
    quantised(models["q8_0"])
    corpus = build_corpus()
    started = time.perf_counter()
    engine = Engine(path, shape.context)
    print(f"loaded in {time.perf_counter() - started:.2f} s")
    texts = [*AWKWARD, *corpus.strict[::20], *corpus.chats[0][::500]]
    wrong = compare_tokens(engine, tokenizer, texts)
    print(f"tokens: {len(texts)} texts, {wrong} cut differently")
    ids = [[0, *tokenizer.encode(text).ids][:200] for text in corpus.strict[::predictions]]
    for label, value in compare_predictions(engine, models, ids).items():
        print(f"  {label}: {value:.4f}")
    compare_texts(engine, models["f32"], tokenizer)
    show_certainty(engine, tokenizer)
    measured = corpus.held_out() | {"read in training": corpus.plain[::15]}
    for name, model in models.items():
        for part, texts in measured.items():
            print(f"{name}, {part}: {evaluate(model, tokenizer, texts)}", flush=True)
    return wrong


def main() -> None:
    """Leaves without unwinding: destroying the server can wait for ever."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--every", type=int, default=40, help="compare every n-th held-out text")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wrong = check(torch.load(options.checkpoint, weights_only=True), options.gguf, options.every)
    sys.stdout.flush()
    os._exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
