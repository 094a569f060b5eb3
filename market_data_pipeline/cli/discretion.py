"""What a command may show of what came from outside: no secret, nothing that steers a terminal, no more than a page of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from market_data_pipeline.domain.redaction import HIDDEN, redact

if TYPE_CHECKING:
    from collections.abc import Collection


# Of a text. Twice as much is looked at for secrets: one that the cut would halve no longer looks like one.
_SHOWN = 4 << 10
# Payloads that are JSON and not longer are shown member by member.
_MOST_JSON = 64 << 10
_DEEPEST = 8


def discreet(value: Any, secrets: Collection[str] = (), *, depth: int = 0) -> Any:  # noqa: ANN401 - whatever JSON holds
    """``value``, JSON as Python has it, with *** for what a name calls secret and for secrets within its texts."""
    if isinstance(value, str):
        return line(value, secrets)
    if depth >= _DEEPEST and isinstance(value, Mapping | list | tuple):
        return "…"
    if isinstance(value, Mapping):
        return {
            line(str(name), secrets): HIDDEN if _is_sensitive(str(name)) else discreet(member, secrets, depth=depth + 1)
            for name, member in value.items()
        }
    if isinstance(value, list | tuple):
        return [discreet(member, secrets, depth=depth + 1) for member in value]
    return value


def payload(value: Mapping[str, Any] | str, secrets: Collection[str] = ()) -> Any:  # noqa: ANN401 - whatever JSON holds
    """The payload of a dead letter: member by member where it is JSON, as text otherwise."""
    if isinstance(value, str) and len(value) <= _MOST_JSON:
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    return discreet(value, secrets)


def line(text: str, secrets: Collection[str] = ()) -> str:
    """The beginning of ``text``, redacted, in characters that a terminal prints and does not obey."""
    shown = redact(text[: 2 * _SHOWN], secrets)
    shown = shown if len(shown) <= _SHOWN and len(text) <= 2 * _SHOWN else f"{shown[:_SHOWN]}…"
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in shown)


def _is_sensitive(name: str) -> bool:
    """Whether the one redactor would hide what is called so."""
    return redact(f"{name[:256]}=x") != f"{name[:256]}=x"
