-- What retention needs to find old rows without reading the young ones.
create index fetches_by_time on fetches (recorded_at);
create index quotes_l1_by_fetch on quotes_l1 (fetch_id);
