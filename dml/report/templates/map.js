// The embedding map: pictures on hover and focus, arrow keys, a switch of projections, a highlighted class.
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const data = read("map-data");
  const thumbnails = read("thumbnails");
  const picture = document.getElementById("map-picture");
  const points = [...picture.querySelectorAll(".point")];
  const card = document.getElementById("card");
  const tie = document.getElementById("tie");
  const highlight = document.getElementById("highlight");
  const SVG = "http://www.w3.org/2000/svg";
  let places = data.layouts[0];
  let active = -1;
  let home = 0; // the point that Tab goes to

  const element = (tag, css, text) => {
    const made = document.createElement(tag);
    if (css) made.className = css;
    if (text) made.textContent = text;
    return made;
  };

  const shown = (item) => {
    if (item in thumbnails) {
      const image = element("img", "picture");
      image.src = `data:image/webp;base64,${thumbnails[item]}`;
      image.alt = "";
      return image;
    }
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", "0 0 1 1");
    svg.setAttribute("class", "picture");
    const use = document.createElementNS(SVG, "use");
    use.setAttribute("href", `#picture-${item}`);
    svg.append(use);
    return svg;
  };

  const half = (heading, point, css, name) => {
    const figure = element("div", "half");
    figure.append(element("span", "card-title", heading), shown(data.item[point]));
    figure.append(element("span", css, name));
    return figure;
  };

  const fill = (point) => {
    card.replaceChildren();
    const own = data.classes[data.of[point]];
    const other = data.nearest[point];
    const halves = element("div", "halves");
    halves.append(half("This image", point, "class", own));
    const found = data.nearestClass[point] < 0 ? "" : data.classes[data.nearestClass[point]];
    const told = data.mark[point] === "right" ? "✓ right: " : "✗ wrong: ";
    if (found && other >= 0) halves.append(half("Its nearest", other, `class ${data.mark[point]}`, told + found));
    card.append(halves);
    if (found && other < 0) card.append(element("span", `class ${data.mark[point]}`, `nearest, ${told}${found}`));
    card.append(element("span", "path", data.path[point]));
  };

  const beside = (point) => {
    const box = picture.getBoundingClientRect();
    const scale = box.width / 1000;
    const [x, y] = places[point].map((value) => value * scale);
    const { offsetWidth: width, offsetHeight: height } = card;
    const left = x + 16 + width <= box.width ? x + 16 : x - 16 - width;
    card.style.left = `${Math.max(0, Math.min(left, box.width - width))}px`;
    card.style.top = `${Math.max(-24, Math.min(y - height / 2, box.height - height))}px`;
  };

  const mark = (css, wanted) => points.forEach((point, i) => point.classList.toggle(css, wanted(i)));

  const show = (point) => {
    if (point === active) return;
    if (active >= 0) {
      points[active].classList.remove("active");
      points[active].setAttribute("aria-selected", "false");
    }
    active = point;
    picture.classList.toggle("looking", point >= 0);
    if (point < 0) {
      card.hidden = true;
      tie.setAttribute("hidden", "");
      mark("kin", () => false);
      return;
    }
    points[point].classList.add("active");
    points[point].setAttribute("aria-selected", "true");
    mark("kin", (i) => data.of[i] === data.of[point]);
    fill(point);
    card.hidden = false;
    beside(point);
    const other = data.nearest[point];
    if (other < 0) {
      tie.setAttribute("hidden", "");
      return;
    }
    tie.removeAttribute("hidden");
    [["x1", places[point][0]], ["y1", places[point][1]], ["x2", places[other][0]], ["y2", places[other][1]]]
      .forEach(([name, value]) => tie.setAttribute(name, value));
  };

  const focus = (point) => {
    points[home].setAttribute("tabindex", "-1");
    home = point;
    points[home].setAttribute("tabindex", "0");
    points[home].focus();
  };

  const focused = () => points.indexOf(document.activeElement);

  // The nearest point within 45 degrees of a direction; those straight ahead come first.
  const towards = (from, dx, dy) => {
    let best = from;
    let least = Infinity;
    places.forEach(([x, y], i) => {
      const along = (x - places[from][0]) * dx + (y - places[from][1]) * dy;
      const across = Math.abs((x - places[from][0]) * dy) + Math.abs((y - places[from][1]) * dx);
      if (i !== from && along > 0 && across <= along && along + across < least) {
        least = along + across;
        best = i;
      }
    });
    return best;
  };

  const moves = {
    ArrowLeft: (i) => towards(i, -1, 0),
    ArrowRight: (i) => towards(i, 1, 0),
    ArrowUp: (i) => towards(i, 0, -1),
    ArrowDown: (i) => towards(i, 0, 1),
    Home: () => 0,
    End: () => points.length - 1,
    Enter: (i) => (data.nearest[i] >= 0 ? data.nearest[i] : i),
  };

  picture.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") return show(-1);
    const move = moves[event.key];
    if (!move || focused() < 0) return;
    event.preventDefault();
    focus(move(focused()));
  });
  picture.addEventListener("focusin", (event) => {
    const point = points.indexOf(event.target.closest(".point"));
    if (point >= 0) show(point);
  });
  picture.addEventListener("focusout", () => show(-1));

  const under = (event) => {
    const box = picture.getBoundingClientRect();
    const scale = box.width / 1000;
    const x = (event.clientX - box.left) / scale;
    const y = (event.clientY - box.top) / scale;
    let best = -1;
    let least = (14 / scale) ** 2;
    places.forEach(([px, py], i) => {
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least) {
        least = distance;
        best = i;
      }
    });
    return best;
  };
  picture.addEventListener("pointermove", (event) => show(under(event) >= 0 ? under(event) : focused()));
  picture.addEventListener("pointerleave", () => show(focused()));
  picture.addEventListener("click", (event) => {
    if (under(event) >= 0) focus(under(event));
  });

  document.querySelectorAll("a.to-map").forEach((link) => link.addEventListener("click", (event) => {
    event.preventDefault();
    picture.scrollIntoView({ block: "center" });
    focus(Number(link.hash.slice("#point-".length)));
  }));

  const told = document.querySelectorAll(".projection-told");
  const project = (number) => {
    show(-1);
    places = data.layouts[number];
    points.forEach((point, i) => { point.style.transform = `translate(${places[i][0]}px,${places[i][1]}px)`; });
    told.forEach((text) => { text.hidden = Number(text.dataset.projection) !== number; });
  };
  document.querySelectorAll("input[name=projection]").forEach((input) => {
    input.addEventListener("change", () => project(Number(input.value)));
    if (input.checked) project(Number(input.value)); // as the browser remembers it
  });

  const lighten = () => {
    picture.classList.toggle("choosing", highlight.value !== "");
    mark("chosen", (i) => highlight.value !== "" && data.of[i] === Number(highlight.value));
  };
  highlight.addEventListener("change", lighten);
  lighten();
})();
