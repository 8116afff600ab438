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
