-- Fetches of other things than bars, and what happened to providers.

alter table fetches alter column interval_s drop not null;
alter table fetches add column capability text not null default '';

-- Something changed for a provider: an incident begins or ends. Told once: an open incident has no second row.
create table provider_events (
  event_id     int8 generated always as identity primary key,
  at           timestamptz not null,
  provider     text not null,
  capability   text not null default '',
  kind         text not null,
  detail       text not null,
  is_recovery  boolean not null default false,
  run_id       text,
  recorded_at  timestamptz not null default clock_timestamp()
);
create index provider_events_by_provider on provider_events (provider, capability, event_id desc);
