/* Tables are sorted by a click on the head of a column: largest first, smallest first, then as they were. */
document.addEventListener("DOMContentLoaded", () => {
  const next = { none: "descending", descending: "ascending", ascending: "none" };
  const key = (row, column) => {
    const text = row.cells[column].textContent.trim(), number = parseFloat(text.replaceAll(",", ""));
    return Number.isNaN(number) ? text : number;
  };
  const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  for (const table of document.querySelectorAll(".cell_output table, table.results")) {
    const [body] = table.tBodies, rows = [...body?.rows ?? []], heads = [...table.tHead?.rows[0]?.cells ?? []];
    if (rows.length < 3 || table.tHead?.rows.length > 1 || table.querySelector("[rowspan]:not([rowspan='1']), [colspan]:not([colspan='1'])")) continue;
    heads.forEach((head, column) => {
      const button = Object.assign(document.createElement("button"), { type: "button", className: "sort", title: "Sort by this column" });
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const order = next[head.getAttribute("aria-sort") ?? "none"], sign = order === "descending" ? -1 : 1;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        if (order !== "none") head.setAttribute("aria-sort", order);
        body.append(...order === "none" ? rows : rows.toSorted((a, b) => {
          const [one, two] = [key(a, column), key(b, column)];
          return (one === "") - (two === "") || sign * compare(one, two); // empty cells stay at the end
        }));
      });
    });
  }
});
