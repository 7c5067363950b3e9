"""What the daemon says went wrong, and what we make of it: the right error, and no word of a prompt.

The bodies are those of the real daemon, from the recordings.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ollama_adapter.core.failures import (
    MAX_WORDS,
    context_overflow,
    model_not_found,
    remote_refused,
    response_error,
    stream_error,
)
from ollama_adapter.core.redaction import SHARED_RUN, SHORTEST, without_shared
from ollama_adapter.errors import (
    AdapterError,
    ContextOverflow,
    InvalidModelFile,
    ModelLoadFailed,
    ModelNotFound,
    ProtocolError,
    RemoteModelRefused,
    ResponseError,
    ServerBusy,
    StreamInterrupted,
    UnsupportedCPU,
)

TOO_LONG = (
    r'{"error":"{\"error\":{\"code\":400,\"message\":\"request (822 tokens) exceeds the available'
    r" context size (256 tokens), try increasing it\",\"type\":\"exceed_context_size_error\","
    r'\"n_prompt_tokens\":822,\"n_ctx\":256}}"}'
)
NO_SHIFT = (
    '{"error":"the prompt is longer than the context length currently available to the model; '
    'shorten the prompt, adjust the context length in settings, or use a model with a longer context length"}'
)
NO_TENSOR = (
    r"""{"error":"llama-server process has terminated: exit status 1: error loading model: """
    r"""check_tensor_dims: tensor 'blk.1.attn_q.weight' not found\nerror loading model: again"}"""
)
DIED = "an error was encountered while running the model: unexpected EOF"


def fault(
    status: int, body: str | bytes, private: bytes = b"", model: str = "m:latest"
) -> AdapterError:
    return response_error(
        status, body if isinstance(body, bytes) else body.encode(), model, private
    )


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, TOO_LONG, ContextOverflow),
        (400, NO_SHIFT, ContextOverflow),
        (400, '{"error":"the input length exceeds the context length"}', ContextOverflow),
        (404, """{"error":"model 'nope' not found"}""", ModelNotFound),
        (404, r'{"error":"model \"victim2\" not found, try pulling it first"}', ModelNotFound),
        (
            404,
            '{"error":{"message":"model \'nope\' not found","type":"not_found_error"}}',
            ModelNotFound,
        ),
        (
            403,
            '{"error":"ollama cloud is disabled: remote model is unavailable"}',
            RemoteModelRefused,
        ),
        (
            403,
            '{"error":"ollama cloud is disabled: remote model details are unavailable"}',
            RemoteModelRefused,
        ),
        (400, '{"error":"this server cannot run this remote model"}', RemoteModelRefused),
        (
            503,
            '{"error":"server busy, please try again.  maximum pending requests exceeded"}',
            ServerBusy,
        ),
        (503, "", ServerBusy),
        (500, NO_TENSOR, ModelLoadFailed),
        (500, '{"error":"timed out waiting for llama-server to start - "}', ModelLoadFailed),
        (
            500,
            '{"error":"model requires more system memory (9 GiB) than is available"}',
            ModelLoadFailed,
        ),
        (500, '{"error":"unexpected EOF"}', InvalidModelFile),
        (500, r'{"error":"tensor \"a\" offset+size (9) exceeds file size (8)"}', InvalidModelFile),
        (
            500,
            '{"error":"llama-server process has terminated: signal: illegal instruction (core dumped)"}',
            UnsupportedCPU,
        ),
        (500, json.dumps({"error": DIED}), StreamInterrupted),
        (400, r'{"error":"\"markov\" does not support thinking"}', ResponseError),
        (500, r'{"error":"option \"num_ctx\" must be of type integer"}', ResponseError),
        (
            501,
            '{"error":"This server does not support embeddings. Start it with `--embeddings`"}',
            ResponseError,
        ),
        (404, "404 page not found", ResponseError),
        (405, "405 method not allowed", ResponseError),
        (403, "", ResponseError),
        (400, '{"error":"unexpected EOF"}', ResponseError),  # of the request's JSON
        (500, b"\xff\xfe", ResponseError),
        (500, "[" * 100_000, ResponseError),
        (500, "[]", ResponseError),
        (500, '{"error":null}', ResponseError),
        (500, '{"error":5}', ResponseError),
        (500, '{"error":["a"]}', ResponseError),
        (500, '{"error":{"message":5}}', ResponseError),
        (500, r'{"error":"{\"error\":\"inner\"}"}', ResponseError),
        (301, "", ProtocolError),
        (302, TOO_LONG, ProtocolError),
        (399, "", ProtocolError),
    ],
)
def test_the_wording_of_the_daemon_and_our_error(
    status: int, body: str | bytes, kind: type[AdapterError]
) -> None:
    error = fault(status, body)
    assert type(error) is kind
    if isinstance(error, ResponseError):
        assert (error.status, error.model) == (status, "m:latest")
    if not isinstance(error, ProtocolError):
        assert "m:latest" in str(error)


