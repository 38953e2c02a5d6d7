"""README.md of a detector that is put on the hub: what its card.json says, for a person."""

PAPER = "https://arxiv.org/abs/2604.14570"
WORDS = ("generated", "undecided", "real")


def text(card):
    """Markdown with the hub's front matter. card: anl.detect.card.Card; numbers are those of its test photographs."""
    whole = card.whole
    trained, kinds = whole["trained_on"], {}
    for row in whole["measured"]:
        kinds.setdefault(f"photographs, {row['condition']}" if row["of"] == "real" else
                         f"`{row['of']}`, {row['condition']}{', trained on' if row['seen'] else ''}", row)
    rows = [f"| {name} | {row['n']} | " + " | ".join(f"{row[f'called_{word}']:.2f}" for word in WORDS) + " |"
            for name, row in kinds.items()]
    about = (f"By the method of [Deepfake Detection Generalization with Diffusion Noise]({PAPER}), as the package `anl` reproduces "
             f"it. Trained on photographs and their regenerations by one generator, `{trained['generator']}` (profile "
             f"`{trained['profile']}`); it met no image of any other in training.")
    return "\n".join([
        "---", "library_name: anl", "tags:", "- generated-image-detection", "---", "",
        "# A detector of generated images", "", about, "",
        "```python", "import anl", "", "detector = anl.load_detector(\"hf://OWNER/NAME\", revision=\"COMMIT\")",
        "print(detector.score(\"picture.jpg\"))", "```", "",
        "## What it called its test photographs and their regenerations", "",
        "Shares of n pictures, by the generator and what was done to them.", "",
        "| pictures | n | " + " | ".join(WORDS) + " |", "|---|---|" + "---|" * len(WORDS), *rows, "",
        "## Limits", "", *(f"- {limit}" for limit in whole["limits"]), "",
        "## Licence", "", whole["licence"], ""])
