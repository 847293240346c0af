"""Benchmarks: commands that print JSON, compared as ratios within one run (these machines are noisy)."""
