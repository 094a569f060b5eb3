-- The core schema. Instants are timestamptz, sessions are dates, prices and volumes are float8 as the provider sent them.
-- Released migrations are never edited: the next change is the next number.

create table universe_versions (
  version_id   int4 generated always as identity primary key,
  version_tag  text not null unique,
  source       text not null,
  source_sha256 text not null,
  symbols      int4 not null check (symbols >= 0),
  added        int4 not null check (added >= 0),
  changed      int4 not null check (changed >= 0),
  deactivated  int4 not null check (deactivated >= 0),
  loaded_by    text not null,
  loaded_at    timestamptz not null default clock_timestamp()
);

create table symbol_universe (
  symbol_id    int4 generated always as identity primary key,
  symbol       text not null unique check (symbol ~ '^\^?[A-Z0-9][A-Z0-9.=/_-]{0,31}$' and symbol !~ '\.\.'),
  exchange     text not null,
  calendar     text not null,
  tier         text not null check (tier in ('T0', 'T1', 'T2')),
  asset_type   text not null default 'equity',
  currency     text,
  adv_21d      float8 check (adv_21d >= 0),
  mkt_cap      float8 check (mkt_cap >= 0),
  active       boolean not null default true,
  active_from  date,
  active_to    date,
  version_id   int4 not null references universe_versions,
  check (active_from is null or active_to is null or active_from <= active_to)
);

-- What each provider calls a symbol, where that differs from ours (BRK.B, BRK-B, BRK/B).
create table symbol_aliases (
  symbol_id    int4 not null references symbol_universe,
  provider     text not null,
  alias        text not null,
  primary key (symbol_id, provider)
);

-- One provider answer, or the lack of one: the provenance of every bar. request is redacted before it gets here.
create table fetches (
  fetch_id        int8 generated always as identity primary key,
  provider        text not null,
  symbol_id       int4 references symbol_universe,
  interval_s      int4 not null,
  request         text not null,
  started_at      timestamptz not null,
  latency_seconds float8 not null check (latency_seconds >= 0),
  outcome         text not null,
  status          int4,
  rows            int4 not null default 0 check (rows >= 0),
  payload_bytes   int8 not null default 0 check (payload_bytes >= 0),
  payload_sha256  text check (payload_sha256 ~ '^[0-9a-f]{64}$'),
  error           text,
  attempts        int4 not null default 1 check (attempts >= 0),
  dropped         jsonb not null default '{}',
  run_id          text,
  recorded_at     timestamptz not null default clock_timestamp()
);
create index fetches_by_symbol on fetches (symbol_id, interval_s, recorded_at desc);

-- No foreign keys on the two candle tables: a row-level check would halve the speed of COPY. Every writer takes symbol_id and
-- fetch_id from rows of the same transaction, and `mdp reconcile` counts orphans.
-- finality: 0 provisional, 1 settled, 2 final. flags: repair flags, 0 for none. feed: 0 unknown or consolidated.
create table candles_intraday (
  symbol_id    int4 not null,
  interval_s   int4 not null,
  opened_at    timestamptz not null,
  open         float8 not null,
  high         float8 not null,
  low          float8 not null,
  close        float8 not null,
  volume       float8 not null,
  vwap         float8,
  trades       int8,
  fetch_id     int8 not null,
  as_of        timestamptz not null,
  provider     int2 not null,
  feed         int2 not null default 0,
  finality     int2 not null default 0,
  flags        int2 not null default 0,
  primary key (symbol_id, interval_s, opened_at),
  -- NaN sorts above infinity in Postgres, so the two bounds refuse NaN and both infinities.
  constraint ohlc_laws check (low <= least(open, close) and high >= greatest(open, close) and low > '-infinity' and high < 'infinity'),
  constraint volume_law check (volume >= 0 and volume < 'infinity')
) with (autovacuum_vacuum_insert_scale_factor = 0.05);

create table candles_daily (
  symbol_id    int4 not null,
  session_date date not null,
  open         float8 not null,
  high         float8 not null,
  low          float8 not null,
  close        float8 not null,
  volume       float8 not null,
  vwap         float8,
  trades       int8,
  fetch_id     int8 not null,
  as_of        timestamptz not null,
  provider     int2 not null,
  feed         int2 not null default 0,
  finality     int2 not null default 0,
  flags        int2 not null default 0,
  primary key (symbol_id, session_date),
  constraint ohlc_laws check (low <= least(open, close) and high >= greatest(open, close) and low > '-infinity' and high < 'infinity'),
  constraint volume_law check (volume >= 0 and volume < 'infinity')
);

-- Small integer keys for the providers and feeds named on every bar.
create table providers (
  provider     int2 generated always as identity primary key,
  name         text not null unique
);

-- Every value that was replaced or deleted, valid for knowledge times in [known_from, known_to).
-- For daily bars opened_at is midnight UTC of the session date: a label.
create table candle_revisions (
  symbol_id    int4 not null,
  interval_s   int4 not null,
  opened_at    timestamptz not null,
  open         float8 not null,
  high         float8 not null,
  low          float8 not null,
  close        float8 not null,
  volume       float8 not null,
  vwap         float8,
  trades       int8,
  fetch_id     int8 not null,
  provider     int2 not null,
  feed         int2 not null,
  finality     int2 not null,
  flags        int2 not null,
  known_from   timestamptz not null,
  known_to     timestamptz not null,
  primary key (symbol_id, interval_s, opened_at, known_from),
  check (known_from < known_to)
);

