-- What is no bar: quotes, option chains and economic series, each with when we learned it, and records that could not be used.
-- Every row names its fetch, whose time, request and provider are in fetches. Knowledge times are [known_from, known_to).

-- The best bid and ask as last heard: a row holds from known_from until the next of its symbol and provider. Written only where
-- something differs. feed as on bars: whose offers they are. flags: 1 crossed, 2 stale, 4 stamped later than our clock.
create table quotes_l1 (
  symbol_id    int4 not null references symbol_universe,
  provider     text not null,
  known_from   timestamptz not null,
  quoted_at    timestamptz,
  bid          float8 check (bid > 0 and bid < 'infinity'),
  ask          float8 check (ask > 0 and ask < 'infinity'),
  bid_size     float8 check (bid_size >= 0 and bid_size < 'infinity'),
  ask_size     float8 check (ask_size >= 0 and ask_size < 'infinity'),
  last         float8 check (last > 0 and last < 'infinity'),
  last_at      timestamptz,
  volume       float8 check (volume >= 0 and volume < 'infinity'),
  previous_close float8,
  currency     text,
  market_state text,
  delay_seconds int4 not null check (delay_seconds >= 0),
  feed         int2 not null default 0,
  flags        int2 not null default 0,
  fetch_id     int8 not null references fetches,
  primary key (symbol_id, known_from, provider)
);

-- One moment of a chain: what belongs together. expiry is what was asked for, null for every expiry. digest is of the contracts:
-- the same answer again is no new snapshot. flags: 2 stale, 4 stamped later than our clock.
create table option_chains (
  snapshot_id  int8 generated always as identity primary key,
  symbol_id    int4 not null references symbol_universe,
  provider     text not null,
  expiry       date,
  taken_at     timestamptz not null,
  spot         float8 check (spot > 0 and spot < 'infinity'),
  contracts    int4 not null check (contracts >= 0),
  is_complete  boolean not null,
  flags        int2 not null default 0,
  digest       bytea not null,
  fetch_id     int8 not null references fetches,
  known_from   timestamptz not null
);
create index option_chains_by_symbol on option_chains (symbol_id, known_from, snapshot_id);

-- flags: 1 crossed.
create table option_contracts (
  snapshot_id  int8 not null references option_chains,
  contract     text not null,
  root         text not null,
  expiry       date not null,
  strike       float8 not null check (strike > 0 and strike < 'infinity'),
  "right"      text not null check ("right" in ('C', 'P')),
  bid          float8 check (bid > 0 and bid < 'infinity'),
  ask          float8 check (ask > 0 and ask < 'infinity'),
  last         float8 check (last > 0 and last < 'infinity'),
  last_at      timestamptz,
  volume       float8 check (volume >= 0 and volume < 'infinity'),
  open_interest float8 check (open_interest >= 0 and open_interest < 'infinity'),
  bid_size     float8,
  ask_size     float8,
  iv           float8,
  delta        float8,
  gamma        float8,
  vega         float8,
  theta        float8,
  rho          float8,
  flags        int2 not null default 0,
  primary key (snapshot_id, contract)
);

-- An economic value twice in time: published from realtime_start to realtime_end (days, both included, as the publisher tells it),
-- and known to us from known_from until known_to, null as long as we hold it to be so. value null is a published absence.
create table macro_observations (
  series       text not null,
  provider     text not null,
  observed_on  date not null,
  realtime_start date not null,
  realtime_end date not null,
  value        float8 check (value > '-infinity' and value < 'infinity'),
  fetch_id     int8 not null references fetches,
  known_from   timestamptz not null,
  known_to     timestamptz check (known_to > known_from),
  primary key (series, provider, observed_on, realtime_start, known_from),
  check (realtime_start <= realtime_end)
);
-- A vintage has one truth at a time.
create unique index macro_current on macro_observations (series, provider, observed_on, realtime_start) where known_to is null;

-- What a series is, as the provider describes it.
create table macro_series (
  series       text not null,
  provider     text not null,
  title        text,
  units        text,
  frequency    text,
  fetch_id     int8 not null references fetches,
  known_from   timestamptz not null,
  known_to     timestamptz check (known_to > known_from),
  primary key (series, provider, known_from)
);
create unique index macro_series_current on macro_series (series, provider) where known_to is null;

-- Records of answers other than bars that broke a law or could not be read: kept with their reason, replayable.
create table refused_records (
  refused_id   int8 generated always as identity primary key,
  provider     text not null,
  capability   text not null,
  symbol       text not null,
  record       text not null,
  reason       text not null,
  fetch_id     int8 not null references fetches,
  refused_at   timestamptz not null default clock_timestamp()
);
create index refused_records_by_symbol on refused_records (provider, capability, symbol, reason);
