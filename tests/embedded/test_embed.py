"""Embeddings, from a small random model that pools."""

from __future__ import annotations

import math

import pytest

from tests.embedded.daemons import Daemon


def test_one_vector_of_length_one_per_input(daemon: Daemon) -> None:
    answer = daemon.ask("/api/embed", {"model": "embed", "input": ["a", "bcd"]}).json
    assert answer["model"] == "embed"
    assert [len(each) for each in answer["embeddings"]] == [64, 64]
    for vector in answer["embeddings"]:
        assert math.hypot(*vector) == pytest.approx(1, abs=1e-5)
    assert answer["prompt_eval_count"] == 4
    assert answer["total_duration"] > 0
    alone = daemon.ask("/api/embed", {"model": "embed", "input": "a"}).json["embeddings"][0]
    assert alone == pytest.approx(answer["embeddings"][0], abs=1e-4)


def test_fewer_dimensions_are_of_length_one_too(daemon: Daemon) -> None:
    answer = daemon.ask("/api/embed", {"model": "embed", "input": "a", "dimensions": 4}).json
    (vector,) = answer["embeddings"]
    assert len(vector) == 4
    assert math.hypot(*vector) == pytest.approx(1, abs=1e-5)


def test_a_long_input_is_cut_or_refused(daemon: Daemon) -> None:
    request = {"model": "embed", "input": "x" * 500}
    assert daemon.ask("/api/embed", request).json["prompt_eval_count"] == 128
    answer = daemon.ask("/api/embed", {**request, "truncate": False})
    assert answer.status == 400
    assert answer.error == "the input length exceeds the context length"


def test_the_older_endpoint(daemon: Daemon) -> None:
    answer = daemon.ask("/api/embeddings", {"model": "embed", "prompt": "a"}).json
    assert len(answer["embedding"]) == 64
    assert daemon.ask("/api/embeddings", {"model": "embed"}).json == {"embedding": []}


def test_an_embedding_model_says_so_and_does_not_write(daemon: Daemon) -> None:
    assert daemon.ask("/api/show", {"model": "embed"}).json["capabilities"] == ["embedding"]
    assert daemon.generate(model="embed").error == '"embed" does not support generate'
    assert daemon.chat("x", model="embed").error == '"embed" does not support chat'
