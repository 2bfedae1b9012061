"""One question per file; results with their conditions lie in bench/results."""
