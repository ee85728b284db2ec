(() => {
  if (window.resvalAttention) return;
  window.resvalAttention = true;
  const SHARES = 10000;
  const make = (parent, tag, name = "", text = "") => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text) made.textContent = text;
    parent.append(made);
    return made;
  };
  const seen = (token) => token.replace(/\n/g, "↵").replace(/\t/g, "⇥") || "∅";
  const short = (x) => (x < 0.005 ? "" : x.toFixed(2).replace(/^0/, ""));
  const exact = (x) => x.toFixed(4).replace(/^0\./, ".");
  const digits = (x) => (x === 0 ? "0" : x.toFixed(x < 1 ? 3 : x < 10 ? 2 : 1));

  // Ten-thousandths, two bytes each, deflated; of causal attention nothing above the diagonal.
  const unpack = async (text) => {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint16Array(await new Response(plain).arrayBuffer());
  };

  // "1.2, 5, .3, 2-4.h0, a1.h2": heads that any of these names; null where one names nothing.
  const chooser = (text) => {
    const items = text.split(/[,;\s]+/).filter(Boolean).map((item) =>
      item.match(/^(?:a?(\d+)(?:-(\d+))?)?(?:(?:\.h?|h)(\d+)(?:-(\d+))?)?$/));
    if (!items.every(Boolean)) return null;
    const within = (x, low, high) =>
      low === undefined || (x >= Number(low) && x <= Number(high ?? low));
    return (layer, head) => items.some(([, a, b, c, d]) =>
      within(layer, a, b) && within(head, c, d));
  };

  const build = async (root) => {
    const data = JSON.parse(root.querySelector("script").textContent);
    const { tokens, names, causal, strength, written } = data;
    const n = tokens.length;
    const packed = await unpack(data.weights);
    const per = causal ? (n * (n + 1)) / 2 : n * n;
    const weight = (head, query, key) => {
      if (!causal) return packed[head * per + query * n + key] / SHARES;
      return key > query ? 0 : packed[head * per + (query * (query + 1)) / 2 + key] / SHARES;
    };
    const places = names.map((name) => name.match(/^a?(\d+)\.h?(\d+)$/)?.slice(1).map(Number));
    const layered = places.every(Boolean);
    const token = (at) => `${at} ‘${seen(tokens[at].trim() || tokens[at])}’`;
    const state = { head: 0, query: null, over: null, key: null };
    const query = () => state.over ?? state.query;
    // Mean over the queries that can see a key.
    const mean = (key, of) => {
      const first = causal ? key : 0;
      let sum = 0;
      for (let at = first; at < n; at += 1) sum += of(at, key);
      return sum / (n - first);
    };
    const on = (key) => {  // the weight on a key, of the chosen query or of all
      const of = (at) => weight(state.head, at, key);
      return query() === null ? mean(key, of) : of(query());
    };

    // --- what is on the page ---------------------------------------------------------------------
    const controls = make(root, "div", "rv-controls");
    const field = (label, tag) => {
      const place = make(controls, "label", "", `${label} `);
      return make(place, tag);
    };
    const orders = [];
    if (data.given) orders.push(["given", "as given"]);
    if (strength) orders.push(["strength", "strongest first"]);
    if (layered) orders.push(["layer", "by layer"]);
    let order, filter, count;
    if (orders.length > 1) {
      order = field("Order", "select");
      order.setAttribute("aria-label", "Order of heads");
      for (const [value, text] of orders) make(order, "option", "", text).value = value;
    }
    if (layered && names.length > 4) {
      filter = field("Heads", "input");
      filter.type = "text";
      filter.placeholder = "all; 5, 1.2, .3";
      filter.setAttribute("aria-label", "Heads: 5 is layer 5, 1.2 head 2 of layer 1, "
        + ".3 head 3 of every layer");
      count = make(controls, "span", "rv-count");
      count.setAttribute("role", "status");
    }
    const chosen = field("Query", "select");
    chosen.setAttribute("aria-label", "Query token");
    make(chosen, "option", "", "all").value = "";
    tokens.forEach((_, at) => { make(chosen, "option", "", token(at)).value = at; });

    const both = make(root, "div", "rv-both");
    const grid = make(both, "div", "rv-grid");
    grid.setAttribute("role", "group");
    grid.setAttribute("aria-label", "Heads: arrow keys go through them");
    const small = names.map((name, head) => {
      const made = document.createElement("button");
      made.type = "button";
      made.className = "rv-head";
      made.dataset.head = head;
      if (strength) made.title = `${name}: strength ${digits(strength[head])}`;
      const canvas = make(made, "canvas");
      canvas.setAttribute("aria-hidden", "true");
      canvas.setAttribute("aria-label", name);
      make(made, "span", "", name);
      return { made, canvas };
    });
    grid.hidden = names.length < 2;
    const side = names.length <= 4 ? 9 : names.length <= 16 ? 6 : 3;
    root.style.setProperty("--rv-side", `${side}rem`);
    const one = make(both, "div", "rv-one");
    const title = make(one, "div", "rv-title");
    const square = make(one, "div", "rv-square");
    square.tabIndex = 0;
    square.setAttribute("role", "group");
    const large = make(square, "canvas");
    large.setAttribute("role", "img");
    const row = make(square, "div", "rv-row");
    const cell = make(square, "div", "rv-cell");
    const scale = make(one, "div", "rv-scale");
    make(scale, "span", "", "queries ↓ keys →");
    const bar = make(scale, "span", "rv-legend");
    for (const at of ["0", ".25", "1"]) make(bar, "span", "", at);
    const said = make(one, "p", "rv-said");
    said.setAttribute("role", "status");

    const strip = (focusable) => {
      const heading = make(one, "div", "rv-strip-name rv-line");
      const place = make(one, "div", "rv-strip");
      const each = tokens.map((text, at) => {
        const made = make(place, focusable ? "button" : "span", "rv-token");
        if (focusable) { made.type = "button"; made.tabIndex = at ? -1 : 0; }
        make(made, "span", "rv-word", seen(text));
        made.dataset.at = at;
        return { made, number: make(made, "small") };
      });
      return { heading, place, each };
    };
    const to = strip(true), from = strip(false);
    to.place.setAttribute("role", "group");
    to.place.setAttribute("aria-label", "Tokens: arrow keys go through them, Enter keeps one as "
      + "the query, Escape is all");

    let over, parts;
    if (written) {
      const heading = make(one, "div", "rv-strip-name", "Written from each source token: "
        + "weight × ‖value W_O‖, of ");
      make(heading, "span", "rv-key rv-own");
      make(heading, "span", "", " its own values and ");
      make(heading, "span", "rv-key rv-link");
      make(heading, "span", "", " the link's values");
      over = make(heading, "span");
      const place = make(one, "div", "rv-written");
      place.tabIndex = 0;
      place.setAttribute("role", "region");
      place.setAttribute("aria-label", "What is written from each source token");
      parts = tokens.map((text, at) => {
        const line = make(place, "div", "rv-source");
        line.dataset.at = at;
        make(line, "span", "rv-word", seen(text));
        const bars = make(line, "span", "rv-bars");
        return { line, own: make(bars, "span", "rv-own"), link: make(bars, "span", "rv-link"),
                 number: make(line, "span", "rv-number") };
      });
    }

    // --- drawing: a pixel is a weight, and its alpha the root of it ------------------------------
    const paint = (canvas, head, only) => {
      canvas.width = canvas.height = n;
      const [r, g, b] = getComputedStyle(large).color.match(/[\d.]+/g).map(Number);
      const image = new ImageData(n, n);
      for (let at = 0, i = 0; at < n; at += 1) {
        for (let key = 0; key < n; key += 1, i += 4) {
          const alpha = 255 * Math.sqrt(weight(head, only ?? at, key));
          image.data.set([r, g, b, alpha], i);
        }
      }
      canvas.getContext("2d").putImageData(image, 0, 0);
    };
    const paintSmall = () => {
      if (names.length > 1) small.forEach(({ canvas }, head) => paint(canvas, head, query()));
    };
    const paintLarge = () => paint(large, state.head);
    let shownQuery = null;
    const frame = (place, top, left, high, wide) => {
      place.hidden = top === null;
      if (top === null) return;
      place.style.top = `${(100 * top) / n}%`;
      place.style.left = `${(100 * left) / n}%`;
      place.style.height = `${(100 * high) / n}%`;
      place.style.width = `${(100 * wide) / n}%`;
    };
    const sources = (key) =>
      [written.own, written.link].map((sizes) => on(key) * sizes[state.head][key]);
    const tell = () => {
      const at = query();
      if (at !== null && state.key !== null) {
        let text = `query ${token(at)} → key ${token(state.key)}: `
          + exact(weight(state.head, at, state.key));
        if (written && weight(state.head, at, state.key) > 0) {
          const [own, link] = sources(state.key);
          text += `; writes ${digits(own)} of its own values, ${digits(link)} of the link's`;
        }
        said.textContent = text;
        return;
      }
      if (at === null) {
        said.textContent = "Point at a token, touch it or Tab to it, to see what it attends to "
          + "and what attends to it; click or Enter keeps it.";
        return;
      }
      const top = (of) => tokens.map((_, i) => [of(i), i]).sort((x, y) => y[0] - x[0])
        .slice(0, 3).filter(([x]) => x >= 0.005).map(([x, i]) => `${token(i)} ${exact(x)}`)
        .join(", ") || "nothing";
      said.textContent = `${token(at)} attends to ${top((i) => weight(state.head, at, i))}; `
        + `attended to by ${top((i) => weight(state.head, i, at))}`;
    };
    const update = () => {
      const at = query();
      title.textContent = `${names[state.head]} `;
      if (strength) {
        make(title, "span", "rv-quiet", `strength ${digits(strength[state.head])}`);
      }
      large.setAttribute("aria-label", `Attention of ${names[state.head]}`);
      square.setAttribute("aria-label", `Weights of ${names[state.head]}: queries down, keys `
        + "across; arrow keys go through the cells");
      frame(row, at, 0, 1, n);
      frame(cell, at === null || state.key === null ? null : at, state.key ?? 0, 1, 1);
      to.heading.textContent = at === null ? "Weight on each token, mean over the queries"
        : `What ${token(at)} attends to`;
      from.heading.textContent = at === null ? "" : `What attends to ${token(at)}`;
      from.place.hidden = at === null;
      tokens.forEach((_, i) => {
        const shades = [[to, on(i)], [from, at === null ? 0 : weight(state.head, i, at)]];
        for (const [{ each }, x] of shades) {
          const { made, number } = each[i];
          made.style.setProperty("--rv-weight", `${55 * Math.sqrt(x)}%`);
          number.textContent = short(x);
          made.classList.toggle("rv-chosen", i === at);
        }
        to.each[i].made.setAttribute("aria-pressed", i === state.query);
      });
      if (written) {
        const all = tokens.map((_, i) => sources(i));
        const most = Math.max(...all.map(([own, link]) => own + link), 1e-12);
        over.textContent = at === null ? " (mean over the queries)" : "";
        parts.forEach(({ line, own, link, number }, i) => {
          line.hidden = causal && at !== null && i > at;
          own.style.width = `${(100 * all[i][0]) / most}%`;
          link.style.width = `${(100 * all[i][1]) / most}%`;
          number.textContent = `own ${digits(all[i][0])}, link ${digits(all[i][1])}`;
        });
      }
      chosen.value = state.query ?? "";
      small.forEach(({ made }, head) => {
        made.setAttribute("aria-pressed", head === state.head);
      });
      if (at !== shownQuery) { shownQuery = at; paintSmall(); }
      tell();
    };
    let asked = false;
    const later = () => {
      if (asked) return;
      asked = true;
      requestAnimationFrame(() => { asked = false; update(); });
    };
    const show = (changes) => { Object.assign(state, changes); later(); };
    const pick = (head) => {
      if (head === state.head) return;
      state.head = head;
      paintLarge();
      later();
    };

    // --- heads: order and filter -----------------------------------------------------------------
    const lay = () => {
      const by = order?.value ?? "given";
      const which = filter?.value.trim() ? chooser(filter.value) : () => true;
      if (filter) filter.toggleAttribute("aria-invalid", !which);
      const shown = names.map((_, head) => head)
        .filter((head) => !layered || !which || which(...places[head]));
      if (count) {
        count.textContent = which ? `${shown.length} of ${names.length}`
          : "no head is written so: 5, 1.2, .3";
      }
      if (by === "strength") {
        shown.sort((a, b) => Math.abs(strength[b]) - Math.abs(strength[a]));
      } else if (by === "layer") {
        shown.sort((a, b) => places[a][0] - places[b][0] || places[a][1] - places[b][1]);
      }
      grid.classList.toggle("rv-by-layer", by === "layer");
      grid.replaceChildren();
      const columns = by === "layer" && [...new Set(shown.map((head) => places[head][1]))]
        .sort((a, b) => a - b);
      const rows = columns && [...new Set(shown.map((head) => places[head][0]))];
      const name = (text, value, at) => {
        const made = make(grid, "button", "rv-axis", text);
        made.type = "button";
        made.tabIndex = -1;
        made.dataset.filter = value;
        Object.assign(made.style, at);
      };
      if (columns && filter) {
        rows.forEach((layer, i) => name(`layer ${layer}`, `${layer}`,
          { gridRow: i + 2, gridColumn: 1 }));
        columns.forEach((head, i) => name(`.${head}`, `.${head}`,
          { gridRow: 1, gridColumn: i + 2 }));
      }
      shown.forEach((head) => {
        const { made } = small[head];
        grid.append(made);
        made.style.gridRow = columns ? rows.indexOf(places[head][0]) + 2 : "";
        made.style.gridColumn = columns ? columns.indexOf(places[head][1]) + 2 : "";
      });
      for (const made of grid.querySelectorAll("button")) made.tabIndex = -1;
      const first = shown.includes(state.head) ? state.head : shown[0];
      if (first !== undefined) { small[first].made.tabIndex = 0; pick(first); }
    };
    const step = (from_, key, all) => {
      const here = all.indexOf(from_);
      const { offsetTop: y, offsetLeft: x } = from_;
      if (key === "Home") return all[0];
      if (key === "End") return all.at(-1);
      if (key === "ArrowRight") return all[here + 1];
      if (key === "ArrowLeft") return all[here - 1];
      const down = key === "ArrowDown";
      const others = all.filter((other) => (down ? other.offsetTop > y : other.offsetTop < y));
      const line = others.at(down ? 0 : -1)?.offsetTop;
      return others.filter((other) => other.offsetTop === line)
        .sort((a, b) => Math.abs(a.offsetLeft - x) - Math.abs(b.offsetLeft - x))[0];
    };
    const KEYS = ["ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown", "Home", "End"];
    const roving = (place, kind, event) => {
      const mine = event.target.closest(kind);
      if (!mine || !KEYS.includes(event.key)) return;
      event.preventDefault();
      const next = step(mine, event.key, [...place.querySelectorAll(kind)]);
      if (!next) return;
      for (const other of place.querySelectorAll("[tabindex='0']")) other.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    };

    // --- what a reader does ----------------------------------------------------------------------
    order?.addEventListener("change", lay);
    filter?.addEventListener("input", lay);
    chosen.addEventListener("change", () =>
      show({ query: chosen.value === "" ? null : Number(chosen.value), key: null }));
    grid.addEventListener("keydown", (event) => roving(grid, ".rv-head, .rv-axis", event));
    grid.addEventListener("focusin", (event) => {
      const head = event.target.closest(".rv-head");
      if (head) pick(Number(head.dataset.head));
    });
    grid.addEventListener("click", (event) => {
      const head = event.target.closest(".rv-head"), axis = event.target.closest(".rv-axis");
      if (head) pick(Number(head.dataset.head));
      if (axis) {
        filter.value = filter.value === axis.dataset.filter ? "" : axis.dataset.filter;
        lay();
        grid.querySelector(".rv-axis")?.focus();
      }
    });
    const at = (event) => {
      const place = event.target.closest("[data-at]");
      return place && Number(place.dataset.at);
    };
    for (const { place } of [to, from]) {
      place.addEventListener("pointerover", (event) => {
        if (at(event) !== null) show({ over: at(event), key: null });
      });
      place.addEventListener("pointerleave", () => show({ over: null }));
      place.addEventListener("click", (event) => {
        const own = at(event);
        if (own !== null) show({ query: own === state.query ? null : own, key: null });
      });
    }
    to.place.addEventListener("keydown", (event) => {
      if (event.key === "Escape") show({ query: null, over: null, key: null });
      else roving(to.place, ".rv-token", event);
    });
    to.place.addEventListener("focusin", (event) => {
      if (event.target.matches(":focus-visible")) show({ over: at(event), key: null });
    });
    to.place.addEventListener("focusout", () => show({ over: null }));
    square.addEventListener("pointermove", (event) => {
      const { left, top, width, height } = large.getBoundingClientRect();
      const place = (x, size) => Math.max(0, Math.min(n - 1, Math.floor((x / size) * n)));
      show({ over: place(event.clientY - top, height), key: place(event.clientX - left, width) });
    });
    square.addEventListener("pointerleave", () => show({ over: null, key: null }));
    square.addEventListener("click", () => {
      if (state.over !== null) show({ query: state.over === state.query ? null : state.over });
    });
    square.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return show({ query: null, over: null, key: null });
      const steps = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] };
      if (event.key === "Enter") return show({ query: query(), key: state.key });
      if (!(event.key in steps)) return undefined;
      event.preventDefault();
      const near = (x, by) => (x === null ? n - 1 : Math.max(0, Math.min(n - 1, x + by)));
      const [down, right] = steps[event.key];
      return show({ over: near(query(), down), key: near(state.key, right) });
    });
    square.addEventListener("focusout", () => show({ over: null, key: null }));
    root.resvalRepaint = () => { paintLarge(); paintSmall(); };
    lay();
    root.resvalRepaint();
    update();
    root.dataset.ready = "";
  };

  const watch = () => {
    for (const root of document.querySelectorAll(".rv-heads:not([data-built])")) {
      root.dataset.built = "";
      build(root).catch((error) => {
        const line = make(root, "p", "rv-quiet");
        line.textContent = `This browser cannot show the patterns (${error.message}).`;
      });
    }
  };
  // Canvases have the colours of the theme that they were painted in.
  const repaint = () => requestAnimationFrame(() => {
    for (const root of document.querySelectorAll(".rv-heads")) root.resvalRepaint?.();
  });
  watch();
  new MutationObserver(watch).observe(document.body, { childList: true, subtree: true });
  for (const kind of ["(prefers-color-scheme: dark)", "(forced-colors: active)"]) {
    matchMedia(kind).addEventListener("change", repaint);
  }
  new MutationObserver(repaint).observe(document.documentElement, {
    attributes: true, subtree: true,
    attributeFilter: ["data-light-ink", "theme", "data-jp-theme-light"],
  });
  const themes = { attributes: true, attributeFilter: ["class"] };
  for (const part of [document.documentElement, document.body]) {
    new MutationObserver(repaint).observe(part, themes);
  }
})();
