"""What a registry may say, whom it may send us to, and how far a download is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_adapter.core import registry
from ollama_adapter.core.names import parse_name
from ollama_adapter.core.registry import (
    LEAST_STEP,
    MARGIN_BYTES,
    MODEL_LAYER,
    Address,
    Blob,
    Meter,
    allowed_hosts,
    check_config,
    check_space,
    decode_journal,
    is_consented,
    may_dial,
    may_reach,
    parse_address,
    parse_manifest,
    source_of,
    step_bytes,
)
from ollama_adapter.errors import InvalidRequest, PullFailed, RemoteModelRefused

STORAGE = "dd20bb891979d25aebc8bec07b2b3bbc.r2.cloudflarestorage.com"
ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64


# Places


def test_a_name_says_where_its_parts_are() -> None:
    source = source_of(parse_name("llama3.2:1b"))
    assert str(source.address) == "registry.ollama.ai"
    assert (source.address.port, source.tls) == (443, True)
    assert source.manifest_path == "/v2/library/llama3.2/manifests/1b"
    assert source.blob_path(ONE) == f"/v2/library/llama3.2/blobs/{ONE}"
    other = source_of(parse_name("Registry.Example:5000/me/m"))
    assert (other.address, other.tls) == (Address("registry.example", 5000), True)
    assert str(other.address) == "registry.example:5000"


def test_only_this_machine_is_spoken_to_in_the_clear() -> None:
    for host in ("127.0.0.1", "localhost"):
        plain = source_of(parse_name(f"{host}/me/m"))
        assert (plain.tls, plain.address.port) == (False, 80)
        sure = source_of(parse_name(f"{host}:5000/me/m"), tls_on_loopback=True)
        assert (sure.tls, sure.address.port) == (True, 5000)
    for host in ("127.0.0.2", "127.0.0.1.example.com", "localhost.example.com", "10.0.0.1"):
        assert source_of(parse_name(f"{host}/me/m")).tls


def test_a_clouds_name_has_no_source() -> None:
    with pytest.raises(RemoteModelRefused):
        source_of(parse_name("gpt-oss:20b-cloud"))


@pytest.mark.parametrize("text", ["", ":5000", "a:b", "a:", "a:123456", "a:65536", "a:١"])
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="host"):
        parse_address(text, 443)


# Consent


def test_ollamas_registry_and_its_storage_need_no_setting_and_nothing_else_goes() -> None:
    source = source_of(parse_name("llama3.2"))
    assert is_consented(source, ())
    allowed = allowed_hosts(source, ())
    assert may_dial(Address("registry.ollama.ai", 443), allowed)
    assert may_dial(Address(STORAGE, 443), allowed)
    for host, port in (
        ("registry.ollama.ai", 80),
        ("registry.ollama.ai", 22),
        ("ollama.com", 443),
        ("evil.r2.cloudflarestorage.com", 443),
        (f"{STORAGE}.evil.com", 443),
        (f"evil-{STORAGE}", 443),
        ("127.0.0.1", 443),
    ):
        assert not may_dial(Address(host, port), allowed)


def test_what_the_user_lists_is_allowed_as_it_is_written() -> None:
    source = source_of(parse_name("hf.co/me/m"))
    assert not is_consented(source, ())
    assert is_consented(source, ("HF.co",))
    assert not is_consented(source, ("hf.co:8443",))
    allowed = allowed_hosts(source, ("hf.co", "cdn.example:8443", "127.0.0.1"))
    assert not may_dial(Address(STORAGE, 443), allowed)
    assert may_dial(Address("cdn.example", 8443), allowed)
    assert not may_dial(Address("cdn.example", 443), allowed)
    assert not may_dial(Address("hf.co", 80), allowed)
    assert may_dial(Address("127.0.0.1", 80), allowed)


@pytest.mark.parametrize(
    ("host", "address", "listed", "expected"),
    [
        ("registry.ollama.ai", "104.21.75.227", False, True),
        ("registry.ollama.ai", "2606:4700:3034::6815:4be3", False, True),
        ("registry.ollama.ai", "10.0.0.8", False, False),
        ("registry.example", "10.0.0.8", True, True),
        ("registry.example", "fd00::8%eth0", True, True),
        ("registry.example", "127.0.0.1", True, False),
        ("registry.example", "::1", True, False),
        ("registry.example", "0.0.0.0", True, False),
        ("registry.example", "169.254.169.254", True, False),
        ("registry.example", "fe80::1", True, False),
        ("registry.example", "224.0.0.1", True, False),
        ("localhost", "127.0.0.1", False, True),
        ("localhost", "10.0.0.8", True, False),
    ],
)
def test_no_name_of_the_network_leads_to_this_machine(
    host: str, address: str, listed: bool, expected: bool
) -> None:
    assert may_reach(Address(host, 443), address, listed=listed) is expected


# Manifests


def manifest(**changes: Any) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "config": {"mediaType": "c", "digest": TWO, "size": 2},
        "layers": [{"mediaType": MODEL_LAYER, "digest": ONE, "size": 100}],
        **changes,
    }


def read(tree: object) -> registry.Manifest:
    return parse_manifest(json.dumps(tree).encode(), "m:1")


def test_a_manifest_names_each_blob_once_and_its_config_last() -> None:
    layer = {"mediaType": MODEL_LAYER, "digest": ONE, "size": 100}
    found = read(manifest(layers=[layer, layer]))
    assert [each.digest for each in found.blobs] == [ONE, TWO]
    assert found.total == 102
    assert found.models == (Blob(MODEL_LAYER, ONE, 100),)
    assert found.config.file == "sha256-" + "2" * 64


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ([], "no JSON with a list"),
        ({"layers": {}}, "no JSON with a list"),
        (manifest(layers=[{}] * 257), "over 256 layers"),
        (manifest(layers=[3]), "no object"),
        (manifest(config=None), "no object"),
        (manifest(layers=[]), "no model file"),
        (manifest(config={"digest": TWO, "size": 5 << 20}), "over 4 MiB"),
        (manifest(config={"digest": ONE, "size": 2}), "two sizes"),
        *(
            (manifest(layers=[{"mediaType": MODEL_LAYER, "digest": digest, "size": 1}]), "digest")
            for digest in (
                "sha256:../../../../etc/passwd",
                "sha256:" + "1" * 63,
                "sha256:" + "1" * 64 + "\n",
                "sha256:" + "G" * 64,
                "md5:" + "1" * 64,
                "../" + "1" * 64,
                7,
                None,
            )
        ),
        *(
            (manifest(layers=[{"mediaType": MODEL_LAYER, "digest": ONE, "size": size}]), "size")
            for size in (-1, 1 << 43, 1.5, "1", True, None)
        ),
        (manifest(layers=[{"mediaType": 7, "digest": ONE, "size": 1}]), "no model file"),
    ],
)
def test_what_is_no_manifest_is_refused_with_the_reason(tree: object, reason: str) -> None:
    with pytest.raises(PullFailed, match=reason) as caught:
        read(tree)
    assert caught.value.hint


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"\xff", b"[" * 100_000, b'{"layers":"' + b"x" * (1 << 20) + b'"}']
)
def test_bombs_end_at_once(raw: bytes) -> None:
    with pytest.raises(PullFailed):
        parse_manifest(raw, "m:1")


@pytest.mark.parametrize("field", ["remote_host", "remote_model"])
def test_a_model_of_another_machine_is_refused(field: str) -> None:
    with pytest.raises(RemoteModelRefused):
        read(manifest(**{field: "x"}))
    with pytest.raises(RemoteModelRefused):
        check_config(json.dumps({field: "x"}).encode(), "m:1")


def test_a_config_is_an_object() -> None:
    check_config(b'{"model_format": "gguf"}', "m:1")
    with pytest.raises(PullFailed, match="config"):
        check_config(b"[]", "m:1")


@given(st.binary(max_size=300))
def test_no_bytes_do_any_harm(raw: bytes) -> None:
    with pytest.raises((PullFailed, RemoteModelRefused)):
        parse_manifest(raw, "m:1")


# How far it is


@given(st.integers(0, 1 << 45))
def test_at_most_one_percent_is_at_risk(total: int) -> None:
    assert step_bytes(total) >= LEAST_STEP
    assert total < LEAST_STEP * 200 or step_bytes(total) * 100 <= total


@given(st.integers(0, 10**14), st.integers(0, 10**14), st.integers(0, 10**14))
def test_a_journal_never_claims_what_is_not_there(done: int, written: int, size: int) -> None:
    found = decode_journal(b"%015d\n" % done, written, size)
    assert found == (done if done <= written and done <= size else 0)


@pytest.mark.parametrize("raw", [b"", b"12\n", b"x" * 16, b"%015d" % 5, b"-%014d\n" % 5])
def test_a_torn_journal_means_to_start_over(raw: bytes) -> None:
    assert decode_journal(raw, 100, 100) == 0


def test_a_disk_that_is_too_small_is_said_before_anything_comes() -> None:
    check_space(0, 0, "/models")
    check_space(1000, 1000 + MARGIN_BYTES, "/models")
    with pytest.raises(PullFailed, match="1,000 bytes are to be downloaded to /models") as caught:
        check_space(1000, 999 + MARGIN_BYTES, "/models")
    assert f"{999 + MARGIN_BYTES:,} are free" in str(caught.value)
    assert "OLLAMA_MODELS" in caught.value.hint


def test_the_meter_tells_the_speed_and_what_is_left() -> None:
    meter = Meter(0, 100, 1100)
    assert (meter.bytes_per_s, meter.remaining_s) == (0.0, None)
    meter.advance(50_000_000, 110)
    assert meter.remaining_s is None
    meter.advance(1_000_000_000, 200)
    assert meter.bytes_per_s == pytest.approx(100)
    assert meter.remaining_s == pytest.approx(9)
    meter.advance(4_000_000_000, 200)  # half of what is remembered is three seconds old
    assert meter.bytes_per_s == pytest.approx(50)
    assert meter.elapsed_s(4_000_000_000) == 4.0


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(-10, 2000)), max_size=30))
def test_the_total_never_goes_back_and_never_over(steps: list[tuple[int, int]]) -> None:
    meter, now_ns, before = Meter(0, 0, 1000), 0, 0
    for passed_ns, done in steps:
        now_ns += passed_ns
        meter.advance(now_ns, done)
        assert before <= meter.done <= 1000
        assert meter.bytes_per_s >= 0
        before = meter.done
