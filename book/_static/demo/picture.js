/* From a file's bytes to the crops that the detector looks at: anl/data/decode.py and anl/detect/tiles.py, in the browser. */
(window.anlDemo ??= {}).picture = (() => {
  "use strict";

  /** A file that is not read; the message is the reason. */
  class Refused extends Error {}

  const has = (bytes, text, at = 0) => [...text].every((letter, i) => bytes[at + i] === letter.charCodeAt(0));
  const FORMATS = [ // by content, whatever the file's name ends in; `type` null: anl reads it, browsers do not
    { name: "JPEG", type: "image/jpeg", is: (bytes) => has(bytes, "\xff\xd8\xff") },
    { name: "PNG", type: "image/png", is: (bytes) => has(bytes, "\x89PNG\r\n\x1a\n") },
    { name: "WebP", type: "image/webp", is: (bytes) => has(bytes, "RIFF") && has(bytes, "WEBP", 8) },
    { name: "AVIF", type: "image/avif", is: (bytes) => has(bytes, "ftypavif", 4) || has(bytes, "ftypavis", 4) },
    { name: "GIF", type: "image/gif", is: (bytes) => has(bytes, "GIF87a") || has(bytes, "GIF89a") },
    { name: "BMP", type: "image/bmp", is: (bytes) => has(bytes, "BM") },
    { name: "TIFF", type: null, is: (bytes) => has(bytes, "II*\0") || has(bytes, "MM\0*") },
    { name: "PPM", type: null, is: (bytes) => /^P[1-6]\s/.test(String.fromCharCode(...bytes.subarray(0, 3))) },
  ];

  /** Index of the last `text` in the bytes, or -1. */
  function lastIndexOf(bytes, text) {
    for (let i = bytes.length - text.length; i >= 0; i--) if (has(bytes, text, i)) return i;
    return -1;
  }

  /** Whether the end that the format requires is missing; a browser would pad it. */
  function cutShort(bytes, name) {
    if (name === "JPEG") return lastIndexOf(bytes, "\xff\xd9") < lastIndexOf(bytes, "\xff\xda");
    if (name === "PNG") return lastIndexOf(bytes, "IEND") < 0;
    if (name === "WebP") return new DataView(bytes.buffer, bytes.byteOffset).getUint32(4, true) + 8 > bytes.length;
    return false;
  }

  /** Whether the file holds several frames. A GIF's are counted by walking its blocks. */
  function animated(bytes, name) {
    if (name === "PNG") return lastIndexOf(bytes.subarray(0, 4096), "acTL") >= 0;
    if (name === "WebP") return has(bytes, "VP8X", 12) && (bytes[20] & 2) !== 0;
    if (name === "AVIF") return has(bytes, "avis", 8);
    if (name !== "GIF") return false;
    const colours = (flags) => (flags & 0x80 ? 3 * 2 ** ((flags & 7) + 1) : 0);
    let at = 13 + colours(bytes[10]), frames = 0;
    while (at < bytes.length && bytes[at] !== 0x3b) {
      if (bytes[at] === 0x2c) {
        frames += 1;
        at += 11 + colours(bytes[at + 9]);
      } else at += 2;
      while (at < bytes.length && bytes[at] !== 0) at += bytes[at] + 1;
      at += 1;
    }
    return frames > 1;
  }

  const count = (number) => number.toLocaleString("en");

  /** Width and height as the file's header says; no pixel is decoded, so that a huge picture costs nothing. */
  function measure(blob) {
    const image = new Image(), address = URL.createObjectURL(blob);
    return new Promise((done, failed) => {
      image.onload = () => done([image.naturalWidth, image.naturalHeight]);
      image.onerror = () => failed(new Refused("it is damaged, or of a kind that this browser does not read"));
      image.src = address;
    }).finally(() => URL.revokeObjectURL(address));
  }

  /**
   * An ImageBitmap of a file or blob: EXIF rotation applied, colour profile ignored, as Python does.
   * limits: { bytes, pixels }. Throws Refused with the reason.
   */
  async function decode(file, limits) {
    if (file.size === 0) throw new Refused("it is empty (0 bytes)");
    if (file.size > limits.bytes)
      throw new Refused(`it is too large: ${count(file.size)} bytes, over the limit of ${count(limits.bytes)}`);
    let bytes;
    try {
      bytes = new Uint8Array(await file.arrayBuffer());
    } catch {
      throw new Refused("it cannot be read; a folder cannot be dropped here");
    }
    const format = FORMATS.find(({ is }) => is(bytes));
    if (!format) throw new Refused("it is not an image of a known format, whatever its name says");
    if (!format.type) throw new Refused(`it is a ${format.name} file, which browsers do not read; anl detect does`);
    if (cutShort(bytes, format.name)) throw new Refused("it is cut short: the end of the file is missing");
    if (animated(bytes, format.name)) throw new Refused("it is animated; give a single picture");
    const blob = new Blob([bytes], { type: format.type });
    const [width, height] = await measure(blob);
    if (width * height > limits.pixels)
      throw new Refused(`it is too large: ${count(width)} × ${count(height)} pixels, over the limit of ${count(limits.pixels)} in all`);
    try {
      return await createImageBitmap(blob, { premultiplyAlpha: "none", colorSpaceConversion: "none" });
    } catch {
      throw new Refused("it is damaged, or needs more memory than this browser gives");
    }
  }

  /** Half to even, as numpy rounds. */
  function round(value) {
    const below = Math.floor(value);
    return value - below === 0.5 ? below + (below % 2) : Math.round(value);
  }

  /** `many` whole numbers from 0 to `last`, evenly spread. */
  const spread = (last, many) => Array.from({ length: many }, (_, i) => (many === 1 ? 0 : round(i * (last / (many - 1)))));

  /** [top, left] of the crops of a picture: a grid from edge to edge, thinned out along the longer line to at most `most`. */
  function places(height, width, size, most) {
    const sides = [Math.max(height, size), Math.max(width, size)];
    let [rows, columns] = sides.map((side) => Math.ceil(side / size));
    while (rows * columns > most) {
      if (rows >= columns) rows -= 1;
      else columns -= 1;
    }
    const lefts = spread(sides[1] - size, columns);
    return spread(sides[0] - size, rows).flatMap((top) => lefts.map((left) => [top, left]));
  }

  /** The source line of line `i` of a side of `length` that is padded to `size` by its mirror image, equally at both ends. */
  function mirrored(i, length, size) {
    const at = (i - Math.floor((size - length) / 2) + 2 * length * size) % (2 * length);
    return at < length ? at : 2 * length - 1 - at;
  }

  /** The crops of a bitmap: [{ top, left, pixels: ImageData }]. Transparency is laid on white; nothing is resized. */
  function tile(bitmap, size, most) {
    const [height, width] = [Math.min(bitmap.height, size), Math.min(bitmap.width, size)];
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingEnabled = false;
    return places(bitmap.height, bitmap.width, size, most).map(([top, left]) => {
      context.fillStyle = "white";
      context.fillRect(0, 0, width, height);
      context.drawImage(bitmap, left, top, width, height, 0, 0, width, height);
      const found = context.getImageData(0, 0, width, height);
      if (width === size && height === size) return { top, left, pixels: found };
      const pixels = new ImageData(size, size);
      const [from, to] = [new Uint32Array(found.data.buffer), new Uint32Array(pixels.data.buffer)];
      for (let y = 0; y < size; y++)
        for (let x = 0; x < size; x++) to[y * size + x] = from[mirrored(y, height, size) * width + mirrored(x, width, size)];
      return { top, left, pixels };
    });
  }

  return { Refused, decode, mirrored, places, tile };
})();
