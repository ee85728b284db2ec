(() => {
  if (window.resvalMarks) return;
  window.resvalMarks = true;
  let box = null;
  let said = null;  // the mark whose tip it is
  const hide = () => { if (box) { box.remove(); box = null; } };
  const show = (mark, x, y) => {
    if (!box) {
      box = document.createElement("div");
      box.className = "rv-tip";
      box.setAttribute("role", "tooltip");
      document.body.append(box);
    }
    said = mark;
    box.textContent = mark.getAttribute("aria-label");
    const { width, height } = box.getBoundingClientRect();
    const left = Math.min(Math.max(4, x + 12), window.innerWidth - width - 4);
    const below = y + 16 + height < window.innerHeight;
    box.style.left = `${Math.max(4, left)}px`;
    box.style.top = `${below ? y + 16 : Math.max(4, y - height - 8)}px`;
  };
  const beside = (mark) => {
    const { left, bottom, width } = mark.getBoundingClientRect();
    show(mark, left + width / 2, bottom - 8);
  };
  const markAt = (event) => event.target.closest?.(".rv-mark");
  let pointer = [-1, -1];  // where it was last
  // A line is thin: one that passes within a finger's uncertainty counts.
  const near = (event) => markAt(event) ?? [[5, 0], [-5, 0], [0, 5], [0, -5]]
    .map(([x, y]) => document.elementFromPoint(event.clientX + x, event.clientY + y))
    .map((found) => found?.closest(".rv-mark[data-line]"))
    .find(Boolean);
  document.addEventListener("pointermove", (event) => {
    const mark = near(event);
    pointer = [event.clientX, event.clientY];
    if (mark) show(mark, event.clientX, event.clientY);
    else if (!document.activeElement?.matches?.(".rv-mark:focus-visible")) hide();
    else if (box && said !== document.activeElement) beside(document.activeElement);
  });
  document.addEventListener("pointerdown", (event) => {
    const mark = near(event);
    if (mark) show(mark, event.clientX, event.clientY);
    else hide();
  });
  document.addEventListener("focusin", (event) => {
    const mark = markAt(event);
    if (mark?.matches(":focus-visible")) beside(mark);
  });
  document.addEventListener("focusout", (event) => { if (markAt(event) === said) hide(); });
  document.addEventListener("scroll", () => {
    const mark = document.activeElement;  // a focus may be what scrolled it into view
    if (box && mark?.matches?.(".rv-mark:focus-visible")) beside(mark);
    else if (!document.elementFromPoint(...pointer)?.closest(".rv-mark")) hide();
  }, { capture: true, passive: true });
  // CircuitsVis draws its heads for the mouse alone: let the keyboard lock them, and name them.
  const reach = (place) => {
    for (const head of place.querySelectorAll("figure:not([tabindex])")) {
      const name = `Head ${head.textContent.trim()}`;
      head.setAttribute("tabindex", "0");
      head.setAttribute("role", "button");
      head.setAttribute("aria-label", name);
    }
    for (const canvas of place.querySelectorAll("canvas:not([role])")) {
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", place.getAttribute("aria-label"));
    }
    for (const choice of place.querySelectorAll("select:not([aria-label])")) {
      choice.setAttribute("aria-label", "Direction");
    }
  };
  let views = 0;
  // What images stand for: CircuitsVis as soon as it is on the page, which may be later than this.
  const draw = () => {
    const instead = (place) => {
      const still = place.previousElementSibling;
      if (still?.matches(".rv-still")) still.hidden = true;
      return JSON.parse(place.querySelector("script").textContent);
    };
    for (const place of document.querySelectorAll(".rv-later")) place.outerHTML = instead(place);
    if (!window.CircuitsVis) return;
    for (const place of document.querySelectorAll(".rv-circuitsvis:not([id])")) {
      const { element, props } = instead(place);
      props.attention = props.attention.map((head) =>
        head.map((row) => row.map((weight) => weight / 10000)));
      views += 1;
      place.id = `rv-view-${views}`;
      window.CircuitsVis.render(place.id, window.CircuitsVis[element], props);
    }
  };
  window.resvalDraw = draw;
  // Themes that page.css does not know: light words are on a dark page.
  const look = () => {
    for (const place of document.querySelectorAll("html:not(.rv-page) .rv")) {
      const [r, g, b] = getComputedStyle(place).color.match(/[\d.]+/g).map(Number);
      place.toggleAttribute("data-light-ink", 0.2126 * r + 0.7152 * g + 0.0722 * b > 127);
    }
  };
  const watch = () => {
    look();
    draw();
    for (const place of document.querySelectorAll(".rv-circuitsvis:not([data-watched])")) {
      place.dataset.watched = "";
      new MutationObserver(() => reach(place)).observe(place, { childList: true, subtree: true });
      reach(place);
    }
  };
  watch();
  new MutationObserver(watch).observe(document.body, { childList: true, subtree: true });
  const themes = ["class", "theme", "data-jp-theme-light", "data-md-color-scheme"];
  const theme = { attributes: true, attributeFilter: themes };
  for (const part of [document.documentElement, document.body]) {
    new MutationObserver(look).observe(part, theme);
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hide();
    const head = event.target.closest?.(".rv-circuitsvis figure");
    if (head && (event.key === "Enter" || event.key === " ")) {
      event.preventDefault();
      head.click();
      return;
    }
    const mark = markAt(event);
    const figure = mark?.closest(".rv-figure");
    if (!figure) return;
    const marks = [...figure.querySelectorAll(".rv-mark")];
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    let to = marks.indexOf(mark) + (steps[event.key] ?? 0);
    if (event.key === "Home") to = 0;
    else if (event.key === "End") to = marks.length - 1;
    else if (!(event.key in steps)) return;
    event.preventDefault();
    to = Math.max(0, Math.min(marks.length - 1, to));
    mark.setAttribute("tabindex", "-1");
    marks[to].setAttribute("tabindex", "0");
    marks[to].focus();
  });
})();
