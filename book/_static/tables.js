/* Result tables that can be sorted and filtered. Without scripts they stay tables with a link to their CSV. */
(() => {
  "use strict";
  const FILTERED_FROM = 9; // rows; fewer are seen at a glance
  const NUMBER = /^([\u2212-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)(?![\d.]*[A-Za-z])/;

  /** The first number of a cell such as "−0.144 [−0.198, −0.090]", or NaN. */
  function firstNumber(text) {
    const found = NUMBER.exec(text);
    return found ? Number(found[1].replace("\u2212", "-").replaceAll(",", "")) : NaN;
  }

  const textOf = (row, column) => (row.cells[column]?.textContent ?? "").trim();
  const isEmpty = (text) => text === "" || text === "\u2013";

  /** Rows in order of a column; cells without a value stay last whichever way it is sorted. */
  function ordered(rows, column, falling) {
    const texts = new Map(rows.map((row) => [row, textOf(row, column)]));
    const filled = rows.filter((row) => !isEmpty(texts.get(row)));
    const numeric = filled.every((row) => !Number.isNaN(firstNumber(texts.get(row))));
    const compare = numeric
      ? (a, b) => firstNumber(texts.get(a)) - firstNumber(texts.get(b))
      : (a, b) => texts.get(a).localeCompare(texts.get(b), "en", { numeric: true });
    filled.sort((a, b) => (falling ? -compare(a, b) : compare(a, b)));
    return [...filled, ...rows.filter((row) => isEmpty(texts.get(row)))];
  }

  function makeSortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    const sums = [...body.rows].filter((row) => row.classList.contains("sum")); // a last line stays last
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const falling = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", falling ? "descending" : "ascending");
        const rows = [...body.rows].filter((row) => !sums.includes(row));
        body.append(...ordered(rows, column, falling), ...sums);
      });
    });
  }

  function makeFilter(table, tools) {
    const rows = [...table.tBodies[0].rows];
    const label = document.createElement("label");
    const box = document.createElement("input");
    const count = document.createElement("output");
    box.type = "search";
    box.placeholder = "all words, in any column";
    label.append("Filter ", box);
    tools.prepend(label, count);
    box.addEventListener("input", () => {
      const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        shown += row.hidden ? 0 : 1;
      }
      count.textContent = words.length ? `${shown} of ${rows.length} rows` : "";
    });
  }

  /** A link to the table as CSV, for one that was not drawn from a file. */
  function offerCsv(table, tools) {
    const quoted = (cell) => `"${cell.textContent.replace(/\s+/g, " ").trim().replaceAll('"', '""')}"`;
    const link = document.createElement("a");
    const text = [...table.rows].map((row) => [...row.cells].map(quoted).join(",")).join("\n");
    link.className = "csv";
    link.download = "table.csv";
    link.href = `data:text/csv;charset=utf-8,${encodeURIComponent(`${text}\n`)}`;
    link.textContent = "CSV";
    tools.append(link);
  }

  /** Says that a table has more columns than are in sight. */
  function hint(box, tools) {
    const note = document.createElement("span");
    note.className = "more-columns";
    note.textContent = "more columns: scroll sideways \u2192";
    tools.append(note);
    const look = () => { note.hidden = box.scrollWidth <= box.clientWidth + 2; };
    new ResizeObserver(look).observe(box);
    look();
  }

  /** A box that scrolls can be reached by the keyboard; one that does not is no stop on the way. */
  function reachable(box) {
    const look = () => {
      if (box.scrollWidth > box.clientWidth + 2) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    };
    box.querySelector("img")?.addEventListener("load", look);
    new ResizeObserver(look).observe(box);
    look();
  }

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll(".figure-image").forEach(reachable);
    for (const block of document.querySelectorAll(".results-block")) {
      const table = block.querySelector("table");
      const count = table.tBodies[0].rows.length;
      const tools = block.querySelector(".table-tools");
      if (!tools.querySelector(".csv")) offerCsv(table, tools);
      if (count > 1) makeSortable(table);
      if (count >= FILTERED_FROM) makeFilter(table, tools);
      hint(block.querySelector(".results-table"), tools);
    }
  });
})();
