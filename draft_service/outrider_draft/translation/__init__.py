"""A draft model whose tokenizer is not the target's.

`lexicon` knows one tokenizer, `shared_items` what two vocabularies have in common,
`bilingual_text` one sequence in both, `proposer` the draft model. Whatever goes wrong in here costs
an acceptance and never a token: the target decides on its own ids, of which these are guesses.
"""
