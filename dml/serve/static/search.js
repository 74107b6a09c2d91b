// What the page cannot do without script: drop, paste, and search at once, with the image kept for a change of class.
"use strict";
const form = document.getElementById("search");
const input = document.getElementById("image");
const told = document.getElementById("status");
let running = null;

document.documentElement.classList.add("scripted");

async function search() {
  running?.abort();
  const mine = (running = new AbortController());
  const results = document.getElementById("results");
  results.setAttribute("aria-busy", "true");
  told.textContent = "Searching";
  try {
    const response = await fetch("/", { method: "POST", body: new FormData(form), signal: mine.signal });
    const text = await response.text();
    if (response.headers.get("content-type")?.startsWith("text/html")) {
      const page = new DOMParser().parseFromString(text, "text/html");
      results.replaceChildren(...page.getElementById("results").childNodes);
      document.title = page.title;
      const heading = results.querySelector("[role=alert], #found");
      told.textContent = heading ? heading.textContent : "";
    } else {
      tell(results, JSON.parse(text).error);
    }
  } catch (error) {
    if (mine.signal.aborted) return; // a later search has begun
    tell(results, "The server does not answer. Is it still running?");
  }
  results.removeAttribute("aria-busy");
}

function tell(results, what) {
  const line = document.createElement("p");
  line.className = "problem";
  line.setAttribute("role", "alert");
  line.textContent = what;
  results.replaceChildren(line);
  told.textContent = "";
}

function take(transfer) {
  const image = [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/") || !file.type);
  if (!image) return false;
  const one = new DataTransfer();
  one.items.add(image);
  input.files = one.files;
  search();
  return true;
}

function again() {
  if (input.files.length) search();
  else if (form.elements.row) form.requestSubmit();
}

input.addEventListener("change", () => input.files.length && search());
for (const name of ["label", "k"]) form.elements[name]?.addEventListener("change", again);
form.addEventListener("submit", (event) => {
  if (input.files.length) {
    event.preventDefault();
    search();
  } else if (!form.elements.row) {
    event.preventDefault();
    input.click();
  }
});
document.addEventListener("paste", (event) => take(event.clipboardData) && event.preventDefault());

const brings = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragover", (event) => {
  if (!brings(event)) return;
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  document.body.classList.remove("dropping");
  if (!brings(event)) return;
  event.preventDefault();
  if (!take(event.dataTransfer)) {
    tell(document.getElementById("results"), "What was dropped is no image.");
  }
});
