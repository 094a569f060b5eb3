"""A pipeline for as long as the process lives, opened when it is first wanted and whenever the database has moved."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

from market_data_pipeline.storage.database import database_url
from market_data_pipeline.wiring import open_pipeline

if TYPE_CHECKING:
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.settings import Settings


class PipelineSource:
    """Hands out one pipeline to all threads. The database may be away at the start, go away, and come back elsewhere."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._opening = threading.Lock()
        self._opened = ExitStack()
        self._pipeline: Pipeline | None = None
        self._where = ""
        self._is_doubtful = False

    def get(self) -> Pipeline:
        """The pipeline. Raises MarketDataError where it cannot be opened; the next call tries again."""
        with self._opening:
            if self._is_doubtful:
                # The embedded server may have come back on another port; a pool would try the old one for ever.
                self._is_doubtful = False
                if self._pipeline is not None and database_url(self.settings) != self._where:
                    self._close()
            if self._pipeline is None:
                self._where = database_url(self.settings)
                self._pipeline = self._opened.enter_context(open_pipeline(self.settings))
            return self._pipeline

    def doubt(self) -> None:
        """The database could not be reached: look, before the pipeline is handed out again, whether it is still where it was."""
        self._is_doubtful = True

    def close(self) -> None:
        """Close what is open."""
        with self._opening:
            self._close()

    def _close(self) -> None:
        self._pipeline = None
        self._opened.close()
