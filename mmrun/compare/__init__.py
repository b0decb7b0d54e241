"""Reading finished and running runs: what they were, how they went, how they compare. No torch."""
