-- Typed jobs, their leases, the dead letters among them, and who did what by hand.

-- state: queued -> leased -> done | dead; a lease that lapses makes it queued again. dead: the dead-letter queue.
-- dedupe_key: what the job does; at most one of a key is queued or leased. ready_at: not before. token fences the lease: each
-- lease has a new one, and only its holder can end the job.
create table jobs (
  job_id       text primary key check (job_id ~ '^[A-Za-z0-9._:-]{1,128}$'),
  kind         text not null check (kind in ('bars_fetch', 'quotes_fetch', 'backfill')),
  tier         text not null check (tier in ('T0', 'T1', 'T2')),
  priority     int2 not null default 0,
  dedupe_key   text not null,
  payload      jsonb not null,
  source       text not null,
  state        text not null default 'queued' check (state in ('queued', 'leased', 'done', 'dead')),
  attempts     int2 not null default 0 check (attempts >= 0),
  ready_at     timestamptz not null default clock_timestamp(),
  token        int8 not null default 0,
  leased_by    text,
  leased_until timestamptz,
  reason       text,
  result       jsonb,
  replays      int2 not null default 0 check (replays >= 0),
  enqueued_at  timestamptz not null default clock_timestamp(),
  leased_at    timestamptz,
  ended_at     timestamptz,
  check ((state = 'leased') = (leased_until is not null and leased_by is not null)),
  check ((state in ('done', 'dead')) = (ended_at is not null)),
  check (state <> 'dead' or reason is not null)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
create unique index jobs_open on jobs (dedupe_key) where state in ('queued', 'leased');
create index jobs_next on jobs (tier, kind, priority desc, ready_at, enqueued_at) where state = 'queued';
create index jobs_leased on jobs (leased_until) where state = 'leased';
create index jobs_ended on jobs (state, ended_at) where state in ('done', 'dead');

-- What could not even be read as a job: kept as text with the reason, replayable by hand. payload_sha256 finds it again.
create table refused_jobs (
  refused_id     int8 generated always as identity primary key,
  source         text not null,
  payload        text not null,
  payload_sha256 text not null,
  reason         text not null,
  refused_at     timestamptz not null default clock_timestamp(),
  unique (source, payload_sha256)
);

-- How many jobs of a tier may be dispatched now: one row a tier, a bucket that fills with time.
create table job_dispatch (
  tier         text primary key check (tier in ('T0', 'T1', 'T2')),
  tokens       float8 not null,
  filled_at    timestamptz not null
);

-- What people did by hand. Append-only.
create table audit_log (
  audit_id     int8 generated always as identity primary key,
  at           timestamptz not null default clock_timestamp(),
  actor        text not null,
  action       text not null,
  subject      text not null,
  detail       jsonb not null default '{}'
);
create index audit_log_by_time on audit_log (at);
create function refuse_to_rewrite_history() returns trigger language plpgsql as $$
begin
  raise exception 'the audit log is append-only';
end $$;
create trigger append_only before update or delete on audit_log for each statement execute function refuse_to_rewrite_history();
