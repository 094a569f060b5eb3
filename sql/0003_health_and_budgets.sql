-- What every process knows of every provider: how it does, how it did, and how often it may still be asked.

-- One row a provider and capability: the value ``domain.health.ProviderHealth``, folded outcome by outcome under the row's lock.
-- Instants are of the pipeline's clock, which may be virtual, but trial_expires_at: a process that dies does so in real time.
create table provider_health (
  provider          text not null,
  capability        text not null,
  breaker           text not null default 'closed' check (breaker in ('closed', 'half_open', 'open')),
  failures_in_row   int4 not null default 0 check (failures_in_row >= 0),
  opened_at         timestamptz,
  disabled_at       timestamptz,
  disabled_until    timestamptz,
  reason            text not null default '',
  is_demoted        boolean not null default false,
  good_samples      int4 not null default 0 check (good_samples >= 0),
  error             float8 not null default 0 check (error between 0 and 1),
  completeness      float8 not null default 1 check (completeness between 0 and 1),
  latencies         float8[] not null default '{}',
  samples           int8 not null default 0 check (samples >= 0),
  sampled_at        timestamptz,
  is_on_trial       boolean not null default false,
  trial_expires_at  timestamptz,
  primary key (provider, capability),
  check ((breaker = 'closed') = (opened_at is null)),
  check ((disabled_at is null) = (disabled_until is null))
) with (fillfactor = 70);

-- The past of it at three resolutions at once: tens of seconds, minutes, hours. Each is written as it happens and kept for as long as
-- it is worth (storage/health.py), so that growing old is a delete and nothing else. ``at``: the start of the bucket.
create table provider_health_samples (
  provider      text not null,
  capability    text not null,
  resolution_s  int4 not null check (resolution_s in (10, 60, 3600)),
  at            timestamptz not null,
  outcomes      int4 not null check (outcomes > 0),
  failures      int4 not null check (failures between 0 and outcomes),
  score         float8 not null check (score between 0 and 1),
  score_min     float8 not null,
  score_max     float8 not null,
  score_sum     float8 not null,
  breaker       text not null,
  error         float8 not null,
  latency_p95   float8 not null check (latency_p95 >= 0),
  completeness  float8 not null,
  is_demoted    boolean not null,
  primary key (provider, capability, resolution_s, at)
);