@pytest.mark.parametrize(
    "body",
    [
        TOO_LONG,
        '{"error":"request (822 tokens) exceeds the available context size (256 tokens)"}',
        '{"error":{"message":"request (822 tokens) exceeds the available context size (256 tokens)"}}',
        '{"error":{"message":"exceeds the available context size","n_prompt_tokens":822,"n_ctx":256}}',
    ],
)
def test_an_overflow_tells_both_numbers(body: str) -> None:
    error = fault(400, body)
    assert isinstance(error, ContextOverflow)
    assert (error.prompt_tokens, error.context_tokens, error.status) == (822, 256, 400)
    assert "822" in str(error)
    assert "256" in str(error)
    assert error.hint


@pytest.mark.parametrize(
    "details",
    [
        '"n_prompt_tokens":null,"n_ctx":null',
        '"n_prompt_tokens":"SECRET","n_ctx":["SECRET"]',
        '"n_prompt_tokens":-5,"n_ctx":-5',
        '"n_prompt_tokens":1.5,"n_ctx":{}',
    ],
)
def test_an_overflow_takes_nothing_but_numbers_for_its_numbers(details: str) -> None:
    error = fault(400, f'{{"error":{{"message":"longer than the context length",{details}}}}}')
    assert isinstance(error, ContextOverflow)
    assert (error.prompt_tokens, error.context_tokens) == (0, 0)
    assert "SECRET" not in str(error)


def test_an_overflow_with_a_number_of_any_length_is_an_overflow() -> None:
    error = fault(400, f'{{"error":"({"9" * 5000} tokens) exceeds the context length"}}')
    assert isinstance(error, ContextOverflow)
    assert error.prompt_tokens == 0


def test_an_error_without_a_model_reads_well() -> None:
    assert str(fault(405, "", model="")) == (
        "the daemon refused the request (status 405): no reason given"
    )


def test_every_error_of_ours_carries_a_hint_where_there_is_something_to_do() -> None:
    for error in (
        context_overflow("m", 5, 4),
        model_not_found("m"),
        remote_refused("m"),
        stream_error("x", "m"),
        fault(503, ""),
        fault(500, NO_TENSOR),
        fault(500, '{"error":"unexpected EOF"}'),
        fault(400, "{}"),
    ):
        assert error.hint


@pytest.mark.parametrize(
    ("status", "words", "hint"),
    [
        (400, '"m" does not support thinking', "leave think out, or use another model"),
        (400, '"m" does not support tools', "leave tools out, or use another model"),
        (400, '"m" does not support chat', "use a model that writes; this one makes embeddings"),
        (400, "Unrecognized schema: a $ref", "correct the schema in format"),
        (400, "json: cannot unmarshal", "correct the request, or use another model"),
        (500, 'invalid format: "x"', "correct the schema in format"),
        (500, "out of luck", ResponseError.usual_hint),
        (501, "This server does not support embeddings.", "use an embedding model"),
    ],
)
def test_a_refusal_says_what_to_do_about_it(status: int, words: str, hint: str) -> None:
    assert fault(status, json.dumps({"error": words})).hint == hint


