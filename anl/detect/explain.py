"""A card in words: what `anl detect --explain` prints."""

import textwrap

from anl.detect.card import REAL
from anl.errors import printable


def text(card, width=100):
    """The card's facts, errors and limits as lines of at most `width` characters. The card may come from anywhere: nothing in it
    steers a terminal."""
    whole = card.whole
    chosen, trained = whole["chosen_on"], whole["trained_on"]
    trained_on = (f"Trained on {trained['data']} and its regenerations by {trained['generator']}, profile "
                  f"{trained['profile']}. It never saw: {', '.join(trained['unseen'])}.")
    rule = (f"A picture is looked at in crops of {card.size} pixels; their logits become one by the rule '{card.rule}'. "
            f"Above {card.threshold:.3f} it is called generated, below {card.lower:.3f} real, between them undecided. Both "
            f"were set on {chosen['n_real']} real and {chosen['n_fake']} generated validation photographs: at most "
            f"{chosen['target_fpr']:.0%} of the reals above the first in each of {len(chosen['threshold_by_condition'])} "
            f"conditions (as patches, processed, as files), {chosen['target_miss']:.0%} of the generated below the second.")
    body = [*textwrap.wrap(trained_on, width), *textwrap.wrap(rule, width), "",
            "On test photographs (share called generated / undecided / real):"]
    for row in sorted(whole["measured"], key=lambda row: (row["of"] != REAL, not row["seen"], row["of"])):
        name = "real photographs" if row["of"] == REAL else f"{row['of']} ({'seen' if row['seen'] else 'not seen'})"
        body.append(f"  {name:<24} {row['condition']:<9} {row['called_generated']:.2f} / {row['called_undecided']:.2f} / "
                    f"{row['called_real']:.2f}   n = {row['n']}")
    body += ["", "Limits:"]
    for limit in whole["limits"]:
        body += textwrap.wrap(limit, width, initial_indent="- ", subsequent_indent="  ")
    return "\n".join(map(printable, [*body, f"Licence: {whole['licence']}"]))
