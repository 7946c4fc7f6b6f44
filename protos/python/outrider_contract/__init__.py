"""Words that both ends of the wire share: generation options, error reasons, metadata keys.

Knows nothing of servers, clients, models or torch.
"""
