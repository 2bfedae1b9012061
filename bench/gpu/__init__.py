"""What a machine with a GPU is asked: every test and figure of the GPU engine, in parts.

`run.sh` sets up and calls `python -m bench.gpu`. Each part is a module here with `main(setup)`; it
runs in a process of its own with a limit, so that one crash hides nothing, and its result is
written at once: a run that ended goes on where it was.
"""
