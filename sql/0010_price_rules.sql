-- What rules over prices remember: one row for each symbol and side that holds, or held a moment ago. A symbol without one is off, so
-- that a quiet minute of 100 rules over 1,200 symbols writes nothing.
-- since: the own time of the price by which it began (is_on) or ended. fired_at: when the look that saw it begin was taken; an alert
-- seen from then on is the proof that it was told (is_told), and until then every look finds it again. definition: a digest of what
-- the rule says; what was remembered under another one is forgotten.
create table price_rule_state (
  rule         text not null,
  symbol_id    int4 not null references symbol_universe,
  side         text not null check (side in ('above', 'below', 'up', 'down')),
  key          text not null,
  definition   text not null,
  is_on        boolean not null,
  since        timestamptz not null,
  fired_at     timestamptz not null,
  is_told      boolean not null default false,
  value        float8 not null,
  text         text not null,
  primary key (rule, symbol_id, side)
);
