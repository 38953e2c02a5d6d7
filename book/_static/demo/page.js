/* "Try it": what the reader sees and does. picture.js reads pictures, scoring.js scores them, files/demo/ holds the numbers. */
document.addEventListener("DOMContentLoaded", () => {
  "use strict";
  const root = document.getElementById("try");
  if (!root) return;
  const { picture, scoring, samples } = window.anlDemo;
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
      [card.words.generated]: "above the threshold",
      [card.words.real]: "below the band in which nothing is said",
      [card.words.undecided]: "between the two bounds nothing is said",
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
  function drawScale({ words, lower, threshold }, { logit, probability }, bounds) {
    const scale = find("scale");
    const zones = ["real", "undecided", "generated"].map((key) => {
      const part = make("span", { className: `zone ${words[key]}` });
      part.style.width = `${100 / 3}%`;
      return part;
    });
    const mark = make("span", { className: "mark" });
    const place = threshold > lower ? (1 + (logit - lower) / (threshold - lower)) / 3 : Number(logit > threshold);
    mark.style.left = `${100 * Math.max(0.01, Math.min(0.99, place))}%`; // what is far out stands at the end
    scale.replaceChildren(...zones, mark);
    const legend = `${words.real} below ${percent(bounds[0])}, ${words.undecided} up to ${percent(bounds[1])}, ${words.generated} above`;
    scale.setAttribute("aria-label", `Three zones: ${legend}; this picture at ${percent(probability)}.`);
    find("legend").textContent = `Three zones: ${legend}.`;
  }

  /** Three drawings in the colours of `anl detect --map`: the picture, the noise, and the attention over the picture. */
  function drawPictures(card, bitmap, crops, score) {
    const { dim, blend, clip, levels } = card.draw;
    const colours = scoring.fromBase64(card.draw.colours);
    const [width, height] = [Math.max(bitmap.width, card.size), Math.max(bitmap.height, card.size)];
    const scale = Math.min(1, SIDE / Math.max(width, height));
    const canvases = ["picture", "noise", "attention"].map((name) => find(name));
    const [seen, heard, watched] = canvases.map((canvas) => {
      canvas.width = Math.max(1, Math.round(width * scale));
      canvas.height = Math.max(1, Math.round(height * scale));
      canvas.classList.toggle("small", scale === 1 && width <= 256);
      const context = canvas.getContext("2d");
      context.scale(scale, scale);
      return context;
    });
    const whole = bitmap.width >= card.size && bitmap.height >= card.size;
    seen.fillStyle = watched.fillStyle = "white";
    heard.fillStyle = "rgb(128, 128, 128)";
    for (const context of [seen, heard, watched]) context.fillRect(0, 0, width, height);
    if (whole) for (const context of [seen, watched]) context.drawImage(bitmap, 0, 0);
    watched.fillStyle = `rgba(0, 0, 0, ${1 - dim})`;
    watched.fillRect(0, 0, width, height);
    let [peak, squares, many] = [0, 0, 0];
    crops.forEach(({ top, left, pixels }, index) => {
      const { noise, attention } = score.crops[index];
      if (!whole) put(seen, pixels, left, top);
      if (!noise) return;
      const [, channels, high, wide] = noise.dims;
      const grain = new ImageData(wide, high);
      for (let i = 0; i < wide * high; i++) {
        for (let c = 0; c < 3; c++) grain.data[4 * i + c] = Math.floor(Math.max(0, Math.min(255, 128 + levels * noise.data[(c % channels) * wide * high + i])));
        grain.data[4 * i + 3] = 255;
      }
      put(heard, grain, left, top, pixels.width);
      squares += noise.data.reduce((sum, value) => sum + value * value, 0);
      many += noise.data.length;
      const [, rows, columns] = attention.dims;
      const heat = new ImageData(columns, rows);
      attention.data.forEach((weight, i) => {
        const relative = weight * rows * columns; // 1: as much as every other place of its crop
        peak = Math.max(peak, relative);
        const shade = Math.min(255, Math.floor(256 * Math.min(1, Math.max(0, relative / clip))));
        heat.data.set([...colours.subarray(3 * shade, 3 * shade + 3), 255], 4 * i);
      });
      put(watched, pixels, left, top);
      watched.globalAlpha = blend;
      put(watched, heat, left, top, pixels.width);
      watched.globalAlpha = 1;
    });
    const where = crops.length === 1 ? "the crop" : `the ${crops.length} crops`;
    const labels = [`The picture, ${bitmap.width} by ${bitmap.height} pixels.`,
      `The noise that the detector predicts in ${where}, mid-grey where it predicts none; root mean square `
        + `${Math.sqrt(squares / Math.max(1, many)).toFixed(2)} of the training noise's standard deviation.`,
      `Attention over ${where}: bright places weigh more; the brightest weighs ${peak.toFixed(1)} times the average place.`];
    canvases.forEach((canvas, i) => canvas.setAttribute("aria-label", labels[i]));
    find("noise-words").textContent = labels[1];
    find("attention-words").textContent = labels[2];
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
      words.textContent = `Sample ${index + 1}: ${sample.maker}`;
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

  samples.forEach(addSample);
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
