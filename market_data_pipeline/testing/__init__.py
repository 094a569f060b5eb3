"""For who writes an adapter: the contract that every provider has to keep, and a server on loopback to hold it against."""
