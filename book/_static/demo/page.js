/* The demo: what the reader sees and does. picture.js reads pictures, scoring.js scores them; samples.js and model.js, which
   `anl export --to demo` writes, hold the detector and its numbers. */
document.addEventListener("DOMContentLoaded", () => {
  "use strict";
  const root = document.getElementById("try");
  if (!root) return;
  const { picture, scoring, built } = window.anlDemo;
  if (!built) {
    document.getElementById("try-missing").hidden = false;
    return;
  }
  document.querySelectorAll("[data-word]").forEach((place) => { place.textContent = built.words[place.dataset.word]; });
  const find = (name) => root.querySelector(`[data-part="${name}"]`);
  const SIDE = 768; // pixels of a drawing's longer side, at most
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  let loading = null, turn = 0;

  function say(text, refused = false) {
    find("status").textContent = refused ? "" : text;
    find("refused").textContent = refused ? text : "";
    if (refused) reveal(find("refused"));
  }

  /** Scroll to what the reader asked for, where it came up out of sight, as on a phone. */
  function reveal(element, share = 0.9) {
    const { top } = element.getBoundingClientRect();
    if (top < 0 || top > share * window.innerHeight) element.scrollIntoView({ block: "center" });
  }

  /** The detector, loaded once, at the reader's first wish. */
  function detector() {
    loading ??= scoring.load().then((loaded) => {
      find("load").hidden = true;
      return loaded;
    });
    loading.catch(() => { loading = null; });
    return loading;
  }

  /** Score a file or blob, show what comes out; `about`: what the page calls it. Resolves to the score, or null. */
  async function tryOne(blob, about) {
    const mine = ++turn;
    const stale = () => mine !== turn;
    let bitmap;
    find("result").hidden = true;
    root.querySelectorAll("[aria-pressed]").forEach((button) => button.setAttribute("aria-pressed", "false"));
    try {
      say(loading ? `Reading ${about} …` : "Loading the detector …");
      const loaded = await detector();
      const { card } = loaded;
      const begun = performance.now();
      bitmap = await picture.decode(blob, card.limits);
      const crops = picture.tile(bitmap, card.size, card.most);
      const score = await scoring.score(loaded, crops, (done) => {
        if (!stale() && crops.length > 1) say(`Scoring ${about}: crop ${done} of ${crops.length} …`);
      });
      if (stale()) return null;
      const seconds = (performance.now() - begun) / 1000;
      show(card, bitmap, crops, score, seconds);
      say(`${about}: ${score.verdict}. Probability that it is generated: ${percent(score.probability)}.`);
      reveal(find("verdict"), 0.7);
      return score;
    } catch (problem) {
      if (stale()) return null;
      const refused = problem instanceof picture.Refused ? `is refused: ${problem.message}` : `cannot be scored: ${problem.message}`;
      say(`${about} ${refused}. Nothing was scored.`, true);
      return null;
    } finally {
      bitmap?.close(); // a large one holds hundreds of megabytes
    }
  }

  const percent = (share) => (share > 0 && share < 0.001 ? "below 0.1 %" : share < 1 && share > 0.999 ? "above 99.9 %"
    : `${(100 * share).toFixed(1)} %`);

  const fixed = (number) => number.toFixed(3).replace("-", "\u2212");

  function show(card, bitmap, crops, score, seconds) {
    const bounds = ["lower", "threshold"].map((key) => scoring.probability(card[key], card));
    const meaning = {
      generated: "above the threshold",
      real: "below the undecided band",
      undecided: "between the two bounds, where the detector gives no answer",
    }[score.verdict];
    find("verdict").textContent = score.verdict;
    find("verdict").className = `try-verdict ${score.verdict}`;
    find("meaning").textContent = meaning;
    find("probability").textContent = percent(score.probability);
    find("threshold").textContent = percent(bounds[1]);
    find("band").textContent = `${percent(bounds[0])} to ${percent(bounds[1])}`;
    find("logit").textContent = `${fixed(score.logit)}; the bounds are ${fixed(card.lower)} and ${fixed(card.threshold)}`;
    find("crops").textContent = `${crops.length} of ${card.size} × ${card.size} pixels, of ${bitmap.width} × ${bitmap.height}`;
    find("time").textContent = `${seconds.toFixed(2)} s`;
    drawScale(card, score, bounds);
    drawPictures(card, bitmap, crops, score);
    find("result").hidden = false;
  }

  /** The picture among three zones of one width, by its logit: probabilities may lie too close together to be told apart. */
  function drawScale({ lower, threshold }, { logit, probability }, bounds) {
    const scale = find("scale");
    const zones = ["real", "undecided", "generated"].map((key) => {
      const part = make("span", { className: `zone ${key}` });
      part.style.width = `${100 / 3}%`;
      return part;
    });
    const mark = make("span", { className: "mark" });
    const place = threshold > lower ? (1 + (logit - lower) / (threshold - lower)) / 3 : Number(logit > threshold);
    mark.style.left = `${100 * Math.max(0.01, Math.min(0.99, place))}%`; // what is far out stands at the end
    scale.replaceChildren(...zones, mark);
    const legend = `real below ${percent(bounds[0])}, undecided up to ${percent(bounds[1])}, generated above`;
    scale.setAttribute("aria-label", `Three zones: ${legend}; this picture at ${percent(probability)}.`);
    find("legend").textContent = `Three zones: ${legend}.`;
  }

  /** Two drawings in the colours of `anl detect --maps`: the picture, and the evidence of each cell laid over it. */
  function drawPictures(card, bitmap, crops, score) {
    const { dim, blend, clip, generated, real } = card.draw;
    const [width, height] = [Math.max(bitmap.width, card.size), Math.max(bitmap.height, card.size)];
    const scale = Math.min(1, SIDE / Math.max(width, height));
    const canvases = ["picture", "evidence"].map((name) => find(name));
    const [seen, coloured] = canvases.map((canvas) => {
      canvas.width = Math.max(1, Math.round(width * scale));
      canvas.height = Math.max(1, Math.round(height * scale));
      canvas.classList.toggle("small", scale === 1 && width <= 256);
      const context = canvas.getContext("2d");
      context.scale(scale, scale);
      context.fillStyle = "white";
      context.fillRect(0, 0, width, height);
      return context;
    });
    const whole = bitmap.width >= card.size && bitmap.height >= card.size;
    if (whole) for (const context of [seen, coloured]) context.drawImage(bitmap, 0, 0);
    coloured.fillStyle = `rgba(0, 0, 0, ${1 - dim})`;
    coloured.fillRect(0, 0, width, height);
    crops.forEach(({ top, left, pixels }, index) => {
      const { evidence } = score.crops[index];
      if (!whole) put(seen, pixels, left, top);
      put(coloured, pixels, left, top);
      if (!evidence) return;
      const [, rows, columns] = evidence.dims;
      const heat = new ImageData(columns, rows);
      evidence.data.forEach((value, i) => {
        const share = blend * Math.min(1, Math.abs(value) / clip);
        heat.data.set([...(value > 0 ? generated : real), Math.round(255 * share)], 4 * i);
      });
      put(coloured, heat, left, top, pixels.width);
    });
    const where = crops.length === 1 ? "the crop" : `the ${crops.length} crops`;
    const labels = [`The picture, ${bitmap.width} by ${bitmap.height} pixels.`, score.crops[0].evidence
      ? `Evidence in ${where}: red cells speak for generated, blue ones for real, strong colours more. The mean of all cells is the score.`
      : "This detector has no evidence map."];
    canvases.forEach((canvas, i) => canvas.setAttribute("aria-label", labels[i]));
    find("evidence-words").textContent = labels[1];
  }

  /** Draw an ImageData as a square of `side` pixels, without smoothing. */
  function put(context, pixels, left, top, side = pixels.width) {
    const canvas = make("canvas", { width: pixels.width, height: pixels.height });
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(canvas, left, top, side, side);
  }

  function addSample(sample, index) {
    const words = make("span", { textContent: `Sample ${index + 1}` });
    const image = make("img", { src: `data:image/png;base64,${sample.png}`, alt: "", width: 64, height: 64 });
    const button = make("button", { type: "button" }, image, words);
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", async () => {
      const score = await tryOne(new Blob([scoring.fromBase64(sample.png)], { type: "image/png" }), `Sample ${index + 1}`);
      if (!score) return;
      words.textContent = `Sample ${index + 1}: ${sample.generator}`;
      button.setAttribute("aria-pressed", "true");
      find("status").textContent += ` In truth: ${sample.of}.`;
      find("credit").textContent = `Photograph: ${sample.credit}.`;
      find("credit").hidden = false;
    });
    find("samples").append(button);
  }

  function tryFiles(files) {
    find("credit").hidden = true;
    if (files.length > 1) {
      turn += 1;
      find("result").hidden = true;
      say(`${files.length} files were given; give one at a time.`, true);
    } else if (files.length === 1) tryOne(files[0], files[0].name);
  }

  built.samples.forEach(addSample);
  find("samples").addEventListener("click", () => { find("credit").hidden = true; }, true);
  find("file").addEventListener("change", (event) => {
    tryFiles([...event.target.files]);
    event.target.value = ""; // so that the same file can be tried again
  });
  find("load").addEventListener("click", async () => {
    say("Loading the detector …");
    await detector().then(() => say("The detector is loaded. Give it a picture."),
      (problem) => say(`The detector could not be loaded: ${problem.message}.`, true));
  });
  // a picture dropped beside the frame would otherwise replace the page
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    find("drop").classList.add("over");
  });
  document.addEventListener("dragleave", () => find("drop").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    find("drop").classList.remove("over");
    tryFiles([...event.dataTransfer.files]);
  });
  root.hidden = false;
});
