"""Sweeps: many points measured as run_inference measures one, on one machine or many, into one table.
What a single run is lives in experiments/; pictures of a table are a report's business.
"""
