"""The model engine: paged KV pool, ragged forward, processors, noise, choice of tokens."""
