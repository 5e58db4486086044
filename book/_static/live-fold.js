/* The fold: a factorization machine's triangle of pairs becomes two vectors (chapter 3).

Fields stand for the features in them: a cell is the sum of all pairs of two fields' features, one
on the diagonal of the pairs within a field. One slider, three moves: the user's triangle fades, the
item's shrinks into one number, the rectangle collapses into two bars. */
(function () {
  "use strict";
  const { h, s, slider, number } = bookLive;
  const CELL = 26, LEFT = 98, TOP = 74, WIDE = 440, STRIP = { x: 40, width: 336, height: 36 };

  /** How far a move has come that takes the slider from one value to another. */
  const progress = (value, from, to) => Math.min(1, Math.max(0, (value - from) / (to - from)));
  const between = (a, b, t) => a.map((start, i) => start + t * (b[i] - start));
  const sum = (values) => values.reduce((a, b) => a + b, 0);

  bookLive.register("fold", function (stage, data) {
    const { names, num_user: cut, pairs, linear, user, item } = data;
    const n = names.length, most = Math.max(...pairs.flat().map(Math.abs));
    const x = (column) => LEFT + CELL * column, y = (row) => TOP + CELL * row;
    const barsTop = y(2);
    const region = (i, j) => (j < cut ? "user" : i < cut ? "both" : "item");

    const totals = { user: 0, item: sum(linear), both: 0 };
    pairs.forEach((row, i) => row.forEach((value, j) => {
      if (j >= i) totals[region(i, j)] += value;
    }));
    const dot = sum(user.map((value, f) => value * item[f]));

    // The triangle.
    const groups = {};
    for (const [name, label] of [
      ["user", "The pairs of the user's fields among themselves"],
      ["both", "The pairs of a user's and an item's field"],
      ["item", "The item's weights, and the pairs of its fields among themselves"],
    ]) {
      groups[name] = s("g", {
        class: `fold-region ${name}`, tabindex: 0, role: "img", "data-part": name,
        "aria-label": `${label}: ${number(totals[name], 2)} in all`,
      });
    }
    function cell(group, column, row, value, text, colour) {
      group.append(s("rect", {
        x: x(column) + 1, y: y(row) + 1, width: CELL - 2, height: CELL - 2, class: "fold-cell",
        fill: colour, "fill-opacity": 0.08 + 0.92 * Math.min(1, Math.abs(value) / most),
      }, s("title", {}, `${text}: ${number(value, 3)}`)));
    }
    const colours = { user: "var(--user)", item: "var(--item)", both: "url(#fold-both)" };
    for (let i = 0; i < n; i++) {
      for (let j = i; j < n; j++) {
        const within = i === j ? `within ${names[i]}` : `${names[i]} and ${names[j]}`;
        cell(groups[region(i, j)], j, i, pairs[i][j], within, colours[region(i, j)]);
      }
    }
    linear.forEach((value, i) =>
      cell(groups.item, cut + i, n + 0.3, value, `weight of ${names[cut + i]}`, "var(--item)"));

    const labels = s("g", { class: "fold-labels", "aria-hidden": "true" });
    const itemLabels = s("g", { class: "fold-labels", "aria-hidden": "true" });
    names.forEach((name, i) => {
      (i < cut ? labels : itemLabels).append(s("text", { x: x(i) - 6, y: y(i) + CELL / 2 + 4, "text-anchor": "end" }, name));
      labels.append(s("text", {
        transform: `translate(${x(i) + CELL / 2 + 4} ${TOP - 6}) rotate(-60)`,
      }, name));
    });
    itemLabels.append(s("text", { x: x(cut) - 6, y: y(n + 0.3) + CELL / 2 + 4, "text-anchor": "end" }, "weights w"));

    // The bars that the rectangle becomes, drawn in a box of size one and put where it is now.
    function strip(numbers, colour, label) {
      const top = Math.max(...numbers.map(Math.abs));
      return s("g", { role: "img", "aria-label": label }, numbers.map((value, f) => s("rect", {
        x: f / numbers.length, y: value < 0 ? 0.5 : 0, width: 0.9 / numbers.length, height: 0.5,
        fill: colour, "fill-opacity": 0.12 + 0.88 * Math.abs(value) / top,
      }, s("title", {}, `${label}, coordinate ${f}: ${number(value, 3)}`))));
    }
    const bars = {
      user: strip(user, "var(--user)", "user vector"),
      item: strip(item, "var(--item)", "item vector"),
      products: strip(user.map((value, f) => value * item[f]), "var(--ink)", "their products"),
    };
    const half = [CELL * (n - cut), CELL * cut / 2];
    const starts = { user: [x(cut), y(0), ...half], item: [x(cut), y(cut / 2), ...half] };
    const places = {
      user: [STRIP.x, barsTop, STRIP.width, STRIP.height],
      item: [STRIP.x, barsTop + 60, STRIP.width, STRIP.height],
      products: [STRIP.x, barsTop + 120, STRIP.width, STRIP.height],
    };
    const barLabels = s("g", { class: "fold-labels", "aria-hidden": "true" },
      [["u", "user"], ["v", "item"], ["u\u00b7v", "products"]].map(([text, name]) =>
        s("text", { x: STRIP.x - 8, y: places[name][1] + 22, "text-anchor": "end" }, text)),
      s("text", { x: STRIP.x + STRIP.width + 8, y: places.products[1] + 22 }, `= ${number(dot, 2)}`));
    const ownLabel = s("text", { "text-anchor": "start", "aria-hidden": "true" }, `o = ${number(totals.item, 2)}`);

    const drawing = s("svg", {
      viewBox: `0 0 ${WIDE} ${y(n + 1.3) + 8}`, role: "group",
      "aria-label": `The pairs of fields of ${data.user_name} and ${data.item_name}, folded into two vectors`,
    }, s("defs", {}, s("linearGradient", { id: "fold-both", x2: 1, y2: 0 },
      s("stop", { offset: "45%", "stop-color": "var(--user)" }), s("stop", { offset: "55%", "stop-color": "var(--item)" }))),
    labels, itemLabels, groups.user, groups.both, groups.item, bars.user, bars.item, bars.products, barLabels, ownLabel);

    // The equation, in the drawing's words: each term lights its region, each region its term.
    const i = (letter, below) => [h("i", {}, letter), below ? h("sub", {}, below) : null];
    const pair = (a, b) => ["\u27e8", h("b", {}, "v"), h("sub", {}, a), ", ", h("b", {}, "v"), h("sub", {}, b), "\u27e9 ", i("x", a), i("x", b)];
    const sigma = (below) => ["\u2211", h("sub", {}, below), " "];
    const term = (name, words, formula) => h("button", {
      type: "button", class: `fold-term ${name}`, "data-part": name,
    }, h("span", {}, formula), h("span", { class: "fold-number" }, number(totals[name], 2)), h("span", { class: "fold-words" }, words));
    const terms = {
      user: term("user", "the user alone", [sigma("a<a\u2032"), pair("a", "a\u2032")]),
      item: term("item", "the item alone", [sigma("b"), i("w", "b"), i("x", "b"), " + ", sigma("b<b\u2032"), pair("b", "b\u2032")]),
      both: term("both", "both", [sigma("a"), sigma("b"), pair("a", "b")]),
    };
    const total = h("p", { class: "fold-total", "data-score": dot }, "");
    const equation = h("div", { class: "fold-equation" }, h("span", {}, h("i", {}, "y\u0302"), " ="), terms.user, h("span", {}, "+"), terms.item, h("span", {}, "+"), terms.both);

    const light = (name) => [...Object.values(groups), ...Object.values(terms)].forEach((element) => {
      element.classList.toggle("lit", element.dataset.part === name);
      element.classList.toggle("dim", Boolean(name) && element.dataset.part !== name);
    });
    for (const element of [...Object.values(groups), ...Object.values(terms)]) {
      for (const event of ["pointerenter", "focus", "click"]) element.addEventListener(event, () => light(element.dataset.part));
      for (const event of ["pointerleave", "blur"]) element.addEventListener(event, () => light(null));
    }

    const put = (element, [left, top, width, height]) =>
      element.setAttribute("transform", `translate(${left} ${top}) scale(${width} ${height})`);
    const fade = (element, opacity) => {
      element.style.opacity = opacity;
      element.style.visibility = opacity > 0.01 ? "visible" : "hidden";
    };

    function fold(value) {
      const fading = progress(value, 0, 33), shrinking = progress(value, 33, 66), collapsing = progress(value, 66, 100);
      fade(groups.user, 1 - 0.9 * fading - 0.1 * collapsing);
      terms.user.classList.toggle("gone", fading === 1);
      // The item's triangle and weights, into one cell, which goes along into the item's bar.
      const box = [x(cut), y(cut), CELL * (n - cut), CELL * (n - cut + 1.3)];
      const one = [x(cut) + 1, y(cut) + 1, CELL - 2, CELL - 2];
      const first = [places.item[0], places.item[1], STRIP.width / item.length, STRIP.height / 2];
      const now = between(between(box, one, shrinking), first, collapsing);
      const scale = [now[2] / box[2], now[3] / box[3]];
      groups.item.setAttribute("transform",
        `translate(${now[0]} ${now[1]}) scale(${scale[0]} ${scale[1]}) translate(${-box[0]} ${-box[1]})`);
      fade(groups.item, 1 - progress(value, 92, 100));
      ownLabel.setAttribute("x", now[0] + now[2] + 6);
      ownLabel.setAttribute("y", now[1] + 16);
      fade(ownLabel, shrinking * (1 - progress(value, 70, 85)));
      // The rectangle, into the two bars.
      fade(groups.both, 1 - progress(value, 66, 84));
      for (const name of ["user", "item"]) {
        put(bars[name], between(starts[name], places[name], collapsing));
        fade(bars[name], progress(value, 66, 76));
      }
      put(bars.products, places.products);
      fade(bars.products, progress(value, 90, 100));
      fade(barLabels, progress(value, 90, 100));
      fade(labels, 1 - progress(value, 66, 78));
      fade(itemLabels, 1 - shrinking);
      const all = totals.user + totals.item + totals.both;
      total.textContent = fading < 1
        ? `y\u0302 = ${number(all, 2)}, of which ${number(totals.user, 2)} for every movie alike`
        : `score = ${number(totals.item, 2)} + ${number(totals.both, 2)} = ${number(dot, 2)}`
          + (collapsing === 1 ? ", one dot product of two vectors" : "");
    }
    const steps = [[0, "all pairs"], [33, "what every movie gets is dropped"], [66, "the item's own score is one number"], [100, "two vectors"]];
    const control = slider("Fold", {
      min: 0, max: 100, step: 1, value: 0,
      show: (value) => steps.filter(([from]) => from <= value).at(-1)[1],
    }, fold);
    stage.append(h("p", { class: "fold-who" }, `${data.user_name} and ${data.item_name}`), equation, total, control.row,
      h("div", { class: "live-scroll" }, drawing));
    control.update();
  });
})();
