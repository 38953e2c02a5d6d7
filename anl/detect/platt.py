"""From a picture's logit to the probability that it is generated (Platt 1999)."""

import numpy as np
from scipy.optimize import minimize


def fit(real, fake, photographs):
    """(midpoint, temperature): the probability of a logit z is 1 / (1 + exp(-(z - midpoint) / temperature)).

    real, fake: lists of logit arrays, a condition each; every condition of a class counts alike, and each class one half.
    photographs: how many pictures there are of a class, whatever the number of conditions: targets are kept from 0 and 1 by
    as much as so many can tell (Platt's (n + 1) / (n + 2)). The temperature lies in [e^-4, e^4], the midpoint in [-20, 20].
    """
    logit = np.concatenate([*real, *fake])
    weight = np.concatenate([np.full(len(part), 0.5 / len(parts) / len(part)) for parts in (real, fake) for part in parts])
    generated = np.repeat([0.0, 1.0], [sum(map(len, real)), sum(map(len, fake))])
    target = (1 + generated * photographs) / (photographs + 2)

    def loss(x):
        z = (logit - x[1]) / np.exp(x[0])
        return float((weight * (np.logaddexp(0, z) - target * z)).sum())

    log_temperature, midpoint = minimize(loss, (0.0, 0.0), method="L-BFGS-B", bounds=[(-4, 4), (-20, 20)]).x
    return float(midpoint), float(np.exp(log_temperature))
