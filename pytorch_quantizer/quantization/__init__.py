"""Ranges, grids and number types: from the statistics of a tensor to a quantizer. Graphs are not known here."""
