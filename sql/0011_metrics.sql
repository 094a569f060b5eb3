-- Counters that outlive the processes that count, written in the transaction of what is counted: what a run that is killed has
-- committed is counted, and nothing else. A shard is a backend, so nobody waits for anybody; what backends that are gone left is added
-- up into shard 0 (storage/counters.py). labels: values in the order of the catalogue (domain/metrics.py). buckets: of histograms, one
-- element a bound and one above, each value in one of them; value is then the sum.
create table metric_counters (
  name         text not null,
  labels       text[] not null default '{}',
  shard        int4 not null,
  value        float8 not null default 0,
  buckets      int8[],
  primary key (name, labels, shard)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

create function add_buckets(one int8[], other int8[]) returns int8[] language sql immutable parallel safe as $$
  select case when one is null then other when other is null then one
         else (select array_agg(coalesce(a, 0) + coalesce(b, 0) order by place)
                 from unnest(one, other) with ordinality as k (a, b, place)) end
$$;

-- As domain.candles.Interval has it.
create function interval_name(seconds int4) returns text language sql immutable parallel safe as $$
  select case seconds when 60 then '1m' when 300 then '5m' when 900 then '15m' when 1800 then '30m' when 3600 then '1h' when 86400 then '1d'
         else seconds || 's' end
$$;

-- Add to our own shard. PL/pgSQL plans its statements once a connection: 20 µs a counter.
create function count_up(of_name text, of_labels text[], more float8, more_buckets int8[] default null) returns void language plpgsql as $$
begin
  update metric_counters
     set value = value + more, buckets = case when more_buckets is null then buckets else add_buckets(buckets, more_buckets) end
   where name = of_name and labels = of_labels and shard = pg_backend_pid();
  if not found then
    insert into metric_counters as c (name, labels, shard, value, buckets)
    values (of_name, of_labels, pg_backend_pid(), more, more_buckets)
    on conflict (name, labels, shard) do update
       set value = c.value + excluded.value, buckets = add_buckets(c.buckets, excluded.buckets);
  end if;
end $$;

-- Requests to providers: one series for four metrics, which cost a third of four; labels: capability, provider, outcome. value: seconds.
-- buckets: requests sent, by how long they took (the bounds are LATENCY_BUCKETS of domain/metrics.py), and last the rows they brought.
-- attempts 0: nothing was sent for this row alone (the budget was spent, or one request asked for many symbols).
create function count_fetches() returns trigger language plpgsql as $$
declare
  asked record;
  counted int8[];
begin
  for asked in
    select provider, outcome, attempts > 0 as was_sent, count(*) as requests, sum(rows) as rows, sum(latency_seconds) as seconds,
           case when capability <> '' then capability when interval_s = 86400 then 'eod'
                else coalesce('bars_' || interval_name(interval_s), 'other') end as endpoint,
           -- Which bucket, from 1. width_bucket would put what equals a bound above it; Prometheus counts it below.
           1 + (latency_seconds > 0.05)::int + (latency_seconds > 0.1)::int + (latency_seconds > 0.25)::int
             + (latency_seconds > 0.5)::int + (latency_seconds > 1)::int + (latency_seconds > 2.5)::int
             + (latency_seconds > 5)::int + (latency_seconds > 10)::int + (latency_seconds > 30)::int as bucket
      from new_rows group by provider, outcome, was_sent, endpoint, bucket
  loop
    counted := array_fill(0::int8, array[11]);
    counted[11] := asked.rows;
    if asked.was_sent then
      counted[asked.bucket] := asked.requests;
    end if;
    perform count_up('fetches', array[asked.endpoint, asked.provider, asked.outcome],
                     case when asked.was_sent then asked.seconds else 0 end, counted);
  end loop;
  return null;
end $$;
create trigger count_fetches after insert on fetches referencing new table as new_rows for each statement execute function count_fetches();

-- Jobs that were put into the queue: beside how many are queued, in a row that whoever submits changes anyway.
alter table job_dispatch add column enqueued int8 not null default 0 check (enqueued >= 0);

-- Jobs that ended, element by element: called by the statements that end them (storage/jobs.py). A trigger on jobs would be paid for by
-- every lease and heartbeat, too: a tenth of what those cost. One series for two metrics; labels: tier, kind, provider, state. The
-- provider is the one hinted at; a hint is anybody's text, so one that was never asked is 'other'.
create function count_ended_jobs(tiers text[], kinds text[], hints text[], states text[]) returns void language plpgsql as $$
declare
  ended record;
begin
  if tiers is null then
    return;
  end if;
  for ended in
    select tier, kind, hint, state, count(*) as jobs
      from unnest(tiers, kinds, hints, states) as k (tier, kind, hint, state) where state in ('done', 'dead') group by 1, 2, 3, 4
  loop
    perform count_up('jobs_ended', array[ended.tier, ended.kind,
                     case when ended.hint is null then 'any'
                          when exists (select from provider_health where provider = ended.hint) then ended.hint else 'other' end,
                     ended.state], ended.jobs);
  end loop;
end $$;

-- Stored values that were replaced are counted by those that keep them (sql/0001_core.sql): a trigger on the table they go to would
-- copy each row once more.
create or replace function keep_intraday_revision() returns trigger language plpgsql set enable_nestloop = off as $$
declare
  kept record;
begin
  for kept in
    with kept as (
      insert into candle_revisions
      select o.symbol_id, o.interval_s, o.opened_at, o.open, o.high, o.low, o.close, o.volume, o.vwap, o.trades, o.fetch_id,
             o.provider, o.feed, o.finality, o.flags, o.as_of, n.as_of
        from old_rows o join new_rows n using (symbol_id, interval_s, opened_at)
      returning interval_s
    )
    select interval_s, count(*) as rows from kept group by interval_s
  loop
    perform count_up('bar_revisions_total', array[interval_name(kept.interval_s)], kept.rows);
  end loop;
  return null;
end $$;

create or replace function keep_daily_revision() returns trigger language plpgsql set enable_nestloop = off as $$
declare
  rows int8;
begin
  insert into candle_revisions
  select o.symbol_id, 86400, o.session_date::timestamp at time zone 'UTC', o.open, o.high, o.low, o.close, o.volume, o.vwap, o.trades,
         o.fetch_id, o.provider, o.feed, o.finality, o.flags, o.as_of, n.as_of
    from old_rows o join new_rows n using (symbol_id, session_date);
  get diagnostics rows = row_count;
  if rows > 0 then
    perform count_up('bar_revisions_total', array['1d'], rows);
  end if;
  return null;
end $$;

create or replace function keep_deleted_intraday() returns trigger language plpgsql as $$
declare
  kept record;
begin
  insert into candle_revisions
  select symbol_id, interval_s, opened_at, open, high, low, close, volume, vwap, trades, fetch_id,
         provider, feed, finality, flags, as_of, greatest(clock_timestamp(), as_of + interval '1 microsecond')
    from old_rows;
  for kept in select interval_s, count(*) as rows from old_rows group by interval_s loop
    perform count_up('bar_revisions_total', array[interval_name(kept.interval_s)], kept.rows);
  end loop;
  return null;
end $$;

create or replace function keep_deleted_daily() returns trigger language plpgsql as $$
declare
  rows int8;
begin
  insert into candle_revisions
  select symbol_id, 86400, session_date::timestamp at time zone 'UTC', open, high, low, close, volume, vwap, trades, fetch_id,
         provider, feed, finality, flags, as_of, greatest(clock_timestamp(), as_of + interval '1 microsecond')
    from old_rows;
  get diagnostics rows = row_count;
  if rows > 0 then
    perform count_up('bar_revisions_total', array['1d'], rows);
  end if;
  return null;
end $$;

create function count_refused_bars() returns trigger language plpgsql as $$
declare
  refused record;
begin
  for refused in select interval_s, count(*) as rows from new_rows group by interval_s loop
    perform count_up('refused_bars_total', array[interval_name(refused.interval_s)], refused.rows);
  end loop;
  return null;
end $$;
create trigger count_refused_bars after insert on refused_bars referencing new table as new_rows
  for each statement execute function count_refused_bars();

-- Bars due and late, which slo_samples keeps for 30 days only: a counter must not fall when old ones are pruned. Each is in the samples
-- of five minutes and in those of the hour; the former are counted.
create function count_slo_bars() returns trigger language plpgsql as $$
declare
  more record;
begin
  if tg_op = 'INSERT' then
    for more in select tier, interval_s, sum(due) as due, sum(late) as late from new_rows where resolution_s = 300 group by 1, 2 loop
      perform count_up('slo_bars_due_total', array[more.tier, interval_name(more.interval_s)], more.due);
      perform count_up('slo_bars_late_total', array[more.tier, interval_name(more.interval_s)], more.late);
    end loop;
    return null;
  end if;
  for more in
    select tier, interval_s, sum(n.due - o.due) as due, sum(n.late - o.late) as late
      from new_rows n join old_rows o using (tier, interval_s, resolution_s, at) where resolution_s = 300 group by 1, 2
  loop
    perform count_up('slo_bars_due_total', array[more.tier, interval_name(more.interval_s)], more.due);
    perform count_up('slo_bars_late_total', array[more.tier, interval_name(more.interval_s)], more.late);
  end loop;
  return null;
end $$;
create trigger count_new_slo_bars after insert on slo_samples referencing new table as new_rows
  for each statement execute function count_slo_bars();
create trigger count_more_slo_bars after update on slo_samples referencing old table as old_rows new table as new_rows
  for each statement execute function count_slo_bars();
