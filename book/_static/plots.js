/* Figures drawn anew from the numbers in the page, with selectors and values on hover and focus. The figure's own image
   stays until this script has run, and where it does not run. Kinds: steps (curve over the step), heat, cost, curves (of a
   training); forest.js adds another. */
window.anlPlots = (() => {
  "use strict";
  const METRICS = { AP: "AP", balanced_accuracy: "balanced accuracy", classification_loss: "classification loss (nats)",
    noise_loss: "noise loss (target variance 1)", val_AP: "validation AP, seen generator" };
  const SMALL = 520; // px; below, labels are shortened
  const LEAST = 240; // px; a page that is not laid out yet has no width

  const unique = (values) => [...new Set(values)];
  const digits = (value) => value.toFixed(3).replace("-", "\u2212");
  const MEANS = { unseen: "mean of unseen", unseen_benchmark: "mean, benchmark", unseen_further: "mean, further" };
  const named = (name) => MEANS[name] ?? name.replaceAll("_", " ");
  const count = (row) => `${row.seeds} seed${row.seeds === 1 ? "" : "s"}, n = ${row.n}`;
  const bracket = (row) => `[${digits(row.low)}, ${digits(row.high)}]`;
  const told = (what, row) => `${what}: ${digits(row.mean)} ${bracket(row)}, ${count(row)}`;

  function svg(tag, attributes, parent, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    parent?.append(node);
    return node;
  }

  /** A group that says `text` when pointed at or focused. */
  function speaking(parent, text, say) {
    const group = svg("g", { tabindex: 0, role: "img", "aria-label": text, class: "point" }, parent);
    for (const event of ["pointerenter", "focus", "click"]) group.addEventListener(event, () => say(text));
    return group;
  }

  /** Round tick values that cover [low, high]. */
  function ticks(low, high, wanted = 7) {
    const rough = (high - low) / wanted;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((times) => times * power).find((size) => size >= rough);
    const found = [];
    for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + 1e-9; at += step) found.push(at);
    return found;
  }

  /** Axes in `root`; returns the functions from a value to its pixel. x is logarithmic, or linear where xs.linear is set. */
  function axes(root, box, xs, ys, labels) {
    const along = (value) => (xs.linear ? value - xs.low : Math.log(value / xs.low));
    const margin = 0.06 * (along(xs.high) || 1);
    const x = (value) => box.left + ((along(value) + margin) / (along(xs.high) + 2 * margin)) * (box.right - box.left);
    const y = (value) => box.bottom - ((value - ys.low) / (ys.high - ys.low)) * (box.bottom - box.top);
    for (const value of ticks(ys.low, ys.high)) {
      svg("line", { x1: box.left, x2: box.right, y1: y(value), y2: y(value), class: "grid" }, root);
      svg("text", { x: box.left - 6, y: y(value) + 4, "text-anchor": "end" }, root, value.toFixed(2));
    }
    for (const [value, label] of xs.ticks) {
      svg("text", { x: x(value), y: box.bottom + 18, "text-anchor": "middle" }, root, label);
    }
    svg("line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, class: "axis" }, root);
    svg("text", { x: (box.left + box.right) / 2, y: box.bottom + 38, "text-anchor": "middle" }, root, labels.x);
    svg("text", { x: 0, y: 12 }, root, labels.y);
    return { x, y };
  }

  function range(rows) {
    const low = Math.min(...rows.map((row) => Math.min(row.low ?? row.mean, row.mean)));
    const high = Math.max(...rows.map((row) => Math.max(row.high ?? row.mean, row.mean)));
    const margin = 0.08 * (high - low || 0.1);
    return { low: low - margin, high: high + margin };
  }

  function interval(group, x, y, row) {
    svg("line", { x1: x, x2: x, y1: y(row.low), y2: y(row.high), class: "interval" }, group);
    svg("rect", { x: x - 11, width: 22, y: y(row.high) - 6, height: y(row.low) - y(row.high) + 12, class: "reach" }, group);
  }

  const kinds = {
    steps: {
      selectors: (rows) => ({ view: unique(rows.map((row) => row.view)), generator: unique(rows.map((row) => row.generator)),
        metric: unique(rows.map((row) => row.metric)) }),
      height: () => 330,
      draw(root, size, rows, chosen, say) {
        const mine = rows.filter((row) => Object.keys(chosen).every((key) => row[key] === chosen[key]));
        const plain = mine.find((row) => row.method === "plain");
        const points = mine.filter((row) => row !== plain).map((row) => ({ ...row, step: Number(row.method.slice(1)) }))
          .sort((a, b) => a.step - b.step);
        const box = { left: 44, right: size.width - 8, top: 26, bottom: size.height - 46 };
        const steps = points.map((row) => row.step);
        const { x, y } = axes(root, box, { low: steps[0], high: steps.at(-1), ticks: steps.map((step) => [step, step]) },
          range(mine), { x: "diffusion step t of the noise target", y: `${METRICS[chosen.metric]}, ${named(chosen.generator)}` });
        if (plain) {
          const group = speaking(root, told("plain detector", plain), say);
          svg("rect", { x: box.left, width: box.right - box.left, y: y(plain.high), height: y(plain.low) - y(plain.high),
            class: "band" }, group);
          svg("line", { x1: box.left, x2: box.right, y1: y(plain.mean), y2: y(plain.mean), class: "reference" }, group);
          // at the end where the curve is farther away
          const far = (point) => Math.abs(point.mean - plain.mean);
          const atStart = far(points[0]) > far(points.at(-1));
          svg("text", { x: atStart ? box.left + 4 : box.right - 4, y: y(plain.mean) - 5, "text-anchor": atStart ? "start" : "end" },
            group, "plain detector");
        }
        svg("polyline", { points: points.map((row) => `${x(row.step)},${y(row.mean)}`).join(" "), class: "curve" }, root);
        for (const row of points) {
          const group = speaking(root, told(`t = ${row.step}`, row), say);
          interval(group, x(row.step), y, row);
          svg("circle", { cx: x(row.step), cy: y(row.mean), r: 5 }, group);
        }
      },
    },
    heat: {
      selectors: (rows) => ({ view: unique(rows.map((row) => row.view)), metric: unique(rows.map((row) => row.metric)) }),
      height: (rows) => 30 + 42 * unique(rows.map((row) => row.generator)).length,
      draw(root, size, rows, chosen, say) {
        const mine = rows.filter((row) => row.view === chosen.view && row.metric === chosen.metric);
        const generators = unique(mine.map((row) => row.generator));
        const methods = unique(mine.map((row) => row.method));
        const left = size.width < SMALL ? 76 : 128;
        const cell = { width: (size.width - left) / methods.length, height: (size.height - 30) / generators.length };
        methods.forEach((name, column) => svg("text", { x: left + (column + 0.5) * cell.width, y: 16,
          "text-anchor": "middle" }, root, named(name)));
        generators.forEach((name, line) => {
          const seen = mine.find((row) => row.generator === name).seen ? " *" : "";
          svg("text", { x: left - 8, y: 30 + (line + 0.5) * cell.height + 4, "text-anchor": "end" }, root,
            (size.width < SMALL && name === "unseen" ? "unseen" : named(name)) + seen);
        });
        for (const row of mine) {
          const at = { x: left + methods.indexOf(row.method) * cell.width, y: 30 + generators.indexOf(row.generator) * cell.height };
          const group = speaking(root, told(`${named(row.method)}, ${named(row.generator)}${row.seen ? " (trained on)" : ""}`,
            row), say);
          const strength = row.difference ? Math.abs(row.mean) / 0.3 : Math.abs(row.mean - 0.5) / 0.5;
          const falls = row.mean < (row.difference ? 0 : 0.5);
          svg("rect", { x: at.x + 1, y: at.y + 1, width: cell.width - 2, height: cell.height - 2, rx: 3,
            class: falls ? "cell below" : "cell", "fill-opacity": 0.04 + 0.46 * Math.min(1, strength) }, group);
          const middle = { x: at.x + cell.width / 2, "text-anchor": "middle" };
          if (cell.width > 150) {
            svg("text", { ...middle, y: at.y + cell.height / 2 + 4 }, group, `${digits(row.mean)} ${bracket(row)}`);
          } else {
            svg("text", { ...middle, y: at.y + cell.height / 2 - 2 }, group, digits(row.mean).replace("0.", "."));
            svg("text", { ...middle, y: at.y + cell.height / 2 + 12, class: "small" }, group, bracket(row).replaceAll("0.", "."));
          }
        }
      },
      note: "* trained on. Blue lies above chance (a difference: above zero), orange below.",
    },
    curves: {
      selectors: (rows) => ({ metric: unique(rows.map((row) => row.metric)) }),
      height: () => 300,
      draw(root, size, rows, chosen, say) {
        const mine = rows.filter((row) => row.metric === chosen.metric).sort((a, b) => a.step - b.step);
        const box = { left: 44, right: size.width - 8, top: 26, bottom: size.height - 46 };
        const [low, high] = [mine[0].step, mine.at(-1).step];
        const { x, y } = axes(root, box, { low, high, linear: true, ticks: ticks(low, high, 5).map((step) => [step, step]) },
          range(mine), { x: "training step", y: METRICS[chosen.metric] });
        let place = box.right;
        for (const method of unique(mine.map((row) => row.method)).reverse()) {
          const points = mine.filter((row) => row.method === method);
          const style = method === "anl" ? "" : " other";
          svg("polyline", { points: points.map((row) => `${x(row.step)},${y(row.mean)}`).join(" "), class: `curve${style}` }, root);
          for (const row of points) {
            const group = speaking(root, `${method}, step ${row.step}: ${digits(row.mean)}`, say);
            svg("circle", { cx: x(row.step), cy: y(row.mean), r: 3.5, class: style }, group);
          }
          svg("text", { x: place, y: 12, "text-anchor": "end", class: `name${style}` }, root, method);
          place -= 8 * method.length + 12;
        }
      },
    },
    cost: {
      selectors: (rows) => ({ view: unique(rows.map((row) => row.view)), generator: unique(rows.map((row) => row.generator)) }),
      height: () => 400,
      draw(root, size, rows, chosen, say) {
        const mine = rows.filter((row) => row.view === chosen.view && row.generator === chosen.generator);
        const box = { left: 44, right: size.width - 8, top: 26, bottom: size.height - 46 };
        const adds = mine.map((row) => row.multiply_adds);
        const [low, high] = [Math.min(...adds), Math.max(...adds)];
        const powers = [];
        for (let power = Math.ceil(Math.log10(low)); 10 ** power <= high; power++) powers.push([10 ** power, `${10 ** (power - 6)}`]);
        const { x, y } = axes(root, box, { low, high, ticks: powers }, range(mine),
          { x: "multiply-adds for one image (millions)", y: `AP, ${named(chosen.generator)} (open: keeps a frozen model)` });
        let lowest = -Infinity; // of the labels so far: points that coincide have theirs below each other
        for (const row of mine.sort((a, b) => b.mean - a.mean)) {
          const million = Math.round(row.multiply_adds / 1e6).toLocaleString("en");
          const group = speaking(root, `${told(row.method, row)}; ${million} million multiply-adds`
            + (row.frozen_parameters ? ", a frozen model is kept" : ""), say);
          const at = x(row.multiply_adds);
          interval(group, at, y, row);
          svg("circle", { cx: at, cy: y(row.mean), r: 5, class: row.frozen_parameters ? "open" : "" }, group);
          const inner = at > (box.left + box.right) / 2;
          lowest = Math.max(y(row.mean) + 4, lowest + 13);
          svg("text", { x: at + (inner ? -9 : 9), y: lowest, "text-anchor": inner ? "end" : "start",
            class: row.method === "anl" ? "ours" : "" }, group, row.method);
        }
      },
    },
  };

  function selector(name, options, chosen, changed) {
    const label = document.createElement("label");
    const box = document.createElement("select");
    for (const option of options) {
      const text = name === "metric" ? METRICS[option] : named(option);
      box.append(new Option(text, option, false, option === chosen));
    }
    box.addEventListener("change", () => changed(box.value));
    label.append(`${name} `, box);
    return label;
  }

  function start(place) {
    const { kind, columns, rows: table, start: first, ...more } = JSON.parse(place.querySelector("script").textContent);
    const rows = table.map((cells) => Object.fromEntries(columns.map((name, index) => [name, cells[index] ?? undefined])));
    const { selectors, height, draw, note } = kinds[kind];
    const options = selectors(rows);
    const chosen = Object.fromEntries(Object.keys(options).map((key) =>
      [key, options[key].includes(first[key]) ? first[key] : options[key][0]]));
    const tools = document.createElement("div");
    const picture = svg("svg", { role: "group" });
    const said = document.createElement("output");
    tools.className = "plot-tools";
    const redraw = () => {
      const wide = Math.max(place.clientWidth, LEAST);
      const size = { width: wide, height: height(rows, wide, chosen) };
      picture.replaceChildren();
      picture.setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
      picture.setAttribute("aria-label", `${place.dataset.title}; ${Object.values(chosen).join(", ")}`);
      draw(picture, size, rows, chosen, (text) => { said.textContent = text; }, more);
      said.textContent = note ?? "Point at a value or tap it, or reach it with the Tab key, to read it.";
    };
    for (const [key, values] of Object.entries(options)) {
      if (values.length > 1) tools.append(selector(key, values, chosen[key], (value) => { chosen[key] = value; redraw(); }));
    }
    place.append(tools, picture, said);
    place.hidden = false;
    redraw();
    place.closest("figure").classList.add("drawn"); // hides the image
    let width = place.clientWidth;
    new ResizeObserver(() => {
      if (place.clientWidth !== width) { width = place.clientWidth; redraw(); }
    }).observe(place);
  }

  document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".plot").forEach(start));
  return { METRICS, SMALL, kinds, unique, named, told, svg, speaking, ticks, range };
})();
