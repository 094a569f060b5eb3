"""The outside world's formats: http.py is the only place that speaks HTTP; one module a vendor, parsers pure."""
