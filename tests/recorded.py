"""A session's state that keeps what it was told of itself."""

from __future__ import annotations

from ollama_adapter.core.energy import EnergyProfile
from ollama_adapter.core.session_state import SessionState, Transition


class Recorded(SessionState):
    """With every transition since its beginning."""

    def __init__(self, profile: EnergyProfile) -> None:
        self.transitions: list[Transition] = []
        super().__init__(profile, self.transitions.append)
