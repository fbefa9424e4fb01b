// Links charts, tables and the list of tensors of a report; draws nothing itself. Needs bokeh and no network.
(function () {
  "use strict";

  const told = JSON.parse(document.getElementById("report-data").textContent);
  const sources = [];
  let busy = false; // while a selection is passed on, what that changes is no new selection

  function whenDrawn(action) {
    const documents = window.Bokeh ? window.Bokeh.documents : [];
    if (told.charts === 0 || (documents.length > 0 && documents.every((one) => one.is_idle))) action();
    else window.setTimeout(() => whenDrawn(action), 10);
  }

  function model(name) {
    for (const one of window.Bokeh ? window.Bokeh.documents : []) {
      const found = one.get_model_by_name(name);
      if (found) return found;
    }
    return null;
  }

  function select(keys) {
    const wanted = new Set(keys);
    for (const key of keys) for (const other of told.related[key] || []) wanted.add(other);
    busy = true;
    for (const source of sources) {
      const indices = [];
      Array.from(source.data.key).forEach((key, i) => { if (wanted.has(key)) indices.push(i); });
      source.selected.indices = indices;
    }
    busy = false;
    for (const row of document.querySelectorAll("tr[data-key]")) {
      row.classList.toggle("selected", wanted.has(row.dataset.key));
    }
    for (const picker of document.querySelectorAll("select[data-exchange]")) {
      const place = Array.from(picker.options).find((option) => wanted.has(option.value));
      if (place && picker.value !== place.value) { picker.value = place.value; exchange(picker); }
    }
  }

  function listen() {
    for (const name of told.linked) {
      const source = model(name);
      if (!source) continue;
      sources.push(source);
      source.selected.properties.indices.change.connect(() => {
        if (!busy) select(source.selected.indices.map((i) => source.data.key[i]));
      });
    }
    const choose = (event) => {
      const row = event.target.closest("tr[data-key]");
      if (row) select(row.classList.contains("selected") ? [] : [row.dataset.key]);
    };
    document.addEventListener("click", choose);
    document.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(event); });
    for (const picker of document.querySelectorAll("select[data-exchange]")) {
      picker.addEventListener("change", () => { select([picker.value]); exchange(picker); });
    }
  }

  // A histogram is kept as counts from a first bin on; bins are 2^exponent wide and one of them begins at zero.
  function bars(histogram) {
    const width = Math.pow(2, histogram.exponent);
    const total = histogram.counts.reduce((sum, count) => sum + count, histogram.zeros) || 1;
    const start = (histogram.first - histogram.bins / 2) * width;
    const found = { left: [], right: [], share: [], floor: [], count: [] };
    histogram.counts.forEach((count, i) => {
      found.left.push(start + i * width);
      found.right.push(start + (i + 1) * width);
      found.share.push(100 * count / total);
      found.floor.push(50 / total);
      found.count.push(count);
    });
    return found;
  }

  function exchange(picker) {
    const prefix = picker.dataset.exchange;
    const entry = told.exchanged[prefix][picker.value];
    if (!entry) return;
    const put = (name, data) => { const source = model(prefix + name); if (source) source.data = data; };
    put("bars", bars(entry.histogram));
    put("levels", { x: entry.levels || [] });
    put("ends", { x: entry.ends });
    put("batches", { batch: entry.low.map((_, i) => i + 1), low: entry.low, high: entry.high });
    put("range", { y: entry.low.length ? entry.ends : [] });
    for (const name of ["linear", "logarithmic"]) {
      const plot = model(prefix + name);
      if (plot) { plot.below[0].axis_label = entry.label; plot.x_range.start = entry.view[0]; plot.x_range.end = entry.view[1]; }
    }
    for (const figure of document.querySelectorAll(`[data-chart="${CSS.escape(prefix + "batches")}"]`)) figure.hidden = entry.low.length === 0;
    const ranges = model(prefix + "ranges");
    if (ranges) {
      [ranges.x_range.start, ranges.x_range.end, ranges.y_range.start, ranges.y_range.end] = entry.batches_view;
    }
    for (const place of document.querySelectorAll(`[data-said="${CSS.escape(prefix)}"]`)) place.textContent = entry.said;
    for (const place of document.querySelectorAll(`[data-batches="${CSS.escape(prefix)}"]`)) place.textContent = entry.batches;
  }

  function sort(head) {
    const table = head.closest("table"), column = Array.from(head.parentNode.children).indexOf(head);
    const falling = head.getAttribute("aria-sort") === "ascending";
    const value = (row) => {
      const cell = row.children[column];
      return cell.dataset.value !== undefined ? Number(cell.dataset.value) : cell.textContent;
    };
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "" ? 1 : 0) - (y === "" ? 1 : 0); // what is missing stays below
      const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true });
      return falling ? -order : order;
    };
    const rows = Array.from(table.tBodies[0].rows).sort(compare);
    table.tBodies[0].append(...rows);
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
  }

  document.addEventListener("click", (event) => {
    const head = event.target.closest("th");
    if (head) sort(head);
  });
  whenDrawn(() => {
    listen();
    document.documentElement.dataset.drawn = String(performance.now()); // milliseconds since the page was asked for
  });
})();
