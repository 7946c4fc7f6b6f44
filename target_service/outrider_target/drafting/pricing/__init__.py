"""What drafting costs and brings, measured, and what follows for asking and verifying."""
