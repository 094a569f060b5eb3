-- What retention needs to find old rows without reading the young ones, and to delete a fetch without scanning whoever may name it.

create index fetches_by_time on fetches (recorded_at);
create index refused_bars_by_fetch on refused_bars (fetch_id);
create index refused_records_by_fetch on refused_records (fetch_id);
create index corporate_actions_by_fetch on corporate_actions (fetch_id);
create index option_chains_by_fetch on option_chains (fetch_id);
create index macro_observations_by_fetch on macro_observations (fetch_id);
create index macro_series_by_fetch on macro_series (fetch_id);
create index second_opinions_by_second on second_opinions (second_fetch_id);
create index second_opinions_by_third on second_opinions (third_fetch_id) where third_fetch_id is not null;

-- Quotes come by the million a day: as with candles, their fetch is of the same transaction, and no index is kept for a check that
-- only a deletion would make. Retention deletes the fetches of quotes that are gone.
alter table quotes_l1 drop constraint quotes_l1_fetch_id_fkey;
