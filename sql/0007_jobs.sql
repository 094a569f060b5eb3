-- Typed jobs, their leases, the dead letters among them, and who did what by hand.

-- state: queued -> leased -> done | dead; a lease that lapses makes it queued again. dead: the dead-letter queue.
-- dedupe_key: what the job does; at most one of a key is queued or leased. ready_at: not before. token fences the lease: each
-- lease has a new one, and only its holder can end the job. attempts: leases so far; lapses: those of them that nobody ended.
create sequence job_tokens;  -- of all jobs: one that was deleted and submitted again must not honour a lease of its former life
create table jobs (
  job_id       text primary key check (job_id ~ '^[A-Za-z0-9._:-]{1,128}$'),
  kind         text not null check (kind in ('bars_fetch', 'quotes_fetch', 'backfill')),
  tier         text not null check (tier in ('T0', 'T1', 'T2')),
  priority     int4 not null default 0,
  dedupe_key   text not null,
  payload      jsonb not null,
  source       text not null,
  state        text not null default 'queued' check (state in ('queued', 'leased', 'done', 'dead')),
  attempts     int4 not null default 0 check (attempts >= 0),
  lapses       int4 not null default 0 check (lapses between 0 and attempts),
  ready_at     timestamptz not null default clock_timestamp(),
  token        int8 not null default 0,
  leased_by    text,
  leased_until timestamptz,
  reason       text,
  result       jsonb,
  replays      int4 not null default 0 check (replays >= 0),
  enqueued_at  timestamptz not null default clock_timestamp(),
  leased_at    timestamptz,
  ended_at     timestamptz,
  check ((state = 'leased') = (leased_until is not null and leased_by is not null)),
  check ((state in ('done', 'dead')) = (ended_at is not null)),
  check (state <> 'dead' or reason is not null)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
create unique index jobs_open on jobs (dedupe_key) where state in ('queued', 'leased');
-- The order in which they are given out. Kind and ready_at come last: they are looked at in the index, and order nothing.
create index jobs_next on jobs (tier, priority desc, enqueued_at, job_id, ready_at, kind) where state = 'queued';
create index jobs_leased on jobs (tier, leased_until) where state = 'leased';
create index jobs_done on jobs (ended_at) where state = 'done';
create index jobs_dead on jobs (ended_at) where state = 'dead';

-- What could not even be read as a job: kept as text with the reason, replayable by hand. payload_sha256 finds it again; payload_bytes
-- is the length of all that came, of which a part is kept where it is longer than any job.
create table refused_jobs (
  refused_id     int8 generated always as identity primary key,
  source         text not null,
  payload        text not null,
  payload_sha256 text not null,
  payload_bytes  int8 not null,
  reason         text not null,
  refused_at     timestamptz not null default clock_timestamp(),
  unique (source, payload_sha256)
);

-- One row a tier. queued: how many jobs of it are, so that a full queue is noticed without counting; every transaction that makes one
-- queued or takes one from there changes it under this row's lock. tokens: how many may be given out now, a bucket that fills with
-- time and is full at first.
create table job_dispatch (
  tier         text primary key check (tier in ('T0', 'T1', 'T2')),
  queued       int8 not null default 0 check (queued >= 0),
  tokens       float8 not null default 0 check (tokens >= 0),
  filled_at    timestamptz not null default 'epoch'
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
insert into job_dispatch (tier) values ('T0'), ('T1'), ('T2');

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
create trigger append_only before update or delete or truncate on audit_log for each statement execute function refuse_to_rewrite_history();
