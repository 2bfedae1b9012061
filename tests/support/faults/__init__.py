"""Faults on real processes: a proxy that breaks connections, a fleet to break, load that checks.

Used by tests/faults and bench/faults.py. `proxy` stands in a connection, `frames` reads those of a
data link, `fleet` starts router and workers, `traffic` and `load` ask and judge answers, `watch`
looks at the fleet all the while and says when something changed.
"""
