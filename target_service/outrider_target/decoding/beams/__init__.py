"""Beam search in its forms: many hypotheses of one text, kept as branches of one sequence."""
