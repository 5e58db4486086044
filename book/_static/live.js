/* Pictures that can be touched.

A chapter's cell leaves <div class="live" data-live="name"> with its data as JSON and a still
picture (recsys_helpers.pages.live). A script live-name.js registers a function that gets the
element to draw into and the data. If it isn't there, or fails, the still picture stays.
Plain scripts, no modules: pages are also opened from file://, where a browser loads none. */
(function () {
  "use strict";
  const drawers = {};
  let ready = false;

  function start(place) {
    const draw = drawers[place.dataset.live];
    if (!draw || place.classList.contains("alive")) return;
    const data = JSON.parse(place.querySelector("script.live-data").textContent);
    const stage = document.createElement("div");
    stage.className = "live-stage";
    place.append(stage);
    try {
      draw(stage, data, place);
      place.classList.add("alive");
    } catch (error) {
      stage.remove();
      console.error(error);
    }
  }

  function startAll() {
    ready = true;
    document.querySelectorAll(".live").forEach(start);
  }

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== false && value != null)
        element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat(Infinity).filter((child) => child != null));
    return element;
  }

  let labels = 0;

  window.bookLive = {
    /** Bring all pictures of this name alive: draw(stage, data, place). */
    register(name, draw) {
      drawers[name] = draw;
      if (ready) startAll();
    },

    /** An element of HTML: attributes by name, listeners as onclick and so on. */
    h: (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children),

    /** The same for SVG. */
    s: (tag, attributes, ...children) =>
      fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children),

    /** A slider with its label and the value as text: { row, input }. `show` writes a value. */
    slider(label, { min, max, step, value, show }, moved) {
      const id = `live-slider-${++labels}`;
      const output = bookLive.h("output", { for: id });
      const input = bookLive.h("input", { type: "range", id, min, max, step, value });
      const update = () => {
        output.textContent = show(Number(input.value));
        input.setAttribute("aria-valuetext", output.textContent);
        moved(Number(input.value));
      };
      input.addEventListener("input", update);
      const row = bookLive.h(
        "div", { class: "live-slider" }, bookLive.h("label", { for: id }, label), input, output);
      return { row, input, update };
    },

    /** Whole numbers of 8 or 16 bits in base64, times a scale for each column, as floats. */
    unpack({ bits, base64, scales }) {
      const text = atob(base64);
      const bytes = Uint8Array.from(text, (character) => character.charCodeAt(0));
      const whole = bits === 8 ? new Int8Array(bytes.buffer) : new Int16Array(bytes.buffer);
      return Float64Array.from(whole, (number, i) => number * scales[i % scales.length]);
    },

    /** A number for people, with a real minus sign. */
    number: (value, digits) => value.toFixed(digits).replace("-", "\u2212"),
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", startAll);
  else startAll();
})();
