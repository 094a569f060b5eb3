"""A provider on the loopback: speaks the vendors' wire formats from a data directory, on a virtual clock, with faults on demand."""
