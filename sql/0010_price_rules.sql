-- How far each rule over prices has looked: only new data is looked at, each once.
create table price_rule_state (
  rule         text not null,
  symbol_id    int4 not null references symbol_universe,
  seen_until   timestamptz not null,
  state        jsonb not null default '{}',
  primary key (rule, symbol_id)
);
