/* The gallery: patches drawn from sheets of pictures (a column a generator, a row a patch), with selectors of generator, step
   and class. The figure's own image stays until this script has run, and where it does not run. */
(() => {
  "use strict";
  const TITLES = { image: "image", noise: "prior\u2019s noise", predicted: "predicted noise", attention: "attention",
    difference: "difference" };
  const SHOWN = { both: "both", real: "photograph", generated: "regeneration" };
  const FLIPPED = { both: "generated", generated: "real", real: "generated" };

  const digits = (value) => value.toFixed(2).replace(/^-(?=0\.00)/, "").replace("-", "\u2212");
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

  function make(tag, attributes, parent, ...children) {
    const node = Object.assign(document.createElement(tag), attributes);
    node.append(...children);
    parent?.append(node);
    return node;
  }

  const sheets = new Map();
  /** A sheet as an image, fetched once. */
  function sheet(path) {
    if (!sheets.has(path)) {
      const image = new Image();
      image.src = path;
      sheets.set(path, image.decode().then(() => image));
    }
    return sheets.get(path);
  }

  function start(place, number) {
    const data = JSON.parse(place.querySelector("script").textContent);
    const names = data.generators.map(({ name }) => name);
    const parts = Object.fromEntries(data.generators.map(({ name, part }) => [name, part]));
    const chosen = { generator: data.start.generator, step: data.start.step, shown: "both" };
    let latest = 0;

    const tools = make("div", { className: "gallery-tools" }, place);
    const select = make("select", {}, make("label", {}, tools, "generator "));
    for (const name of names.slice(1)) select.add(new Option(`${name} (${parts[name]})`, name, false, name === chosen.generator));
    select.addEventListener("change", () => { chosen.generator = select.value; redraw(); });

    function radios(legend, key, options) {
      const group = make("fieldset", {}, tools, make("legend", {}, null, legend));
      return Object.fromEntries(options.map(([value, text]) => {
        const box = make("input", { type: "radio", name: `gallery-${number}-${key}`, value, checked: value === chosen[key] });
        box.addEventListener("change", () => { chosen[key] = value; redraw(); });
        make("label", {}, group, box, ` ${text}`);
        return [value, box];
      }));
    }
    radios("step t", "step", data.steps.map((step) => [step, step]));
    const shownBoxes = radios("show", "shown", Object.entries(SHOWN));
    make("p", { className: "gallery-hint", textContent: "Here the key f flips between photograph and regeneration." }, tools);
    const said = make("output", { className: "gallery-said" }, place);
    said.setAttribute("aria-live", "polite");

    const lines = []; // {kind, row, node, label, tiles: {what: canvas}}
    data.patches.forEach((patch, row) => {
      const block = make("section", { className: "gallery-patch" }, place);
      block.setAttribute("aria-label", patch.photograph);
      const name = make("a", { href: patch.card, textContent: patch.photograph });
      const head = make("p", {}, block, make("span", {}, null, name, `, ${patch.author}, ${patch.licence}`));
      const larger = make("button", { type: "button", textContent: "Larger" }, head);
      const enlarge = () => {
        const now = block.classList.toggle("large");
        larger.setAttribute("aria-pressed", now);
      };
      larger.setAttribute("aria-pressed", false);
      larger.setAttribute("aria-label", `Larger: ${patch.photograph}`);
      larger.addEventListener("click", enlarge);
      for (const kind of ["real", "generated"]) {
        const node = make("div", { className: `gallery-line ${kind}` }, block);
        const label = make("p", {}, node);
        const tiles = {};
        for (const what of Object.keys(TITLES)) {
          if (what === "difference" && kind === "real") continue;
          tiles[what] = make("canvas", {}, make("div", { className: "gallery-tile", title: "click to enlarge" }, node));
          tiles[what].setAttribute("role", "img");
          const title = what === "difference" ? `${TITLES[what]} \u00d7 ${data.settings.gain}` : TITLES[what];
          make("span", { textContent: title }, tiles[what].parentNode);
          tiles[what].parentNode.addEventListener("click", enlarge);
        }
        lines.push({ kind, row, node, label, tiles });
      }
    });

    function score(generator, row) {
      const scores = data.scores[chosen.step];
      const called = scores.called_generated[generator][row];
      const right = called === (generator > 0);
      return `score ${digits(scores.probability[generator][row])}, called ${called ? "generated" : "real"}${right ? "" : " (wrong)"}`;
    }

    function caption() {
      const column = names.indexOf(chosen.generator);
      const { threshold, called_generated: called, noise_correlation: correlation, effective_support: support } = data.scores[chosen.step];
      const count = (flags, wanted) => `${flags.filter((flag) => flag === wanted).length} of ${flags.length}`;
      return `${chosen.generator} (${parts[chosen.generator]}), t = ${chosen.step}, showing ${SHOWN[chosen.shown]}. `
        + `This step\u2019s detector calls an image generated above a score of ${digits(threshold)}: here ${count(called[0], false)} photographs `
        + `are called real and ${count(called[column], true)} regenerations generated. Predicted and prior\u2019s noise correlate at `
        + `${digits(mean(correlation[0]))} on the photographs and ${digits(mean(correlation[column]))} on the regenerations; the attention `
        + `listens to ${digits(mean(support[0]))} and ${digits(mean(support[column]))} of them.`;
    }

    async function redraw() {
      const turn = ++latest;
      const step = String(chosen.step);
      const paths = Object.fromEntries(Object.entries(data.sheets).map(([what, file]) =>
        [what, `${data.folder}/${typeof file === "string" ? file : file[step]}`]));
      let images;
      try {
        images = Object.fromEntries(await Promise.all(Object.entries(paths).map(async ([what, path]) => [what, await sheet(path)])));
      } catch {
        if (turn === latest) said.textContent = `The pictures could not be loaded from ${data.folder}.`;
        return false;
      }
      if (turn !== latest) return true; // the reader has chosen again
      for (const { kind, row, node, label, tiles } of lines) {
        const column = kind === "real" ? 0 : names.indexOf(chosen.generator);
        const who = kind === "real" ? "photograph" : chosen.generator;
        node.hidden = !["both", kind].includes(chosen.shown);
        label.textContent = `${who}: ${score(column, row)}`;
        for (const [what, canvas] of Object.entries(tiles)) {
          const side = images[what].naturalWidth / names.length;
          if (canvas.width !== side) canvas.width = canvas.height = side;
          canvas.getContext("2d").drawImage(images[what], column * side, row * side, side, side, 0, 0, side, side);
          canvas.setAttribute("aria-label", `${TITLES[what]}, ${who}, ${data.patches[row].photograph}`
            + (["noise", "predicted", "attention"].includes(what) ? `, t = ${step}` : ""));
        }
      }
      said.textContent = caption();
      return true;
    }

    place.addEventListener("keydown", (event) => {
      if (event.key !== "f" || event.ctrlKey || event.metaKey || event.altKey || event.target === select) return;
      event.preventDefault();
      chosen.shown = FLIPPED[chosen.shown];
      shownBoxes[chosen.shown].checked = true;
      redraw();
    });
    place.hidden = false;
    redraw().then((drawn) => place.closest("figure").classList.toggle("drawn", drawn)); // hides the image
  }

  document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".gallery-view").forEach(start));
})();
