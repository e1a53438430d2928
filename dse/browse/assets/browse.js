"use strict";
// Light or dark: the system's choice until a person chooses.
document.addEventListener("click", (event) => {
  if (!event.target.closest("#theme")) return;
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  root.dataset.theme = (root.dataset.theme || system) === "dark" ? "light" : "dark";
  try { localStorage.setItem("dse-theme", root.dataset.theme); } catch (error) { /* only for now */ }
});
