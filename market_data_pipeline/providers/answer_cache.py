"""Answers kept so that a provider may be asked "has it changed?": 304 in place of a body. The rules of RFC 9111 are hishel's."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

import hishel

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_VALIDATORS = ("etag", "last-modified")
# Of an answer's headers only these are kept: what judges it again, what the adapter reads, and never a cookie.
_KEPT = frozenset({*_VALIDATORS, "cache-control", "content-type", "date", "expires", "vary"})
_CONDITIONS = frozenset({"if-none-match", "if-modified-since"})
_KEPT_SECONDS = 7 * 86_400.0
_OPTIONS = hishel.CacheOptions(shared=True)


@dataclass(frozen=True, slots=True)
class Held:
    """An answer that we hold and whether it still stands is to be asked with ``validators`` (headers)."""

    validators: Mapping[str, str]
    state: hishel.NeedRevalidation


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer as it is kept: ``headers`` with lower-case names, ``body`` decoded."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class AnswerCache:
    """Keyless answers in a SQLite file that processes share. Safe to use from several threads; a lost file costs nothing.

    Never answers by itself, however fresh an answer may claim to be: that the provider was asked again and still had no bar is
    evidence for the ledger, and a copy of its last answer is none. Holds at most ``max_bytes``; an answer longer than
    ``max_body_bytes`` is not kept, and none for longer than a week. A file that cannot be used is as good as an empty one.
    """

    def __init__(self, path: Path, *, max_bytes: int = 256 << 20, max_body_bytes: int = 64 << 20) -> None:
        self._storage = hishel.SqliteStorage(
            database_path=path, default_ttl=_KEPT_SECONDS, max_size=max_bytes, max_stream_size=max_body_bytes
        )

    def held(self, url: str, headers: Mapping[str, str]) -> Held | None:
        """What we hold for this request, to be confirmed; None where we hold nothing."""
        try:
            entries = self._storage.get_entries(_key(url))
        except RuntimeError:
            return None
        # "no-cache" is how hishel is told that nothing is to be used unasked; it is not sent.
        request = hishel.Request("GET", url, hishel.Headers({**headers, "cache-control": "no-cache"}))
        state = hishel.IdleClient(_OPTIONS).next(request, entries)
        if not isinstance(state, hishel.NeedRevalidation):
            return None
        validators = {name: text for name, text in state.request.headers.items() if name.lower() in _CONDITIONS}
        return Held(validators, state) if validators else None

    def confirmed(self, held: Held, headers: Mapping[str, str]) -> Kept | None:
        """The answer that a 304 with ``headers`` stands for; None, and nothing is held any more, where it fits none we hold."""
        state: object = held.state.next(hishel.Response(304, _kept(headers)))
        while isinstance(state, hishel.NeedToBeUpdated | hishel.InvalidateEntries):
            state = state.next()
        if isinstance(state, hishel.FromCache):
            entry = state.entry
            with suppress(RuntimeError):  # gone while we asked
                body = b"".join(entry.response.stream or ())  # type: ignore[arg-type] # a synchronous storage has synchronous streams
                self._storage.update_headers(entry.id, entry.response.headers)
                return Kept(entry.response.status_code, dict(entry.response.headers), body)
        self.forget(held.state.original_request.url)
        return None

    def keep(self, url: str, request_headers: Mapping[str, str], answer: Kept) -> None:
        """Keep ``answer`` where the provider allows it and gave it a validator; what we held before is forgotten in any case."""
        self.forget(url)
        if answer.status != 200 or not any(answer.headers.get(name) for name in _VALIDATORS):
            return
        request = hishel.Request("GET", url, hishel.Headers(dict(request_headers)))
        response = hishel.Response(answer.status, _kept(answer.headers), iter([answer.body]))
        state = hishel.CacheMiss(_OPTIONS, request).next(response)
        if isinstance(state, hishel.StoreAndUse):
            with suppress(RuntimeError):
                entry = self._storage.create_entry(request, state.response, _key(url))
                # It is stored as it is read.
                for _ in entry.response.stream or ():  # type: ignore[union-attr] # as above
                    pass

    def forget(self, url: str) -> None:
        """Drop what we hold of ``url``: the next request gets a whole answer."""
        with suppress(RuntimeError):
            for entry in self._storage.get_entries(_key(url)):
                self._storage.remove_entry(entry.id)

    def close(self) -> None:
        """Close the file. Repeating it is safe."""
        self._storage.close()


def _key(url: str) -> str:
    return sha256(url.encode()).hexdigest()


def _kept(headers: Mapping[str, str]) -> hishel.Headers:
    return hishel.Headers({name: text for name, text in headers.items() if name in _KEPT})
