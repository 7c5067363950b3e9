"""`ps`, `plan`, `load`, `unload`, `pin` and `models` on a daemon that pretends."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from ollama_adapter.cli.planning import after_load, plan_table
from ollama_adapter.cli.residents import footprint
from ollama_adapter.events import Eviction, Footprint, LoadPlan
from ollama_adapter.testing import PretendModel, PretendOllama
from ollama_adapter.testing.memory import Machine as Memory
from tests.cli.command import Machine

pytestmark = pytest.mark.anyio

GIB = 1 << 30
SMALL = PretendModel("small:1b", size_bytes=1 * GIB)
OTHER = PretendModel("other:1b", size_bytes=1 * GIB)
HUGE = PretendModel("huge:70b", size_bytes=40 * GIB)


async def test_a_model_is_loaded_listed_and_unloaded(machine: Machine) -> None:
    async with PretendOllama(SMALL, OTHER) as daemon:
        machine.port = daemon.port
        done = await machine.run("load", "small:1b", "--keep-alive", "1h", "--num-ctx", "2048")
        assert done.code == 0 and done.err == ""
        assert done.out.startswith("small:1b is now in memory: 1.0 GiB of RAM, until 20")
        done = await machine.run("load", "SMALL:1b", "--json")
        (line,) = done.lines
        assert (line["loaded"], line["was_in_memory"], line["vram_bytes"]) == ("SMALL:1b", True, 0)
        assert (line["context_length"], line["ram_bytes"] > GIB) == (2048, True)
        done = await machine.run("ps")
        heading, row = done.out.splitlines()
        assert heading.split() == ["NAME", "RAM", "VRAM", "ON", "GPU", "CONTEXT", "UNTIL", "STATE"]
        assert row.split()[:7] == ["small:1b", "1.0", "GiB", "0", "MiB", "0", "%"]
        assert "2048" in row and row.split()[-1] == "–"  # it has no runner that could be seen
        done = await machine.run("unload", "small:1b")
        assert done.out.startswith("unloaded small:1b: 1.0 GiB of RAM are free again")
        assert daemon.moves[-1][1].startswith("small:1b")
        done = await machine.run("unload", "small:1b")
        assert (done.code, done.out) == (0, "") and "was not in memory" in done.err
        (line,) = (await machine.run("unload", "small:1b", "--json")).lines
        assert line == {"unloaded": "small:1b", "was_in_memory": False, "freed_bytes": 0}


async def test_a_load_says_that_it_has_loaded_anew_and_why(machine: Machine) -> None:
    async with PretendOllama(SMALL) as daemon:
        machine.port = daemon.port
        (first,) = (await machine.run("load", "small:1b", "--num-ctx", "2048", "--json")).lines
        done = await machine.run("load", "small:1b", "--num-ctx", "1024")
        (same,) = (await machine.run("load", "small:1b", "--num-ctx", "1024", "--json")).lines
        (other,) = (await machine.run("pin", "small:1b", "-o", "num_gpu=3", "--json")).lines
    why = "with num_ctx=1024, since it was there with num_ctx=2048"
    assert done.out.startswith(f"small:1b has been loaded anew {why}: 1.0 GiB of RAM, until ")
    assert (first["was_in_memory"], first["loaded_anew"]) == (False, None)
    assert (same["was_in_memory"], same["loaded_anew"]) == (True, None)
    assert other["loaded_anew"] == "with num_gpu=3, since it was there with other options"


async def test_a_pinned_model_stays(machine: Machine) -> None:
    async with PretendOllama(SMALL) as daemon:
        machine.port = daemon.port
        assert (await machine.run("load", "small:1b")).code == 0
        done = await machine.run("pin", "small:1b")
        assert done.out == "small:1b was in memory: 1.0 GiB of RAM, for ever\n"
        (line,) = (await machine.run("ps", "--json")).lines
        assert (line["pinned"], line["busy"], line["name"]) == (True, None, "small:1b")
        assert "pinned" in (await machine.run("ps")).out
        assert (await machine.run("load", "small:1b", "--keep-alive", "5m")).code == 0
        (line,) = (await machine.run("ps", "--json")).lines
        assert line["pinned"] is False
        machine.environment["OLLAMA_ADAPTER_POOL_PINNED"] = "small:1b"
        (line,) = (await machine.run("ps", "--json")).lines
        assert line["pinned"] is True


async def test_a_pin_is_taken_back(machine: Machine) -> None:
    machine.environment["OLLAMA_KEEP_ALIVE"] = "2h"
    async with PretendOllama(SMALL) as daemon:
        machine.port = daemon.port
        assert "small:1b was not in memory" in (await machine.run("unpin", "small:1b")).err
        assert (await machine.run("load", "small:1b")).code == 0
        assert "small:1b was not pinned" in (await machine.run("unpin", "small:1b")).err
        assert (await machine.run("pin", "small:1b")).code == 0
        done = await machine.run("unpin", "small:1b")
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith("small:1b is not pinned any more, and stays until 20")
        (line,) = (await machine.run("ps", "--json")).lines
        assert line["pinned"] is False
        assert (await machine.run("pin", "small:1b")).code == 0
        machine.environment |= {"OLLAMA_KEEP_ALIVE": "0", "OLLAMA_ADAPTER_POOL_PINNED": "SMALL:1b"}
        (line,) = (await machine.run("unpin", "small:1b", "--json")).lines
        assert line == {
            "unpinned": "small:1b",
            "was_in_memory": True,
            "was_pinned": True,
            "configured": True,
            "expires_at": None,
        }
        assert daemon.residents == []
        assert "pool.pinned names" in (await machine.run("unpin", "small:1b")).err.lower()


async def test_a_setting_that_is_wrong_is_named_in_full(machine: Machine) -> None:
    machine.environment["OLLAMA_KEEP_ALIVE"] = "never"
    for command in (["ps"], ["status"], ["run", "m", "hi"], ["embed", "m", "a text"]):
        done = await machine.run(*command)
        assert (
            done.code == 1 and "error: pool.keep_alive must be seconds, or a duration" in done.err
        )
        assert "not this text" in done.err
        hint = 'hint: set OLLAMA_KEEP_ALIVE, or pool.keep_alive = "5m" in the settings file'
        assert done.err.splitlines()[-1] == hint
    machine.environment = {"OLLAMA_ADAPTER_POOL_RAM_BYTES": "0"}
    assert "error: pool.ram_bytes is 0" in (await machine.run("ps")).err


def test_sizes_that_cannot_be_are_not_shown() -> None:
    assert footprint({"size": 300, "size_vram": 100}) == Footprint(200, 100)
    for wrong in (None, -5, "7", True, 10**400, 0):
        assert footprint({"size": wrong, "size_vram": 1}) is None
    for wrong in (None, -5, "7", True, 10**400):
        assert footprint({"size": 300, "size_vram": wrong}) is None


@pytest.mark.parametrize("command", ["load", "unload", "pin", "unpin"])
async def test_a_model_is_in_memory_only_as_long_as_its_daemon(
    machine: Machine, command: str
) -> None:
    async with PretendOllama(SMALL) as daemon:
        machine.port = daemon.port
    done = await machine.run(command, "small:1b")
    assert done.code == 1 and done.out == ""
    assert "a model stays in memory only as long as its daemon" in done.err
    assert "hint: start Ollama first" in done.err and "Traceback" not in done.err


async def test_a_plan_says_what_it_takes_and_whether_it_fits(machine: Machine) -> None:
    async with PretendOllama(SMALL, HUGE) as daemon:
        machine.port = daemon.port
        machine.environment["OLLAMA_ADAPTER_POOL_MODEL_BYTES"] = str(200 << 40)
        done = await machine.run("plan", "small:1b", "--num-ctx", "2048", "--json")
        (line,) = done.lines
        assert done.code == 0 and line["fits"] and line["num_ctx"] == 2048
        assert line["weights_bytes"] == GIB
        total = line["weights_bytes"] + line["kv_bytes"] + line["overhead_bytes"]
        assert line["takes"]["ram"] + line["takes"]["vram"] == total
        assert line["after"] == line["takes"]  # nothing else is in memory
        done = await machine.run("plan", "small:1b")
        for words in ("fits", "yes: it takes 1.", "weights 1.0 GiB, cache of 4096 tokens", "after"):
            assert words in done.out
        larger = (await machine.run("plan", "small:1b", "--num-ctx", "4096", "--json")).lines[0]
        assert larger["kv_bytes"] > line["kv_bytes"]
        assert (await machine.run("ps", "--json")).lines == []  # nothing was loaded


async def test_a_plan_for_a_model_in_memory(machine: Machine) -> None:
    async with PretendOllama(SMALL, OTHER) as daemon:
        machine.port = daemon.port
        await machine.run("load", "small:1b")
        done = await machine.run("plan", "small:1b")
        (anew,) = (await machine.run("plan", "small:1b", "--num-ctx", "512", "--json")).lines
        (other,) = (await machine.run("plan", "other:1b", "--json")).lines
    assert done.code == 0 and "yes: it is in memory already" in done.out
    assert "load takes" not in done.out and "the budget is only advice" in done.out
    assert not anew["resident"] and anew["after"] == anew["takes"]  # it takes its own place
    assert other["after"]["ram"] == other["used"]["ram"] + other["takes"]["ram"]
    assert other["used"]["ram"] > GIB


@pytest.mark.parametrize("command", ["rm", "unload", "unpin"])
async def test_who_wants_to_be_rid_of_a_model_is_not_told_how_to_get_it(
    machine: Machine, command: str
) -> None:
    async with PretendOllama(SMALL) as daemon:
        machine.port = daemon.port
        (line,) = (await machine.run(command, "nothing", "--json")).lines
        assert line["error"] == "ModelNotFound"
        assert "lists what is" in line["hint"] and "pull" not in line["hint"]


async def test_who_wants_a_model_to_go_is_told_how(machine: Machine) -> None:
    done = await machine.run("load", "small:1b", "--keep-alive", "0", "--json")
    assert done.lines[0]["hint"] == "`ollama-adapter unload small:1b` ends its stay"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("plan", "nothing"), 1, "there is no model nothing"),
        (("load", "nothing"), 1, "there is no model nothing"),
        (("pin", "nothing"), 1, "there is no model nothing"),
        (("unload", "nothing"), 1, "there is no model nothing"),
        (("unpin", "nothing"), 1, "there is no model nothing"),
        (("plan", "small:1b", "--num-ctx", "0"), 2, "--num-ctx 0 is no size"),
        (("plan", "a//b"), 2, "the model name cannot be used"),
        (("load", "gpt-oss:20b-cloud"), 1, "runs in a cloud"),
        (("load", "small:1b", "--keep-alive", "never"), 2, "(0: not at all, -1: for ever)"),
        (("load", "small:1b", "--keep-alive", "0"), 2, "stays for longer than 0"),
        (("load", "small:1b", "--keep-alive", "0s"), 2, "stays for longer than 0"),
        (("load", "small:1b", "--num-ctx", "0"), 2, "num_ctx must be an integer above 0, not 0"),
        (
            ("pin", "small:1b", "-o", "num_ctx=-5"),
            2,
            "num_ctx must be an integer above 0, not '-5'",
        ),
        (("load", "small:1b", "-o", "num_ctx=8", "--num-ctx", "9"), 2, "num_ctx is given twice"),
        (("load", "small:1b", "-o", "temperature=1"), 2, "temperature"),
        (("pin", "small:1b", "-o", "num_gpu=many"), 2, "num_gpu must be an integer"),
    ],
)
async def test_errors_in_words(
    machine: Machine, arguments: tuple[str, ...], code: int, words: str
) -> None:
    async with PretendOllama(SMALL) as daemon:
        machine.port = daemon.port
        done = await machine.run(*arguments)
        assert (done.code, done.out) == (code, "")
        assert words in done.err and "Traceback" not in done.err
        told = await machine.run(*arguments, "--json")
        assert told.code == code and told.err == "" and words in told.lines[0]["message"]


async def test_options_of_a_load_are_checked_and_sent(machine: Machine) -> None:
    async with PretendOllama(SMALL) as daemon:
        machine.port = daemon.port
        done = await machine.run("load", "small:1b", "-o", "num_gpu=3", "-o", "use_mmap=false")
        assert done.code == 0
        sent = [each.json().get("options") for each in daemon.requests if each.method == "POST"]
    assert {"num_gpu": 3, "use_mmap": False} in sent


async def test_a_load_shows_that_it_goes_on_and_leaves_no_trace(machine: Machine) -> None:
    async with PretendOllama(SMALL, load_s=1.5) as daemon:
        machine.port = daemon.port
        async with machine.terminal("load", "small:1b") as terminal:
            await terminal.until("loading small:1b: 1 s")
            await terminal.until("is now in memory")
            assert await terminal.ended() == 0
            assert "loading" not in terminal.screen.text
        assert (await machine.run("unload", "small:1b")).code == 0
        piped = await machine.run("load", "small:1b")
    assert piped.err == "" and piped.out.startswith("small:1b is now in memory")


async def test_a_listing_for_a_narrow_terminal_without_colours(machine: Machine) -> None:
    machine.environment["NO_COLOR"] = "1"
    async with PretendOllama(SMALL, OTHER, machine=Memory(vram_bytes=8 * GIB)) as daemon:
        machine.port = daemon.port
        await machine.run("load", "small:1b")
        for command in (("ps",), ("models",), ("plan", "other:1b")):
            async with machine.terminal(*command, width=32) as terminal:
                assert await terminal.ended() == 0
            assert b"\x1b[3" not in terminal.raw and "│" not in terminal.screen.text
            assert max(map(len, terminal.screen.text.splitlines())) <= 32


FOUND = LoadPlan(
    "new", True, "", False, 4096, 5, 3, 2, Footprint(4, 6), Footprint(9, 2), Footprint(20)
)


def test_what_is_taken_after_a_plan() -> None:
    there = {"a": Footprint(3), "b": Footprint(1, 2), "new": Footprint(2), "stays": Footprint(3)}
    assert after_load(FOUND, {}) == Footprint(13, 8)
    assert after_load(FOUND, there) == Footprint(11, 8)
    evicts = replace(FOUND, evict=(Eviction("a", Footprint(3), "why"),), waits_for=("b",))
    assert after_load(evicts, there) == Footprint(7, 6)
    assert after_load(replace(evicts, fits=False), there) == FOUND.used
    assert after_load(replace(FOUND, resident=True), there) == FOUND.used


@pytest.mark.parametrize(("asked", "told"), [(0, False), (4096, False), (100_000, True)])
def test_a_context_that_the_model_does_not_have_is_not_promised(asked: int, told: bool) -> None:
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(plan_table(replace(FOUND, num_ctx=4096), Footprint(), asked))
    assert ("made for no more" in console.file.getvalue()) is told  # type: ignore[attr-defined]


def test_a_plan_in_words() -> None:
    why = "unused for 12 min"
    plan = replace(
        FOUND,
        takes=Footprint(3 * GIB, 5 * GIB),
        evict=(Eviction("old\x1b[2J", Footprint(3 * GIB), why),),
        waits_for=("busy:1b",),
        expected_s=12.34,
        advisory=True,
    )
    console = Console(file=io.StringIO(), width=40, color_system=None)
    console.print(plan_table(plan, Footprint(1 * GIB)))
    text = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    for words in ("old␛[2J (3.0 GiB): unused for 12 min", "waits for busy:1b", "about 12.3 s"):
        assert words in text
    assert "3.0 GiB of RAM and 5.0 GiB of VRAM" in text and "only advice" in text
