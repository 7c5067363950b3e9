"""Where the environment lies, when it is built, and who waits for whom."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ollama_adapter.system.jail.paths import python_paths
from tools import environment

AS_ROOT = os.geteuid() == 0
STRANGER = 12345
PYPROJECT = """
[project]
name = "x"
dependencies = ["y"]

[tool.ruff]
line-length = 100
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "a checkout"
    root.mkdir()
    (root / "pyproject.toml").write_text(PYPROJECT)
    return root


class Builds:
    """Builds nothing, and remembers which extras it was asked for."""

    def __init__(self) -> None:
        self.extras: list[str] = []

    def __call__(self, venv: Path, wanted: str, extra: str) -> None:
        environment.empty(venv)
        self.extras.append(extra)
        (venv / "bin").mkdir()
        (venv / "bin" / "python").symlink_to(sys.executable)
        environment.write_stamp(venv, wanted, extra)


class BreaksOff(Builds):
    def __call__(self, venv: Path, wanted: str, extra: str) -> None:
        super().__call__(venv, wanted, extra)
        (venv / environment.STAMP).unlink()
        raise KeyboardInterrupt


# --- where ----------------------------------------------------------------------------------------


def test_a_checkout_that_can_be_written_holds_its_environment(checkout: Path) -> None:
    assert environment.locate(checkout, {}) == checkout / ".venv"


def test_venv_names_another_place(checkout: Path) -> None:
    assert environment.locate(checkout, {"VENV": "/some/where"}) == Path("/some/where")
    assert environment.locate(checkout, {"VENV": "here"}) == checkout / "here"
    assert environment.locate(checkout, {"VENV": ""}) == checkout / ".venv"


