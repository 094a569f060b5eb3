"""What is served over HTTP: /health and /metrics. Read only; whoever can reach it may read it, so it listens on loopback."""
