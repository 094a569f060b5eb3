-- Counters that outlive the processes that count. A shard is a backend: nobody waits for anybody; what backends that are gone left is
-- added up into shard 0. labels: values in the order of the catalogue. buckets: of histograms, one element a bound and one above.
create table metric_counters (
  name         text not null,
  labels       text[] not null default '{}',
  shard        int4 not null,
  value        float8 not null default 0,
  buckets      int8[],
  primary key (name, labels, shard)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
