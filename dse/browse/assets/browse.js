"use strict";
// Light or dark: the system's choice until a person chooses.
document.addEventListener("click", (event) => {
  if (!event.target.closest("#theme")) return;
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  root.dataset.theme = (root.dataset.theme || system) === "dark" ? "light" : "dark";
  try { localStorage.setItem("dse-theme", root.dataset.theme); } catch (error) { /* only for now */ }
});
// Plotly's script runs while the page is asked for: earlier it would hold up the asking.
new MutationObserver((_, watch) => {
  if (!document.getElementById("page")) return;
  watch.disconnect();
  const script = document.createElement("script");
  script.src = document.querySelector('link[rel="preload"][href*="/plotly/"]').href;
  setTimeout(() => document.head.append(script), 30);
}).observe(document, { childList: true, subtree: true });
// The table comes as one piece of HTML (dse/browse/listing.py): what has the focus keeps it, and a
// table that was scrolled sideways stays there.
const list = (html) => {
  const place = document.getElementById("table");
  if (!place) return requestAnimationFrame(() => list(html));
  const active = place.contains(document.activeElement) ? document.activeElement : null;
  const [key, href] = [active?.dataset.key, active?.getAttribute("href")];
  const left = place.querySelector(".scroll")?.scrollLeft || 0;
  place.innerHTML = html;
  if (left) place.querySelector(".scroll")?.scrollTo({ left });
  const same = (e) => (key ? e.dataset.key === key : href && e.getAttribute("href") === href);
  if (active) [...place.querySelectorAll("button, a")].find(same)?.focus({ preventScroll: true });
};
window.dash_clientside = window.dash_clientside || {};
window.dash_clientside.browse = {
  list: (html) => { list(html); return window.dash_clientside.no_update; },
};
document.addEventListener("click", (event) => {
  const button = event.target.closest("#table button");
  if (!button || button.disabled) return;
  const { order, uid } = button.dataset;
  const { set_props: tell } = window.dash_clientside;
  if (order) tell("order", { data: JSON.parse(order) });
  if (uid) tell("picked", { data: { uid: Number(uid), at: event.timeStamp } });
});
