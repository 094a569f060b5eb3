"""How long what is kept. Values; the rows are deleted in storage. Candles, revisions, the ledger and its evidence have no end."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """How old rows must be before they are deleted, each kind by the time we learned them.

    ``quotes``: but the last quote of a symbol and provider before that stays, so that reading as of any later instant answers.
    ``chains``: whole snapshots, and the last one of each stays likewise. ``fetches``: provenance that no kept row names, and what
    was refused; but not refused bars of a session that lacks some. ``events``: what happened to providers, the last of each kind
    stays.
    ``alerts``: episodes that are over, with their messages. ``done_jobs``: until then a job that comes again is a duplicate.
    """

    quotes: timedelta = timedelta(days=14)
    chains: timedelta = timedelta(days=365)
    fetches: timedelta = timedelta(days=90)
    events: timedelta = timedelta(days=365)
    alerts: timedelta = timedelta(days=365)
    done_jobs: timedelta = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Pruned:
    """What became of one kind of row: how many were deleted (or would be). ``is_complete`` False: there are more of them."""

    what: str
    rows: int
    is_complete: bool = True
