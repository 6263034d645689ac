"""FP16 and INT8 in the graph: Q/DQ placement, weights, variants, calibration and the mixed-precision planner."""
