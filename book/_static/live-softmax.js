/* The temperature: what it makes of the same cosines (chapter 4). */
(function () {
  "use strict";
  const { h, s, slider, number } = bookLive;
  const WIDE = 420, HIGH = 220, LEFT = 36, BOTTOM = 34, BARS = 20;

  bookLive.register("softmax", function (stage, data) {
    const cosines = [data.target, ...data.cosines]; // the target first, then the others, descending
    const bars = cosines.slice(0, BARS).map((_, i) => s("rect", {
      x: LEFT + 6 + (i * (WIDE - LEFT - 6)) / BARS, width: (WIDE - LEFT - 6) / BARS - 3,
      class: i ? "softmax-bar" : "softmax-bar target",
    }));
    const level = (p) => HIGH - BOTTOM - p * (HIGH - BOTTOM - 12);
    const drawing = s("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img" },
      s("g", { "aria-hidden": "true" },
        [0, 0.5, 1].map((p) => [
          s("line", { x1: LEFT, x2: WIDE, y1: level(p), y2: level(p), class: p ? "live-grid" : "live-axis" }),
          s("text", { x: LEFT - 6, y: level(p) + 4, "text-anchor": "end" }, p)]),
        s("text", { x: LEFT + 6, y: HIGH - BOTTOM + 16 }, "target"),
        s("text", { x: WIDE, y: HIGH - BOTTOM + 16, "text-anchor": "end" }, `the ${BARS - 1} nearest of ${(cosines.length - 1).toLocaleString("en")} others`)),
      bars);
    const facts = h("p", { class: "softmax-facts", "aria-live": "polite" });

    function show(exponent) {
      const tau = 10 ** exponent;
      const top = Math.max(...cosines);
      const weights = cosines.map((cosine) => Math.exp((cosine - top) / tau));
      const total = weights.reduce((a, b) => a + b, 0);
      const p = weights.map((weight) => weight / total);
      const entropy = -p.reduce((sum, one) => sum + (one > 0 ? one * Math.log(one) : 0), 0);
      const ceiling = 1 / (1 + (cosines.length - 1) * Math.exp(-2 / tau));
      bars.forEach((bar, i) => {
        bar.setAttribute("y", level(p[i]));
        bar.setAttribute("height", HIGH - BOTTOM - level(p[i]));
      });
      facts.textContent = `Probability of the target ${p[0].toPrecision(3)}, loss ${number(-Math.log(p[0]), 2)} nats; `
        + `as many movies in play as ${number(Math.exp(entropy), 0)} equally likely ones. `
        + `A perfect model could get to ${ceiling.toPrecision(3)}.`;
      facts.dataset.target = p[0];
      drawing.setAttribute("aria-label", `Softmax at temperature ${tau.toPrecision(2)}: the target has ${p[0].toPrecision(3)}`);
    }

    const control = slider("Temperature \u03c4", {
      min: -2, max: 0.3, step: 0.01, value: -0.8,
      show: (exponent) => `\u03c4 = ${(10 ** exponent).toPrecision(2)}`,
    }, show);
    stage.append(control.row, drawing, facts);
    control.update();
  });
})();
