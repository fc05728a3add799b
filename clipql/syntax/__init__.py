"""Reading SQL text: tokens, SELECTs and their clauses, kinds of statements. Stands on nothing else of clipql."""
