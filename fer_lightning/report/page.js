"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  root.classList.add("scripted");

  // Light, dark, or as the system says. Storage may be forbidden to a file.
  const themes = ["auto", "light", "dark"];
  const button = document.getElementById("theme");
  const setTheme = (theme) => {
    if (theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme;
    button.lastElementChild.textContent = theme;
  };
  let theme = "auto";
  try { theme = localStorage.getItem("fer-theme") || "auto"; } catch { /* not kept */ }
  setTheme(themes.includes(theme) ? theme : "auto");
  button.hidden = false;
  button.addEventListener("click", () => {
    theme = themes[(themes.indexOf(root.dataset.theme || "auto") + 1) % themes.length];
    setTheme(theme);
    try { localStorage.setItem("fer-theme", theme); } catch { /* not kept */ }
  });

  // Names of points stand where they cover nothing, and are left out where there is no such place.
  const nameSides = [["start", 9, -7], ["end", -9, -7], ["start", 9, 16], ["end", -9, 16], ["middle", 0, -13], ["middle", 0, 22]];
  const placeNames = () => all(".scatter").forEach((figure) => {
    const frame = figure.firstElementChild.getBoundingClientRect();
    if (!frame.width) return;
    const taken = all(".point path, .point line:not(.join)", figure).map((mark) => mark.getBoundingClientRect());
    all(".name", figure).forEach((name) => {
      const put = ([anchor, x, y]) => {
        name.setAttribute("text-anchor", anchor);
        name.setAttribute("x", x);
        name.setAttribute("y", y);
        return name.getBoundingClientRect();
      };
      const free = nameSides.some((side) => {
        const box = put(side);
        return box.left > frame.left && box.right < frame.right && box.top > frame.top && box.bottom < frame.bottom &&
          taken.every((other) => box.right < other.left || box.left > other.right || box.bottom < other.top || box.top > other.bottom);
      });
      name.style.visibility = free ? "" : "hidden";
      if (free) taken.push(name.getBoundingClientRect());
      // Shown when it is pointed at or picked, towards the middle.
      else put(nameSides[put(nameSides[0]).left > (frame.left + frame.right) / 2 ? 1 : 0]);
    });
  });

  all(".views").forEach((views) => {
    const show = () => {
      const chosen = views.querySelector(":scope > .switch input:checked").value;
      all(":scope > .view", views).forEach((view) => { view.hidden = view.dataset.view !== chosen; });
      placeNames();
    };
    views.firstElementChild.addEventListener("change", show);
    show();
  });
  placeNames();
  addEventListener("resize", placeNames);

  // A first click on numbers puts the largest first; what has no value stays at the end.
  all(".sortable").forEach((table) => all(".sort", table).forEach((sort) => sort.addEventListener("click", () => {
    const head = sort.closest("th");
    const place = [...head.parentNode.children].indexOf(head);
    const rows = all("tbody tr", table);
    const value = (row) => row.children[place].dataset.v;
    const numeric = rows.every((row) => value(row) === undefined || !Number.isNaN(Number(value(row))));
    const before = head.getAttribute("aria-sort");
    const order = before === "none" ? (numeric ? "descending" : "ascending") : before === "ascending" ? "descending" : "ascending";
    const sign = order === "ascending" ? 1 : -1;
    all("[aria-sort]", table).forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", order);
    rows.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      return sign * (numeric ? x - y : x.localeCompare(y));
    });
    table.tBodies[0].append(...rows);
  })));

  const picked = new Set();
  const pick = (number) => {
    if (!picked.delete(number)) picked.add(number);
    document.body.classList.toggle("picked", picked.size > 0);
    all("[data-m]").forEach((part) => part.classList.toggle("on", picked.has(part.dataset.m)));
    all("button[data-pick]").forEach((one) => one.setAttribute("aria-pressed", picked.has(one.dataset.pick)));
  };
  document.addEventListener("click", (event) => {
    const target = event.target.closest("[data-pick]");
    if (target) pick(target.dataset.pick);
  });

  const tip = document.getElementById("tip");
  const showTip = (event) => {
    const target = event.target.closest?.("[data-tip]");
    tip.hidden = !target;
    if (!target) return;
    tip.textContent = target.dataset.tip;
    const box = (target.querySelector(".hit") || target).getBoundingClientRect();
    const left = Math.min(Math.max(8, box.left + box.width / 2 - tip.offsetWidth / 2), root.clientWidth - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 8;
    tip.style.left = `${left}px`;
    tip.style.top = `${above < 8 ? box.bottom + 8 : above}px`;
  };
  document.addEventListener("pointerover", showTip);
  document.addEventListener("focusin", showTip);
  document.addEventListener("scroll", () => { tip.hidden = true; }, true);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") tip.hidden = true;
    const point = event.target.closest?.(".point");
    if (point && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); pick(point.dataset.pick); }
  });
})();
