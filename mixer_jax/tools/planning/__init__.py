"""What a configuration would need on accelerators that need not be there.

chips → published rates; topology → absent devices; program → the real train step, compiled; hlo, flops →
what is counted in it; estimate → times and costs; report → how they look; fit → which settings fit.
"""
