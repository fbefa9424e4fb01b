"""The captured network: tracing, folding, and where quantizers go. Ranges and grids are not chosen here."""
