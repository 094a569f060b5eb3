-- The verdicts that need evidence, how final a session is, and what an instrument's listing is inferred from.

-- halted: slots in which trading was suspended, null where none was. finality: 0 provisional, 1 settled, 2 final. recheck_at: when the
-- session is asked for again although nothing is absent, null when it never will be.
alter table coverage
  drop column absent,
  add column halted bit varying,
  add column finality int2 not null default 0 check (finality between 0 and 2),
  add column recheck_at timestamptz,
  add constraint one_place_a_halt check (halted is null or length(halted) = expected),
  add constraint one_verdict_a_halt check (halted is null or bit_count(halted & (present | confirmed_empty)) = 0);
alter table coverage
  add column absent int2 not null generated always as (
    expected - bit_count(present)::int2 - bit_count(confirmed_empty)::int2 - coalesce(bit_count(halted), 0)::int2) stored;
-- Everything that lacks something, given up included (null comes last): what is missing now is read here, not from all rows.
create index coverage_gaps on coverage (next_attempt_at) where absent > 0;
create index coverage_rechecks on coverage (recheck_at) where recheck_at is not null;

-- Why slots are taken for empty or halted: one row a decision, never changed. A bar that comes after all is present; the row stays.
-- rung: how the ladder was climbed. slots: the slots decided then.
create table verdict_evidence (
  evidence_id  int8 generated always as identity primary key,
  symbol_id    int4 not null references symbol_universe,
  interval_s   int4 not null,
  session      date not null,
  verdict      text not null check (verdict in ('confirmed_empty', 'halted')),
  rung         text not null check (rung in ('attempts', 'second_provider', 'daily_bar', 'halt_feed', 'company', 'source')),
  slots        bit varying not null,
  providers    text[] not null,
  attempts     int2 not null check (attempts >= 0),
  detail       text not null default '',
  run_id       text,
  decided_at   timestamptz not null
);
create index verdict_evidence_of_session on verdict_evidence (symbol_id, interval_s, session);

-- What evidence says of an instrument's listing; a universe file's own active_from and active_to stand beside it.
-- listed_from, listed_to: first and last session, included. is_unknown: no provider has ever known it.
alter table symbol_universe
  add column listed_from date,
  add column listed_to date,
  add column is_unknown boolean not null default false;

-- Why: one row a finding, valid for knowledge times in [known_from, known_to).
create table listing_evidence (
  symbol_id    int4 not null references symbol_universe,
  kind         text not null check (kind in ('first_session', 'last_session', 'never_listed')),
  session      date,
  providers    text[] not null,
  detail       text not null,
  run_id       text,
  known_from   timestamptz not null,
  known_to     timestamptz check (known_to > known_from),
  primary key (symbol_id, kind, known_from),
  check ((session is null) = (kind = 'never_listed'))
);
create unique index listing_current on listing_evidence (symbol_id, kind) where known_to is null;

-- Suspensions of trading, [starts_at, ends_at), as a feed or an operator tells them; ends_at null while they last.
-- symbol_id null: everything of that calendar (a market-wide circuit breaker).
create table trading_halts (
  halt_id      int8 generated always as identity primary key,
  symbol_id    int4 references symbol_universe,
  calendar     text not null,
  starts_at    timestamptz not null,
  ends_at      timestamptz check (ends_at > starts_at),
  reason       text not null default '',
  source       text not null,
  known_from   timestamptz not null,
  known_to     timestamptz check (known_to > known_from)
);
create unique index trading_halts_current on trading_halts (symbol_id, calendar, starts_at, source) nulls not distinct where known_to is null;
create index trading_halts_by_time on trading_halts (starts_at) where known_to is null;

-- Which tier a symbol had from which version of the universe on, until its next row: a tiering can be reproduced. Kept by a trigger,
-- so that no way of changing a tier forgets it.
create table symbol_tiers (
  symbol_id    int4 not null references symbol_universe,
  version_id   int4 not null references universe_versions,
  tier         text not null check (tier in ('T0', 'T1', 'T2')),
  primary key (symbol_id, version_id)
);
insert into symbol_tiers select symbol_id, version_id, tier from symbol_universe;
create function keep_new_tiers() returns trigger language plpgsql as $$
begin
  insert into symbol_tiers select symbol_id, version_id, tier from new_rows;
  return null;
end $$;
create function keep_changed_tiers() returns trigger language plpgsql set enable_nestloop = off as $$
begin
  insert into symbol_tiers
  select n.symbol_id, n.version_id, n.tier from new_rows n join old_rows o using (symbol_id) where n.tier <> o.tier
  on conflict (symbol_id, version_id) do update set tier = excluded.tier;
  return null;
end $$;
create trigger keep_new_tiers after insert on symbol_universe referencing new table as new_rows
  for each statement execute function keep_new_tiers();
create trigger keep_changed_tiers after update on symbol_universe referencing old table as old_rows new table as new_rows
  for each statement execute function keep_changed_tiers();

-- When a symbol's newest quote was last heard from its provider, whether or not it was news: without it, a quote that does not
-- change cannot be told from one that nobody asks for. One row a symbol and provider, written every few seconds.
create table quotes_confirmed (
  symbol_id    int4 not null references symbol_universe,
  provider     text not null,
  confirmed_at timestamptz not null,
  primary key (symbol_id, provider)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);
