"""A terminal that knows the sequences which the command uses, and complains about any other.

It is the strictest that there is: moving the cursor ends the state beyond the last column, and so does
restoring it.
"""

from __future__ import annotations

import codecs
import re

from rich.cells import get_character_cell_size

SEQUENCE = re.compile(r"\x1b(?:\[(?P<args>[?\d;]*)(?P<final>[A-Za-z])|(?P<short>[78D]))")


class Screen:
    """`lines` are all that were ever on it, the scrolled away ones too; a wrapped line is one."""

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self.height = height
        self.rows: list[list[str]] = [[]]
        self.wrapped: set[int] = set()
        self.row = self.column = 0
        self.pending = False
        self._saved = (0, 0)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._rest = ""

    @property
    def text(self) -> str:
        """What a user would copy: wrapped rows are joined."""
        lines: list[str] = []
        for number, row in enumerate(self.rows):
            content = "".join(row)
            if number in self.wrapped:
                lines[-1] += content
            else:
                lines.append(content)
        return "\n".join(line.rstrip() for line in lines).rstrip("\n")

    def feed(self, data: bytes) -> None:
        text = self._rest + self._decoder.decode(data)
        self._rest = ""
        place = 0
        while place < len(text):
            if text[place] != "\x1b":
                self._put(text[place])
                place += 1
                continue
            found = SEQUENCE.match(text, place)
            if found is None:
                assert len(text) - place < 16, f"an unknown sequence: {text[place : place + 16]!r}"
                self._rest = text[place:]
                return
            self._obey(found)
            place = found.end()

    def _put(self, character: str) -> None:
        if character == "\n":
            self._down()
        elif character == "\r":
            self.column, self.pending = 0, False
        elif character == "\t":
            self.column = min((self.column // 8 + 1) * 8, self.width - 1)
        elif character.isprintable() or not character.isascii():
            self._print(character)
        else:
            raise AssertionError(f"a control character: {character!r}")

    def _print(self, character: str) -> None:
        cells = get_character_cell_size(character)
        if not cells:
            row = self.rows[self.row]
            if row:
                row[max(0, min(self.column, len(row)) - 1)] += character
            return
        if self.pending or self.column + cells > self.width:
            self._down()
            self.wrapped.add(self.row)
            self.column, self.pending = 0, False
        row = self.rows[self.row]
        row += [" "] * (self.column + cells - len(row))
        row[self.column : self.column + cells] = [character] + [""] * (cells - 1)
        self.column += cells
        if self.column == self.width:
            self.column, self.pending = self.width - 1, True

    def _down(self) -> None:
        self.row += 1
        self.pending = False
        if self.row == len(self.rows):
            self.rows.append([])

    def _obey(self, found: re.Match[str]) -> None:
        arguments, final = found["args"] or "", found["final"] or found["short"]
        count = int(arguments) if arguments.isdigit() else 1
        if final == "D" and found["short"]:
            self._down()
        elif final == "A":
            self.row, self.pending = max(self._top, self.row - count), False
        elif final == "B":
            self.row, self.pending = min(self._top + self.height - 1, self.row + count), False
            self.rows += [[] for _ in range(self.row + 1 - len(self.rows))]
        elif final == "J":
            self._erase(self.row)
            del self.rows[self.row + 1 :]
            self.wrapped = {each for each in self.wrapped if each <= self.row}
        elif final == "K":
            self._erase(self.row)
        elif final == "7":
            self._saved = (self.row, self.column)
        elif final == "8":
            self.row, self.column = self._saved
            self.pending = False
        else:
            known = final == "m" or arguments in ("?2026", "?25")
            assert known, f"an unknown sequence: {found[0]!r}"

    def _erase(self, row: int) -> None:
        del self.rows[row][self.column :]

    @property
    def _top(self) -> int:
        return max(0, len(self.rows) - self.height)
