"""The daemon's HTTP manners, against the recordings of the real one wherever the two can be equal."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.embedded.daemons import Daemon

_RECORDINGS = Path(__file__).parents[1] / "contract" / "data" / "recordings.jsonl"


def _recordings() -> dict[str, tuple[dict[str, Any], int, dict[str, str], str]]:
    found = {}
    for line in _RECORDINGS.read_text("utf-8").splitlines():
        raw = json.loads(line)
        wire = "".join(each["data"] for each in raw["reads"])
        head, _, body = wire.partition("\r\n\r\n")
        fields = dict(
            each.lower().split(": ", 1) for each in head.split("\r\n")[1:] if ": " in each
        )
        if fields.get("transfer-encoding") == "chunked":
            body = "".join(re.split(r"(?:^|\r\n)[0-9a-f]+\r\n", body))
        found[raw["name"]] = (raw["request"], raw["status"], fields, body.removesuffix("\r\n"))
    return found


RECORDINGS = _recordings()

EQUAL = [
    "blob-bad-digest",
    "blob-digest-mismatch",
    "chat-bad-messages",
    "chat-no-model",
    "chat-404",
    "chat-cloudmodel-cloud-off",
    "copy-400",
    "copy-404",
    "create-nothing",
    "delete-404",
    "delete-empty",
    "embed-404",
    "embed-bad",
    "embed-batch",
    "embed-empty",
    "embed-on-completion-model",
    "embeddings-legacy",
    "err-empty-body",
    "err-empty-model",
    "err-invalid-json",
    "err-invalid-model-name",
    "err-not-json",
    "err-unknown-model",
    "generate-cloudmodel-cloud-off",
    "generate-name-field",
    "method-405",
    "path-404",
    "ps-empty",
    "pull-badname",
    "pull-empty",
    "root",
    "show-400",
    "show-404",
    "show-cloudmodel-cloud-off",
    "status-cloud-off",
    "tags-405",
]
"""These differ in nothing but the date."""

AS_TINY = [
    "chat-empty-load",
    "chat-empty-unload",
    "chat-tools",
    "err-options-type",
    "err-prompt-type",
    "err-stream-type",
    "generate-empty-load",
    "generate-format-bad",
    "generate-format-bad2",
    "generate-images",
    "generate-images-badb64",
    "generate-raw-system-400",
    "generate-suffix",
    "generate-think-badvalue",
    "generate-think-unsupported",
    "generate-toplogprobs-21",
    "generate-unload",
    "keepalive-bad",
    "keepalive-bad2",
    "load-keepalive-90s",
    "load-keepalive-minus1",
    "opt-num_predict-x",
    "opt-stop-1",
    "opt-stop-dog",
]
"""These too, once the model is called `tiny` in both."""


def _plain(text: str) -> str:
    return re.sub(r'"created_at":"[^"]+"', '"created_at":"now"', text)


@pytest.mark.parametrize("name", EQUAL + AS_TINY)
def test_the_answer_equals_the_recorded_one(name: str, daemon: Daemon) -> None:
    request, status, headers, body = RECORDINGS[name]
    sent = request["body"]
    if name in AS_TINY:
        sent, body = sent.replace("markov", "tiny"), body.replace("markov", "tiny")
    if name == "ps-empty":
        for each in daemon.resident():
            daemon.generate("", model=each, keep_alive=0)
    answer = daemon.ask(request["path"], sent.encode(), method=request["method"])
    assert (answer.status, _plain(answer.body.decode())) == (status, _plain(body))
    kind = headers.get("content-type", "").split(";")[0]
    assert answer.headers.get("content-type", "").split(";")[0] == kind
    assert answer.headers.get("allow", "").lower() == headers.get("allow", "")


def test_head_has_a_head_only(daemon: Daemon) -> None:
    for path, size in (("/", "17"), ("/api/version", None), ("/api/tags", None)):
        answer = daemon.ask(path, method="HEAD")
        assert (answer.status, answer.body) == (200, b"")
        assert size in (None, answer.headers["content-length"])
    digest = "sha256:" + "1" * 64
    assert daemon.ask(f"/api/blobs/{digest}", method="HEAD").status == 404


def test_the_version_does_not_pretend(daemon: Daemon) -> None:
    answer = daemon.ask("/api/version").json
    assert answer["version"].endswith("-embedded")
    assert answer["embedded"] is True


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "8.8.8.8", "xn--lcalhost"])
def test_a_foreign_host_name_is_turned_away(host: str, daemon: Daemon) -> None:
    answer = daemon.ask("/api/version", headers={"Host": host})
    assert (answer.status, answer.body) == (403, b"")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:5", "box.local", "10.0.0.7"])
def test_a_name_of_this_machine_is_welcome(host: str, daemon: Daemon) -> None:
    assert daemon.ask("/api/version", headers={"Host": host}).status == 200


def test_a_page_from_elsewhere_is_turned_away(daemon: Daemon) -> None:
    for origin in ("https://evil.example", "null", "http://localhost.evil.example"):
        assert daemon.ask("/api/tags", headers={"Origin": origin}).status == 403
        assert daemon.ask("/api/chat", method="OPTIONS", headers={"Origin": origin}).status == 403


def test_a_page_from_here_may_ask(daemon: Daemon) -> None:
    for origin in (
        "http://localhost:3000",
        "https://127.0.0.1",
        "app://x",
        f"http://{daemon.address}",
    ):
        assert daemon.ask("/api/tags", headers={"Origin": origin}).status == 200
    preflight = daemon.ask(
        "/api/chat", method="OPTIONS", headers={"Origin": "http://localhost:3000"}
    )
    assert preflight.status == 204
    assert preflight.headers["access-control-allow-origin"] == "http://localhost:3000"


def test_a_body_beyond_all_measure_is_refused(daemon: Daemon) -> None:
    answer = daemon.ask("/api/show", b'{"model":"' + b"x" * (1 << 26) + b'"}')
    assert answer.status == 413


def test_deep_and_odd_json_is_a_clear_error(daemon: Daemon) -> None:
    for body, words in (
        (b"[" * 100_000, "exceeded max depth"),
        (b"[]", "json: cannot unmarshal array into Go value of type api.GenerateRequest"),
        (b'{"model": NaN}', "invalid character 'N' looking for beginning of value"),
        (b'{"model": "tiny", "top_logprobs": 1.5}', "json: cannot unmarshal number 1.5"),
        (b'{"model": "tiny", "prompt_tokens": ["x"]}', "json: cannot unmarshal string"),
        (b'{"model": "tiny", "keep_alive": "5"}', "time: missing unit"),
    ):
        answer = daemon.ask("/api/generate", body)
        assert answer.status == 400
        assert words in answer.error


def test_trailing_text_and_null_fields_are_ignored(daemon: Daemon) -> None:
    body = b'{"model": "tiny", "prompt": "", "options": null, "format": null} and more'
    assert daemon.ask("/api/generate", body).json["done_reason"] == "load"


def test_what_we_do_not_offer_is_not_found(daemon: Daemon) -> None:
    assert daemon.ask("/v1/chat/completions", {}).status == 404
    assert daemon.ask("/api/blobs/x/y", b"").status == 404


def test_downloads_are_refused_with_a_way_out(daemon: Daemon) -> None:
    answer = daemon.ask("/api/pull", {"model": "llama3"})
    assert answer.status == 200
    assert answer.lines[0] == {"status": "pulling manifest"}
    assert "ollama-adapter import" in answer.error
    assert daemon.ask("/api/pull", {"model": "llama3", "stream": False}).status == 500
    assert "never uploads" in daemon.ask("/api/push", {"model": "tiny"}).error
