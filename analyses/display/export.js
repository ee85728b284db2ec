(() => {
  if (window.resvalExport) return;
  window.resvalExport = true;
  const INHERITED = ["fill", "fill-opacity", "stroke", "stroke-opacity", "stroke-width", "stroke-dasharray",
    "stroke-linejoin", "stroke-linecap", "font-family", "font-size", "font-weight", "font-style",
    "text-anchor", "dominant-baseline", "visibility"];
  const OWN = { opacity: "1", display: "inline" };
  // What a class or the page says, each element says itself: a file has no page around it.
  const resolve = (from, to) => {
    const own = getComputedStyle(from);
    const above = from.matches("svg") ? null : getComputedStyle(from.parentElement);
    const said = INHERITED.filter((name) => own.getPropertyValue(name)
      !== above?.getPropertyValue(name));
    const style = said.map((name) => `${name}: ${own.getPropertyValue(name)}`);
    for (const [name, usual] of Object.entries(OWN)) {
      const value = own.getPropertyValue(name);
      if (value !== usual && !from.matches("svg")) style.push(`${name}: ${value}`);
    }
    to.setAttribute("style", style.join("; "));
    [...from.children].forEach((child, i) => resolve(child, to.children[i]));
  };
  const SVG = "http://www.w3.org/2000/svg";
  // The figure as a document of its own: light and on white, whatever the page is.
  const drawing = (figure) => {
    const { width } = figure.querySelector("svg").getBoundingClientRect();
    const light = document.createElement("div");
    light.className = "rv rv-light";
    light.style.width = `${width}px`;
    light.append(figure.cloneNode(true));
    document.body.append(light);
    const shown = light.querySelector("svg");
    const made = shown.cloneNode(true);
    resolve(shown, made);
    const box = made.viewBox.baseVal;
    light.remove();
    made.setAttribute("xmlns", SVG);
    made.setAttribute("width", box.width);
    made.setAttribute("height", box.height);
    const white = document.createElementNS(SVG, "rect");
    for (const [name, value] of Object.entries(
      { x: box.x, y: box.y, width: box.width, height: box.height, fill: "#ffffff" },
    )) white.setAttribute(name, value);
    for (const mark of made.querySelectorAll("[aria-label]")) {
      const said = document.createElementNS(SVG, "title");
      said.textContent = mark.getAttribute("aria-label");
      mark.prepend(said);
    }
    for (const part of [made, ...made.querySelectorAll("*")]) {
      for (const name of ["class", "tabindex", "role", "aria-label", "data-line"]) {
        part.removeAttribute(name);
      }
    }
    const name = document.createElementNS(SVG, "title");
    name.textContent = figure.querySelector("svg").getAttribute("aria-label");
    made.prepend(name, white);
    return made;
  };
  const keep = (blob, name) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  const blobOf = (made) =>
    new Blob([new XMLSerializer().serializeToString(made)], { type: "image/svg+xml" });
  const asPng = (made, name) => {
    const image = new Image();
    const [width, height] = ["width", "height"].map((side) => made.getAttribute(side) * 1);
    image.onload = () => {
      const canvas = document.createElement("canvas");
      const scale = Math.min(3, 8000 / Math.max(width, height));
      canvas.width = Math.ceil(width * scale);
      canvas.height = Math.ceil(height * scale);
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      URL.revokeObjectURL(image.src);
      canvas.toBlob((blob) => keep(blob, name), "image/png");
    };
    image.src = URL.createObjectURL(blobOf(made));
  };
  // The browser's own print dialogue makes the PDF, of one sheet as large as the figure.
  const print = (made) => {
    const sheet = document.createElement("style");
    const [width, height] = ["width", "height"].map((side) => Math.ceil(made.getAttribute(side)));
    sheet.textContent = `@page { size: ${width}px ${height}px; margin: 0; }`;
    const place = document.createElement("div");
    place.className = "rv-printed";
    place.append(made);
    document.head.append(sheet);
    document.body.append(place);
    window.addEventListener("afterprint", () => { sheet.remove(); place.remove(); },
      { once: true });
    window.print();
  };
  const button = (tools, text, what, act) => {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.setAttribute("aria-label", `${text} of ${what}`);
    made.addEventListener("click", act);
    tools.append(made);
  };
  const nameOf = (tools) => tools.querySelector("a").id.replace(/^(figure|table)-/, "");
  for (const figure of document.querySelectorAll(".rv-page figure:has(> .rv-tools)")) {
    const tools = figure.querySelector(".rv-tools");
    const what = tools.dataset.of;
    button(tools, "SVG", what, () => keep(blobOf(drawing(figure)), `${nameOf(tools)}.svg`));
    button(tools, "PNG", what, () => asPng(drawing(figure), `${nameOf(tools)}.png`));
    button(tools, "PDF", what, () => print(drawing(figure)));
  }
  for (const table of document.querySelectorAll(".rv-page .rv-table")) {
    const tools = table.querySelector(".rv-tools");
    const cells = JSON.parse(table.querySelector(".rv-csv").textContent);
    button(tools, "CSV", tools.dataset.of,
      () => keep(new Blob([cells], { type: "text/csv" }), `${nameOf(tools)}.csv`));
  }
  // A link into what is folded opens it; paper shows all.
  const open = () => {
    const place = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const folded = place?.closest(".rv-table")?.querySelector("details");
    if (folded) folded.open = true;
  };
  open();
  window.addEventListener("hashchange", open);
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const each of opened) each.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const each of opened) each.open = false;
  });
})();
