"""Pages and figures of what was measured: a file a section or figure; page.py puts sections together.
Nothing is measured here: sources.py reads what runs and sweeps wrote.
"""
