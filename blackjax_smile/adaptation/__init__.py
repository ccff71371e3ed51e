"""Warmup: finding everything a sampler needs, then freezing it."""
