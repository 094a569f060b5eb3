-- How fresh the universe is, over time: what error budgets are computed from.

-- The rows of a session are read by interval, for all symbols at once, every half minute.
create index coverage_of_session on coverage (session, interval_s);

-- How densely a symbol trades: bars present of those expected and not halted, in the sessions before measured_at.
create table trading_density (
  symbol_id    int4 not null references symbol_universe,
  interval_s   int4 not null,
  density      float8 not null check (density between 0 and 1),
  sessions     int4 not null check (sessions > 0),
  measured_at  timestamptz not null,
  primary key (symbol_id, interval_s)
);

-- Looks at the census, added up by five minutes and by hour. symbols and stale are sums over looks; due and late count bars, each once.
create table slo_samples (
  tier         text not null check (tier in ('T0', 'T1', 'T2')),
  interval_s   int4 not null,
  resolution_s int4 not null check (resolution_s in (300, 3600)),
  at           timestamptz not null,
  looks        int8 not null check (looks > 0),
  symbols      int8 not null check (symbols >= 0),
  stale        int8 not null check (stale between 0 and symbols),
  due          int8 not null check (due >= 0),
  late         int8 not null check (late between 0 and due),
  primary key (resolution_s, at, tier, interval_s)
);

-- How many of the first bars of a session have been judged: what is added to the samples is what comes after them.
create table slo_progress (
  calendar     text not null,
  interval_s   int4 not null,
  tier         text not null check (tier in ('T0', 'T1', 'T2')),
  session      date not null,
  counted      int4 not null check (counted > 0),
  primary key (calendar, interval_s, tier, session)
);
