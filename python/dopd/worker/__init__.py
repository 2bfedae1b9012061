"""The worker process: `python -m dopd.worker`. Attaches to a router, runs the step loop."""
