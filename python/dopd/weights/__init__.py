"""Models on disk: `config` (what a model is), `safetensors` and `gguf` (where its tensors are),
`hash` (its name).

Never unpickles anything. Called by `dopd.engine.load` through
`weights.checkpoint.open_checkpoint`.
"""