-- One row a provider and account: what was granted, and what refusals taught. Everything by the database's clock.
-- ``seconds``: the windows that were asked with; ``heads``: the number since 1970 of each window's newest sub-bucket, a 32nd of the
-- window wide; ``counts``: requests granted in the newest 40 sub-buckets of each window, the newest first.
create table provider_budgets (
  provider     text not null,
  account      text not null,
  seconds      float8[] not null default '{}',
  heads        int8[] not null default '{}',
  counts       int4[] not null default '{}',
  granted      int8 not null default 0,
  factor       float8 not null default 1 check (factor > 0 and factor <= 1),
  learned_at   timestamptz,
  refusals     int4 not null default 0 check (refusals >= 0),
  refused_at   timestamptz,
  held_until   timestamptz,
  primary key (provider, account)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

-- How much of the documented limits is used now: a tenth comes back with each hour without a refusal.
create function budget_factor(factor float8, learned_at timestamptz, instant timestamptz) returns float8
language sql immutable parallel safe as $$
  select case when factor >= 1 then 1 else least(1, factor + 0.1 * greatest(extract(epoch from instant - learned_at), 0) / 3600) end
$$;

-- Leave to send: up to ``wanted`` requests from now on, within the slack. Where there is none, ``wait_seconds`` until there may be,
-- and whether that is because the provider said so (``is_held``). ``requests`` and ``window_seconds``: the limits, element by
-- element; ``share``: the part of each that is open to the asker. ``is_restored``: what refusals taught has worn off, as nobody has
-- said yet.
--
-- A request reaches the provider up to the slack after its grant, and grants are counted by sub-bucket. So what is counted is what
-- was granted in the last window + slack, rounded up to whole sub-buckets: then no window of the provider's holds more than the limit.
create function take_budget(
  for_provider text, for_account text, requests int4[], window_seconds float8[], slack_seconds float8[], share float8, wanted int4,
  out granted int4, out wait_seconds float8, out is_held boolean, out is_restored boolean
) language plpgsql as $$
declare
  kept constant int4 := 40;
  budget provider_budgets%rowtype;
  at timestamptz;
  instant float8;
  usable float8;
  most int4;
  width float8;
  memory float8;
  head int8;
  place int4;
  grants int4[];
  used int4;
  age int4;
  new_counts int4[] := '{}';
  new_heads int8[] := '{}';
begin
  -- A crash of the server may forget the last half-second of grants; to wait for its disk would cost every request more.
  perform set_config('synchronous_commit', 'off', true);
  granted := wanted;
  wait_seconds := 0;
  is_held := false;
  is_restored := false;
  loop
    select b.* into budget from provider_budgets b where b.provider = for_provider and b.account = for_account for update;
    exit when found;
    insert into provider_budgets (provider, account) values (for_provider, for_account) on conflict do nothing;
  end loop;
  at := clock_timestamp();  -- not before the row is ours: the grants of an account are in the order of their times
  if budget.held_until > at then
    granted := 0;
    wait_seconds := extract(epoch from budget.held_until - at);
    is_held := true;
    return;
  end if;
  instant := extract(epoch from at);
  usable := budget_factor(budget.factor, budget.learned_at, at);
  is_restored := budget.factor < 1 and usable >= 1;

  for n in 1 .. cardinality(requests) loop
    width := window_seconds[n] / 32;
    head := floor(instant / width);
    place := array_position(budget.seconds, window_seconds[n]);
    if place is null then
      grants := array_fill(0, array[kept]);
    else
      grants := budget.counts[(place - 1) * kept + 1 : place * kept];
      -- A clock that was set back: the newest sub-bucket stays the newest until time has caught up.
      head := greatest(head, budget.heads[place]);
      age := least(head - budget.heads[place], kept);
      if age > 0 then
        grants := array_fill(0, array[age]) || grants[1 : kept - age];
      end if;
    end if;
    new_heads := new_heads || head;
    new_counts := new_counts || grants;

    most := greatest(1, floor(requests[n] * usable * share + 1e-9));
    memory := window_seconds[n] + slack_seconds[n];
    used := 0;
    age := 0;
    while age < kept and (head - age + 1) * width + memory > instant loop
      used := used + grants[age + 1];
      age := age + 1;
    end loop;
    granted := greatest(0, least(granted, most - used));
    -- Forget the oldest sub-buckets until one request fits: the end of the last of them is when it may be sent.
    while used >= most loop
      age := age - 1;
      used := used - grants[age + 1];
      if used < most then
        wait_seconds := greatest(wait_seconds, (head - age + 1) * width + memory - instant);
      end if;
    end loop;
  end loop;
  if granted = 0 then
    return;
  end if;

  for n in 1 .. cardinality(requests) loop
    new_counts[(n - 1) * kept + 1] := new_counts[(n - 1) * kept + 1] + granted;
  end loop;
  update provider_budgets b
     set seconds = window_seconds, heads = new_heads, counts = new_counts, granted = b.granted + take_budget.granted
   where b.provider = for_provider and b.account = for_account;
end
$$;

-- The provider said 429. Everybody waits for ``retry_after``, or for a back-off that doubles from one refusal to the next where it
-- named no time. Less of the limits is used from then on, 0.7 of it and at least a tenth; but not for an echo of a refusal that is
-- known already, of requests that were under way together. ``is_first``: all of the limits was used until now.
create function refuse_budget(
  for_provider text, for_account text, retry_after float8,
  out is_first boolean, out hold_seconds float8, out factor float8
) language plpgsql as $$
declare
  budget provider_budgets%rowtype;
  at timestamptz;
  is_news boolean;
begin
  loop
    select b.* into budget from provider_budgets b where b.provider = for_provider and b.account = for_account for update;
    exit when found;
    insert into provider_budgets (provider, account) values (for_provider, for_account) on conflict do nothing;
  end loop;
  at := clock_timestamp();
  is_first := budget.factor >= 1;
  is_news := budget.held_until is null or budget.held_until <= at;
  factor := budget_factor(budget.factor, budget.learned_at, at);
  if is_news then
    -- Ten minutes without a refusal: the next is the first again.
    if budget.refused_at is null or budget.refused_at < at - interval '10 minutes' then
      budget.refusals := 0;
    end if;
    budget.refusals := budget.refusals + 1;
    factor := greatest(0.1, 0.7 * factor);
  end if;
  hold_seconds := case when retry_after is null then least(2.0 ^ least(greatest(budget.refusals, 1), 10), 300)
                       else greatest(retry_after, 1) end;
  budget.held_until := greatest(budget.held_until, at + make_interval(secs => hold_seconds));
  hold_seconds := extract(epoch from budget.held_until - at);
  update provider_budgets b
     set refusals = budget.refusals, held_until = budget.held_until, refused_at = at,
         factor = case when is_news then refuse_budget.factor else b.factor end,
         learned_at = case when is_news then at else b.learned_at end
   where b.provider = for_provider and b.account = for_account;
end
$$;
