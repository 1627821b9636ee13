// The memory browser: what a memory holds, what each entry does, and what may be done with it. It talks to
// the server by names and ids; every text of an entry is somebody else's and becomes textContent.

import { button, element, icon, penFor } from "../editor/elements.js";
import { COLOURS } from "../lib/drawing.js";
import { ORDERS, SHOWN, chosen, learnt, packName, size, takenIn, used, warnings } from "../lib/entries.js";
import { boxAt, parseLayout } from "../lib/layout.js";

const WAITS = 250; // milliseconds after a key in the search

export class MemoryBrowser {
  // ask(path, options): a Response of the pack's routes; address(path): where one is, for the desktop
  constructor(ask, address) {
    Object.assign(this, { ask, address });
    this.entries = [];
    this.memory = "";
    this.select = (options, act, label) =>
      element("select", { class: "ttom-select", on: { change: act }, attributes: { "aria-label": label } }, ...options.map((o) => new Option(o)));
    this.memories = this.select([], () => this.open(this.memories.value), "Memory");
    this.words = element("input", {
      type: "search", class: "ttom-search", placeholder: "Search prompts and notes",
      attributes: { "aria-label": "Search" }, on: { input: () => this.searchSoon() },
    });
    this.shown = this.select(Object.keys(SHOWN), () => this.draw(), "Show");
    this.order = this.select(Object.keys(ORDERS), () => this.draw(), "Order");
    this.notice = element("p", { class: "ttom-notice", attributes: { role: "status" } });
    this.warning = element("p", { class: "ttom-warning" });
    this.list = element("ul", { class: "ttom-entries" });
    this.licence = element("input", {
      class: "ttom-search", value: "CC0-1.0", title: "What others may do with an exported pack",
      attributes: { "aria-label": "Licence of exported packs" },
    });
    this.element = element(
      "div",
      { class: "ttom-browser", on: { dragover: (e) => e.preventDefault(), drop: (e) => this.dropped(e) } },
      element(
        "div", { class: "ttom-row" }, this.memories,
        button("undo", "Take the last change back", () => this.change("undo", {})),
      ),
      this.words, element("div", { class: "ttom-row" }, this.shown, this.order),
      this.warning, this.notice, this.list,
      element(
        "div", { class: "ttom-row" }, element("span", { class: "ttom-quiet" }, "Share these under"), this.licence,
        button("upstream", "Export what is shown as a pack", () => this.exportPack()),
      ),
      element("p", { class: "ttom-quiet" }, "Drop a .ttompack here to take it in; drag an entry to your desktop to give it away."),
    );
  }

  async refresh() {
    const sizes = await this.told("");
    if (!sizes) return;
    const names = Object.keys(sizes);
    this.memories.replaceChildren(...names.map((name) => new Option(`${name} (${sizes[name]})`, name)));
    await this.open(names.includes(this.memory) ? this.memory : (names[0] ?? ""));
  }

  async open(name) {
    this.memory = this.memories.value = name;
    const query = new URLSearchParams({ words: this.words.value });
    const found = name ? await this.told(`/${encodeURIComponent(name)}?${query}`) : { entries: [], more: false };
    if (!found || this.memory !== name) return; // another one was chosen meanwhile
    this.entries = found.entries;
    this.say(found.more ? `The first ${found.entries.length} of ${found.all}; search for the others.` : "");
    this.draw();
  }

