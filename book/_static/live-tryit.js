/* Try it: the factorization machine of chapter 3 in the reader's own browser.

A score is a sum: the movie's own score, and one dot product for each watched movie and for the
profile. So each part can be shown, and together they are the score, exactly. */
(function () {
  "use strict";
  const { h, unpack, number } = bookLive;
  const SHOWN = 10;

  /** The model: `score(history, profile)` with the parts of every movie's score. */
  function machine(data) {
    const { rank } = data;
    const items = unpack(data.items), own = unpack(data.own);
    const fields = data.fields.map((field) => ({ x: field.x, table: unpack(field.table) }));
    const profile = data.profile.map((field) => unpack(field.table));
    const row = (table, i) => table.subarray(i * rank, (i + 1) * rank);

    function add(vector, table, i, weight) {
      row(table, i).forEach((value, f) => { vector[f] += weight * value; });
    }

    function dot(vector, i) {
      return row(items, i).reduce((sum, value, f) => sum + value * vector[f], 0);
    }

    /** What each of the watched movies (0-based, oldest first) puts into the user's vector. */
    function watchedVectors(history) {
      const vectors = history.map(() => new Float64Array(rank));
      for (const { x, table } of fields) {
        const window = history.slice(-x.length), first = history.length - window.length;
        const weights = x.slice(x.length - window.length);
        const total = Math.max(weights.reduce((a, b) => a + b, 0), 1e-9);
        window.forEach((item, j) => add(vectors[first + j], table, item, weights[j] / total));
      }
      return vectors;
    }

    /** The best movies that weren't watched: [{ item, score, own, profile, watched }]. */
    function best(history, codes) {
      const watched = watchedVectors(history), told = new Float64Array(rank);
      codes.forEach((code, field) => { if (code) add(told, profile[field], code - 1, 1); });
      const sum = told.map((value, f) => watched.reduce((all, vector) => all + vector[f], value));
      const seen = new Set(history);
      return Array.from(own, (value, item) => ({ item, score: value + dot(sum, item) }))
        .filter(({ item }) => !seen.has(item))
        .sort((a, b) => b.score - a.score || a.item - b.item)
        .slice(0, SHOWN)
        .map((one) => ({
          ...one,
          own: own[one.item],
          profile: dot(told, one.item),
          watched: watched.map((vector) => dot(vector, one.item)),
        }));
    }
    return { best };
  }

  const plain = (text) => text.normalize("NFD").replace(/[\u0300-\u036f]/g, "").toLowerCase();

  bookLive.register("tryit", function (stage, data) {
    const { best } = machine(data), { titles } = data;
    const words = titles.map(plain);
    const id = "tryit";
    let history = [], codes = data.profile.map(() => 0), open = new Set();

    // Searching: an input with a list of suggestions, by mouse, touch or arrow keys.
    const input = h("input", {
      type: "text", id: `${id}-search`, role: "combobox", autocomplete: "off", spellcheck: "false",
      "aria-expanded": "false", "aria-autocomplete": "list", "aria-controls": `${id}-found`,
      placeholder: "a word of its title",
    });
    const found = h("ul", { id: `${id}-found`, role: "listbox", "aria-label": "Movies found", hidden: true });
    let options = [], chosen = -1;

    function close() {
      found.hidden = true;
      options = [];
      input.setAttribute("aria-expanded", "false");
      input.removeAttribute("aria-activedescendant");
    }

    function mark(place) {
      chosen = place;
      [...found.children].forEach((option, i) =>
        option.setAttribute("aria-selected", String(i === chosen)));
      if (found.children[chosen]) {
        input.setAttribute("aria-activedescendant", found.children[chosen].id);
        found.children[chosen].scrollIntoView({ block: "nearest" });
      }
    }

    function suggest() {
      const text = plain(input.value).trim(), asked = text.split(/\s+/).filter(Boolean);
      const fits = (i) => asked.every((word) => words[i].includes(word));
      const order = (i) => (words[i] === text ? 0 : words[i].startsWith(text) ? 1 : 2);
      options = asked.length
        ? [...titles.keys()].filter((i) => fits(i) && !history.includes(i)) // the known ones first
          .sort((a, b) => order(a) - order(b)).slice(0, 8)
        : [];
      found.replaceChildren(...options.map((item, i) => h("li", {
        role: "option", id: `${id}-option-${i}`, "aria-selected": "false",
        onpointerdown: (event) => event.preventDefault(), // or the input would lose the focus
        onclick: () => take(item),
      }, titles[item])));
      if (asked.length && !options.length) {
        found.replaceChildren(h("li", { class: "tryit-none", role: "option", "aria-disabled": "true", "aria-selected": "false" },
          "No movie in the data has these words."));
      }
      found.hidden = !asked.length;
      input.setAttribute("aria-expanded", String(!found.hidden));
      input.removeAttribute("aria-activedescendant");
      mark(options.length ? 0 : -1);
    }

    function take(item) {
      input.value = "";
      close();
      watch(item);
      input.focus();
    }

    input.addEventListener("input", suggest);
    input.addEventListener("blur", close);
    input.addEventListener("keydown", (event) => {
      if (event.key === "Escape") close();
      else if (event.key === "Enter" && options[chosen] !== undefined) take(options[chosen]);
      else if (event.key === "ArrowDown" && options.length) mark((chosen + 1) % options.length);
      else if (event.key === "ArrowUp" && options.length) mark((chosen + options.length - 1) % options.length);
      else return;
      event.preventDefault();
    });

    // What was watched, and the profile.
    const watched = h("ol", { class: "tryit-watched", "aria-label": "Watched, the last one first" });
    const selects = data.profile.map((field, i) => h("select", {
      id: `${id}-profile-${i}`,
      onchange: (event) => { codes[i] = Number(event.target.value); show(); },
    }, h("option", { value: 0 }, "not told"),
    field.labels.map((label, code) => h("option", { value: code + 1 }, label))));
    const examples = data.examples.map((example) => h("button", {
      type: "button",
      onclick: () => start(example.history, example.codes),
    }, example.name));

    function start(items, told) {
      history = [...items];
      codes = [...told];
      selects.forEach((select, i) => { select.value = codes[i]; });
      open.clear();
      show();
    }

    function watch(item) {
      history = history.filter((other) => other !== item).concat(item);
      show();
    }

    // The ten best.
    const list = h("ol", { class: "tryit-best" });
    const spoken = h("p", { class: "tryit-spoken", role: "status", "aria-live": "polite" });

    function parts(one) {
      const rows = one.watched.map((value, j) => ({ kind: "watched", name: titles[history[j]], value, j })).reverse();
      if (codes.some(Boolean)) rows.push({ kind: "profile", name: "the profile", value: one.profile });
      rows.push({ kind: "own", name: "the movie's own score", value: one.own });
      return rows;
    }

    function bar(rows, low, high) {
      // Parts that add go to the right of zero, parts that take away to its left.
      const percent = (value) => `${(100 * value) / (high - low || 1)}%`;
      let left = 0, right = 0;
      const segments = rows.map((part) => {
        const size = Math.abs(part.value);
        const from = part.value < 0 ? (left -= size) : (right += size) - size;
        return h("span", {
          class: `tryit-part ${part.kind}`, "data-of": part.j ?? false, title: `${part.name}: ${number(part.value, 2)}`,
          style: `left:${percent(from - low)};width:${percent(size)}`,
        });
      });
      return h("div", { class: "tryit-bar", "aria-hidden": "true" }, segments,
        h("span", { class: "tryit-zero", style: `left:${percent(-low)}` }));
    }

    function show() {
      const ten = best(history, codes);
      const sums = ten.map((one) => {
        const values = parts(one).map((part) => part.value);
        return [values.filter((v) => v < 0).reduce((a, b) => a + b, 0), values.filter((v) => v > 0).reduce((a, b) => a + b, 0)];
      });
      const low = Math.min(0, ...sums.map(([least]) => least)), high = Math.max(0, ...sums.map(([, most]) => most));
      list.replaceChildren(...ten.map((one, place) => {
        const rows = parts(one);
        return h("li", { "data-item": one.item, "data-score": one.score },
          h("button", {
            type: "button", class: "tryit-title", "aria-label": `${titles[one.item]}: watched it too`,
            onclick: () => {
              watch(one.item);
              list.children[Math.min(place, list.children.length - 1)].querySelector("button").focus();
            },
          }, titles[one.item]),
          bar(rows, low, high),
          h("button", {
            type: "button", class: "tryit-score", "aria-expanded": String(open.has(one.item)),
            "aria-controls": `${id}-parts-${place}`, "aria-label": `score ${number(one.score, 2)}, its parts`,
            onclick: (event) => {
              if (!open.delete(one.item)) open.add(one.item);
              event.currentTarget.setAttribute("aria-expanded", String(open.has(one.item)));
              event.currentTarget.nextSibling.hidden = !open.has(one.item);
            },
          }, number(one.score, 2)),
          h("table", { id: `${id}-parts-${place}`, hidden: !open.has(one.item) }, h("tbody", {},
            rows.map((part) => h("tr", { class: part.kind }, h("th", { scope: "row" }, part.name), h("td", {}, number(part.value, 3)))),
            h("tr", { class: "tryit-sum" }, h("th", { scope: "row" }, "score"), h("td", {}, number(one.score, 3))))));
      }));
      watched.replaceChildren(...history.map((item, j) => h("li", {
        onpointerenter: () => light(j), onpointerleave: () => light(-1),
        onfocusin: () => light(j), onfocusout: () => light(-1),
      }, h("span", {}, titles[item]), h("button", {
        type: "button", "aria-label": `Remove ${titles[item]}`,
        onclick: () => {
          const place = history.length - 1 - j; // in the list, the last one first
          history = history.filter((other) => other !== item);
          show();
          (watched.children[Math.min(place, history.length - 1)]?.querySelector("button") ?? input).focus();
        },
      }, "\u00d7"))).reverse());
      if (!history.length) watched.append(h("li", { class: "tryit-none" }, "Nothing yet: these are the ten for anybody."));
      spoken.textContent = `The ten best now: ${ten.map((one) => titles[one.item]).join("; ")}.`;
    }

    function light(j) {
      list.classList.toggle("tryit-lit", j >= 0);
      list.querySelectorAll(".tryit-part").forEach((part) =>
        part.classList.toggle("lit", part.dataset.of === String(j)));
    }

    stage.append(
      h("div", { class: "tryit-you" },
        h("label", { for: input.id }, "You watched"),
        h("div", { class: "tryit-search" }, input, found),
        watched,
        h("p", { class: "tryit-start", role: "group", "aria-label": "Start from" }, "Start from ", examples,
          h("button", { type: "button", onclick: () => start([], data.profile.map(() => 0)) }, "nothing")),
        selects.length ? h("fieldset", {}, h("legend", {}, "Profile, if you like"),
          selects.map((select, i) => h("span", {}, h("label", { for: select.id }, data.profile[i].name), select))) : null),
      h("div", { class: "tryit-them" },
        h("p", { class: "tryit-head", id: `${id}-best` }, "The ten best for you"),
        h("p", { class: "tryit-legend", "aria-hidden": "true" },
          h("span", { class: "tryit-part watched" }), "a movie you watched ",
          data.profile.length ? [h("span", { class: "tryit-part profile" }), "profile "] : null,
          h("span", { class: "tryit-part own" }), "the movie's own score"),
        list, spoken),
      h("p", { class: "tryit-terms" }, data.terms));
    list.setAttribute("aria-labelledby", `${id}-best`);
    start(data.examples[0]?.history ?? [], data.examples[0]?.codes ?? codes);
  });
})();
