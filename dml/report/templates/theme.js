// Light, dark, or as the system has it; remembered where the browser lets a file remember.
(() => {
  const names = { auto: "system", light: "light", dark: "dark" };
  const order = Object.keys(names);
  const root = document.documentElement;
  const remembered = () => {
    try { return localStorage.getItem("dml-theme"); } catch { return null; }
  };
  const show = (theme) => {
    if (theme === "auto") root.removeAttribute("data-theme");
    else root.dataset.theme = theme;
  };
  let theme = order.includes(remembered()) ? remembered() : "auto";
  show(theme);
  document.addEventListener("DOMContentLoaded", () => {
    root.classList.add("scripted");
    const button = document.getElementById("theme");
    button.hidden = false;
    const label = () => { button.textContent = `Theme: ${names[theme]}`; };
    label();
    button.addEventListener("click", () => {
      theme = order[(order.indexOf(theme) + 1) % order.length];
      show(theme);
      label();
      try { localStorage.setItem("dml-theme", theme); } catch { /* remembered for this visit only */ }
    });
  });
  // Paper shows everything: what is folded away is opened for it, and closed again.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((element) => { element.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((element) => { element.open = false; }));
})();
