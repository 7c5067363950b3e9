"""What would stand against a daemon of ours, seen without starting one: for those who only ask."""

from __future__ import annotations

from ollama_adapter.config import DaemonConfig, DaemonMode, Sandbox
from ollama_adapter.errors import AdapterError
from ollama_adapter.system import settings
from ollama_adapter.system.jail import levels
from ollama_adapter.system.jail.policy import Level
from ollama_adapter.system.trust import check_program, check_store


def obstacle(config: DaemonConfig) -> AdapterError | None:
    """The error that starting a daemon would end with; None where nothing is known to stand against it."""
    if config.mode is DaemonMode.ADOPT:  # then none is started
        return None
    try:
        store = settings.models_dir(config)
        settings.check_places(store)
        if store.exists():
            check_store(store)
        ollama = settings.find_ollama(config)
        only = config.mode is DaemonMode.OLLAMA or not settings.has_embedded_engine()
        if ollama and only:
            check_program(ollama)
        level = Level.NONE
        if config.sandbox is not Sandbox.NONE:
            level = levels.decide(levels.probe(), config.sandbox.value).level
        if store.exists():
            settings.check_readable(store, jailed=level is not Level.NONE)
    except AdapterError as error:
        return error
    return None
