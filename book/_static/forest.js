/* A kind of figure for plots.js: a row a generator or a method, a point with its interval for each series. Two panels, the
   values and the paired differences, stand side by side, or one below the other where the page is narrow. */
(() => {
  "use strict";
  const { METRICS, SMALL, kinds, unique, named, told, svg, speaking, ticks, range } = anlPlots;
  const SPACING = 13; // px between the series of a row
  const HEAD = 26, FOOT = 44, LETTER = 6.6; // px: above and below a panel, and a letter's width
  const STYLES = { plain: "other", seen: "second", "unseen, further": "second", reproduced: "third", "within noise": "other",
    "not reproduced": "second" };

  const narrow = (width) => width < SMALL;
  const linesOf = (rows) => unique(rows.map((row) => row.line));
  const seriesOf = (rows) => unique(rows.map((row) => row.series));
  const panelsOf = (rows) => unique(rows.map((row) => row.panel)).sort();
  const ofLine = (rows, line) => rows.filter((row) => row.line === line);
  const most = (rows, line) => Math.max(...panelsOf(rows).map((panel) => new Set(ofLine(rows, line)
    .filter((row) => row.panel === panel).map((row) => row.series)).size));
  /** Names too long to stand beside their row stand above it. */
  const areAbove = (rows, width) => Math.max(...linesOf(rows).map((line) => named(line).length)) * LETTER > 0.45 * width;
  const rowHeight = (rows, width) => SPACING * Math.max(...linesOf(rows).map((line) => most(rows, line))) + 10
    + (areAbove(rows, width) ? 16 : 0);
  const panelHeight = (rows, lines, width) => HEAD + FOOT + rowHeight(rows, width) * lines.length;
  /** What a panel shows: all rows beside another panel, the ones it has numbers for where it stands alone. */
  const shownIn = (rows, index, width) => linesOf(narrow(width) ? rows.filter((row) => row.panel === index) : rows);
  const isChosen = (row, chosen) => Object.keys(chosen).every((key) => row[key] === chosen[key]);

  /** A panel in `box`; `names` says whether the rows are named at its left. */
  function panel(root, box, rows, lines, series, say, { title, label, reference, names }, height, above) {
    const bottom = box.top + HEAD + height * lines.length;
    const { low, high } = range([...rows.mine, ...rows.mine.filter((row) => row.limit !== undefined).map((row) => ({ mean: row.limit })), ...(reference === null ? [] : [{ mean: reference }])]);
    const x = (value) => box.left + ((value - low) / (high - low)) * (box.right - box.left);
    const middle = (line) => box.top + HEAD + height * (lines.indexOf(line) + 0.5) + (above ? 8 : 0);
    const at = ticks(low, high, Math.max(2, Math.floor((box.right - box.left) / 44)));
    const decimals = at.some((value) => Math.abs(value * 10 - Math.round(value * 10)) > 1e-6) ? 2 : 1;
    for (const value of at) {
      svg("line", { x1: x(value), x2: x(value), y1: box.top + HEAD, y2: bottom, class: "grid" }, root);
      svg("text", { x: x(value), y: bottom + 16, "text-anchor": "middle" }, root,
        (Math.abs(value) < 1e-9 ? 0 : value).toFixed(decimals).replace("-", "\u2212"));
    }
    if (reference !== null) {
      svg("line", { x1: x(reference), x2: x(reference), y1: box.top + HEAD - 4, y2: bottom, class: "reference" }, root);
    }
    svg("line", { x1: box.left, x2: box.right, y1: bottom, y2: bottom, class: "axis" }, root);
    svg("text", { x: (box.left + box.right) / 2, y: bottom + 34, "text-anchor": "middle" }, root, label);
    if (title) svg("text", { x: box.left, y: box.top + 12 }, root, title);
    else {
      let place = box.left;
      for (const name of series) {
        svg("text", { x: place, y: box.top + 12, class: `name ${STYLES[name] ?? ""}` }, root, name);
        place += LETTER * 1.15 * name.length + 14;
      }
    }
    for (const line of lines) {
      if (names) {
        const place = above ? { x: 0, y: middle(line) - 12 } : { x: box.left - 8, y: middle(line) + 4, "text-anchor": "end" };
        svg("text", { ...place, class: line === "anl" ? "ours" : "" }, root, named(line));
      }
      const here = ofLine(rows.mine, line);
      for (const row of here) {
        const y = middle(line) + SPACING * (here.indexOf(row) - (here.length - 1) / 2); // a single one stands in the middle
        const style = STYLES[row.series] ?? "";
        const group = speaking(root, row.said ?? told(`${named(line)}, ${row.series}${title ? `, ${title}` : ""}`, row), say);
        if (row.limit !== undefined) svg("line", { x1: x(row.limit), x2: x(row.limit), y1: y - 8, y2: y + 8, class: "limit" }, group);
        svg("line", { x1: x(row.low), x2: x(row.high), y1: y, y2: y, class: `interval ${style}` }, group);
        svg("circle", { cx: x(row.mean), cy: y, r: 4.5, class: style }, group);
        svg("rect", { x: x(row.low) - 6, width: x(row.high) - x(row.low) + 12, y: y - SPACING / 2, height: SPACING, class: "reach" }, group);
      }
    }
  }

  kinds.forest = {
    selectors: (rows) => ({ view: unique(rows.map((row) => row.view)), metric: unique(rows.map((row) => row.metric)) }),
    height: (rows, width) => (narrow(width) ? panelsOf(rows) : [0])
      .reduce((sum, index) => sum + panelHeight(rows, shownIn(rows, index, width), width), 0),
    draw(root, size, rows, chosen, say, { baseline, label }) {
      const mine = rows.filter((row) => isChosen(row, chosen));
      const [lines, series, panels] = [linesOf(rows), seriesOf(rows), panelsOf(rows)];
      const below = narrow(size.width);
      const above = areAbove(rows, size.width);
      const left = above ? 8 : Math.min(LETTER * Math.max(...lines.map((line) => named(line).length)) + 12, 0.45 * size.width);
      const width = below ? size.width - left - 8 : (size.width - left - 8) / panels.length;
      let top = 0;
      panels.forEach((index, place) => {
        const shown = shownIn(rows, index, size.width);
        const start = left + (below ? 0 : place * width);
        const box = { left: start + (below || place === 0 ? 0 : 16), right: start + width, top };
        top += below ? panelHeight(rows, shown, size.width) : 0;
        const metric = METRICS[chosen.metric];
        panel(root, box, { mine: mine.filter((row) => row.panel === index) }, shown, series, say, index === 0
          ? { title: "", label: label ?? `${metric} (chance 0.5)`, reference: label ? null : 0.5, names: true }
          : { title: `minus ${baseline}, paired`, label: `difference in ${metric}`, reference: 0, names: below },
        rowHeight(rows, size.width), above);
      });
    },
  };
})();