-- The ledger. One place in the bitmaps for each expected bar of the session, in opening order.
create table coverage (
  symbol_id       int4 not null references symbol_universe,
  interval_s      int4 not null,
  session         date not null,
  opens_at        timestamptz not null,
  closes_at       timestamptz not null,
  expected        int2 not null check (expected > 0),
  present         bit varying not null,
  confirmed_empty bit varying not null,
  absent          int2 not null generated always as (expected - bit_count(present)::int2 - bit_count(confirmed_empty)::int2) stored,
  attempts        int2 not null default 0 check (attempts >= 0),
  failures        int2 not null default 0 check (failures >= 0),
  last_attempt_at timestamptz,
  next_attempt_at timestamptz,
  as_of           timestamptz not null,
  digest          bytea,
  primary key (symbol_id, interval_s, session),
  constraint one_place_a_bar check (length(present) = expected and length(confirmed_empty) = expected),
  constraint one_verdict_a_bar check (bit_count(present & confirmed_empty) = 0),
  check (opens_at < closes_at)
) with (fillfactor = 70);
create index coverage_gaps on coverage (next_attempt_at) where absent > 0 and next_attempt_at is not null;

-- Where to resume: the newest bar stored by a provider. Never what is complete.
create table ingestion_cursor (
  symbol_id    int4 not null references symbol_universe,
  interval_s   int4 not null,
  provider     text not null,
  last_opened_at timestamptz not null,
  status       text not null,
  updated_at   timestamptz not null,
  primary key (symbol_id, interval_s, provider)
);

-- Rows that broke a law, kept with their reason. Values are text: NaN, infinities and anything else the wire held survive.
create table refused_bars (
  refused_id   int8 generated always as identity primary key,
  symbol_id    int4 not null references symbol_universe,
  interval_s   int4 not null,
  opened_at    timestamptz not null,
  reason       text not null,
  bar          jsonb not null,
  fetch_id     int8 not null references fetches,
  refused_at   timestamptz not null default clock_timestamp()
);
create index refused_by_symbol on refused_bars (symbol_id, interval_s, opened_at);

create table corporate_actions (
  symbol_id    int4 not null references symbol_universe,
  kind         text not null check (kind in ('split', 'dividend', 'capital_gain')),
  session_date date not null,
  provider     text not null,
  value        float8 not null check (value > 0),
  currency     text,
  fetch_id     int8 not null references fetches,
  known_from   timestamptz not null,
  known_to     timestamptz check (known_to > known_from),
  primary key (symbol_id, kind, session_date, provider, known_from)
);

-- A run process that works on partitions; a lapsed heartbeat lets the janitor end the run it left behind.
create table run_heartbeats (
  run_id       text primary key,
  host         text not null,
  pid          int4 not null,
  process_started_at timestamptz not null,
  beat_at      timestamptz not null default clock_timestamp()
);

-- PL/pgSQL plans the first, tiny update and keeps that plan: a nested loop made large revisions eight times slower.
create function keep_intraday_revision() returns trigger language plpgsql set enable_nestloop = off as $$
begin
  insert into candle_revisions
  select o.symbol_id, o.interval_s, o.opened_at, o.open, o.high, o.low, o.close, o.volume, o.vwap, o.trades, o.fetch_id,
         o.provider, o.feed, o.finality, o.flags, o.as_of, n.as_of
    from old_rows o join new_rows n using (symbol_id, interval_s, opened_at);
  return null;
end $$;
create trigger keep_revision after update on candles_intraday referencing old table as old_rows new table as new_rows
  for each statement execute function keep_intraday_revision();

create function keep_daily_revision() returns trigger language plpgsql set enable_nestloop = off as $$
begin
  insert into candle_revisions
  select o.symbol_id, 86400, o.session_date::timestamp at time zone 'UTC', o.open, o.high, o.low, o.close, o.volume, o.vwap, o.trades,
         o.fetch_id, o.provider, o.feed, o.finality, o.flags, o.as_of, n.as_of
    from old_rows o join new_rows n using (symbol_id, session_date);
  return null;
end $$;
create trigger keep_revision after update on candles_daily referencing old table as old_rows new table as new_rows
  for each statement execute function keep_daily_revision();

-- A bar deleted by hand was known until then.
create function keep_deleted_intraday() returns trigger language plpgsql as $$
begin
  insert into candle_revisions
  select symbol_id, interval_s, opened_at, open, high, low, close, volume, vwap, trades, fetch_id,
         provider, feed, finality, flags, as_of, greatest(clock_timestamp(), as_of + interval '1 microsecond')
    from old_rows;
  return null;
end $$;
create trigger keep_deleted after delete on candles_intraday referencing old table as old_rows
  for each statement execute function keep_deleted_intraday();

create function keep_deleted_daily() returns trigger language plpgsql as $$
begin
  insert into candle_revisions
  select symbol_id, 86400, session_date::timestamp at time zone 'UTC', open, high, low, close, volume, vwap, trades, fetch_id,
         provider, feed, finality, flags, as_of, greatest(clock_timestamp(), as_of + interval '1 microsecond')
    from old_rows;
  return null;
end $$;
create trigger keep_deleted after delete on candles_daily referencing old table as old_rows
  for each statement execute function keep_deleted_daily();
