"""What a user installs: the archives hold what they must and nothing else, and importing costs nothing."""

from __future__ import annotations

import ast
import email
import email.message
import importlib
import importlib.util
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import ollama_adapter

ROOT = Path(__file__).parents[2]
HEAVY = ["click", "rich", "uvicorn", "xllamacpp", "psutil", "multiprocessing", "asyncio", "msgspec"]
RARE = [  # what only a spawn, a download, a substitute or a settings file needs
    *(
        "ollama_adapter.puller.pull",
        "ollama_adapter.core.gguf",
        "ollama_adapter.system.certificates",
    ),
    *("ollama_adapter.standins", "ollama_adapter.core.substitution", "ollama_adapter.core.kinship"),
    *("ollama_adapter.system.spawning", "ollama_adapter.system.process"),
    *("ollama_adapter.system.runfile", "ollama_adapter.system.jail.policy"),
    *("ollama_adapter.embedded", "ollama_adapter.testing", "ollama_adapter.cli"),
    *("tomllib", "psutil", "platformdirs", "pynvml", "click", "rich", "uvicorn", "xllamacpp"),
]
GIVEN = {"EnergyProfile", "Limits", "TierVerdict"}  # to users, beside events and configs
TINYDOC = "ollama_adapter/embedded/tinydoc"


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source archive, and the wheel made from it."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (source,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return source, wheel


@pytest.fixture(scope="module")
def names(archives: tuple[Path, Path]) -> set[str]:
    with zipfile.ZipFile(archives[1]) as wheel:
        return set(wheel.namelist())


@pytest.fixture(scope="module")
def metadata(archives: tuple[Path, Path]) -> email.message.Message:
    with zipfile.ZipFile(archives[1]) as wheel:
        (name,) = (each for each in wheel.namelist() if each.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(wheel.read(name))


def test_the_wheel_is_pure_and_small(archives: tuple[Path, Path]) -> None:
    assert archives[1].name.endswith("-py3-none-any.whl")
    assert archives[1].stat().st_size < 4 << 20


def test_the_wheel_holds_the_package_and_nothing_else(names: set[str]) -> None:
    tops = {name.partition("/")[0] for name in names}
    ours = {"ollama_adapter", "pytest_ollama_adapter.py"}
    assert {top for top in tops if not top.endswith(".dist-info")} == ours
    strange = ("test", "conftest", "__pycache__", ".pyc", "/.")
    assert [name for name in names if any(word in name.lower() for word in strange)] == [
        name
        for name in names
        if name.startswith(("ollama_adapter/testing/", "pytest_ollama_adapter.py"))
    ]


def test_the_wheel_holds_every_file_of_the_source(names: set[str]) -> None:
    package = ROOT / "src" / "ollama_adapter"
    source = {
        f"ollama_adapter/{each.relative_to(package)}"
        for each in package.rglob("*.py*")
        if "__pycache__" not in each.parts
    }
    assert "pytest_ollama_adapter.py" in names
    assert source <= names
    assert "ollama_adapter/py.typed" in names


def test_the_wheel_holds_the_licences(names: set[str]) -> None:
    licences = {name.partition("/licenses/")[2] for name in names if "/licenses/" in name}
    assert licences == {"LICENSE", f"src/{TINYDOC}/NOTICE"}


def test_the_wheel_holds_the_model_as_it_is(archives: tuple[Path, Path], names: set[str]) -> None:
    model = ROOT / "src" / TINYDOC / "tinydoc.gguf"
    with zipfile.ZipFile(archives[1]) as wheel:
        assert wheel.read(f"{TINYDOC}/tinydoc.gguf") == model.read_bytes()


def test_the_metadata(metadata: email.message.Message) -> None:
    assert metadata["Name"] == "ollama-adapter"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert {"cli", "embedded", "all", "dev"} <= set(metadata.get_all("Provides-Extra", []))


def test_a_plain_install_needs_four_packages(metadata: email.message.Message) -> None:
    every = metadata.get_all("Requires-Dist", [])
    plain = {each.split(">")[0] for each in every if "extra ==" not in each}
    assert plain == {"httptools", "msgspec", "platformdirs", "psutil"}


def test_the_command(archives: tuple[Path, Path], names: set[str]) -> None:
    (name,) = (each for each in names if each.endswith(".dist-info/entry_points.txt"))
    with zipfile.ZipFile(archives[1]) as wheel:
        lines = wheel.read(name).decode().splitlines()
    assert [each for each in lines if each] == [
        "[console_scripts]",
        "ollama-adapter = ollama_adapter.__main__:main",
        "[pytest11]",
        "ollama_adapter = pytest_ollama_adapter",
    ]


def test_the_source_archive_can_be_built_again(archives: tuple[Path, Path]) -> None:
    with tarfile.open(archives[0]) as source:
        held = {name.partition("/")[2] for name in source.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "src/ollama_adapter/__init__.py"} <= held
    extra = {name.partition("/")[0] for name in held} - {"src", "PKG-INFO", ".gitignore", ""}
    assert extra == {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"}


def test_type_checkers_are_told_of_the_names_that_there_are() -> None:
    """`__init__.pyi` is what they read, and `__init__.py` what runs."""
    stub = ast.parse((ROOT / "src/ollama_adapter/__init__.pyi").read_text("utf-8"))
    told = {
        alias.name: each.module
        for each in stub.body
        if isinstance(each, ast.ImportFrom)
        for alias in each.names
    }
    assert {name for name in told if name[0].isupper()} == set(ollama_adapter.__all__)
    for name, module in told.items():
        assert module is not None
        home = importlib.import_module(module)
        assert getattr(ollama_adapter, name) is getattr(home, name)
    assert set(told) <= set(dir(ollama_adapter))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ollama_adapter.nothing  # type: ignore[attr-defined]  # noqa: B018
    (names,) = (each for each in stub.body if isinstance(each, ast.Assign))
    assert ast.literal_eval(names.value) == ollama_adapter.__all__


def printed(script: str) -> list[str]:
    """What a fresh interpreter prints, by words."""
    command = [sys.executable, "-W", "error", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_importing_the_package_does_no_work() -> None:
    script = f"import ollama_adapter, sys; print(*[n for n in {HEAVY!r} if n in sys.modules])"
    assert printed(script) == []


def test_what_is_rarely_needed_is_not_imported_with_the_adapter() -> None:
    for each in RARE:
        assert importlib.util.find_spec(each) or each in ("pynvml", "xllamacpp"), each
    script = (
        "import sys; from ollama_adapter import Config, OllamaAdapter, Orchestrator;"
        f"print(*[n for n in {RARE!r} if n in sys.modules])"
    )
    assert printed(script) == []


def test_only_what_users_are_given_is_a_dataclass() -> None:
    """A dataclass costs forty times what a struct does to define, and every import pays for it."""
    script = (
        "import dataclasses, sys; from ollama_adapter import Config, OllamaAdapter, Orchestrator\n"
        "for module in [m for n, m in sys.modules.items() if n.startswith('ollama_adapter.')]:\n"
        "    for value in vars(module).values():\n"
        "        if isinstance(value, type) and dataclasses.is_dataclass(value):\n"
        "            print(value.__module__, value.__name__, sep=':')"
    )
    found = [each.removeprefix("ollama_adapter.").split(":") for each in printed(script)]
    homes = ("events", "config")
    inside = {name for module, name in found if module.partition(".")[0] not in homes}
    assert inside == GIVEN
