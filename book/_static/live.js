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

  window.bookLive = {
    /** Bring all pictures of this name alive: draw(stage, data, place). */
    register(name, draw) {
      drawers[name] = draw;
      if (ready) startAll();
    },
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", startAll);
  else startAll();
})();
