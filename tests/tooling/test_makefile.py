"""What make hands over: the prompt as it was typed, and one line where Python is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHOW = "#!{python} -I\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n"


def make(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=inherited | environ, capture_output=True, text=True, check=False
    )


@pytest.fixture
def python(tmp_path: Path) -> str:
    """A Python that prints what it is called with."""
    import sys

    path = tmp_path / "python that shows"
    path.write_text(SHOW.format(python=sys.executable))
    path.chmod(0o755)
    return str(path)


PROMPTS = [
    "What is os?",
    "it costs $5, $$5, $(shell touch harm), $HOME and `id`",
    """'single' and "double" and \\ and \\\\""",
    "a # b ; c & d | e > f * ? [x] {y} !z ~ %n",
    "first\nsecond\n\nlast",
    "-h",
    "--json",
    "naïve · 日本語",
    "x" * 20_000,
]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_arrives_as_typed(python: str, prompt: str) -> None:
    expected = ["tools/environment.py", "all", "-m", "ollama_adapter", "run", "--", "m", prompt]
    for done in (
        make("run", f"PYTHON={python}", f"PROMPT={prompt}", "MODEL=m"),
        make("run", PYTHON=python, PROMPT=prompt, MODEL="m"),
    ):
        assert json.loads(done.stdout) == expected, done.stderr


def test_there_is_a_model_and_a_question(python: str) -> None:
    done = make("run", f"PYTHON={python}")
    assert json.loads(done.stdout)[-2:] == ["tinydoc", "What does os.path.join do?"]


@pytest.mark.parametrize("verb", [[], ["help"]])
def test_make_alone_lists_the_verbs(verb: list[str]) -> None:
    done = make(*verb)
    listed = [line.split()[1] for line in done.stdout.splitlines()]
    assert listed == ["run", "test", "check", "soak", "bench", "docs", "build", "clean", "help"]


def test_without_a_python_one_line_says_what_to_install(tmp_path: Path) -> None:
    for name in ("make", "sh"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    done = make("test", PATH=str(tmp_path))
    assert done.returncode == 2
    assert "Python 3.11 or newer is needed" in done.stderr
    assert len(done.stderr.splitlines()) == 1
