"""Canonical names of generators, whose spelling differs between data sets, and the family of each generator."""

import re

# spelling with letters and digits only, lower case -> the name used in manifests
ALIASES = {
    "stablediffusionv14": "sd14", "sdv4": "sd14", "sdv14": "sd14", "stablediffusion14": "sd14",
    "stablediffusionv15": "sd15", "sdv5": "sd15", "sdv15": "sd15", "stablediffusion15": "sd15",
    "stablediffusion13": "sd13", "stablediffusion2": "sd2", "stablediffusion21": "sd21", "stablediffusionxl": "sdxl",
    "stablediffusionxlbase10": "sdxl", "guided": "adm", "vqdiffusion": "vqdm",
}
FAMILIES = (  # the first pattern that matches the start of a name decides
    (r"real$", "real"),
    (r"(df$|f2f$|fs$|nt$|deepfake|face2face|faceswap|neuraltextures|faceshifter|celeb-synthesis)", "face manipulation"),
    (r".*gan\d*(-|_|$)|gan|whichfaceisreal", "gan"),
    (r"(midjourney|dall-?e-?3|firefly|gpt|imagen)", "undisclosed"),
    (r"(sd|ldm|stable|lcm|latent|wukong|controlnet|kandinsky|pixart|flux|playground)", "latent diffusion"),
    (r"(adm|ddpm|iddpm|ddim|pndm|glide|dall-?e-?2|diffusion$)", "pixel diffusion"),
    (r"(vqdm)", "vector-quantised diffusion"),
    (r"(dalle|dall-e|parti|var$)", "autoregressive"),
    (r"(crn|imle)", "perceptual loss"),
    (r"(san|sitd|seeingdark)$", "low-level vision"),
)


def canonical(name):
    """A generator's name as used in manifests: lower case, with different spellings of one model unified."""
    squeezed = "".join(letter for letter in name.lower() if letter.isalnum())
    return ALIASES.get(squeezed, name.lower())


def family(generator):
    """The family (kind of generator, see FAMILIES) of a canonical name, or `unknown`."""
    return next((kind for pattern, kind in FAMILIES if re.match(pattern, generator)), "unknown")
