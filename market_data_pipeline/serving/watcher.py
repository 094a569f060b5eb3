"""A thread that looks at SLOs and alert rules again and again, whatever happens to the database in between."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from market_data_pipeline.domain.errors import ConfigurationError, DatabaseUnreachableError
from market_data_pipeline.ingest.alert_file import AlertsFile
from market_data_pipeline.ingest.watch import watch

if TYPE_CHECKING:
    from datetime import datetime

    from market_data_pipeline.domain.freshness import Census
    from market_data_pipeline.serving.source import PipelineSource

logger = logging.getLogger(__name__)

BY = "mdp serve"


class Watcher:
    """Watches each ``every_seconds`` of real time until it is stopped. Of several that watch, one looks at a time."""

    def __init__(self, source: PipelineSource, *, every_seconds: float) -> None:
        self._source, self._every = source, every_seconds
        self._over = threading.Event()
        self._trouble: str | None = None
        self._problem: str | None = None
        self._census: Census | None = None
        self._thread = threading.Thread(target=self._keep_watching, name="watch", daemon=True)

    def start(self) -> None:
        """Look now, and from now on."""
        self._thread.start()

    def census(self, now: datetime) -> Census | None:
        """The one taken last, where it was less than one turn ago; None where somebody else looks, or nobody."""
        taken = self._census
        return taken if taken is not None and abs((now - taken.at).total_seconds()) < self._every else None

    def stop(self, patience_seconds: float) -> None:
        """No further look; wait for the one under way, but not for ever: the database may have stopped."""
        self._over.set()
        self._thread.join(patience_seconds)

    def _keep_watching(self) -> None:
        alerts = AlertsFile(self._source.settings.alerts_file)
        while not self._over.is_set():
            self._look(alerts)
            self._over.wait(self._every)

    def _look(self, alerts: AlertsFile) -> None:
        try:
            pipeline = self._source.get()
            report = watch(pipeline, by=BY, alerts=alerts)
            pipeline.counters.flush()
        except DatabaseUnreachableError as away:
            self._source.doubt()
            self._tell(str(away))
        except ConfigurationError as unusable:
            # No alerts file ever worked here: nobody would hear of anything, so nothing counts as told.
            if self._problem != str(unusable):
                logger.error("nobody is told of alerts: %s", unusable)  # noqa: TRY400 - the message says it all
            self._problem = str(unusable)
        except Exception as error:
            # Whoever is on call learns it from the age of the watch, too; the next look may succeed.
            logger.exception("the watch failed: %s", type(error).__name__)
            self._trouble = type(error).__name__
        else:
            self._tell(None)
            self._census = report.census or self._census
            if report.problem not in {None, self._problem}:
                logger.warning("the alerts file is not in force: %s", report.problem)
            self._problem = report.problem

    def _tell(self, trouble: str | None) -> None:
        """Once when it begins, once when it is over: a line every half minute would hide what else there is."""
        if trouble is not None and self._trouble is None:
            logger.warning("nobody watches until the database is back: %s", trouble)
        if trouble is None and self._trouble is not None:
            logger.info("watching again")
        self._trouble = trouble
