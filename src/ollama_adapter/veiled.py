"""Values that hold text and show none of it."""

from __future__ import annotations

from typing import Any


class Veiled:
    """Before `msgspec.Struct` among the bases, it keeps the fields unseen, by `repr` and by rich, which asks
    structs on a way of its own. It has no fields itself, so that frozen structs and others can have it.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []
