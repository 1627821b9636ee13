// Elements of the page, made in one expression. Text becomes textContent, never HTML: names come from
// strangers' workflows.

export function element(tag, properties = {}, ...children) {
  const { class: className, on = {}, data = {}, attributes = {}, ...rest } = properties;
  const made = document.createElement(tag);
  if (className) made.className = className;
  Object.assign(made, rest);
  Object.assign(made.dataset, data);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  for (const [kind, act] of Object.entries(on)) made.addEventListener(kind, act);
  made.append(...children);
  return made;
}

// Drawn on a 16 × 16 grid with the colour of the text around them.
const ICONS = {
  draw: "M3 3h10v10H3z M8 5.5v5 M5.5 8h5",
  undo: "M6 3 3 6l3 3 M3 6h6a4 4 0 0 1 0 8H6",
  redo: "M10 3l3 3-3 3 M13 6H7a4 4 0 0 0 0 8h3",
  duplicate: "M6 6h7v7H6z M10 6V3H3v7h3",
  remove: "M3 4.5h10 M6.5 4.5V3h3v1.5 M4.5 4.5l.5 8.5h6l.5-8.5",
  snap: "M4 3v5a4 4 0 0 0 8 0V3 M4 5.5h2.5 M9.5 5.5H12 M6.5 3v5a1.5 1.5 0 0 0 3 0V3 M4 3h2.5 M9.5 3H12",
  onion: "M2.5 6.5h5v5h-5z M6 5V4.5h5v5h-.8 M9 3V2.5h4.5v4.5h-.8",
  json: "M6 3C4 3 5 7.5 3 8c2 .5 1 5 3 5 M10 3c2 0 1 4.5 3 5-2 .5-1 5-3 5",
  upstream: "M8 3v7 M5 7.5l3 3 3-3 M3 13h10",
  pin: "M6 2.5h4 M7 2.5v4L4.5 9.5h7L9 6.5v-4 M8 9.5v4",
  enlarge: "M3 6V3h3 M10 3h3v3 M13 10v3h-3 M6 13H3v-3",
  play: "M5 3.5 12 8l-7 4.5z",
  pause: "M5.5 3.5v9 M10.5 3.5v9",
  previous: "M10.5 3.5 6 8l4.5 4.5",
  next: "M5.5 3.5 10 8l-4.5 4.5",
  key: "M8 3.5 12.5 8 8 12.5 3.5 8z",
  shown: "M2 8c3-5 9-5 12 0-3 5-9 5-12 0z M8 6.3a1.7 1.7 0 1 0 0 3.4 1.7 1.7 0 0 0 0-3.4",
  hidden: "M2 8c3-5 9-5 12 0-3 5-9 5-12 0z M3 13 13 3",
  locked: "M4 7.5h8V13H4z M5.5 7.5V5.5a2.5 2.5 0 0 1 5 0v2",
  unlocked: "M4 7.5h8V13H4z M5.5 7.5V5a2.5 2.5 0 0 1 4.8-.9",
};

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(svg.namespaceURI, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

export function button(name, title, act, properties = {}) {
  const { class: extra = "", ...rest } = properties;
  return element(
    "button",
    { type: "button", title, class: `ttom-button ${extra}`, attributes: { "aria-label": title }, on: { click: act }, ...rest },
    icon(name),
  );
}

// Gives a canvas as many pixels as it covers on the screen; returns its pen, scaled to CSS pixels,
// or null while it is not shown.
export function penFor(canvas) {
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (!width || !height) return null;
  const zoom = canvas.getBoundingClientRect().width / width || 1;
  const density = Math.min(Math.max((window.devicePixelRatio || 1) * zoom, 1), 3);
  const [across, down] = [Math.round(width * density), Math.round(height * density)];
  if (canvas.width !== across || canvas.height !== down) [canvas.width, canvas.height] = [across, down];
  const pen = canvas.getContext("2d");
  pen.setTransform(density, 0, 0, density, 0, 0);
  pen.clearRect(0, 0, width, height);
  return pen;
}

// Where on an element the pointer is, in its own CSS pixels however far the graph is zoomed.
export function placeOn(target, event) {
  const bounds = target.getBoundingClientRect();
  return {
    x: ((event.clientX - bounds.left) * target.offsetWidth) / bounds.width,
    y: ((event.clientY - bounds.top) * target.offsetHeight) / bounds.height,
  };
}

// Follows a press from here to its release; `act` is told of every move, and at last of the end.
export function follow(target, event, { move, end }) {
  target.setPointerCapture(event.pointerId);
  const stop = new AbortController();
  const listen = (kind, act) => target.addEventListener(kind, act, { signal: stop.signal });
  const finish = (last, cancelled) => {
    if (last.pointerId !== event.pointerId) return;
    stop.abort();
    end(last, cancelled);
  };
  listen("pointermove", (next) => next.pointerId === event.pointerId && move(next));
  listen("pointerup", (last) => finish(last, false));
  listen("pointercancel", (last) => finish(last, true));
}
