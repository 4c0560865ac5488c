"""Engines that are not there: continuous batching, KV blocks, hand-offs and GPUs as seeded discrete events."""
