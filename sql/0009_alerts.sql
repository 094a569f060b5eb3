-- Alerts, who was told of them, and silences.

-- One row an episode: from the first finding until it is over. state: pending (not told yet), firing, resolved.
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
  escalated_at timestamptz,
  acknowledged_at timestamptz,
  acknowledged_by text,
  explained_by int8 references alerts,
  check ((state = 'resolved') = (resolved_at is not null))
);
create unique index alerts_open on alerts (rule, key) where state <> 'resolved';
create index alerts_by_time on alerts (began_at);

create table alert_silences (
  silence_id   int8 generated always as identity primary key,
  rule         text not null,
  labels       jsonb not null default '{}',
  starts_at    timestamptz not null,
  ends_at      timestamptz not null check (ends_at > starts_at),
  reason       text not null,
  created_by   text not null,
  created_at   timestamptz not null default clock_timestamp()
);

-- The outbox: written in the transaction that changed the alert, delivered by whoever comes first, kept until sent.
create table alert_notices (
  notice_id    int8 generated always as identity primary key,
  alert_id     int8 references alerts,
  channel      text not null,
  kind         text not null check (kind in ('firing', 'escalated', 'resolved', 'test')),
  title        text not null,
  body         text not null,
  state        text not null default 'queued' check (state in ('queued', 'sent', 'dead')),
  attempts     int4 not null default 0,
  ready_at     timestamptz not null,
  created_at   timestamptz not null,
  sent_at      timestamptz,
  error        text
);
create index alert_notices_queued on alert_notices (ready_at) where state = 'queued';

-- When SLOs and rules were last looked at, and by whom. One row. memory: what the next look compares with (counters some minutes ago).
create table watch_state (
  one          boolean primary key default true check (one),
  watched_at   timestamptz not null,
  watched_by   text not null,
  memory       jsonb not null default '{}'
);
