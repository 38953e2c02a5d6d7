"""Reports: figures from result tables, the claims ledger, and executed notebooks as pages of the book."""
