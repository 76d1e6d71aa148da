"""The experiments: one runner, and a config for each."""
