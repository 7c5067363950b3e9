"""Settings: every source, every wrong value by its name, and nothing but errors of ours."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_adapter.config import (
    Config,
    DaemonConfig,
    DaemonMode,
    EnergyConfig,
    FrameConfig,
    PoolConfig,
    Rung,
    StreamConfig,
    Tier,
    parse_host,
)
from ollama_adapter.errors import AdapterError, ConfigError, NotLoopback


@pytest.mark.parametrize(
    ("text", "port"),
    [
        *(("127.0.0.1:11434", 11434), ("127.0.0.1", 11434), ("", 11434), (":1234", 1234)),
        *(("localhost", 11434), ("LocalHost:80", 80), ("0.0.0.0", 11434), ("0.0.0.0:5", 5)),
        *(("[::]:5", 5), ("[::1]:5", 5), ("::", 11434), ("::1", 11434), ("[::]", 11434)),
        *(("http://127.0.0.1:5", 5), ("HTTP://localhost:5/", 5), ("http://localhost:5/a/b", 5)),
        *(("http://127.0.0.1", 80), ("http://localhost/", 80)),
        *(("127.0.0.1:", 11434), (" 127.0.0.1:5 ", 5), ('"127.0.0.1:5"', 5), ("' :5 '", 5)),
        *(("127.0.0.1:65535", 65535), ("127.0.0.1:1", 1), ("127.0.0.1:080", 80)),
    ],
)
def test_an_address_of_this_machine(text: str, port: int) -> None:
    assert parse_host(text) == ("127.0.0.1", port)


@pytest.mark.parametrize(
    "text",
    [
        *("192.168.1.5:11434", "example.org", "http://example.org:80", "127.0.0.1.example.org"),
        *(
            "127.0.0.2",
            "[fe80::1]:5",
            "fe80::1",
            "localhost.",
            "1.1",
            "2130706433",
            "user@127.0.0.1",
        ),
    ],
)
def test_an_address_elsewhere_is_refused(text: str) -> None:
    with pytest.raises(NotLoopback) as caught:
        parse_host(text)
    assert "127.0.0.1" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        *("127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:x", "127.0.0.1:-1", "127.0.0.1:1.5", ":٥"),
        *("[::1]5x", "https://127.0.0.1:5", "unix:///x", "ftp://localhost", ":" + "9" * 5000),
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_host(text)
    assert caught.value.hint
    assert len(str(caught.value)) < 100


@given(st.text())
def test_any_host_is_this_machine_or_an_error_of_ours(text: str) -> None:
    try:
        host, port = parse_host(text)
    except AdapterError:
        return
    assert host == "127.0.0.1"
    assert 0 < port < 65536


# Built in Python


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: DaemonConfig(port=0), "daemon.port: 0 is not a port"),
        (lambda: DaemonConfig(port=65536), "daemon.port: 65536 is not a port"),
        (lambda: DaemonConfig(port="x"), "daemon.port cannot be 'x'"),  # type: ignore[arg-type]
        (lambda: DaemonConfig(port=1.5), "daemon.port cannot be 1.5"),  # type: ignore[arg-type]
        (lambda: DaemonConfig(port=True), "daemon.port cannot be True"),
        (lambda: DaemonConfig(mode="best"), "daemon.mode cannot be 'best'"),  # type: ignore[arg-type]
        (lambda: DaemonConfig(mode=None), "daemon.mode cannot be None"),  # type: ignore[arg-type]
        (lambda: DaemonConfig(models_dir=5), "daemon.models_dir cannot be 5"),  # type: ignore[arg-type]
        (lambda: DaemonConfig(probe_timeout_s=0), "daemon.probe_timeout_s is 0"),
        (lambda: DaemonConfig(start_timeout_s=-1), "daemon.start_timeout_s is -1"),
        (lambda: DaemonConfig(stop_grace_s=math.nan), "daemon.stop_grace_s is nan"),
        (lambda: PoolConfig(keep_alive=None), "pool.keep_alive cannot be None"),  # type: ignore[arg-type]
        (lambda: PoolConfig(keep_alive=True), "pool.keep_alive cannot be True"),
        (lambda: PoolConfig(load_s=0), "pool.load_s is 0"),
        (lambda: PoolConfig(ram_bytes=0), "pool.ram_bytes is 0"),
        (lambda: PoolConfig(watch_s=-1), "pool.watch_s is -1"),
        (lambda: StreamConfig(connect_s=0), "stream.connect_s is 0"),
        (lambda: StreamConfig(first_token_s=-1), "stream.first_token_s is -1"),
        (lambda: StreamConfig(next_token_s="soon"), "stream.next_token_s cannot be"),  # type: ignore[arg-type]
        (lambda: StreamConfig(buffer_tokens=0), "stream.buffer_tokens is 0"),
        (lambda: StreamConfig(buffer_bytes=1.5), "stream.buffer_bytes cannot be"),  # type: ignore[arg-type]
        (lambda: StreamConfig(reader_s=-1), "stream.reader_s is -1"),
        (lambda: StreamConfig(reader_s=math.nan), "stream.reader_s is nan"),
        (lambda: StreamConfig(abort_s=0), "stream.abort_s is 0"),
        (lambda: StreamConfig(abort_ladder=("jump",)), "stream.abort_ladder cannot be 'jump'"),  # type: ignore[arg-type]
        (lambda: StreamConfig(abort_ladder=3), "stream.abort_ladder cannot be 3"),  # type: ignore[arg-type]
        (lambda: EnergyConfig(tier="huge"), "energy.tier cannot be 'huge'"),  # type: ignore[arg-type]
        (lambda: EnergyConfig(profile=5), "energy.profile cannot be 5"),  # type: ignore[arg-type]
        (lambda: FrameConfig(rate_hz=0), "frames.rate_hz is 0"),
        (lambda: FrameConfig(rate_hz=1001), "frames.rate_hz is 1001"),
        (lambda: Config(shutdown_s=0), "shutdown_s is 0"),
        (lambda: Config(daemon={"port": 1}), "daemon cannot be"),  # type: ignore[arg-type]
        (lambda: Config(pool=None), "pool cannot be None"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_value_is_an_error_that_names_it(build: Callable[[], object], name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build()
    assert str(caught.value).startswith(name)


@pytest.mark.parametrize("host", ["localhost", "0.0.0.0", "example.org", ""])
def test_a_daemon_elsewhere_cannot_be_configured(host: str) -> None:
    with pytest.raises(NotLoopback):
        DaemonConfig(host=host)


def test_a_word_serves_for_a_choice_and_a_whole_number_for_a_number() -> None:
    daemon = DaemonConfig(mode="adopt", probe_timeout_s=2)  # type: ignore[arg-type]
    assert daemon.mode is DaemonMode.ADOPT
    assert daemon.probe_timeout_s == 2.0
    assert EnergyConfig(tier="low").tier is Tier.LOW  # type: ignore[arg-type]


def test_a_config_is_frozen_and_equal_by_value() -> None:
    assert Config() == Config.parse() == Config.parse("", {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().shutdown_s = 1.0  # type: ignore[misc]


# File and environment

FILE = """
shutdown_s = 3
[daemon]
port = 5000
mode = "embedded"
models_dir = "/models"
[pool]
keep_alive = 300
[stream]
connect_s = 1.5
buffer_tokens = 8
[energy]
tier = "high"
profile = "fnd-002/1"
[frames]
rate_hz = 30
"""


def test_a_file_says_it_all() -> None:
    config = Config.parse(FILE)
    assert config.shutdown_s == 3.0
    assert config.daemon == DaemonConfig(port=5000, mode=DaemonMode.EMBEDDED, models_dir="/models")
    assert config.pool.keep_alive == 300.0
    assert config.stream == StreamConfig(connect_s=1.5, buffer_tokens=8)
    assert config.energy == EnergyConfig("fnd-002/1", Tier.HIGH)
    assert config.frames.rate_hz == 30


@pytest.mark.parametrize(
    ("env", "read", "expected"),
    [
        (
            {"OLLAMA_HOST": "0.0.0.0:5001"},
            lambda c: (c.daemon.host, c.daemon.port),
            ("127.0.0.1", 5001),
        ),
        ({"OLLAMA_HOST": "  "}, lambda c: c.daemon.port, 5000),
        ({"OLLAMA_MODELS": ' "/other" '}, lambda c: c.daemon.models_dir, "/other"),
        ({"OLLAMA_MODELS": ""}, lambda c: c.daemon.models_dir, "/models"),
        ({"OLLAMA_KEEP_ALIVE": "-1"}, lambda c: c.pool.keep_alive, "-1"),
        ({"OLLAMA_KEEP_ALIVE": ""}, lambda c: c.pool.keep_alive, 300.0),
        ({"OLLAMA_ADAPTER_DAEMON_PORT": "5002"}, lambda c: c.daemon.port, 5002),
        ({"OLLAMA_ADAPTER_ENERGY_TIER": "low"}, lambda c: c.energy.tier, Tier.LOW),
        ({"OLLAMA_ADAPTER_STREAM_READER_S": "0"}, lambda c: c.stream.reader_s, 0.0),
        (
            {"OLLAMA_ADAPTER_STREAM_ABORT_LADDER": "unload, restart"},
            lambda c: c.stream.abort_ladder,
            (Rung.UNLOAD, Rung.RESTART),
        ),
        ({"OLLAMA_ADAPTER_STREAM_FIRST_TOKEN_S": "7.5"}, lambda c: c.stream.first_token_s, 7.5),
        ({"OLLAMA_ADAPTER_POOL_KEEP_ALIVE": "1h"}, lambda c: c.pool.keep_alive, "1h"),
        ({"OLLAMA_ADAPTER_SHUTDOWN_S": "9"}, lambda c: c.shutdown_s, 9.0),
        (
            {"OLLAMA_HOST": ":5001", "OLLAMA_ADAPTER_DAEMON_PORT": "5002"},
            lambda c: c.daemon.port,
            5002,
        ),
        (
            {"HOME": "/x", "ADAPTER_SHUTDOWN_S": "1", "OLLAMA_DEBUG": "1"},
            lambda c: c.shutdown_s,
            3.0,
        ),
    ],
)
def test_the_environment_wins_over_the_file(
    env: dict[str, str], read: Callable[[Config], Any], expected: Any
) -> None:
    found = read(Config.parse(FILE, env))
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("toml", "name"),
    [
        ("nonsense", "TOML"),
        ("a = ", "TOML"),
        ("[daemon\n", "TOML"),
        ("port = 1\nport = 2", "TOML"),
        ("a = " + "[" * 5000, "TOML"),
        ("shutdown_s = " + "9" * 5000, "TOML"),
        ("\ufeffshutdown_s = 1", "TOML"),
        ("port = 5", "port"),
        ("[demon]\nport = 5", "demon"),
        ("[daemon]\nprot = 5", "daemon.prot"),
        ("daemon = 5", "daemon"),
        ("daemon = [1]", "daemon"),
        ("[[daemon]]\nport = 5", "daemon"),
        ("[daemon]\nport = 'x'", "daemon.port"),
        ("[daemon]\nport = 11434.9", "daemon.port"),
        ("[daemon]\nport = inf", "daemon.port"),
        ("[daemon]\nport = nan", "daemon.port"),
        ("[daemon]\nport = true", "daemon.port"),
        ("[daemon]\nport = [1]", "daemon.port"),
        ("[daemon]\nport = {a = 1}", "daemon.port"),
        ("[daemon]\nport = 2020-01-01", "daemon.port"),
        ("[daemon]\nport = 99999", "99999"),
        ("[daemon]\nmode = 'best'", "daemon.mode"),
        ("[daemon]\nmode = 1", "daemon.mode"),
        ("[daemon]\nmodels_dir = 1", "daemon.models_dir"),
        ("[pool]\nkeep_alive = true", "pool.keep_alive"),
        ("[pool]\nkeep_alive = []", "pool.keep_alive"),
        ("[stream]\nconnect_s = 0", "connect_s"),
        ("[stream]\nconnect_s = nan", "connect_s"),
        ("[stream]\nreader_s = -0.5", "reader_s"),
        ("[stream]\nabort_ladder = ['unload', 'kill']", "stream.abort_ladder"),
        ("shutdown_s = false", "shutdown_s"),
        ("shutdown_s = " + "9" * 400, "shutdown_s"),
        ("[energy]\ntier = 'LOWEST'", "energy.tier"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_the_place(toml: str, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.parse(toml)
    assert name in str(caught.value)


def test_a_daemon_elsewhere_cannot_be_written_into_the_file() -> None:
    with pytest.raises(NotLoopback):
        Config.parse("[daemon]\nhost = 'example.org'")


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ({"OLLAMA_HOST": "https://localhost"}, "https"),
        ({"OLLAMA_HOST": ":x"}, "x"),
        ({"OLLAMA_ADAPTER_DAEMON_PORT": "x"}, "daemon.port"),
        ({"OLLAMA_ADAPTER_DAEMON_PORT": ""}, "daemon.port"),
        ({"OLLAMA_ADAPTER_DAEMON_PORT": "9" * 5000}, "daemon.port"),
        ({"OLLAMA_ADAPTER_DAEMON": "x"}, "daemon"),
        ({"OLLAMA_ADAPTER_NOTHING": "x"}, "nothing"),
        ({"OLLAMA_ADAPTER_": "x"}, "setting"),
        ({"OLLAMA_ADAPTER_SHUTDOWN_S": "nan"}, "shutdown_s"),
        ({"OLLAMA_ADAPTER_ENERGY_TIER": "best"}, "energy.tier"),
    ],
)
def test_a_wrong_variable_is_an_error_that_names_it(env: dict[str, str], name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.parse("", env)
    assert name in str(caught.value)


def test_an_unknown_setting_lists_those_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        Config.parse("[energy]\ntire = 1")
    assert caught.value.hint == "here one can set: profile, tier"
    with pytest.raises(ConfigError) as caught:
        Config.parse("[energy]\ntier = 1")
    assert caught.value.hint == "expected: low, mid, high"


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("1", True), ("false", False), ("False", False), ("0", False)],
)
def test_a_switch_can_be_set_in_the_environment(text: str, value: bool) -> None:
    assert Config.parse("", {"OLLAMA_ADAPTER_POOL_SUBSTITUTE": text}).pool.substitute is value


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("POOL_SUBSTITUTE", "true or false"),
        ("POOL_TIER", "low, mid, high, or leave it out"),
        ("POOL_RAM_BYTES", "a whole number, or leave it out"),
        ("POOL_QUEUE_S", "a number"),
    ],
)
def test_what_is_expected_is_said_in_words(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.parse("", {f"OLLAMA_ADAPTER_{name}": "huge"})
    assert caught.value.hint == f"expected: {hint}"


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates()
slices = [each.name for each in dataclasses.fields(Config)]


def toml_of(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(each):08X}" for each in value) + '"'
    return str(value)


@given(
    st.sampled_from(slices),
    st.sampled_from(
        [
            *(each.name for each in dataclasses.fields(DaemonConfig)),
            *(each.name for each in dataclasses.fields(StreamConfig)),
            *("keep_alive", "tier", "profile", "rate_hz"),
        ]
    ),
    leaves,
)
def test_any_value_in_a_file_makes_a_config_or_an_error_of_ours(
    slice_: str, name: str, value: object
) -> None:
    for toml in (f"[{slice_}]\n{name} = {toml_of(value)}", f"{slice_} = {toml_of(value)}"):
        try:
            Config.parse(toml)
        except AdapterError:
            pass


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "OLLAMA_HOST",
                "OLLAMA_MODELS",
                "OLLAMA_ADAPTER_DAEMON_PORT",
                "OLLAMA_ADAPTER_POOL_KEEP_ALIVE",
                "OLLAMA_ADAPTER_STREAM_CONNECT_S",
            ]
        ),
        st.text(),
    )
)
def test_any_environment_makes_a_config_or_an_error_of_ours(env: dict[str, str]) -> None:
    try:
        Config.parse("", env)
    except AdapterError:
        pass


def test_a_list_of_numbers_comes_from_a_file_or_with_commas_from_the_environment() -> None:
    assert Config.parse("[daemon]\nadopt_uids = [1, 2]").daemon.adopt_uids == (1, 2)
    environment = {"OLLAMA_ADAPTER_DAEMON_ADOPT_UIDS": "1, 2,"}
    assert Config.parse("", environment).daemon.adopt_uids == (1, 2)
    assert DaemonConfig(adopt_uids=[3]).adopt_uids == (3,)  # type: ignore[arg-type]
    for wrong in ("[daemon]\nadopt_uids = 1", "[daemon]\nadopt_uids = ['x']"):
        with pytest.raises(ConfigError, match="adopt_uids"):
            Config.parse(wrong)
