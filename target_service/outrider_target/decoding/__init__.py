"""How a sequence decodes: strategies, the tokens they own, and when they end."""
