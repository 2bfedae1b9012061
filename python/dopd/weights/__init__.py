"""Models on disk: `config` (what a model is), `safetensors` and `gguf` (where its tensors are),
`hash` (its name).

Never unpickles anything. Called by `dopd.engine.torch` through
`weights.checkpoint.open_checkpoint`.
"""
