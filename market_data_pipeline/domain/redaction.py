"""What may not be said aloud and how it is hidden: the one pattern of secrets for logs, messages, provenance, spans and notices."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

if TYPE_CHECKING:
    from collections.abc import Collection

_SENSITIVE_WORDS = ("token", "key", "crumb", "secret", "password", "passwd", "signature", "authorization", "credential", "cookie")
_SENSITIVE_NAME = rf"[\w.-]*(?:{'|'.join(_SENSITIVE_WORDS)})[\w.-]*"
# A parameter, a header or a JSON member, an item of a printed dict or list of headers.
_SECRET_PARAMETER = re.compile(rf"(?i)(?<![\w.%-])({_SENSITIVE_NAME})=([^&#\s\"'<>]*)")
_SECRET_HEADER = re.compile(
    rf"(?i)(?<![\w.%-])b?[\"']?({_SENSITIVE_NAME})(?:[\"']?:\s*|[\"'],\s*(?=b?[\"']))(?:(?:bearer|basic)\s+)?[^\s,;&]+"
)
# Their values have spaces and semicolons of their own.
_SECRET_LINE = re.compile(r"(?i)((?:set-)?cookie|(?:proxy-)?authorization)(?:[\"']?:\s*|[\"'],\s*(?=b?[\"']))b?[\"']?[^\"'\r\n]+")
_USER_INFO = re.compile(r"(?<=://)[^/@\s?#]+@")
HIDDEN = "***"
# Anything shorter is no secret, and hiding it everywhere would make every message unreadable.
SHORTEST_SECRET = 4


def redact(text: str, secrets: Collection[str] = ()) -> str:
    """``text`` without the values of secret parameters and headers, without user:password@, and without any of ``secrets``.

    Do this before cutting a text short: half a key no longer looks like one.
    """
    for secret in sorted(secrets, key=len, reverse=True):
        for form in (secret, quote(secret, safe=""), quote_plus(secret)):
            text = text.replace(form, HIDDEN)
    if "@" in text:
        text = _USER_INFO.sub(f"{HIDDEN}@", text)
    if not is_sensitive(text):
        # Most texts: the three patterns below would cost more than the rest of a request.
        return text
    text = _SECRET_LINE.sub(rf"\1: {HIDDEN}", text)
    text = _SECRET_PARAMETER.sub(rf"\1={HIDDEN}", text)
    return _SECRET_HEADER.sub(rf"\1: {HIDDEN}", text)


def is_sensitive(text: str) -> bool:
    """Whether one of the words is in it; a tenth of the cost of a pattern that does not care about case."""
    lower = text.lower()
    return any(word in lower for word in _SENSITIVE_WORDS)
