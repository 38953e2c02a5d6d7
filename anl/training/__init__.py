"""Training: one resumable loop, and the priors, generators and detectors that it trains."""
