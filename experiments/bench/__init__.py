"""Benchmarks, one command each: ratios of programs measured side by side in one process."""
