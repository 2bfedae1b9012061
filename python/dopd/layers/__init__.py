"""The parts of a transformer, each a few lines over torch: kernels, rope, linear."""
