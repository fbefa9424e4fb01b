"""What the scripts run: load a network and images, quantize, evaluate, keep the cells of a table, report.
Each step's own work lives in its stage's folder; the command lines, in scripts/.
"""
