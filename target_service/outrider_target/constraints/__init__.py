"""What restricts a text to a form: grammars, schemas, choices, token tries."""
