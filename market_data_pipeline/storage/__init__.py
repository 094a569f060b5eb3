"""Postgres: one module a noun, its statements beside it; bulk.py is the one fast write path."""
