/* The exported detector in onnxruntime-web, with its card's calibration: anl/detect/detector.py and card.py, in the browser. */
(window.anlDemo ??= {}).scoring = (() => {
  "use strict";
  const VENDOR = "_static/vendor/onnxruntime-web/";
  // scripts, because a page opened from a file may load those and nothing else
  const SCRIPTS = [`${VENDOR}ort.wasm.min.js`, `${VENDOR}ort-wasm.js`, "_static/demo/model.js"];

  function addScript(address) {
    return new Promise((done, failed) => {
      const script = Object.assign(document.createElement("script"), { src: address, onload: done });
      script.onerror = () => failed(new Error(`${address} is missing from this copy of the book`));
      document.head.append(script);
    });
  }

  function fromBase64(text) {
    const letters = atob(text), bytes = new Uint8Array(letters.length);
    for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
    return bytes;
  }

  function inflated(text) {
    return new Response(new Blob([fromBase64(text)]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  }

  /** { session, card } of the exported detector. Throws Error on what this browser or this copy of the book lacks. */
  async function load() {
    if (!window.WebAssembly || !window.DecompressionStream || !window.createImageBitmap)
      throw new Error("this browser is too old: it lacks WebAssembly, DecompressionStream or createImageBitmap");
    await Promise.all(SCRIPTS.map(addScript));
    const { runtime, onnx, built } = window.anlDemo;
    const wasm = window.ort.env.wasm;
    wasm.numThreads = 1; // more need a server's headers
    wasm.wasmBinary = await inflated(runtime.wasm);
    wasm.wasmPaths = { mjs: URL.createObjectURL(new Blob([await inflated(runtime.module)], { type: "text/javascript" })) };
    const session = await window.ort.InferenceSession.create(fromBase64(onnx),
      { executionProviders: ["wasm"], extra: { session: { disable_quant_qdq: "1" } } }); // int8 weights become floats once
    delete runtime.wasm; // some megabytes that are not needed any more
    return { session, card: built.card };
  }

  /** float32 (1, 3, size, size) in [-1, 1] of a crop's ImageData. */
  function tensor({ data, width, height }) {
    const values = new Float32Array(3 * width * height);
    for (let i = 0; i < width * height; i++)
      for (let c = 0; c < 3; c++) values[c * width * height + i] = data[4 * i + c] / 127.5 - 1;
    return new window.ort.Tensor("float32", values, [1, 3, height, width]);
  }

  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const probability = (logit, { midpoint, temperature }) =>
    1 / (1 + Math.exp(-Math.max(-700, Math.min(700, (logit - midpoint) / temperature))));

  function verdict(logit, { threshold, lower }) {
    return logit > threshold ? "generated" : logit < lower ? "real" : "undecided";
  }

  /**
   * Score crops of anlDemo.picture.tile: { logit, probability, verdict, crops: [{ logit, evidence }] }, evidence as an
   * ort.Tensor or undefined. One crop at a time, `onCrop(done)` after each, so that the page stays alive.
   */
  async function score({ session, card }, crops, onCrop = () => {}) {
    const found = [];
    for (const crop of crops) {
      const output = await session.run({ [card.input]: tensor(crop.pixels) });
      found.push({ ...output, logit: output.logit.data[0] });
      onCrop(found.length);
      await new Promise((done) => setTimeout(done));
    }
    const logit = mean(found.map((crop) => crop.logit));
    if (!Number.isFinite(logit)) throw new Error("the detector gave a score that is not finite");
    return { logit, probability: probability(logit, card), verdict: verdict(logit, card), crops: found };
  }

  return { load, score, probability, fromBase64 };
})();
