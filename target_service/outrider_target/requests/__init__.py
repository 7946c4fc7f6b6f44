"""What a request may ask for: wire into domain, refused by name where it cannot be served."""
