"""Target and draft in every size that is measured, and in every format that a peer reads."""
