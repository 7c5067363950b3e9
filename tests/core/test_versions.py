"""What a daemon lacks, by its version."""

from __future__ import annotations

import pytest

from ollama_adapter.core.versions import ADVISED, SINCE, missing_features, outdated, parse_version


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0.32.15", (0, 32, 15)),
        ("0.12.11-rc1", (0, 12, 11)),
        ("0.0.0", (0, 0, 0)),
        ("10.20.30.40", (10, 20, 30)),
        *((text, None) for text in ("", "1", "1.2", "v1.2.3", " 1.2.3", "a.b.c", "1.2.x", "٠.٣.١")),
        (f"0.1.{'9' * 5000}", None),
    ],
)
def test_the_numbers_of_a_version(text: str, numbers: tuple[int, int, int] | None) -> None:
    assert parse_version(text) == numbers


@pytest.mark.parametrize(
    ("version", "missing"),
    [
        ("0.1.0", ("logprobs", "truncate", "_debug_render_only")),
        ("0.11.10", ("logprobs", "truncate", "_debug_render_only")),
        ("0.11.11", ("logprobs", "truncate")),
        ("0.12.5", ("logprobs", "truncate")),
        ("0.12.6", ("logprobs",)),
        ("0.12.10", ("logprobs",)),
        ("0.12.11", ()),
        ("0.32.15", ()),
        ("1.0.0", ()),
        ("0.0.0", ()),  # built from source
        ("0.1.0-embedded", ()),  # ours has all there is
        ("unknown", ()),
    ],
)
def test_what_an_old_daemon_ignores(version: str, missing: tuple[str, ...]) -> None:
    assert missing_features(version) == missing


@pytest.mark.parametrize("name", SINCE)
def test_a_feature_is_missing_up_to_its_version_and_not_from_it(name: str) -> None:
    major, minor, patch = SINCE[name]
    assert name in missing_features(f"{major}.{minor}.{patch - 1}")
    assert name not in missing_features(f"{major}.{minor}.{patch}")


@pytest.mark.parametrize(
    ("version", "is_outdated"),
    [
        ("0.20.2", True),
        ("0.20.3", False),
        ("0.32.15", False),
        ("0.0.0", False),
        ("x", False),
        ("0.0.1", True),
    ],
)
def test_advisories_concern_what_is_older(version: str, is_outdated: bool) -> None:
    assert ADVISED == (0, 20, 3)
    assert outdated(version) is is_outdated
