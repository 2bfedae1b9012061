"""Model families.

Each has one forward pass over the ragged tokens of a step; attention comes in from outside.
"""
