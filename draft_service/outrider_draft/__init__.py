"""The draft service: proposes tokens to target services over the draft link."""
