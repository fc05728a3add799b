"""Looking after a database: is it whole (`check`), a copy of it (`backup`), and the copy as a database (`restore`)."""
