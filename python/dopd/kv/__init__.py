"""KV memory: shapes and page arithmetic (`layout`), the pool itself (`pool`)."""
