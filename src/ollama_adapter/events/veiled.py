"""Values that hold text and show none of it."""

from __future__ import annotations

from typing import Any

import msgspec


class Veiled(msgspec.Struct, gc=False):
    """A struct whose fields stay unseen, by `repr` and by rich, which asks structs on a way of its own."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []
