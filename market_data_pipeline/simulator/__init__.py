"""The provider simulator: real wire formats from a data directory, on a virtual clock, with faults. Its own process."""