@contextlib.contextmanager
def an_ordinary_user(directory: Path) -> Iterator[None]:
    """Root can write everywhere: for a while we are somebody else, whose directory it is."""
    if not AS_ROOT:
        yield
        return
    for each in (directory, *directory.rglob("*")):
        os.chown(each, STRANGER, STRANGER)
    os.setresuid(STRANGER, STRANGER, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.mark.parametrize("unwritable", ["", ".", ".venv"])
def test_otherwise_it_lies_in_the_users_cache(unwritable: str) -> None:
    with tempfile.TemporaryDirectory() as name:  # where everybody may go
        Path(name).chmod(0o755)
        checkout = Path(name, "checkout")
        (checkout / ".venv").mkdir(parents=True)
        if unwritable == ".":
            (checkout / ".venv").rmdir()
        if unwritable:
            (checkout / unwritable).chmod(0o555)
        with an_ordinary_user(checkout):
            place = environment.locate(checkout, {"HOME": "/home/me"})
            other = environment.locate(checkout, {"HOME": "/home/me", "XDG_CACHE_HOME": "/cache"})
        (checkout / unwritable).chmod(0o755)
    if unwritable:
        assert place.parent == Path("/home/me/.cache/ollama-adapter")
        assert other.parent == Path("/cache/ollama-adapter")
    else:
        assert place == other == checkout / ".venv"


def test_the_environment_of_another_user_is_left_alone(checkout: Path) -> None:
    if AS_ROOT:
        (checkout / ".venv").mkdir()
        os.chown(checkout / ".venv", STRANGER, STRANGER)
    else:
        (checkout / ".venv").symlink_to("/etc")  # root's
    place = environment.locate(checkout, {"HOME": "/home/me"})
    assert place.parent == Path("/home/me/.cache/ollama-adapter")


def test_without_home_the_user_database_knows_it() -> None:
    assert environment.cache_home({}).is_absolute()
    assert environment.cache_home({"HOME": "/h", "XDG_CACHE_HOME": "relative"}) == Path("/h/.cache")


def test_without_any_home_the_error_says_what_to_set() -> None:
    with pytest.raises(environment.Trouble, match="set HOME, or VENV"):
        environment.cache_home({"HOME": "not/a/home"})


# --- when -----------------------------------------------------------------------------------------


def test_the_key_follows_the_path_the_python_and_what_is_required(checkout: Path) -> None:
    pyproject = checkout / "pyproject.toml"
    first = environment.key(checkout, "python 3.11")
    assert environment.key(checkout, "python 3.11") == first
    assert environment.key(checkout, "python 3.12") != first
    moved = shutil.copytree(checkout, checkout.parent / "moved")
    assert environment.key(moved, "python 3.11") != first
    pyproject.write_text(PYPROJECT.replace("100", "120"))
    assert environment.key(checkout, "python 3.11") == first, "a tool's setting installs nothing"
    pyproject.write_text(PYPROJECT.replace('"y"', '"y>2"'))
    assert environment.key(checkout, "python 3.11") != first


def test_it_is_built_once(tmp_path: Path) -> None:
    builds = Builds()
    for _ in range(3):
        environment.ensure(tmp_path / "e", "key", "all", builds)
    assert builds.extras == ["all"]


def test_a_larger_extra_serves_a_smaller_one(tmp_path: Path) -> None:
    builds = Builds()
    for extra in ("all", "dev", "all", "dev"):
        environment.ensure(tmp_path / "e", "key", extra, builds)
    assert builds.extras == ["all", "dev"]


def test_another_key_builds_anew(tmp_path: Path) -> None:
    builds = Builds()
    for key in ("one", "two", "two", "one"):
        environment.ensure(tmp_path / "e", key, "all", builds)
    assert builds.extras == ["all"] * 3


def test_a_build_that_broke_off_is_repaired(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        environment.ensure(tmp_path / "e", "key", "all", BreaksOff())
    builds = Builds()
    environment.ensure(tmp_path / "e", "key", "all", builds)
    assert builds.extras == ["all"]


@pytest.mark.parametrize("damage", ["bin/python", environment.STAMP])
def test_what_was_damaged_is_repaired(tmp_path: Path, damage: str) -> None:
    builds = Builds()
    environment.ensure(tmp_path / "e", "key", "all", builds)
    (tmp_path / "e" / damage).unlink()
    environment.ensure(tmp_path / "e", "key", "all", builds)
    assert builds.extras == ["all", "all"]


def test_a_stamp_of_anything_else_is_no_stamp(tmp_path: Path) -> None:
    for text in ("", "key", "key all more", "key everything"):
        (tmp_path / environment.STAMP).write_text(text)
        assert not environment.is_current(tmp_path, "key", "all")


# --- who waits ------------------------------------------------------------------------------------


def test_concurrent_calls_share_one_build(tmp_path: Path) -> None:
    builds = Builds()
    target, arguments = environment.ensure, (tmp_path / "e", "key", "dev", builds)
    threads = [threading.Thread(target=target, args=arguments) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert builds.extras == ["dev"]


def test_a_directory_that_is_something_else_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(environment.Trouble, match="not a virtual environment"):
        environment.ensure(tmp_path, "key", "all", Builds())
    with pytest.raises(environment.Trouble, match="not a virtual environment"):
        environment.remove(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["letter.txt"]


def test_what_was_removed_is_gone(tmp_path: Path) -> None:
    environment.ensure(tmp_path / "e", "key", "all", Builds())
    environment.remove(tmp_path / "e")
    environment.remove(tmp_path / "e")
    assert not list(tmp_path.iterdir())


# --- with what ------------------------------------------------------------------------------------


def test_every_cache_lies_inside(tmp_path: Path) -> None:
    given = {"HOME": "/h", "PYTHONPATH": "/else", "PIP_INDEX_URL": "u", "PYTEST_ADDOPTS": "-v"}
    made = environment.environment(tmp_path / "a b", given)
    assert made["PIP_INDEX_URL"] == "u"
    assert "PYTHONPATH" not in made
    assert made["PYTEST_ADDOPTS"] == f"-v -o cache_dir='{tmp_path}/a b/cache/pytest'"
    for name in ("MYPY_CACHE_DIR", "RUFF_CACHE_DIR", "COVERAGE_FILE"):
        assert made[name].startswith(f"{tmp_path}/a b/cache/")
    assert made["PYTHONPYCACHEPREFIX"].startswith(f"{tmp_path}/a b/")


def test_bytecode_is_written_whatever_the_shell_says(tmp_path: Path) -> None:
    made = environment.environment(tmp_path, {"HOME": "/h", "PYTHONDONTWRITEBYTECODE": "1"})
    assert "PYTHONDONTWRITEBYTECODE" not in made


def test_the_source_is_compiled_where_a_jailed_daemon_may_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "pycache_prefix", None)
    source = tmp_path / "src"
    source.mkdir()
    (source / "sound.py").write_text("one = 1\n")
    (source / "broken.py").write_text("one =\n")
    environment.compile_source(source, tmp_path / "e")
    (made,) = (tmp_path / "e").rglob("*.pyc")
    assert made.name.startswith("sound.")
    assert [each.name for each in source.iterdir() if each.is_dir()] == []
    inside = environment.bytecode(Path(sys.prefix))
    assert any(inside.is_relative_to(each) for each in python_paths())


def test_an_old_python_could_read_the_script() -> None:
    import ast

    source = Path(environment.__file__).read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 8))


def test_an_unknown_verb_is_told_the_known_ones() -> None:
    command = [sys.executable, environment.__file__, "dance"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: say one of all, dev, bench, where, clean; not 'dance'\n"