def test_a_model_without_embeddings_is_told_of_in_our_words() -> None:
    error = fault(501, '{"error":"This server does not support embeddings. Start it with `--x`"}')
    assert str(error) == "m:latest makes no embeddings"


def test_nobody_is_sent_to_download_what_only_the_package_has() -> None:
    assert "pull" not in model_not_found("tinydoc:latest").hint
    assert "`ollama-adapter pull m`" in model_not_found("m").hint


def test_the_model_of_the_package_cannot_be_removed_and_nothing_else_is_advised() -> None:
    words = "tinydoc is part of the package and cannot be changed; it can be copied"
    error = fault(400, f'{{"error":"{words}"}}', model="tinydoc")
    assert str(error) == "tinydoc is part of the package, and cannot be changed or removed"
    assert error.hint.startswith("leave it")
    assert error.hint != fault(400, "{}").hint


@pytest.mark.parametrize(
    ("options", "raises"),
    [({"num_ctx": 8192}, False), ({"num_ctx": 64}, True), ({}, True), (5, True), (None, True)],
)
def test_nobody_is_told_to_raise_what_the_model_does_not_go_beyond(
    options: Any, raises: bool
) -> None:
    body = json.dumps({"prompt": "x", "options": options}).encode()
    words = "the request (18009 tokens) exceeds the available context size (1024 tokens)"
    error = fault(400, json.dumps({"error": words}), body)
    assert isinstance(error, ContextOverflow) and error.context_tokens == 1024
    assert ("raise num_ctx" in error.hint) is raises
    assert "truncate" in error.hint


def test_where_the_daemon_does_not_say_how_much_fits_more_may_still_fit() -> None:
    body = json.dumps({"prompt": "x", "options": {"num_ctx": 8192}}).encode()
    error = fault(400, '{"error":"the request exceeds the available context size"}', body)
    assert isinstance(error, ContextOverflow) and error.context_tokens == 0
    assert "raise num_ctx" in error.hint


@pytest.mark.parametrize(("sent", "fits"), [(0, 0), (5, 0), (0, 5)])
def test_an_overflow_of_unknown_size_shows_no_numbers(sent: int, fits: int) -> None:
    assert str(context_overflow("m", sent, fits)) == "the prompt is longer than the context of m"


# In the middle of a stream


def test_a_runner_that_died_is_recognised() -> None:
    error = stream_error(DIED, "m", "session", 7)
    assert isinstance(error, StreamInterrupted)
    assert (error.session_id, error.tokens) == ("session", 7)
    assert "died" in str(error)


@pytest.mark.parametrize(
    "words",
    [
        "SECRET",
        "",
        {"message": "SECRET"},
        ["SECRET", {"SECRET": 1}],
        5,
        False,
        f"llama-server chat error: map[message:{DIED} SECRET]",
        "exceeds the available context size SECRET",
    ],
)
def test_an_error_in_a_stream_is_measured_and_not_shown(words: Any) -> None:
    error = stream_error(words, "m", "session", 3)
    assert isinstance(error, StreamInterrupted)
    assert (error.session_id, error.tokens) == ("session", 3)
    for shown in (str(error), repr(error), error.hint, repr(error.__dict__)):
        assert "SECRET" not in shown


# Privacy


def body_of(prompt: Any, **fields: Any) -> bytes:
    return json.dumps(
        {"model": "tiny:latest", "prompt": prompt, "top_logprobs": 5, **fields}
    ).encode()


def shown_of(error: AdapterError) -> str:
    return f"{error} {error!r} {error.hint} {error.__dict__}"


