"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  const trouble = (event) => {
    const box = find("trouble");
    box.hidden = false;
    box.textContent = `A figure could not be drawn: ${event.message || event.reason}`;
    document.body.dataset.error = box.textContent;
  };
  window.addEventListener("error", trouble);
  window.addEventListener("unhandledrejection", trouble);

  // Figures and plotly's code lie in the page as gzip in base64.
  const unpack = (id) => {
    const bytes = Uint8Array.from(atob(find(id).textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  };
  let figures = {};
  const config = {
    responsive: true,
    displaylogo: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    toImageButtonOptions: { format: "svg" },
  };

  // The trace of what no feasible design beats in the two metrics shown.
  const staircase = (data, x, y) => {
    const sign = (name) => (data.axes[name].maximize ? -1 : 1);
    const points = [];
    for (const trace of data.traces) {
      trace.feasible.forEach((feasible, i) => {
        const at = [trace.points[x].value[i], trace.points[y].value[i]];
        if (feasible && at[0] !== null && at[1] !== null) points.push(at);
      });
    }
    points.sort((a, b) => sign(x) * (a[0] - b[0]) || sign(y) * (a[1] - b[1]));
    const steps = [];
    for (const point of points) {
      const last = steps[steps.length - 1];
      if (!last || sign(y) * point[1] < sign(y) * last[1]) steps.push(point);
    }
    return { x: steps.map((p) => p[0]), y: steps.map((p) => p[1]) };
  };

  // The designs that have the horizontal metric but not the vertical one.
  const untried = (data, traces, x, y) => {
    const found = { x: [], hovertext: [] };
    data.traces.forEach((trace, at) => {
      trace.points[x].value.forEach((value, i) => {
        if (value === null || trace.points[y].value[i] !== null) return;
        found.x.push(value);
        found.hovertext.push(traces[at + 1].hovertext[i]);
      });
    });
    return found;
  };

  const drawScatter = () => {
    const plot = find("scatter");
    const { data: traces, layout } = figures.scatter;
    const data = figures.scatter_data;
    if (window.innerWidth < 640) layout.height = 680; // the legend stands above, line by line
    const metric = (key) => find(`${key}-metric`).value;
    const bars = (numbers, trace) => ({
      ...trace.error_x,
      array: numbers.plus,
      arrayminus: numbers.minus,
      visible: trace.bars && find("bars").checked,
    });
    const redraw = () => {
      const [x, y] = [metric("x"), metric("y")];
      Object.assign(traces[0], staircase(data, x, y));
      data.traces.forEach((found, at) => {
        const trace = traces[at + 1];
        trace.x = found.points[x].value;
        trace.y = found.points[y].value;
        trace.bars = found.bars;
        trace.error_y = bars(found.points[y], trace);
        trace.error_x = bars(found.points[x], trace);
      });
      const last = traces[traces.length - 1];
      Object.assign(last, untried(data, traces, x, y));
      last.y = last.x.map(() => 0);
      last.showlegend = last.x.length > 0;
      last.name = `${data.axes[y].name} not measured (${last.x.length})`;
      for (const [key, name] of [["xaxis", x], ["yaxis", y]]) {
        const log = find(`${key[0]}-log`);
        log.disabled = !data.axes[name].positive;
        layout[key] = {
          ...layout[key],
          title: { text: data.axes[name].title },
          type: log.checked && !log.disabled ? "log" : "linear",
          dtick: log.checked && !log.disabled ? "D2" : null,
          autorange: true,
        };
      }
      return Plotly.react(plot, traces, layout, config);
    };
    for (const key of ["x", "y"]) {
      const choose = () => { find(`${key}-log`).checked = data.axes[metric(key)].log; };
      choose();
      find(`${key}-metric`).addEventListener("change", () => { choose(); redraw(); });
      find(`${key}-log`).addEventListener("change", redraw);
    }
    find("bars").addEventListener("change", redraw);
    return redraw();
  };

  const draw = () => {
    const drawn = [];
    if (figures.scatter) drawn.push(drawScatter());
    for (const id of ["hypervolume", "parallel"]) {
      if (!figures[id]) continue;
      const { data, layout } = figures[id];
      drawn.push(Plotly.newPlot(find(id), data, layout, { ...config, displayModeBar: false }));
    }
    return Promise.all(drawn);
  };

  const prepareTable = () => {
    const table = find("front-table");
    if (!table) return;
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    const key = (row, column) => {
      const cell = row.cells[column];
      if (cell.dataset.sort === undefined) return cell.textContent;
      return cell.dataset.sort === "" ? Infinity : Number(cell.dataset.sort);
    };
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const order = (a, b) => (a < b ? -1 : a > b ? 1 : 0) * (down ? -1 : 1);
        body.append(...[...body.rows].sort((a, b) => order(key(a, column), key(b, column))));
      });
    });
    find("filter").addEventListener("input", (event) => {
      const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of body.rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        shown += row.hidden ? 0 : 1;
      }
      find("shown").textContent = `${shown} of ${body.rows.length} designs`;
    });
  };

  const start = async () => {
    if (typeof DecompressionStream === "undefined") {
      throw new Error("this browser is too old; Chrome 80, Firefox 113 or Safari 16.4 can");
    }
    figures = JSON.parse(await unpack("figures"));
    const script = document.createElement("script");
    script.textContent = await unpack("plotly");
    document.body.append(script);
    await draw();
    document.body.dataset.ready = "yes";
  };

  prepareTable();
  start();
})();
