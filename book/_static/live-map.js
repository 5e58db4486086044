/* The map: movies in the plane, a tree's cuts, a user's path, and the leaves that a search opens
(chapter 7). The tree is the notebook's own, and so is the order in which its leaves are taken. */
(function () {
  "use strict";
  const { h, s, slider } = bookLive;
  const SIZE = 420, NEAREST = 10;

  /** The part of a convex polygon on the side of a cut to which its normal points. */
  function clip(polygon, [nx, ny, offset], sign) {
    const margin = ([x, y]) => sign * (nx * x + ny * y - offset);
    return polygon.flatMap((point, i) => {
      const before = polygon.at(i - 1), a = margin(before), b = margin(point), kept = [];
      if (a > 0 !== b > 0) {
        const t = a / (a - b);
        kept.push([before[0] + t * (point[0] - before[0]), before[1] + t * (point[1] - before[1])]);
      }
      if (b > 0) kept.push(point);
      return kept;
    });
  }

  function leavesOf(node, polygon) {
    if (node.leaf) {
      node.polygon = polygon;
      return [node];
    }
    return [...leavesOf(node.there, clip(polygon, node.cut, 1)), ...leavesOf(node.here, clip(polygon, node.cut, -1))];
  }

  /** The leaves in the order in which a queue takes them: by the worst cut on the way there. */
  function visited(tree, [x, y], most) {
    const queue = [{ node: tree, priority: Infinity, number: 0 }], found = [];
    for (let number = 1; queue.length && found.length < most; number += 2) {
      queue.sort((a, b) => b.priority - a.priority || a.number - b.number);
      const { node, priority } = queue.shift();
      if (node.leaf) {
        found.push(node);
        continue;
      }
      const margin = node.cut[0] * x + node.cut[1] * y - node.cut[2];
      queue.push({ node: node.there, priority: Math.min(priority, margin), number });
      queue.push({ node: node.here, priority: Math.min(priority, -margin), number: number + 1 });
    }
    return found;
  }

  bookLive.register("map", function (stage, data) {
    const { places, tips, history, titles, frame } = data, most = 12;
    const at = ([x, y]) => [SIZE / 2 * (1 + x / frame), SIZE / 2 * (1 - y / frame)];
    const dots = (items, attributes) => items.map((i) => {
      const [cx, cy] = at(places[i]);
      return s("circle", { cx, cy, ...attributes }, titles[i] ? s("title", {}, titles[i]) : null);
    });
    const edge = 4 * frame;
    const leaves = leavesOf(data.tree, [[-edge, -edge], [edge, -edge], [edge, edge], [-edge, edge]]);
    for (const leaf of leaves) {
      leaf.shape = s("polygon", { points: leaf.polygon.map((point) => at(point).join(",")).join(" "), class: "map-leaf" });
    }
    const path = s("polyline", { class: "map-path" }), stops = s("g", { class: "map-stops" });
    const rings = s("g", { class: "map-rings" }), numbers = s("g", { class: "map-numbers" });
    const arrow = s("line", { x1: SIZE / 2, y1: SIZE / 2, class: "map-arrow", "marker-end": "url(#map-head)" });
    const drawing = s("svg", { viewBox: `0 0 ${SIZE} ${SIZE}`, role: "img", class: "map-drawing" },
      s("defs", {}, s("marker", { id: "map-head", viewBox: "0 0 10 10", refX: 8, refY: 5, markerWidth: 5, markerHeight: 5, orient: "auto" },
        s("path", { d: "M0 0 L10 5 L0 10 z", fill: "var(--user)" }))),
      leaves.map((leaf) => leaf.shape), s("g", { class: "map-dots" }, dots([...places.keys()], { r: 1.6 })),
      rings, path, stops, arrow, numbers);
    const facts = h("p", { class: "map-facts", "aria-live": "polite" });
    const list = h("ol", { class: "map-nearest" });
    let watched = 0, opened = 1;

    function show() {
      const tip = tips[watched], order = visited(data.tree, tip, opened);
      leaves.forEach((leaf) => leaf.shape.style.removeProperty("fill-opacity"));
      order.forEach((leaf, i) => { leaf.shape.style.fillOpacity = 0.55 - (0.4 * i) / most; });
      const middle = (leaf) => {
        const inside = leaf.leaf.map((i) => at(places[i]));
        return [0, 1].map((axis) => inside.reduce((sum, point) => sum + point[axis], 0) / inside.length);
      };
      numbers.replaceChildren(...order.map((leaf, i) => {
        const [x, y] = middle(leaf);
        return s("text", { x, y: y + 4, "text-anchor": "middle" }, i + 1);
      }));
      const [x2, y2] = at(tip);
      arrow.setAttribute("x2", x2);
      arrow.setAttribute("y2", y2);
      const seen = history.slice(0, watched);
      path.setAttribute("points", seen.map((i) => at(places[i]).join(",")).join(" "));
      stops.replaceChildren(...dots(seen, { r: 4 }));
      const distance = (i) => (places[i][0] - tip[0]) ** 2 + (places[i][1] - tip[1]) ** 2;
      const nearest = [...places.keys()].sort((a, b) => distance(a) - distance(b) || a - b).slice(0, NEAREST);
      rings.replaceChildren(...dots(nearest, { r: 5 }));
      const candidates = new Set(order.flatMap((leaf) => leaf.leaf));
      const found = nearest.filter((i) => candidates.has(i));
      const last = seen.length ? `after ${titles[seen.at(-1)]}` : "from the profile alone";
      facts.textContent = `${data.user}, ${last}. ${opened === 1 ? "One leaf" : `${opened} leaves`} of ${leaves.length}, `
        + `${candidates.size} candidates: ${found.length} of the ten nearest to the tip.`;
      facts.dataset.leaves = JSON.stringify(order.map((leaf) => leaf.leaf));
      list.replaceChildren(...nearest.map((i) => h("li", { "data-item": i, class: candidates.has(i) ? "found" : "missed" },
        titles[i], candidates.has(i) ? null : h("span", {}, " (not in these leaves)"))));
      drawing.setAttribute("aria-label", facts.textContent);
    }

    const first = slider("Movies watched", {
      min: 0, max: history.length, step: 1, value: history.length,
      show: (count) => (count ? `${count}, the last: ${titles[history[count - 1]]}` : "none: the profile alone"),
    }, (count) => { watched = count; show(); });
    const second = slider("Leaves opened", {
      min: 1, max: most, step: 1, value: 1, show: (count) => String(count),
    }, (count) => { opened = count; show(); });
    stage.append(first.row, second.row, h("div", { class: "fates-both" }, drawing,
      h("div", {}, h("p", { class: "fates-head" }, "The ten nearest to the tip"), list)), facts);
    first.update();
    second.update();
  });
})();
