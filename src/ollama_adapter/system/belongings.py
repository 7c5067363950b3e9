"""What of ours lies where on the disk, how much that is, and how it is removed.

A store that is not in our own directory is Ollama's or the user's: it is shown, and never among what
belongs to us. Links are not followed, neither when sizes are added up nor when something is removed: of a
link only the link goes. In a store only what a store is made of is touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import platformdirs

from ollama_adapter.config import DaemonConfig
from ollama_adapter.system import settings

STORE_PARTS: Final = ("blobs", "manifests")
PULLING: Final = ".pulling"
UNFINISHED: Final = "*-partial*"


class Belonging(msgspec.Struct, frozen=True):
    """Some files that belong together: `paths`, all below `place`; `ours`: nobody else uses them.

    `link` is where `place` leads, where it is a link ("": it is none).
    """

    name: str
    what: str
    place: Path
    paths: tuple[Path, ...]
    files: int
    size_bytes: int
    ours: bool
    link: str = ""


def survey(config: DaemonConfig) -> list[Belonging]:
    """Everything that may be there, ours first; what is not has no paths. Raises ConfigError, OSError."""
    data, state = _data(), platformdirs.user_state_path(settings.APPLICATION)
    stores = [data / "models", settings.models_dir(config), Path("~/.ollama/models").expanduser()]
    found = [_store(each, ours=each == stores[0]) for each in dict.fromkeys(stores)]
    pulling = [data / PULLING, *(each / PULLING for each in stores if not each.is_symlink())]
    downloads = [*pulling, *_unfinished(stores[0])]
    found.append(_of("downloads", "models half pulled", data, downloads))
    for name, what in (("home", "home of our daemons"), ("daemons", "who runs a daemon")):
        found.append(_of(name, what, state / name, [state / name]))
    usual = platformdirs.user_config_path(settings.APPLICATION) / "config.toml"
    for file in dict.fromkeys((usual, settings.settings_file())):
        name = "settings" if file == usual else str(file)
        found.append(_of(name, "settings", file, [file], ours=file == usual))
    return found


def _data() -> Path:
    return platformdirs.user_data_path(settings.APPLICATION)


def _store(root: Path, *, ours: bool) -> Belonging:
    """The models, without what is unfinished, which is a part of its own in a store of ours."""
    name = "models" if ours else str(root)
    what = "models" if ours else f"models of {'Ollama' if '.ollama' in root.parts else 'yours'}"
    paths = [root] if root.is_symlink() else [root / each for each in STORE_PARTS]
    return _of(name, what, root, paths, ours=ours, without=_unfinished(root) if ours else ())


def _unfinished(root: Path) -> list[Path]:
    """What grows among the blobs of a store of ours, and is no model yet."""
    if root.is_symlink() or (root / "blobs").is_symlink():
        return []
    return list((root / "blobs").glob(UNFINISHED))


def _of(
    name: str,
    what: str,
    place: Path,
    paths: Sequence[Path],
    *,
    ours: bool = True,
    without: Sequence[Path] = (),
) -> Belonging:
    there = tuple(each for each in paths if os.path.lexists(each))
    link = os.readlink(place) if place.is_symlink() else ""
    left_out = set(without)
    sizes: dict[tuple[int, int], int] = {}
    for top in there:
        for path in _files(top):
            if path not in left_out:
                held = os.lstat(path)
                sizes[held.st_dev, held.st_ino] = held.st_size
    return Belonging(name, what, place, there, len(sizes), sum(sizes.values()), ours, link)


def _files(top: Path) -> Iterator[Path]:
    """Every file below, or `top` itself. A link is none; what vanishes meanwhile is not counted."""
    if not top.is_dir() or top.is_symlink():
        if top.is_file() and not top.is_symlink():
            yield top
        return
    for root, _, names in os.walk(top):
        for name in names:
            path = Path(root, name)
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISREG(os.lstat(path).st_mode):
                    yield path


def in_use(belonging: Belonging) -> str:
    """What somebody does with it at this moment; "" where nobody is seen to do anything."""
    if _is_locked(belonging.place):  # Store.hold
        return f"a daemon serves the models in {belonging.place}"
    places = [belonging.place / PULLING, *belonging.paths]
    if any(_is_locked(lock) for place in places for lock in place.glob("*.lock")):
        return f"a model is being pulled into {belonging.place}"
    return ""


def _is_locked(lock: Path) -> bool:
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def remove(belonging: Belonging) -> None:
    """All of its paths, and `place` where that is empty then. Raises OSError; what is gone is no fault."""
    for path in belonging.paths:
        with contextlib.suppress(FileNotFoundError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)  # by descriptors: a link that is put in its way is not followed
            else:
                path.unlink()
    if belonging.place not in belonging.paths:
        with contextlib.suppress(OSError):
            belonging.place.rmdir()
