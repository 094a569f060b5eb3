"""A Dagster project that keeps candles complete, correct and fresh, and proves it bar by bar."""

__version__ = "0.1.0"
