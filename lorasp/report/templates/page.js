// Sorting, filtering, deep links and live charts. Without this script the page is complete.
(() => {
  "use strict";
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // A heading of a sortable table becomes a button: first click up, second down.
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.sort ?? cell.textContent.trim();
  };
  const compare = (a, b) => {
    const numbers = !isNaN(a) && !isNaN(b);
    return numbers ? a - b : a.localeCompare(b, "en", { numeric: true });
  };
  const sort = (table, heading) => {
    const down = heading.getAttribute("aria-sort") === "ascending";
    all("thead th", table).forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    for (const body of all("tbody.rows", table)) {
      const keyed = [...body.rows].map((row) => [value(row, heading.cellIndex), row]);
      const filled = keyed.filter(([key]) => key !== "");
      const empty = keyed.filter(([key]) => key === ""); // what is missing comes last
      filled.sort(([a], [b]) => (down ? -compare(a, b) : compare(a, b)));
      body.append(...[...filled, ...empty].map(([, row]) => row));
    }
  };
  for (const heading of all("table.sortable thead th:not([data-unsorted])")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => sort(heading.closest("table"), heading));
  }

  // The filters of the claims.
  const form = document.querySelector("form.filters");
  const claims = all("#claims-table tbody.rows tr");
  const words = new Map(claims.map((row) => [row, row.textContent.toLowerCase()]));
  const filter = () => {
    const text = form.elements.text.value.trim().toLowerCase();
    let shown = 0;
    for (const row of claims) {
      const kept = ["verdict", "kind", "paper"].every((name) => {
        const wanted = form.elements[name].value;
        if (wanted === "judged") return row.dataset[name] !== "not run";
        return wanted === "" || row.dataset[name] === wanted;
      });
      row.hidden = !(kept && words.get(row).includes(text));
      shown += row.hidden ? 0 : 1;
    }
    for (const body of all("#claims-table tbody.rows")) {
      body.previousElementSibling.hidden = [...body.rows].every((row) => row.hidden);
    }
    form.querySelector("output").textContent = `${shown} of ${claims.length} claims`;
  };
  form.hidden = false;
  if (claims.some((row) => row.dataset.verdict !== "not run")) {
    form.elements.verdict.value = "judged"; // the others say nothing yet
    filter();
  }
  form.addEventListener("input", ({ target }) => {
    const { text, verdict } = form.elements;
    if (target === text && verdict.value === "judged") verdict.value = ""; // a search is of all
    filter();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filter));
  for (const chip of all("a[data-filter]")) {
    chip.addEventListener("click", () => {
      form.reset();
      form.elements.verdict.value = chip.dataset.filter;
      form.elements.paper.value = chip.dataset.paper;
      filter();
    });
  }

  // What is seldom read is folded; without this script it is open.
  all("details.fold").forEach((details) => (details.open = false));

  // Print has every fold and every claim; afterwards the page is again as its reader had it.
  const unfolded = new Set();
  addEventListener("beforeprint", () => {
    all("details.fold:not([open])").forEach((details) => unfolded.add(details));
    unfolded.forEach((details) => (details.open = true));
    all("#claims-table [hidden]").forEach((hidden) => (hidden.hidden = false));
  });
  addEventListener("afterprint", () => {
    unfolded.forEach((details) => (details.open = false));
    unfolded.clear();
    filter();
  });

  // Where a link leads must not lie under the menu, which is as high as the window is narrow.
  const menu = document.querySelector("nav");
  const room = () => {
    const covered = getComputedStyle(menu).position === "sticky" ? menu.offsetHeight : 0;
    document.documentElement.style.scrollPaddingTop = `${covered + 12}px`;
  };
  addEventListener("resize", room);
  room();

  // A link to a claim, a finding or a run opens what hides it.
  const follow = () => {
    const target = document.getElementById(location.hash.slice(1)); // ids are plain ASCII
    if (!target) return;
    if (target.hidden) {
      form.reset();
      filter();
    }
    for (let node = target; node; node = node.parentElement) {
      if (node.tagName === "DETAILS") node.open = true;
    }
    all(":scope > td > details", target).forEach((details) => (details.open = true));
    const tall = target.offsetHeight > innerHeight / 2;
    target.scrollIntoView({ block: tall ? "start" : "center" });
  };
  addEventListener("hashchange", follow);
  follow();

  // A drawing becomes a live chart when it comes near the window; on failure the drawing stays.
  const live = (drawing) => {
    const chart = document.createElement("div");
    const specification = JSON.parse(document.getElementById(drawing.dataset.chart).textContent);
    const options = { actions: false, ast: true, defaultStyle: false, mode: "vega-lite", renderer: "svg" };
    vegaEmbed(chart, specification, options).then(() => drawing.replaceChildren(chart), console.error);
  };
  const near = new IntersectionObserver(
    (entries) => {
      for (const { target } of entries.filter((entry) => entry.isIntersecting)) {
        near.unobserve(target);
        live(target);
      }
    },
    { rootMargin: "400px" },
  );
  all("[data-chart]").forEach((drawing) => near.observe(drawing));
})();