  searchSoon() {
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.open(this.memory), WAITS);
  }

  draw() {
    this.visible = chosen(this.entries, this.shown.value, this.order.value);
    this.warning.textContent = warnings(this.entries).join(" ");
    this.list.replaceChildren(...this.visible.map((entry) => this.row(entry)));
    if (!this.entries.length && !this.notice.textContent) this.say("Nothing here yet.");
  }

  row(entry) {
    const facts = [used(entry), learnt(entry), size(entry.bytes), entry.missing ? "its file is missing" : ""];
    const pin = button("pin", entry.pinned ? "Unpin" : "Pin: never makes room for others", () =>
      this.change("pin", { id: entry.id, pinned: !entry.pinned }),
    );
    pin.setAttribute("aria-pressed", entry.pinned);
    return element(
      "li",
      {
        class: entry.missing ? "ttom-entry ttom-lost" : "ttom-entry", data: { id: entry.id }, title: entry.model,
        draggable: true, on: { dragstart: (event) => this.draggedOut(event, entry) },
      },
      preview(entry.layout),
      element(
        "div", { class: "ttom-said" }, element("div", {}, entry.prompt),
        element("div", { class: "ttom-quiet" }, [...facts, entry.note].filter(Boolean).join(" · ")),
      ),
      pin,
      button("remove", "Delete; undo brings it back", () => this.change("delete", { ids: [entry.id] })),
    );
  }

  async change(action, body) {
    const done = await this.told(`/${encodeURIComponent(this.memory)}/${action}`, sent(body));
    if (!done) return;
    await this.refresh();
    if (done.done) this.say(done.done);
    if (done.deleted) this.say("Deleted; undo brings it back.");
  }

  async exportPack() {
    const path = `/${encodeURIComponent(this.memory)}/export`;
    const answer = await this.ask(path, sent({ ids: (this.visible ?? []).map(({ id }) => id), licence: this.licence.value.trim() }));
    if (!answer.ok) return void (await this.complaint(answer));
    const link = element("a", { href: URL.createObjectURL(await answer.blob()), download: `${this.memory}.ttompack` });
    link.click();
    URL.revokeObjectURL(link.href);
  }

  // The browser gets the file from there where it is let go; one that does not know DownloadURL does nothing.
  draggedOut(event, entry) {
    const query = new URLSearchParams({ id: entry.id, licence: this.licence.value.trim() });
    const address = this.address(`/${encodeURIComponent(this.memory)}/export?${query}`);
    event.dataTransfer.setData("DownloadURL", `application/octet-stream:${packName(entry)}:${address}`);
    event.dataTransfer.effectAllowed = "copy";
  }

  async dropped(event) {
    event.preventDefault();
    event.stopPropagation(); // the canvas would take it for a workflow
    const said = [];
    for (const file of event.dataTransfer?.files ?? []) {
      const headers = { "Content-Type": "application/octet-stream" };
      const path = `/${encodeURIComponent(this.memory || "default")}/take-in`;
      const told = await this.told(path, { method: "POST", headers, body: file });
      if (!told) return;
      said.push(takenIn(told));
    }
    await this.refresh();
    this.say(said.join(" "));
  }

  // The answer's JSON, or null when the server said what is wrong: then that is shown.
  async told(path, options) {
    const answer = await this.ask(path, options);
    return answer.ok ? answer.json() : this.complaint(answer);
  }

  async complaint(answer) {
    const { error } = await answer.json().catch(() => ({}));
    this.say(error ?? `The server answered ${answer.status}.`);
    return null;
  }

  say(text) {
    this.notice.textContent = text;
  }
}

const sent = (body) => ({ method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

// What an entry does: where its objects begin (dashed), end (whole), and the way between.
function preview(given) {
  const canvas = element("canvas", { class: "ttom-preview" });
  let layout = null;
  try {
    layout = given && parseLayout(JSON.stringify(given));
  } catch {
    return canvas; // of a stranger's pack, or of a later version: nothing is drawn
  }
  if (!layout) return element("div", { class: "ttom-preview" }, icon("hidden"));
  requestAnimationFrame(() => {
    const pen = penFor(canvas);
    if (!pen) return;
    const [across, down] = [canvas.clientWidth, canvas.clientHeight];
    layout.objects.forEach((object, n) => {
      const at = (share) => boxAt(object, object.enter + share * (object.leave - object.enter));
      pen.strokeStyle = COLOURS[n % COLOURS.length];
      for (const [box, dashes] of [[at(0), [2, 2]], [at(1), []]]) {
        pen.setLineDash(dashes);
        pen.strokeRect(box.x * across, box.y * down, box.w * across, box.h * down);
      }
      pen.beginPath();
      for (let k = 0; k <= 20; k++) {
        const box = at(k / 20);
        pen.lineTo((box.x + box.w / 2) * across, (box.y + box.h / 2) * down);
      }
      pen.stroke();
    });
  });
  return canvas;
}
