"""Measurements: one file per question, each run as ``python -m benchmarks.bench_x``."""
