/* Popularity's fates: what a share of the log-Q correction does to the scores (chapter 4).

One cloud of movies for each share that was trained, for a few users; nothing is interpolated. */
(function () {
  "use strict";
  const { h, s, slider, unpack, number } = bookLive;
  const WIDE = 420, HIGH = 300, LEFT = 42, BOTTOM = 40, SHOWN = 10;

  bookLive.register("fates", function (stage, data) {
    const users = data.users.map((user) => {
      const all = unpack(user.logits), n = user.times.length;
      const clouds = data.shares.map((_, k) => Array.from(all.subarray(k * n, (k + 1) * n)));
      return { ...user, x: user.times.map((times) => Math.log(Math.max(times, 0.5))), clouds };
    });
    const everything = users.flatMap((user) => user.clouds.flat());
    const low = Math.min(...everything), high = Math.max(...everything);
    const xs = users.flatMap((user) => user.x);
    const right = Math.max(...xs), left = Math.min(...xs) - 0.2;
    const X = (value) => LEFT + ((value - left) / (right - left)) * (WIDE - LEFT - 10);
    const Y = (value) => HIGH - BOTTOM - ((value - low) / (high - low)) * (HIGH - BOTTOM - 12);

    const cloud = s("g", { class: "fates-cloud" }), line = s("line", { class: "fates-line" });
    const axes = s("g", { "aria-hidden": "true" },
      s("line", { x1: LEFT, x2: WIDE, y1: HIGH - BOTTOM, y2: HIGH - BOTTOM, class: "live-axis" }),
      s("line", { x1: LEFT, x2: LEFT, y1: 4, y2: HIGH - BOTTOM, class: "live-axis" }),
      [1, 10, 100, 1000].filter((times) => Math.log(times) >= left && Math.log(times) <= right).map((times) => s("text", {
        x: X(Math.log(times)), y: HIGH - BOTTOM + 16, "text-anchor": "middle" }, times)),
      [Math.ceil(low), 0, Math.floor(high)].map((value) => s("text", {
        x: LEFT - 6, y: Y(value) + 4, "text-anchor": "end" }, number(value, 0))),
      s("text", { x: (LEFT + WIDE) / 2, y: HIGH - 6, "text-anchor": "middle" }, "times a training target (log scale)"),
      s("text", { transform: `translate(12 ${(HIGH - BOTTOM) / 2}) rotate(-90)`, "text-anchor": "middle" }, "logit"));
    const drawing = s("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img" }, axes, cloud, line);
    const list = h("ol", { class: "fates-best", "aria-live": "polite" });
    const facts = h("p", { class: "fates-facts" });
    let user = users[0], share = 0, points = [];

    function choose(k) {
      user = users[k];
      points = user.x.map((x) => s("circle", { r: 2, cx: X(x) }));
      cloud.replaceChildren(...points);
      show();
    }

    function show() {
      const y = user.clouds[share], n = y.length;
      const best = [...y.keys()].sort((a, b) => y[b] - y[a] || a - b).slice(0, SHOWN);
      points.forEach((point, i) => {
        point.style.transform = `translateY(${Y(y[i])}px)`;
        point.classList.toggle("best", best.includes(i));
      });
      // Least squares.
      const mean = (values) => values.reduce((a, b) => a + b, 0) / n;
      const mx = mean(user.x), my = mean(y);
      const slope = mean(user.x.map((x, i) => (x - mx) * (y[i] - my))) / mean(user.x.map((x) => (x - mx) ** 2));
      const ends = [left + 0.2, right].map((x) => Y(my + slope * (x - mx)));
      for (const [name, value] of Object.entries({ x1: X(left + 0.2), x2: X(right), y1: ends[0], y2: ends[1] })) {
        line.setAttribute(name, value);
      }
      list.replaceChildren(...best.map((i) => h("li", { "data-item": i },
        user.titles[i], h("span", {}, ` ${user.times[i]}\u00d7`))));
      const median = best.map((i) => user.times[i]).sort((a, b) => a - b)[best.length >> 1];
      facts.textContent = `Slope of the line: ${number(slope, 2)}. Half of the ten are targets at least `
        + `${median} times. HR@10 of all users on the validation target: ${number(data.hit_rate[share], 3)}.`;
      drawing.setAttribute("aria-label", `Movies by popularity and logit; the line's slope is ${number(slope, 2)}`);
    }

    const control = slider("Share of log-Q that is subtracted, \u03b2", {
      min: 0, max: data.shares.length - 1, step: 1, value: data.shares.indexOf(1),
      show: (k) => `\u03b2 = ${data.shares[k]}`,
    }, (k) => { share = k; show(); });
    share = data.shares.indexOf(1);
    const select = h("select", { id: "fates-user", onchange: (event) => choose(Number(event.target.value)) },
      users.map((one, k) => h("option", { value: k }, one.name)));
    stage.append(control.row,
      h("p", {}, h("label", { for: "fates-user" }, "Scores of "), select),
      h("div", { class: "fates-both" }, drawing,
        h("div", {}, h("p", { class: "fates-head" }, "The ten best, and how often each is a training target"), list)),
      facts);
    choose(0);
    control.update();
  });
})();
