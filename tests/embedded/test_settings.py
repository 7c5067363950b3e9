"""From environment and options to how a model is loaded and sampled."""

from __future__ import annotations

import math
from pathlib import Path

from ollama_adapter.core import gguf
from ollama_adapter.embedded.child import choose_threads
from ollama_adapter.embedded.settings import Settings, plan_spec, sampling, shortened
from tests.embedded import ggufs


def test_the_environment_is_read_as_ollama_reads_it() -> None:
    settings = Settings.parse(
        {
            "OLLAMA_KEEP_ALIVE": ' "90" ',
            "OLLAMA_MAX_LOADED_MODELS": "7",
            "OLLAMA_NUM_PARALLEL": "2",
            "OLLAMA_CONTEXT_LENGTH": "64",
            "OLLAMA_ORIGINS": "http://a, http://b",
            "OLLAMA_MAX_QUEUE": "many",
        }
    )
    assert settings.limits.keep_s == 90
    assert settings.limits.max_loaded == 7
    assert settings.limits.max_queue == 512
    assert (settings.parallel, settings.context) == (2, 64)
    assert settings.origins == ("http://a", "http://b")
    assert Settings.parse({"OLLAMA_KEEP_ALIVE": "-1"}).limits.keep_s == math.inf
    assert Settings.parse({"OLLAMA_KEEP_ALIVE": "rubbish"}).limits.keep_s == 300


def test_a_model_is_loaded_within_its_bounds() -> None:
    header = gguf.parse(ggufs.llama(context=512))
    for wanted, context in ((None, 512), (64, 64), (-5, 4), (10**9, 512)):
        options = {} if wanted is None else {"num_ctx": wanted}
        spec = plan_spec(Settings(), Path("x"), header, options, shift=True)
        assert spec.n_ctx == context
        assert spec.n_batch == min(128, context)
    pooled = gguf.parse(ggufs.llama(pooling=1, context=512))
    spec = plan_spec(Settings(parallel=4), Path("x"), pooled, {}, shift=True)
    assert (spec.embedding, spec.n_batch, spec.parallel) == (True, 512, 1)


def test_every_sampling_default_is_ollamas() -> None:
    assert sampling({}, 4096) == {
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.0,
        "typical_p": 1.0,
        "repeat_last_n": 64,
        "repeat_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop": [],
        "seed": 0xFFFFFFFF,
        "n_keep": 4,
        "n_predict": 40960,
    }


def test_a_prompt_keeps_its_head_and_half_the_rest() -> None:
    tokens = list(range(822))
    assert shortened(tokens, 128, 4) == [0, 1, 2, 3, *range(822 - 62, 822)]
    assert len(shortened(tokens, 4, 4)) == 3


def test_a_small_model_gets_one_thread() -> None:
    assert choose_threads(1 << 20) == 1
    assert choose_threads(1 << 20, wanted=1) == 1
    assert choose_threads(1 << 33) >= 1
    assert choose_threads(1, wanted=10**6) <= 10**4
