"""Benchmarks: the service beside its limits on the same machine."""
