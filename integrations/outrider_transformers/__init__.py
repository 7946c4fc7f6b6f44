"""Our draft service for generation inside a process of transformers."""
