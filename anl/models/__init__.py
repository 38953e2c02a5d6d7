"""Networks: the detector, its attention, front ends, the frozen prior, generators and baselines."""
