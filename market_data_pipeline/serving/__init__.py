"""The long-lived process: HTTP over what Postgres holds. It keeps nothing but sockets."""
