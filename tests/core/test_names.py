"""Model names: what is one, which mean the same, and which would take a prompt elsewhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_adapter.core.names import (
    ModelName,
    is_tinydoc,
    key_of,
    local_key,
    local_name,
    parse_name,
    weights_of,
)
from ollama_adapter.errors import InvalidRequest, RemoteModelRefused

part = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
host = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}(:[0-9]{1,5})?", fullmatch=True)
names = st.builds(ModelName, host, part, part, part)


@pytest.mark.parametrize(
    ("text", "full", "short"),
    [
        ("llama3", ("registry.ollama.ai", "library", "llama3", "latest"), "llama3:latest"),
        ("llama3.2:1b", ("registry.ollama.ai", "library", "llama3.2", "1b"), "llama3.2:1b"),
        ("me/mine", ("registry.ollama.ai", "me", "mine", "latest"), "me/mine:latest"),
        ("library/a:b", ("registry.ollama.ai", "library", "a", "b"), "a:b"),
        ("hf.co/u/m:Q4_K_M", ("hf.co", "u", "m", "Q4_K_M"), "hf.co/u/m:Q4_K_M"),
        ("h:5000/library/m", ("h:5000", "library", "m", "latest"), "h:5000/library/m:latest"),
        ("registry.ollama.ai/library/m:t", ("registry.ollama.ai", "library", "m", "t"), "m:t"),
        ("registry.ollama.ai/me/m", ("registry.ollama.ai", "me", "m", "latest"), "me/m:latest"),
    ],
)
def test_the_parts_of_a_name(text: str, full: tuple[str, ...], short: str) -> None:
    name = parse_name(text)
    assert (name.host, name.namespace, name.model, name.tag) == full
    assert str(name) == short


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "a b", "a:", ":a", "/a", "a/", "a//b", "a:b:c", "a/b/c/d", "../a", "-a", ".a"),
        *("a\n", "a:b\n", "a\0", "ä", "http://h/a/b", "a:b/c", "x" * 81, "a:" + "t" * 81),
        *("a@sha256:0", "\ud800", "h" * 351 + "/a/b"),
    ],
)
def test_what_is_no_name_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(
        InvalidRequest, match=r"^(the model name cannot be used|no model was named)$"
    ) as caught:
        parse_name(text)
    assert caught.value.hint


@given(names)
def test_the_short_form_means_the_same(name: ModelName) -> None:
    again = parse_name(str(name))
    assert again.key == name.key
    assert str(parse_name(str(again))) == str(again)


@given(names)
def test_names_are_matched_without_regard_to_case(name: ModelName) -> None:
    text = f"{name.host}/{name.namespace}/{name.model}:{name.tag}"
    keys = {parse_name(each).key for each in (text, text.upper(), text.lower(), text.title())}
    assert len(keys) == 1


@pytest.mark.parametrize(
    "text",
    [
        *("m", "m:latest", "library/m", "Library/M", "LIBRARY/m:LATEST"),
        *("registry.ollama.ai/library/m", "Registry.Ollama.AI/LIBRARY/M:Latest"),
    ],
)
def test_every_way_to_write_a_name_has_one_key(text: str) -> None:
    assert parse_name(text).key == "m:latest"


@pytest.mark.parametrize(
    "text", ["m:cloud", "m:CLOUD", "m:20b-cloud", "m:20b-Cloud", "me/m:cloud", "h/n/m:x-cloud"]
)
def test_a_name_of_the_cloud_is_refused(text: str) -> None:
    assert parse_name(text).is_cloud
    with pytest.raises(RemoteModelRefused) as caught:
        local_name(text)
    assert (caught.value.status, caught.value.model) == (403, str(parse_name(text)))
    assert "ollama-adapter models" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["cloud", "m-cloud", "m:cloudy", "m:cloud-1", "cloud/m", "m:xcloud"]
)
def test_other_names_with_cloud_in_them_are_local(text: str) -> None:
    assert local_name(text) == parse_name(text)


def test_the_key_of_a_local_model() -> None:
    assert local_key("Llama3") == local_key("registry.ollama.ai/library/llama3:latest")
    for _ in range(2):
        with pytest.raises(RemoteModelRefused):
            local_key("m:cloud")


@pytest.mark.parametrize(
    ("modelfile", "name"),
    [
        ("# FROM x:latest\n\nFROM /models/blobs/sha256-ab\nTEMPLATE x", "sha256-ab"),
        ("FROM /a b/tinydoc.gguf\n", "tinydoc.gguf"),
        ("TEMPLATE x", ""),
        ("", ""),
    ],
)
def test_the_file_of_a_model_is_read_from_what_the_daemon_shows(modelfile: str, name: str) -> None:
    assert weights_of({"modelfile": modelfile}) == name
    assert weights_of({}) == ""


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Llama3", "llama3:latest"),
        ("a/b:C", "a/b:c"),
        ("no name", ""),
        ("", ""),
        (None, ""),
        (3, ""),
    ],
)
def test_the_key_of_what_somebody_else_calls_a_name(name: object, key: str) -> None:
    assert key_of(name) == key


@pytest.mark.parametrize(
    ("text", "is_it"),
    [
        ("tinydoc", True),
        ("TinyDoc:latest", True),
        ("tinydoc:other", True),
        ("registry.ollama.ai/library/tinydoc", True),
        ("tinydocs", False),
        ("two words", False),
        ("", False),
    ],
)
def test_the_bundled_model_is_known_by_its_name(text: str, is_it: bool) -> None:
    assert is_tinydoc(text) is is_it
