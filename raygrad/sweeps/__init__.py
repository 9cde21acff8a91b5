"""Sweeps: many settings of one experiment, compared on validation data. raygrad.onray.tuning has Tune play them."""
