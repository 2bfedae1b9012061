"""Pages from one worker's pool to another's. The interface and its contracts are `base`."""
