/* How many negatives: the same models by HR@10 among m sampled negatives (chapter 10). */
(function () {
  "use strict";
  const { h, slider, number } = bookLive;

  bookLive.register("sampled", function (stage, data) {
    const { models, negatives } = data, n = models.length, last = negatives.length - 1;
    /** Places by a column, the first is 0. */
    const places = (column) => {
      const order = [...models.keys()].sort((a, b) => models[b].hits[column] - models[a].hits[column]);
      return models.map((_, i) => order.indexOf(i));
    };
    const truth = places(last);
    const rows = models.map((model) => {
      const bar = h("span", { class: "sampled-bar", style: `background: var(--${model.key}, var(--baseline))` });
      const value = h("span", { class: "sampled-value" }), moved = h("span", { class: "sampled-moved" });
      const row = h("li", {}, h("span", { class: "sampled-name" }, model.name),
        h("span", { class: "sampled-track" }, bar), value, moved);
      return { row, bar, value, moved };
    });
    const list = h("ol", { class: "sampled-models" }, rows.map(({ row }) => row));
    const facts = h("p", { "aria-live": "polite", class: "sampled-facts" });

    function show(column) {
      const now = places(column);
      rows.forEach(({ row, bar, value, moved }, i) => {
        const hits = models[i].hits[column], up = truth[i] - now[i];
        bar.style.width = `${100 * hits}%`;
        value.textContent = number(hits, 3);
        moved.textContent = up > 0 ? `\u25b2 ${up}` : up < 0 ? `\u25bc ${-up}` : "";
        moved.setAttribute("aria-label", up ? `${Math.abs(up)} places ${up > 0 ? "too high" : "too low"}` : "");
        row.style.order = now[i];
        row.dataset.place = now[i] + 1;
      });
      // For those who hear the list, it is in the order in which it is seen.
      list.append(...rows.map(({ row }) => row).sort((a, b) => a.style.order - b.style.order));
      let swapped = 0;
      for (let a = 0; a < n; a++) {
        for (let b = a + 1; b < n; b++) {
          const sign = (of) => Math.sign(models[a].hits[of] - models[b].hits[of]);
          if (sign(column) * sign(last) < 0) swapped += 1;
        }
      }
      facts.textContent = column === last
        ? "The full ranking: everybody where they belong."
        : `${swapped} of ${(n * (n - 1)) / 2} pairs of models stand in another order than in the full ranking.`;
      facts.dataset.swapped = swapped;
    }

    const control = slider("Negatives", {
      min: 0, max: last, step: 1, value: negatives.includes(100) ? negatives.indexOf(100) : 0,
      show: (column) => (column === last ? "all that the user hasn't seen" : `m = ${negatives[column].toLocaleString("en")}`),
    }, show);
    stage.append(control.row, list, facts);
    control.update();
  });
})();
