-- What a second provider said of a session that was stored, and who was believed. One row each time one was asked.
-- fetches: second_fetch_id is the second's answer, third_fetch_id that of the third voice, asked only where the first two disagree.
create table second_opinions (
  opinion_id      int8 generated always as identity primary key,
  symbol_id       int4 not null references symbol_universe,
  interval_s      int4 not null,
  session         date not null,
  stored_provider text not null,
  second_provider text not null,
  third_provider  text,
  verdict         text not null check (verdict in ('agree', 'feed_difference', 'disagree', 'unit_slip', 'basis')),
  reason          text not null,
  compared        int4 not null check (compared > 0),
  only_stored     int4 not null check (only_stored >= 0),
  only_second     int4 not null check (only_second >= 0),
  off             int4 not null check (off between 0 and compared),
  fields          jsonb not null,
  volume_ratio    float8,
  winner          text not null,
  decided_by      text not null check (decided_by in ('agreement', 'majority', 'policy')),
  revised         int4 not null default 0 check (revised >= 0),
  quarantined     int4 not null default 0 check (quarantined >= 0),
  second_fetch_id int8 not null references fetches,
  third_fetch_id  int8 references fetches,
  run_id          text,
  asked_at        timestamptz not null,
  recorded_at     timestamptz not null default clock_timestamp()
);
create index second_opinions_of_session on second_opinions (symbol_id, interval_s, session, opinion_id desc);
create index second_opinions_by_session on second_opinions (interval_s, session);
