// Circuits, drawn from what is in them as JSON. Positions are circuit_layout.py's: a box has its x,
// and of the rows those stand one above the other that have a box now.
(() => {
  if (window.resvalCircuits) return;
  window.resvalCircuits = true;
  const SVG = "http://www.w3.org/2000/svg";
  const SIDES = { q: -0.3, k: 0, v: 0.3 };
  let pictures = 0;
  const make = (name, attributes, ...inside) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...inside);
    return element;
  };
  const several = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;

  // --- what is shown: the edges of the slider, heads of a layer in one box or not ---------------

  const shown = (data, state) => {
    const lines = data.lines.filter((line) => line.least <= state.n);
    const touched = new Set(lines.flatMap((line) => [line.source, line.target]));
    const heads = {};
    for (const node of data.nodes) {
      if (touched.has(node.name) && node.head) (heads[node.row] ??= []).push(node);
    }
    const folded = (row) => state.grouped && !state.open.has(row) && heads[row]?.length > 1;
    const boxes = new Map();
    const nameOf = {};
    for (const node of data.nodes) {
      if (!touched.has(node.name) && !node.end) continue;
      if (node.head && folded(node.row)) {
        nameOf[node.name] = `layer ${node.row}`;
        if (boxes.has(nameOf[node.name])) continue;
        boxes.set(nameOf[node.name], {
          name: nameOf[node.name], row: node.row, raised: false, x: data.middle, wide: true,
          folded: heads[node.row].length, width: 168, roles: [],
        });
      } else {
        nameOf[node.name] = node.name;
        boxes.set(node.name, { ...node, wide: node.end });
      }
    }
    const drawn = new Map();
    for (const line of lines) {
      const [source, target] = [nameOf[line.source], nameOf[line.target]];
      const whole = boxes.get(source).folded || boxes.get(target).folded;
      const key = whole ? `${source}>${target}>${line.link}` : `${line.edge}>${source}>${target}`;
      const had = drawn.get(key);
      if (!had) drawn.set(key, { ...line, source, target, several: [line] });
      else {
        had.several.push(line);
        if (line.strength > had.strength) {
          Object.assign(had, line, { source, target, several: had.several });
        }
      }
    }
    for (const line of drawn.values()) {
      const count = line.several.length;
      if (count > 1) {
        line.text = `${line.source} to ${line.target}: ${count} `
          + `${line.link ? "links" : "edges"}, the strongest ${line.text}`;
      }
      if (boxes.get(line.target).folded) line.port = "";
    }
    for (const box of boxes.values()) {
      const count = (end) => [...drawn.values()].filter((line) => line[end] === box.name)
        .reduce((sum, line) => sum + line.several.length, 0);
      [box.into, box.out] = [count("target"), count("source")];
    }
    const rows = data.rows.filter((row) => [...boxes.values()].some((box) => box.row === row));
    return { boxes, lines: [...drawn.values()], rows, edges: new Set(lines.map((x) => x.edge)) };
  };

  // --- where it stands: circuit_layout.curve ----------------------------------------------------

  const placed = (data, picture) => {
    const { row: step, box: tall, margin } = data.sizes;
    const height = (picture.rows.length - 1) * step + tall + 2 * margin;
    for (const box of picture.boxes.values()) {
      const above = picture.rows.length - 1 - picture.rows.indexOf(box.row) - (box.raised ? 0.5 : 0);
      box.y = margin + tall / 2 + above * step;
    }
    return height;
  };
  const towards = (box, x) => {
    if (!box.wide) return box.x;
    const room = Math.max(box.width / 2 - 12, 0);
    return Math.min(Math.max(x, box.x - room), box.x + room);
  };
  const curve = (data, start, end, port) => {
    const { row: step, box: tall, arcs } = data.sizes;
    const x = towards(start, end.x);
    const to = towards(end, start.x) + (SIDES[port] ?? 0) * end.width;
    const y = start.y - tall / 2;
    const bottom = end.y + tall / 2;
    const rise = y - bottom;
    let steep = Math.max(12, Math.min(rise * 0.4, 70));
    let aside = 0;
    if (Math.abs(to - x) < data.gutter && rise > 0.75 * step) {
      steep = rise / 4;
      if (start.raised && end.raised) aside = end.width / 2 + 6 + Math.min(rise * 0.03, arcs - 20);
      else if (start.folded || end.folded) {
        aside = -((start.folded ? start : end).width / 2 + 8 + Math.min(rise * 0.03, 50));
      } else {
        aside = data.gutter + 2 * ((rise / step) % 4 - 1.5);
        if (port !== "k" && port !== "v") aside = -aside;
      }
      aside /= 0.75;
    }
    return `M${x} ${y}C${x + aside} ${y - steep} ${to + aside} ${bottom + steep} ${to} ${bottom + 2}`;
  };

  // --- drawing ----------------------------------------------------------------------------------

  const markers = (id) => {
    const made = ["q", "k", "v", "o"].flatMap((port) => [
      make("marker", {
        id: `${id}-${port}`, class: `rv-end-${port}`, viewBox: "0 0 10 10", refX: 8, refY: 5,
        markerWidth: 9, markerHeight: 9, markerUnits: "userSpaceOnUse", orient: "auto",
      }, make("path", { d: "M0 0L10 5L0 10z" })),
      make("marker", {
        id: `${id}-${port}-bar`, class: `rv-end-${port}`, viewBox: "0 0 4 12", refX: 2, refY: 6,
        markerWidth: 4, markerHeight: 12, markerUnits: "userSpaceOnUse", orient: "auto",
      }, make("path", { d: "M0 0H4V12H0z" })),
    ]);
    return make("defs", {}, ...made);
  };

  const drawLine = (data, id, picture, line, pinned) => {
    const own = pinned && (line.source === pinned || line.target === pinned);
    const kind = `${line.link ? "link" : "residual"}${line.hurts ? "-against" : ""}`;
    const end = `${id}-${line.port || "o"}${line.hurts ? "-bar" : ""}`;
    return make("path", {
      class: `rv-mark rv-edge rv-${kind}${pinned && !own ? " rv-faded" : ""}`, "data-line": "",
      d: curve(data, picture.boxes.get(line.source), picture.boxes.get(line.target), line.port),
      style: `stroke-width:${0.9 + 3.1 * line.strength};stroke-opacity:`
        + `${own ? 1 : 0.4 + 0.6 * line.strength}`,
      "marker-end": `url(#${end})`, role: "img", "aria-label": line.text,
      tabindex: own ? "0" : "-1",
    });
  };

  const sayBox = (box) => {
    if (box.folded) {
      return `${box.name}: ${several(box.folded, "head")}, ${several(box.into, "edge")} in, `
        + `${box.out} out; opens`;
    }
    const roles = box.roles.length ? ` (${box.roles.join(", ")})` : "";
    return `${box.name}${roles}: ${several(box.into, "edge")} in, ${box.out} out`;
  };

  const drawBox = (data, box, state, near, current) => {
    const pinned = state.pinned === box.name;
    const tall = data.sizes.box;
    const [left, top] = [box.x - box.width / 2, box.y - tall / 2];
    const at = { x: left, y: top, width: box.width, height: tall, rx: 4 };
    const kind = box.folded ? "folded" : box.head ? "head" : "other";
    const shade = box.roles.length ? data.roles[box.roles[0]] : null;
    const parts = [make("rect", { ...at, class: `rv-box rv-box-${kind}` })];
    if (shade) {
      parts.push(make("rect", {
        ...at, class: "rv-role", style: `fill:${shade};stroke:${shade}`,
      }));
    }
    const words = box.folded ? `${box.folded} heads, ${box.into + box.out} edges` : box.name;
    parts.push(make("text", { x: box.x, y: box.y }, words));
    const faded = state.pinned && near.size && !near.has(box.name);
    return make("g", {
      class: `rv-mark rv-node${pinned ? " rv-pinned" : ""}${faded ? " rv-faded" : ""}`,
      role: "button", "aria-label": sayBox(box), "data-node": box.name,
      tabindex: box.name === current ? "0" : "-1",
      ...(box.folded ? { "aria-expanded": "false" } : { "aria-pressed": String(pinned) }),
    }, ...parts);
  };

  // A layer that was opened can be folded again at its name.
  const drawRow = (data, row, y, state, current, opened) => {
    const words = make("text", { x: 4, y, class: "rv-row" }, `${opened ? "− " : ""}layer ${row}`);
    if (!opened) return words;
    const name = `fold ${row}`;
    return make("g", {
      class: "rv-mark rv-node", role: "button", "aria-expanded": "true", "data-node": name,
      "aria-label": `layer ${row}: folds`, tabindex: name === current ? "0" : "-1",
    }, make("rect", {
      x: 1, y: y - data.sizes.box / 2, width: 62, height: data.sizes.box, rx: 4, class: "rv-fold",
    }), words);
  };

  // --- one picture ------------------------------------------------------------------------------

  const begin = (place) => {
    const data = JSON.parse(place.querySelector("script").textContent);
    const svg = place.querySelector(".rv-graph");
    const [slider, group] = place.querySelectorAll("input");
    const said = place.querySelector("output");
    const free = place.querySelector("button");
    const table = place.querySelector(".rv-pinned-edges");
    const id = `rv-c${pictures}`;
    const number = pictures;
    pictures += 1;
    const state = { n: data.start, grouped: false, open: new Set(), pinned: null };
    let current = "logits";
    let picture = null;
    const own = place.closest("html.rv-page") && !place.closest("section");

    const remember = () => {
      if (!own) return;
      const parts = new URLSearchParams(location.hash.slice(1));
      const put = (name, value) => {
        if (value) parts.set(name + (number || ""), value);
        else parts.delete(name + (number || ""));
      };
      put("n", state.n === data.start ? "" : String(state.n));
      put("pin", state.pinned);
      put("group", state.grouped ? "1" : "");
      put("open", state.grouped ? [...state.open].join(" ") : "");
      history.replaceState(null, "", `#${parts}`);
    };
    const recall = () => {
      const parts = new URLSearchParams(own ? location.hash.slice(1) : "");
      const get = (name) => parts.get(name + (number || ""));
      const n = Number(get("n"));
      if (Number.isInteger(n) && n >= 1 && n <= data.total) state.n = n;
      else state.n = data.start;
      state.grouped = get("group") === "1";
      state.open = new Set((get("open") ?? "").split(" ").filter(Boolean));
      state.pinned = data.nodes.some((node) => node.name === get("pin")) ? get("pin") : null;
    };

    const draw = () => {
      picture = shown(data, state);
      const height = placed(data, picture);
      const { boxes, rows, lines } = picture;
      const pinned = boxes.has(state.pinned) ? state.pinned : null;
      const folds = rows.filter((row) => state.grouped && state.open.has(row));
      for (const row of folds) {
        const y = [...boxes.values()].find((box) => box.row === row && !box.raised)?.y;
        if (y !== undefined) boxes.set(`fold ${row}`, { name: `fold ${row}`, row, x: 32, y });
      }
      if (!boxes.has(current)) current = pinned ?? "logits";
      const near = new Set(pinned ? [pinned] : []);
      for (const line of lines) {
        if (line.source === pinned) near.add(line.target);
        if (line.target === pinned) near.add(line.source);
      }
      svg.setAttribute("viewBox", `0 0 ${data.width} ${height}`);
      svg.setAttribute("width", data.width);
      svg.setAttribute("height", height);
      const held = svg.contains(document.activeElement);
      const sorted = [...lines].sort((a, b) => a.strength - b.strength);
      const labels = rows.filter((row) => /^\d+$/.test(row)).map((row) => {
        const box = [...boxes.values()].find((each) => each.row === row);
        const y = box.y + (box.raised ? data.sizes.row / 2 : 0);
        return drawRow(data, row, y, state, current, boxes.has(`fold ${row}`));
      });
      svg.replaceChildren(
        markers(id), ...labels,
        ...sorted.map((line) => drawLine(data, id, picture, line, pinned)),
        ...[...boxes.values()].filter((box) => box.width)
          .map((box) => drawBox(data, box, { ...state, pinned }, near, current)),
      );
      if (held) svg.querySelector('[tabindex="0"][data-node]')?.focus();
      const edges = picture.edges.size;
      said.textContent = state.n === data.total ? `all ${several(data.total, "edge")}`
        : `${several(edges, "edge")} of the strongest ${state.n} ${edges === 1 ? "lies" : "lie"} `
          + "on paths from the input to the logits";
      slider.value = String(state.n);
      group.checked = state.grouped;
      free.hidden = !pinned;
      free.textContent = `Unpin ${pinned ?? ""}`;
      list(pinned, lines);
    };

    const list = (pinned, lines) => {
      const mine = lines.filter((line) => pinned && [line.source, line.target].includes(pinned))
        .sort((a, b) => b.strength - a.strength);
      table.hidden = !mine.length;
      table.querySelector("h5").textContent = `Edges of ${pinned ?? ""}, strongest first`;
      table.querySelector("ul").replaceChildren(...mine.map((line) => {
        const item = document.createElement("li");
        item.textContent = line.text;
        return item;
      }));
    };

    const act = (name) => {
      current = name;
      if (name.startsWith("fold ")) {
        state.open.delete(name.slice(5));
        current = `layer ${name.slice(5)}`;
      } else if (name.startsWith("layer ")) {
        const row = name.slice(6);
        state.open.add(row);
        current = data.nodes.find((node) => node.row === row && node.head
          && data.lines.some((x) => x.least <= state.n && [x.source, x.target].includes(node.name))
        ).name;
      } else state.pinned = state.pinned === name ? null : name;
      draw();
      remember();
    };
    const unpin = () => {
      state.pinned = null;
      draw();
      remember();
    };

    const step = (key) => {
      const all = [...picture.boxes.values()];
      const here = picture.boxes.get(current);
      if (key === "Home" || key === "End") return key === "Home" ? "input" : "logits";
      const across = key === "ArrowLeft" || key === "ArrowRight";
      const sign = key === "ArrowLeft" || key === "ArrowUp" ? -1 : 1;
      const ahead = across
        ? all.filter((box) => box.row === here.row && (box.x - here.x) * sign > 0)
        : all.filter((box) => (box.y - here.y) * sign > 1);
      if (!ahead.length) return current;
      const far = (box) => across ? Math.abs(box.x - here.x)
        : 10000 * Math.abs(box.y - here.y) + Math.abs((box.wide ? here.x : box.x) - here.x);
      return ahead.reduce((a, b) => far(b) < far(a) ? b : a).name;
    };

    slider.addEventListener("input", () => { state.n = Number(slider.value); draw(); remember(); });
    group.addEventListener("change", () => {
      state.grouped = group.checked;
      state.open.clear();
      draw();
      remember();
    });
    free.addEventListener("click", unpin);
    svg.addEventListener("click", (event) => {
      const node = event.target.closest("[data-node]");
      if (node) act(node.dataset.node);
    });
    place.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && state.pinned) return unpin();
      if (!svg.contains(event.target)) return;
      const node = event.target.closest("[data-node]");
      if (node && (event.key === "Enter" || event.key === " ")) act(node.dataset.node);
      else if (/^(Arrow|Home$|End$)/.test(event.key)) {
        current = step(event.key);
        for (const each of svg.querySelectorAll("[data-node]")) {
          each.setAttribute("tabindex", each.dataset.node === current ? "0" : "-1");
        }
        svg.querySelector('[data-node][tabindex="0"]').focus();
      } else return;
      event.preventDefault();
      event.stopPropagation();
    });
    place.addEventListener("focusin", (event) => {  // with it on an svg, that would take a Tab
      const node = event.target.closest("[data-node]");
      if (node) current = node.dataset.node;
    });
    if (own) window.addEventListener("hashchange", () => { recall(); draw(); });
    recall();
    draw();
    const frame = svg.parentElement;  // where the picture is wider, its middle holds both ends
    frame.scrollLeft = (frame.scrollWidth - frame.clientWidth) / 2;
  };

  const all = () => {
    for (const place of document.querySelectorAll(".rv-circuit:not([data-drawn])")) {
      place.dataset.drawn = "";
      begin(place);
    }
  };
  all();
  new MutationObserver(all).observe(document.documentElement, { childList: true, subtree: true });
})();
