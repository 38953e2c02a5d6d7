"""One name for each generator, however a data set spells it, and the kind of generator it is."""

import re

# squeezed spelling (letters and digits, lower case) -> the name used here
ALIASES = {
    "stablediffusionv14": "sd14", "sdv4": "sd14", "sdv14": "sd14", "stablediffusion14": "sd14",
    "stablediffusionv15": "sd15", "sdv5": "sd15", "sdv15": "sd15", "stablediffusion15": "sd15",
    "stablediffusion13": "sd13", "stablediffusion2": "sd2", "stablediffusion21": "sd21", "stablediffusionxl": "sdxl",
    "stablediffusionxlbase10": "sdxl", "guided": "adm", "vqdiffusion": "vqdm", "whichfaceisreal": "whichfaceisreal",
}
# the first pattern that matches the name from its start
FAMILIES = (
    (r"real$", "real"),
    (r"(df$|f2f$|fs$|nt$|deepfake|face2face|faceswap|neuraltextures|faceshifter|celeb-synthesis)", "face manipulation"),
    (r".*gan\d*(-|_|$)|gan|whichfaceisreal", "gan"),
    (r"(midjourney|dalle3|dall-e-3|firefly|gpt|imagen)", "undisclosed"),
    (r"(sd|ldm|stable|lcm|latent|wukong|controlnet|kandinsky|pixart|flux|playground)", "latent diffusion"),
    (r"(adm|ddpm|iddpm|ddim|pndm|glide|dalle2|dall-e-2|diffusion$)", "pixel diffusion"),
    (r"(vqdm)", "vector-quantised diffusion"),
    (r"(dalle|dall-e|parti|var$)", "autoregressive"),
    (r"(crn|imle)", "perceptual loss"),
    (r"(san|sitd|seeingdark)$", "low-level vision"),
)


def canonical(name):
    """The name of a generator's folder as used in manifests: lower case, known spellings brought together."""
    squeezed = "".join(letter for letter in name.lower() if letter.isalnum())
    return ALIASES.get(squeezed, name.lower())


def family(generator):
    """The kind of generator that a canonical name tells; `unknown` where it tells none."""
    return next((kind for pattern, kind in FAMILIES if re.match(pattern, generator)), "unknown")
