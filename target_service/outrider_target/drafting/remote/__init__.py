"""Drafts from draft services: links, the sessions on them, frames, trees, waiting."""
