"""Jobs from a file: each payload in it becomes a job in the queue or is kept with the reason why not."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.jobs import as_new_job, parse_job
from market_data_pipeline.domain.queue import SubmitReport

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from market_data_pipeline.ingest.pipeline import Pipeline

_BLANK = " \t\r\n"


@dataclass(frozen=True, slots=True)
class SubmittedFile:
    """What became of the payloads of a file: ``report`` on those that are jobs, and why the others are not, by dead letter."""

    report: SubmitReport = field(default_factory=SubmitReport)
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether all of it is queued now, or was before."""
        return not self.refused and not self.report.turned_away


def submit_file(data: bytes, *, source: str, pipeline: Pipeline) -> SubmittedFile:
    """Put every job in ``data`` into the queue; what is no job becomes a dead letter refused/NUMBER with its reason.

    JSON lines, a JSON array, or one JSON object over several lines. Doing it again is safe: duplicates. InvalidInputError where
    there is nothing in it.
    """
    now = pipeline.clock.now()
    jobs, refused, seen = [], {}, 0
    for payload in payloads_in(data):
        seen += 1
        try:
            jobs.append(as_new_job(parse_job(payload, now=now), source=source))
        except InvalidInputError as wrong:
            refused[f"refused/{pipeline.jobs.refuse(source, payload, str(wrong))}"] = str(wrong)
    if not seen:
        raise InvalidInputError(f"{source} holds no job: expected JSON lines, a JSON array or one JSON object")
    return SubmittedFile(pipeline.jobs.submit(jobs), refused)


def payloads_in(data: bytes) -> Iterator[str | bytes]:
    """The payloads of ``data`` as they are written there, in their order; judging them is up to the parser of jobs.

    After a mistake in an array nobody can tell where the next element begins: its rest is one payload. A line is a line.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        yield from (line for line in data.split(b"\n") if line.strip())
        return
    start = _after_blanks(text, 0)
    if text.startswith("[", start):
        yield from _elements(text, start + 1)
    elif _is_one_value(text, start):
        yield text.strip(_BLANK)
    else:
        # Not splitlines: it takes characters for line ends that JSON allows within a string.
        yield from (line.strip(_BLANK) for line in text.split("\n") if line.strip(_BLANK))


def _elements(text: str, at: int) -> Iterator[str]:
    """The elements of the array that begins before ``at``, as text."""
    decoder, begun = json.JSONDecoder(), at
    at = _after_blanks(text, at)
    if text.startswith("]", at) and _after_blanks(text, at + 1) == len(text):
        return
    while True:
        begun = at
        end = _end_of_value(decoder, text, at)
        if end is None:
            break
        at = _after_blanks(text, end)
        if text.startswith(",", at):
            yield text[begun:end]
            at = _after_blanks(text, at + 1)
        elif text.startswith("]", at) and _after_blanks(text, at + 1) == len(text):
            yield text[begun:end]
            return
        else:
            break
    yield text[begun:].strip(_BLANK)


def _is_one_value(text: str, start: int) -> bool:
    end = _end_of_value(json.JSONDecoder(), text, start)
    return end is not None and _after_blanks(text, end) == len(text)


def _end_of_value(decoder: json.JSONDecoder, text: str, at: int) -> int | None:
    """Where the JSON value that begins at ``at`` ends; None where there is none."""
    try:
        _, end = decoder.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None
    return end


def _after_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at] in _BLANK:
        at += 1
    return at
