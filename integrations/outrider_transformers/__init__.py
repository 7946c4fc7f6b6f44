"""Our draft service for generation inside a process of transformers.

drafter = RemoteDrafter("127.0.0.1:50052", tokenizer=tokenizer, vocab_size=len(tokenizer))
model.generate(**inputs, custom_generate=assisted_by(drafter))
"""

from outrider_transformers.candidate_generator import RemoteCandidateGenerator
from outrider_transformers.decoding import assisted_by
from outrider_transformers.remote_drafter import DrafterRefused, RemoteDrafter

__all__ = ["DrafterRefused", "RemoteCandidateGenerator", "RemoteDrafter", "assisted_by"]
