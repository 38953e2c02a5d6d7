"""Reports: figures from result tables, the claims ledger, and executed notebooks as pages of the book."""

DPI = 144  # of figures; here because importing seaborn takes seconds
