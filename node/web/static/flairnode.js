"use strict";
// What the pages do beyond links and forms; each works without it.

document.getElementById("theme")?.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
});

// A page with #live asks for its changing part again when something happened.
if (document.getElementById("live") && "EventSource" in window) {
  const source = new EventSource("/events");
  source.addEventListener("changed", () => htmx.trigger("#live", "changed"));
  addEventListener("pagehide", () => source.close());
}

// The slices of a result: without this file its form shows one slice at a time.
const viewer = document.getElementById("viewer");
if (viewer) {
  const { base, count } = viewer.dataset;
  const withLesions = new Set(viewer.dataset.lesions.split(" ").filter(Boolean).map(Number));
  const grey = document.getElementById("grey");
  const lesions = document.getElementById("lesions");
  const slice = document.getElementById("slice");
  const opacity = document.getElementById("opacity");
  const layers = viewer.querySelector(".layers");
  let shown = true;

  const show = (number) => {
    slice.value = Math.min(Math.max(number, 1), Number(count));
    const index = slice.value - 1;
    grey.src = `${base}/slice/${index}.png`;
    lesions.hidden = !shown || !withLesions.has(index);
    if (withLesions.has(index)) lesions.src = `${base}/lesions/${index}.png`;
    document.getElementById("number").value = `${slice.value} of ${count}`;
    const has = withLesions.has(index) ? ", with lesions" : "";
    layers.setAttribute("aria-label", `Slice ${slice.value} of ${count}${has}`);
  };
  const step = (by) => show(Number(slice.value) + by);

  slice.addEventListener("input", () => show(Number(slice.value)));
  opacity.addEventListener("input", () => {
    lesions.style.opacity = opacity.value / 100;
    opacity.setAttribute("aria-valuetext", `${opacity.value} %`);
  });
  layers.addEventListener("wheel", (event) => {
    event.preventDefault();
    step(event.deltaY > 0 ? -1 : 1);
  }, { passive: false });
  layers.addEventListener("keydown", (event) => {
    const by = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1 }[event.key];
    if (by) { event.preventDefault(); step(by); }
    if (event.key.toLowerCase() === "l") { shown = !shown; step(0); }
  });
  for (const link of document.querySelectorAll(".to-slice")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      show(Number(link.dataset.slice));
      layers.focus();
    });
  }
}
