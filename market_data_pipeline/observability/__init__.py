"""What is shown of the pipeline and said about it: metrics as text, traces, logs, messages. No rule is decided here."""
