"""Attention over the paged pool.

The interface is `base`; back ends: `torch` (the oracle, and the CPU path).
"""
