"""The engine thread: which sequences run, and what each round computes and commits for them."""
