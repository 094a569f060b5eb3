"""The only package that imports dagster: partitions, resources, assets, sensors, schedules, jobs."""
