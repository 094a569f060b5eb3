-- Alerts, who was told of them, and silences.

-- One row an episode: from the first finding until it is over. state: pending (not for long enough yet), firing, resolved; what was
-- gone before it fired leaves no row. told_at: last told as new or as more urgent; told_severity: the most urgent that was told.
-- explained_by: another alert that explained it, last at explained_at; while it does, nobody is told. Instants are of the database's
-- clock, on a virtual clock of that.
create table alerts (
  alert_id     int8 generated always as identity primary key,
  rule         text not null,
  key          text not null,
  severity     text not null check (severity in ('critical', 'warning', 'info')),
  state        text not null check (state in ('pending', 'firing', 'resolved')),
  labels       jsonb not null default '{}',
  members      text[] not null default '{}',
  value        float8 not null,
  text         text not null,
  began_at     timestamptz not null,
  fired_at     timestamptz,
  clear_since  timestamptz,
  resolved_at  timestamptz,
  seen_at      timestamptz not null,
  told_at      timestamptz,
  told_severity text check (told_severity in ('critical', 'warning', 'info')),
  escalated_at timestamptz,
  acknowledged_at timestamptz,
  acknowledged_by text,
  explained_at timestamptz,
  explained_by int8 references alerts on delete set null,
  check ((state = 'resolved') = (resolved_at is not null)),
  check ((state = 'pending') = (fired_at is null)),
  check ((told_at is null) = (told_severity is null)),
  check (told_at is null or fired_at is not null)
);
create unique index alerts_open on alerts (rule, key) where state <> 'resolved';
create index alerts_by_time on alerts (began_at);

-- Who must not be disturbed by what. rule and the values of labels are shell patterns. A silence ended by hand ends then.
create table alert_silences (
  silence_id   int8 generated always as identity primary key,
  rule         text not null,
  labels       jsonb not null default '{}',
  starts_at    timestamptz not null,
  ends_at      timestamptz not null check (ends_at >= starts_at),
  reason       text not null,
  created_by   text not null,
  created_at   timestamptz not null default clock_timestamp()
);
create index alert_silences_by_end on alert_silences (ends_at);

-- The outbox: written in the transaction that changed the alert, delivered by whoever comes first, kept until sent. One row a channel.
-- Whoever delivers one first moves ready_at on: should he die, it is another's from then on. attempts tells the two apart.
-- queued_at: since when it is to be sent, created_at or when somebody retried it by hand. dead: not sent for two days.
create table alert_notices (
  notice_id    int8 generated always as identity primary key,
  alert_id     int8 references alerts on delete cascade,
  channel      text not null,
  kind         text not null check (kind in ('firing', 'raised', 'escalated', 'resolved', 'test')),
  severity     text not null check (severity in ('critical', 'warning', 'info')),
  title        text not null,
  body         text not null,
  state        text not null default 'queued' check (state in ('queued', 'sent', 'dead')),
  attempts     int4 not null default 0,
  ready_at     timestamptz not null,
  created_at   timestamptz not null,
  queued_at    timestamptz not null,
  sent_at      timestamptz,
  error        text,
  check ((state = 'sent') = (sent_at is not null))
);
create index alert_notices_queued on alert_notices (channel, notice_id) where state = 'queued';
create index alert_notices_dead on alert_notices (notice_id) where state = 'dead';
create index alert_notices_of on alert_notices (alert_id);

-- When SLOs and rules were last looked at, and by whom. One row. memory: what the next look compares with (counters some minutes ago).
create table watch_state (
  one          boolean primary key default true check (one),
  watched_at   timestamptz not null,
  watched_by   text not null,
  memory       jsonb not null default '{}'
);

-- What the orchestrator found wrong and is not right again: jobs whose last run failed, checks that do not pass. name: the job's, or
-- asset/key:check. failures: in a row, since then. The rules RunFailed and CheckFailed read it.
create table orchestrator_failures (
  kind         text not null check (kind in ('run', 'check')),
  name         text not null,
  detail       text not null,
  is_warning   boolean not null default false,
  run_id       text not null default '',
  since        timestamptz not null,
  failed_at    timestamptz not null,
  failures     int8 not null default 1 check (failures > 0),
  primary key (kind, name)
);
