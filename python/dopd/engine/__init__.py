"""Engines compute steps: `mock` from a cost model, `torch` for real. The interface is `base`."""
