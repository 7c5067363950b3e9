"""How a runner takes its name, and what it does where that cannot be."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ollama_adapter.embedded import starter

TAKES = """
import io, sys
from ollama_adapter.embedded import runner
if sys.argv[1] != "as it is":
    stat = "1 (python) " + " ".join(["0"] * 50)
    runner.open = lambda *_, **__: io.StringIO(stat)
runner._take_name("tiny.gguf")
print(open("/proc/self/cmdline").read().split("\\0")[-2].strip())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="there is no starter elsewhere")
@pytest.mark.parametrize("place", [starter.PLACE_FOR_A_NAME, starter.PLACE_OF_ONE_ORDERED])
@pytest.mark.parametrize(("stat", "shown"), [("as it is", "tiny.gguf"), ("all zeros", "")])
def test_it_is_written_only_where_the_kernel_tells_the_place(
    place: str, stat: str, shown: str
) -> None:
    """Some kernels (gVisor) say 0 for it."""
    argv = [sys.executable, "-c", TAKES, stat, place]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == (shown or place.strip())
