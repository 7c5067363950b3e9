"""The policy as a value, what it is derived from, and the level that is chosen."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from ollama_adapter.errors import DaemonError, DaemonExited, DaemonStartTimeout, NotSandboxed
from ollama_adapter.system.jail import landlock, levels, paths, view
from ollama_adapter.system.jail.levels import Decision, Facts, decide
from ollama_adapter.system.jail.paths import daemon_policy
from ollama_adapter.system.jail.policy import Level, Policy

GOOD = Facts(landlock=7)


def test_a_policy_goes_through_json_unchanged() -> None:
    policy = Policy(Level.GUARD, read=("/a", '/b"\n'), ports=(1, 2), own=("/c",), uid=5)
    assert Policy.from_json(policy.to_json()) == policy
    with pytest.raises(FrozenInstanceError):
        policy.level = Level.NONE  # type: ignore[misc]


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"level": "best"}', '{"level": "guard", "more": 1}', "x"]
)
def test_what_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Policy.from_json(text)


# The level


@pytest.mark.parametrize(
    ("facts", "wish", "expected"),
    [
        (GOOD, "enforced", Level.NAMESPACES),
        (GOOD, "partial", Level.NAMESPACES),
        (GOOD, "none", Level.NONE),
        (Facts(landlock=4, namespaces="refused"), "enforced", Level.GUARD),
        (Facts(landlock=1, namespaces="refused", notify="refused"), "partial", Level.PARTIAL),
        (Facts(elsewhere="not kernel-enforced on darwin"), "partial", Level.NONE),
    ],
)
def test_the_best_level_that_holds_is_taken(facts: Facts, wish: str, expected: Level) -> None:
    assert decide(facts, wish).level is expected


@pytest.mark.parametrize(
    "facts",
    [
        Facts(landlock=0),
        Facts(landlock=7, seccomp="refused"),
        Facts(landlock=7, namespaces="refused", notify="refused"),
        Facts(elsewhere="not kernel-enforced on win32"),
    ],
)
def test_where_none_holds_it_is_refused_with_the_way_out(facts: Facts) -> None:
    with pytest.raises(NotSandboxed, match="no sandbox can be enforced") as caught:
        decide(facts)
    assert 'sandbox="none"' in caught.value.hint


def test_a_fall_names_its_reason() -> None:
    fallen = decide(Facts(landlock=7, namespaces="unshare: Operation not permitted"))
    assert fallen == Decision(Level.GUARD, ("namespaces: unshare: Operation not permitted",))
    tried = decide(GOOD, without=(Level.NAMESPACES,))
    assert tried == Decision(Level.GUARD, ("namespaces: it failed",))
    with pytest.raises(NotSandboxed, match="sandbox is one of"):
        decide(GOOD, "maybe")


def test_partial_says_that_the_network_is_not_enforced() -> None:
    assert Level.PARTIAL.words == "partial: network not enforced"
    assert Level.NAMESPACES.words == "namespaces"


def test_this_machine_is_asked_once() -> None:
    facts = levels.probe()
    assert levels.probe() is facts
    assert facts.landlock == landlock.abi()
    assert not facts.elsewhere


@pytest.fixture
def unasked() -> Iterator[None]:
    """As in a process that has not asked the machine yet; afterwards it has."""
    levels.probe.cache_clear()
    yield
    levels.probe.cache_clear()


@pytest.mark.usefixtures("unasked")
@pytest.mark.parametrize(
    ("program", "kind", "words"),
    [
        ("import os; os.kill(os.getpid(), 9)", DaemonExited, "was ended by signal 9"),
        ("import time; time.sleep(60)", DaemonStartTimeout, "took over 0.5 s"),
        ("raise SystemExit(3)", NotSandboxed, "broke"),
        ("print('no facts')", NotSandboxed, "JSONDecodeError"),
        ("print('[]')", NotSandboxed, "TypeError"),
    ],
    ids=["killed", "silent", "broken", "no JSON", "no facts"],
)
def test_a_machine_that_did_not_answer_is_no_machine_without_jails(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    kind: type[DaemonError],
    words: str,
) -> None:
    broken = tmp_path / "probe.py"
    broken.write_text(program)
    with monkeypatch.context() as patch:
        patch.setattr(levels, "TRAMPOLINE", broken)
        patch.setattr(levels, "PROBE_S", 0.5 if kind is DaemonStartTimeout else 60)
        with pytest.raises(kind, match=words) as caught:
            levels.probe()
    assert "sandbox=" not in caught.value.hint, "it advises to go without a sandbox"
    assert levels.probe().landlock == landlock.abi(), "it is not asked again"


@pytest.mark.usefixtures("unasked")
def test_a_machine_that_cannot_be_asked_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    with pytest.raises(NotSandboxed, match="No such file"):
        levels.probe()


# The paths


def test_ollama_gets_its_own_libraries_and_runners_and_no_device(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "ollama"
    runners = tmp_path / "lib" / "ollama"
    models, home = tmp_path / "models", tmp_path / "home"
    for each in (program.parent, runners, models, home):
        each.mkdir(parents=True)
    program.touch(0o755)
    policy = daemon_policy(
        Level.GUARD, [str(program), "serve"], home=str(home), models=str(models), port=11434
    )
    assert str(runners) in policy.read
    assert {str(program), str(runners)} <= set(policy.execute)
    assert policy.write == (str(home),)
    assert str(models) in policy.read
    assert policy.ports == (11434,)
    assert policy.own == (str(home),)
    assert set(policy.devices) <= {"/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"}
    assert not {"/", "/proc", "/home", "/root", "/etc", "/usr/bin", "/bin", "/sys"} & set(
        policy.read
    )
    assert "/proc/meminfo" in policy.read
    writable = daemon_policy(
        Level.GUARD,
        [str(program)],
        home=str(home),
        models=str(models),
        port=1,
        models_writable=True,
    )
    assert str(models) in writable.write
    assert str(models) not in writable.read


def test_our_own_daemon_gets_the_interpreter_alone(tmp_path: Path) -> None:
    policy = daemon_policy(
        Level.NAMESPACES,
        [sys.executable, "-P", "-m", "ollama_adapter.embedded"],
        home=str(tmp_path),
        models=str(tmp_path),
        port=1,
    )
    programs = [each for each in policy.execute if each not in paths.LOADERS]
    assert programs == [sys.executable]
    assert "/proc" in policy.read  # its own: a namespace has one
    assert str(Path(levels.__file__).parents[3]) in {str(Path(each)) for each in policy.read}


def test_a_script_gets_its_interpreter_and_what_the_environment_points_to(tmp_path: Path) -> None:
    script, extra = tmp_path / "ollama", tmp_path / "cuda"
    script.write_text(f"#!{sys.executable} -P\npass\n")
    extra.mkdir()
    policy = daemon_policy(
        Level.GUARD,
        [str(script), "serve"],
        home=str(tmp_path),
        models=str(tmp_path),
        port=1,
        also_read=[str(extra), "/no/such/path"],
    )
    assert {str(script), sys.executable} <= set(policy.execute)
    assert {str(extra), str(script)} <= set(policy.read)
    assert set(paths._existing(paths.python_paths())) <= set(policy.read)
    assert "/no/such/path" not in policy.read


def test_devices_are_listed_only_where_a_gpu_is_used(tmp_path: Path) -> None:
    argv = [sys.executable]
    with_gpu = daemon_policy(
        Level.GUARD, argv, home=str(tmp_path), models=str(tmp_path), port=1, gpu=True
    )
    assert set(paths.gpu_devices()) <= set(with_gpu.devices)


# The view


def plan(**lists: tuple[str, ...]) -> tuple[dict[str, int], dict[str, str]]:
    return view.plan({"read": (), "write": (), "execute": (), "devices": (), **lists})


def test_a_view_holds_the_real_paths_and_the_links_to_them(tmp_path: Path) -> None:
    real = tmp_path.resolve() / "real"
    (real / "deep").mkdir(parents=True)
    (tmp_path / "absolute").symlink_to(real)
    (tmp_path / "relative").symlink_to("./absolute/../real")
    places, links = plan(read=(str(tmp_path / "relative" / "deep"),), write=(str(real),))
    assert set(places) == {str(real), str(real / "deep")}
    assert places[str(real / "deep")] & 1  # read-only, within what may be written
    assert not places[str(real)] & 1
    assert links[str(tmp_path / "relative")] == "./absolute/../real"
    assert links[str(tmp_path / "absolute")] == str(real)


def test_a_view_binds_nothing_twice_and_no_process_list(tmp_path: Path) -> None:
    inner = tmp_path.resolve() / "inner"
    inner.mkdir()
    places, _ = plan(read=(str(tmp_path), str(inner), "/proc"), execute=(str(inner),))
    assert list(places) == [str(tmp_path.resolve())]


def test_links_in_a_circle_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(OSError, match="too many links"):
        plan(read=(str(tmp_path / "one"),))


def test_every_right_that_a_kernel_knows_is_taken_away() -> None:
    assert landlock.handled_files(1) == 0x1FFF
    assert landlock.handled_files(2) == 0x3FFF
    assert landlock.handled_files(3) == 0x7FFF
    assert landlock.handled_files(5) == landlock.handled_files(99) == 0xFFFF
    with pytest.raises(OSError, match="no Landlock"):
        landlock.Ruleset(0)
