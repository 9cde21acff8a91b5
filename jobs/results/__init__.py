"""The runs behind docs/results.md: `train.py` makes them, `tables.py` draws them, `plain.py` checks them."""
