"""Use-cases: fetch, validate, judge, save, report."""
