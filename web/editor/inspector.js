// The inspector: the selected object's name, numbers and easing, to be read and typed.

import { parseLength, showLength } from "../lib/box.js";
import {
  colourOf, objectOf, renameObject, setBox, setEase, setLook, setPhrase, setStage,
} from "../lib/drawing.js";
import { EASES, boxAt } from "../lib/layout.js";
import { parseTime, showTime } from "../lib/timeline.js";
import { element } from "./elements.js";

const EASE_NAMES = { linear: "even", in: "starts gently", out: "ends gently", in_out: "both gently", hold: "waits" };
const SIDES = { x: "Left edge", y: "Top edge", w: "Width", h: "Height" };

export class Inspector {
  #editor;
  #fields = {};

  constructor(editor) {
    this.#editor = editor;
    const sides = Object.entries(SIDES).map(([side, title]) =>
      this.#field(side, side.toUpperCase(), `${title}: 12, 12px or 30%`, (text) => this.#setSide(side, text)),
    );
    const [colour, unit, ease] = [this.#colour(), this.#unit(), this.#ease()];
    const line = (...content) => element("div", { class: "ttom-line" }, ...content);
    this.element = element(
      "div",
      { class: "ttom-inspector" },
      line(
        colour,
        this.#field("name", "Name", "The object's name", (text) => this.#rename(text)),
        this.#field("phrase", "In prompt", "The words of the prompt that name it", (text) => this.#setPhrase(text)),
      ),
      line(...sides, unit),
      line(
        this.#field("enter", "Enters", "The frame it enters at: 12, or 30%", (text) => this.#setMoment("enter", text)),
        this.#field("leave", "Leaves", "The frame it leaves at: 20, or 80%", (text) => this.#setMoment("leave", text)),
        ease,
      ),
    );
  }

  edit(name) {
    this.#fields[name].focus();
  }

  // Marks a field as one whose value will not work.
  mark(name, wrong) {
    this.#fields[name].classList.toggle("ttom-wrong", wrong);
  }

  // Shows the selected object at this moment; what is being typed stays.
  refresh() {
    const { drawing, selected, time, isLocked, options, size } = this.#editor;
    const object = objectOf(drawing, selected);
    const f = this.#fields;
    this.element.classList.toggle("ttom-idle", !object);
    for (const field of Object.values(f)) field.disabled = !object || (isLocked && field !== f.colour);
    f.unit.disabled = false;
    f.unit.textContent = options.unit;
    const values = object ? this.#values(object, boxAt(object, time), size, options.unit) : {};
    for (const name of ["name", "phrase", ...Object.keys(SIDES), "enter", "leave"]) {
      if (f[name] !== document.activeElement || !object) f[name].value = values[name] ?? "";
    }
    if (!object) return;
    f.colour.value = colourOf(drawing, object.id);
    f.ease.value = object.keyframes[this.#keyBefore(object)].ease ?? "linear";
    f.ease.disabled ||= object.keyframes.length < 2;
  }

  #values(object, box, { width, height, frames }, unit) {
    return {
      name: object.name,
      phrase: object.phrase,
      x: showLength(box.x, width, unit),
      y: showLength(box.y, height, unit),
      w: showLength(box.w, width, unit),
      h: showLength(box.h, height, unit),
      enter: showTime(object.enter, frames),
      leave: showTime(object.leave, frames),
    };
  }

  // Which keyframe's easing is at work now: the selected one, or the last before this moment.
  #keyBefore({ keyframes }) {
    const { selectedKey, time } = this.#editor;
    if (selectedKey !== null && selectedKey < keyframes.length) return selectedKey;
    return Math.max(keyframes.findLastIndex((key) => key.time <= time), 0);
  }

  // ---- building ----------------------------------------------------------------------------------

  #field(name, label, title, commit) {
    const input = element("input", {
      type: "text",
      class: "ttom-field",
      title,
      spellcheck: false,
      attributes: { "aria-label": title, autocomplete: "off" },
      data: { field: name },
      on: {
        focus: () => input.select(),
        keydown: (event) => {
          if (event.key === "Escape") this.#restore(input);
          if (event.key === "Enter" || event.key === "Escape") this.#editor.takeKeys();
        },
        change: () => {
          if (this.#editor.selected !== null) commit(input.value);
          this.#restore(input);
        },
      },
    });
    this.#fields[name] = input;
    return element("label", { class: "ttom-labelled" }, element("span", { textContent: label }), input);
  }

  // What was typed gives way to what is, though the field may still have the focus.
  #restore(input) {
    const { drawing, selected, time, options, size } = this.#editor;
    const object = objectOf(drawing, selected);
    if (object) input.value = this.#values(object, boxAt(object, time), size, options.unit)[input.dataset.field];
  }

  #colour() {
    const input = element("input", {
      type: "color",
      class: "ttom-colour",
      title: "Colour",
      attributes: { "aria-label": "Colour" },
      on: {
        input: () => {
          const { drawing, selected } = this.#editor;
          this.#editor.change(setLook(drawing, selected, { colour: input.value }), `colour ${selected}`);
        },
      },
    });
    return (this.#fields.colour = input);
  }

  #unit() {
    const { options } = this.#editor;
    const act = () => {
      options.unit = options.unit === "px" ? "%" : "px";
      this.#editor.refresh();
    };
    const properties = { type: "button", class: "ttom-button ttom-unit", title: "Pixels or percent", on: { click: act } };
    return (this.#fields.unit = element("button", properties));
  }

  #ease() {
    const title = "How the box sets out from this keyframe for the next";
    const select = element(
      "select",
      {
        class: "ttom-field",
        title,
        attributes: { "aria-label": title },
        data: { field: "ease" },
        on: { change: () => this.#setEase(select.value) },
      },
      ...Object.keys(EASES).map((ease) => element("option", { value: ease, textContent: EASE_NAMES[ease] })),
    );
    this.#fields.ease = select;
    return element("label", { class: "ttom-labelled ttom-wide" }, element("span", { textContent: "Moves on" }), select);
  }

  // ---- acting ------------------------------------------------------------------------------------

  #rename(text) {
    const { drawing, id } = renameObject(this.#editor.drawing, this.#editor.selected, text);
    this.#editor.selected = id;
    this.#editor.change(drawing);
  }

  #setPhrase(text) {
    this.#editor.change(setPhrase(this.#editor.drawing, this.#editor.selected, text));
  }

  #setSide(side, text) {
    const { drawing, selected, time, options, size } = this.#editor;
    const object = objectOf(drawing, selected);
    const pixels = side === "x" || side === "w" ? size.width : size.height;
    const length = parseLength(text, pixels, options.unit);
    if (length === null || ((side === "w" || side === "h") && length <= 0)) {
      this.#editor.say(`“${text}” is no length; write 12, 12px or 30%.`);
      return;
    }
    this.#editor.change(setBox(drawing, selected, time, { ...boxAt(object, time), [side]: length }, size.frames));
    this.#editor.goTo(time);
  }

  #setMoment(edge, text) {
    const { drawing, selected, size } = this.#editor;
    const time = parseTime(text, size.frames);
    if (time === null) this.#editor.say(`“${text}” is no frame of this clip; write 12, or 30%.`);
    else this.#editor.change(setStage(drawing, selected, { [edge]: time }));
  }

  #setEase(ease) {
    const { drawing, selected } = this.#editor;
    const object = objectOf(drawing, selected);
    if (object) this.#editor.change(setEase(drawing, selected, this.#keyBefore(object), ease));
  }
}
