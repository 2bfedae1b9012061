//! The binary `dopd-router`: the same `main` as `dopd serve`, with its own allocator.
fn main() {}