@pytest.mark.parametrize("status", [400, 404, 500, 501, 502])
@pytest.mark.parametrize(
    "words",
    [
        "invalid: {}",
        "invalid format: {}: unexpected EOF",
        "error loading model: {}",
        "llama-server process has terminated: {}",
        "tensor {} exceeds file size",
        "{}",
        "{} {}",
    ],
)
@pytest.mark.parametrize(
    "secret",
    [
        "correct horse battery staple",
        "hunter2",
        "one\ntwo\nthree\nfour\nfive",
        'say "open sesame" twice',
        "päßwörter für alle",
        "tab\tseparated\tvalues",
        "<script>alert(1)</script>",
    ],
)
def test_no_error_repeats_what_was_sent(status: int, words: str, secret: str) -> None:
    for private in (
        body_of(secret),
        body_of("x", system=secret),
        body_of("x", options={"stop": [secret]}),
        body_of("x", format={"properties": {secret: {}}}),
        json.dumps({"messages": [{"role": "user", "content": secret}]}).encode(),
    ):
        for said in (secret, json.dumps(secret), json.dumps(secret, ensure_ascii=False)):
            shown = shown_of(
                fault(status, json.dumps({"error": words.replace("{}", said)}), private)
            )
            for line in secret.splitlines():
                assert line not in shown


@pytest.mark.parametrize(
    "words",
    [
        "top_logprobs must be between 0 and 20",
        'option "num_predict" must be of type integer',
        "registry.ollama.ai/library/tiny:latest does not support insert",
        "raw mode does not support template, system, or context",
    ],
)
def test_the_words_of_the_api_and_the_name_of_the_model_are_shown(words: str) -> None:
    private = body_of(
        "something else entirely", options={"num_predict": 5}, template="t", system="s", raw=True
    )
    assert words in str(fault(400, json.dumps({"error": words}), private))


def test_a_long_text_is_cut_and_only_its_first_line_shown() -> None:
    error = fault(500, json.dumps({"error": "first " + "x" * 10_000 + "\nsecond"}))
    assert len(str(error)) < MAX_WORDS + 100
    assert "second" not in str(error)


def test_a_huge_error_on_a_huge_prompt_is_dealt_with_at_once() -> None:
    """Were the whole of both compared, this would take hours."""
    error = fault(500, json.dumps({"error": "word " * 200_000}), body_of("prompt " * 200_000))
    assert isinstance(error, ResponseError)


alphabet = st.text(st.sampled_from('ab\n"\\é '), min_size=SHORTEST, max_size=40)


@given(alphabet, st.text(max_size=20), st.text(max_size=20))
@example("a" * SHARED_RUN, "a", "a")
@example("aaaa", "", "b")
def test_a_string_of_the_request_never_comes_through(secret: str, before: str, after: str) -> None:
    for said in (secret, json.dumps(secret, ensure_ascii=False)[1:-1]):
        shown = without_shared(before + said + after, body_of(secret))
        assert secret not in shown
        assert said not in shown


@given(st.text(max_size=80), st.text(max_size=80))
def test_without_anything_shared_a_text_stays_as_it_is(text: str, prompt: str) -> None:
    shown = without_shared(text, body_of(prompt))
    if shown != text:
        assert "…" in shown
        runs = {text[i : i + SHARED_RUN] for i in range(len(text))} | {text}
        quoted = json.dumps(prompt, ensure_ascii=False)
        assert any(prompt in each or each in prompt or each in quoted for each in runs) or (
            quoted[1:-1] in text
        )


@given(st.binary(max_size=60), st.integers(100, 599), st.binary(max_size=60))
def test_any_body_makes_an_error_of_ours(body: bytes, status: int, private: bytes) -> None:
    assert isinstance(fault(status, body, private), AdapterError)


def test_a_request_that_is_no_json_is_private_as_a_whole() -> None:
    assert without_shared("got correct horse battery", b"\xffcorrect horse battery") == "got …"


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
@pytest.mark.parametrize("depth", [600, 1_200, 4_000, 40_000])
def test_a_request_is_private_however_deeply_it_is_nested(
    opening: bytes, closing: bytes, depth: int
) -> None:
    """Python recurses less deeply than C, and since 3.12 far less deeply."""
    private = b'{"prompt":' + opening * depth + b'"correct horse"' + closing * depth + b"}"
    assert without_shared("got correct horse", private) == "got …"
