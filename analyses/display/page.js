(() => {
  if (window.resvalMarks) return;
  window.resvalMarks = true;
  let box = null;
  const hide = () => { if (box) { box.remove(); box = null; } };
  const show = (mark, x, y) => {
    if (!box) {
      box = document.createElement("div");
      box.className = "rv-tip";
      box.setAttribute("role", "tooltip");
      document.body.append(box);
    }
    box.textContent = mark.getAttribute("aria-label");
    const { width, height } = box.getBoundingClientRect();
    const left = Math.min(Math.max(4, x + 12), window.innerWidth - width - 4);
    const below = y + 16 + height < window.innerHeight;
    box.style.left = `${Math.max(4, left)}px`;
    box.style.top = `${below ? y + 16 : Math.max(4, y - height - 8)}px`;
  };
  const markAt = (event) => event.target.closest?.(".rv-mark");
  document.addEventListener("pointermove", (event) => {
    const mark = markAt(event);
    if (mark) show(mark, event.clientX, event.clientY);
    else if (!document.activeElement?.matches?.(".rv-mark:focus-visible")) hide();
  });
  document.addEventListener("pointerdown", (event) => {
    const mark = markAt(event);
    if (mark) show(mark, event.clientX, event.clientY);
    else hide();
  });
  document.addEventListener("focusin", (event) => {
    const mark = markAt(event);
    if (!mark || !mark.matches(":focus-visible")) return;
    const { left, bottom, width } = mark.getBoundingClientRect();
    show(mark, left + width / 2, bottom - 8);
  });
  document.addEventListener("focusout", (event) => { if (markAt(event)) hide(); });
  document.addEventListener("scroll", hide, { capture: true, passive: true });
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
  const watch = () => {
    for (const place of document.querySelectorAll(".rv-circuitsvis:not([data-watched])")) {
      place.dataset.watched = "";
      new MutationObserver(() => reach(place)).observe(place, { childList: true, subtree: true });
      reach(place);
    }
  };
  watch();
  new MutationObserver(watch).observe(document.body, { childList: true, subtree: true });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hide();
    const head = event.target.closest?.(".rv-circuitsvis figure");
    if (head && (event.key === "Enter" || event.key === " ")) {
      event.preventDefault();
      head.click();
      return;
    }
    const mark = markAt(event);
    if (!mark) return;
    const marks = [...mark.closest(".rv-figure").querySelectorAll(".rv-mark")];
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
