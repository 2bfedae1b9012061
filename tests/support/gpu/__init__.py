"""Doubles of the libraries of a GPU machine, for tests on machines without one."""
