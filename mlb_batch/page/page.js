"use strict";
// The gallery. All that came from a manifest or a model goes in as text, never as markup.
(() => {
  const AT_ONCE = 24;
  const SHORT = 300;
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("clips").textContent);
  const images = JSON.parse(byId("pictures").textContent);
  const [search, prompt, status, count, cards, more] = ["search", "prompt", "status", "count", "cards", "more"].map(byId);
  const nearing = new IntersectionObserver((seen) => {
    if (seen.at(-1).isIntersecting && !more.hidden && document.activeElement !== more) extend();
  }, { rootMargin: "600px" });
  let found = [];
  let shown = 0;

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.append(text);
    return element;
  }

  // The text with every occurrence of the word that is searched for marked.
  function marked(parent, text, word) {
    const small = text.toLowerCase();
    let from = 0;
    // Some letters change their length in small letters: then positions don't fit, and nothing is marked.
    for (let at; word && small.length === text.length && (at = small.indexOf(word, from)) >= 0; from = at + word.length) {
      parent.append(text.slice(from, at), make("mark", "", text.slice(at, at + word.length)));
    }
    parent.append(text.slice(from));
    return parent;
  }

  function unanswered(clip) {
    return (clip.unanswered ?? []).map((number) => data.prompts[number].id);
  }

  function haystack(clip) {
    const words = [clip.id, clip.uri, clip.failed, clip.problem, ...unanswered(clip)];
    for (const [, value] of clip.columns) words.push(value);
    for (const answer of clip.answers) words.push(answer.asked, answer.text);
    return words.filter(Boolean).join("\n").toLowerCase();
  }

  const haystacks = [];
  function matches(clip, number, word) {
    if (status.value === "failed" ? !clip.failed : status.value && clip.failed) return false;
    const asks = clip.answers.filter((answer) => (prompt.value === "" || String(answer.prompt) === prompt.value)
      && (status.value === "" || status.value === "failed" || (answer.status || "ok") === status.value));
    if (!clip.failed && !asks.length) return false;
    if (clip.failed && prompt.value !== "" && !clip.unanswered.includes(Number(prompt.value))) return false;
    if (!word) return true;
    haystacks[number] ??= haystack(clip);
    return haystacks[number].includes(word);
  }

  function filter() {
    const word = search.value.trim().toLowerCase();
    found = data.clips.filter((clip, number) => matches(clip, number, word));
    cards.replaceChildren();
    shown = 0;
    count.textContent = `${found.length.toLocaleString("en")} of ${data.clips.length.toLocaleString("en")} clips`;
    extend();
  }

  function extend() {
    const word = search.value.trim().toLowerCase();
    const next = found.slice(shown, shown + AT_ONCE).map((clip, number) => card(clip, shown + number, word));
    shown += next.length;
    cards.append(...next);
    more.hidden = shown >= found.length;
    more.textContent = `Show more (${(found.length - shown).toLocaleString("en")} left)`;
    nearing.unobserve(more); // so that it is told again, should the button still be near
    nearing.observe(more);
    return next[0];
  }

  function card(clip, number, word) {
    const item = make("li");
    const article = make("article");
    article.tabIndex = -1;
    const title = marked(make("h3"), clip.id, word);
    title.id = `clip-${number}`;
    title.dir = "auto";
    article.setAttribute("aria-labelledby", title.id);
    const head = make("header");
    head.append(title, clip.failed ? make("span", "tag failed", clip.failed) : make("span", "", clip.span));
    article.append(head, marked(make("p", "where"), [...clip.columns.map(([, value]) => value), clip.uri].join(" · "), word));
    const draw = clip.picture ? film(article, clip) : null;
    if (clip.problem) article.append(placeholder(clip, word));
    if (clip.answers.length) article.append(answers(clip, word, draw));
    item.append(article);
    return item;
  }

  function placeholder(clip, word) {
    const box = make("div", "grey");
    const said = make("div");
    said.append(make("strong", "", clip.failed ? "Not annotated" : "No picture"), marked(make("span"), clip.problem, word));
    if (clip.unanswered) said.append(make("br"), `unanswered: ${unanswered(clip).join(", ").slice(0, SHORT)}`);
    box.append(said);
    return box;
  }

  // The frames, and over them which tokens were still there; returns what shows another answer's tokens.
  function film(article, clip) {
    const { picture } = clip;
    const row = make("div", "film");
    const image = new Image();
    const frames = picture.times.map((time) => {
      const figure = make("figure");
      const canvas = make("canvas");
      figure.append(canvas, make("figcaption", "", time));
      row.append(figure);
      return canvas;
    });
    row.setAttribute("role", "img");
    row.setAttribute("aria-label", `${frames.length} of ${picture.of} frames`);
    article.append(row);
    let selection = picture.kept[0];
    let cut = selection ? selection.cuts.length : 0;
    let left = selection && bytes(selection.leftAt);
    const paint = () => frames.forEach((canvas, frame) => drawFrame(canvas, image, frames.length, frame, selection, left, cut));
    image.onload = paint;
    image.src = `data:image/webp;base64,${images[picture.at]}`;
    if (!selection) return null;
    const slider = slide(article, selection, clip.id, (at) => { cut = at; paint(); });
    return (number) => {
      selection = picture.kept[number];
      left = bytes(selection.leftAt);
      slider.use(selection);
    };
  }

  function slide(article, first, name, changed) {
    const box = make("div", "cut");
    const range = make("input");
    const said = make("output");
    let selection = first;
    range.type = "range";
    range.min = 0;
    range.setAttribute("aria-label", `Tokens kept of ${name}, cut by cut`);
    const show = () => {
      const at = Number(range.value);
      const [layer, kept] = at ? selection.cuts[at - 1] : [0, selection.tokens];
      const share = `${kept.toLocaleString("en")} of ${selection.tokens.toLocaleString("en")}`;
      const where = at ? (layer ? `from layer ${layer} on` : "before the first layer") : "before any cut";
      said.textContent = `${share} tokens ${where}`;
      range.setAttribute("aria-valuetext", said.textContent);
      changed(at);
    };
    const use = (other) => {
      selection = other;
      range.max = selection.cuts.length;
      range.value = selection.cuts.length;
      show();
    };
    range.oninput = show;
    use(first);
    box.append("cuts", range, said);
    article.append(box);
    return { use };
  }

  function bytes(base64) {
    return Uint8Array.from(atob(base64), (sign) => sign.charCodeAt(0));
  }

  // One frame of the strip; what is gone by the cut is veiled, what is left has an outline.
  function drawFrame(canvas, image, frames, frame, selection, left, cut) {
    if (!image.naturalWidth) return;
    const width = canvas.width = image.naturalWidth / frames;
    const height = canvas.height = image.naturalHeight;
    const pen = canvas.getContext("2d");
    pen.drawImage(image, frame * width, 0, width, height, 0, 0, width, height);
    if (!selection || cut === 0) return;
    const { rows, cols } = selection;
    const kept = (row, col) => row >= 0 && col >= 0 && row < rows && col < cols
      && left[(frame * rows + row) * cols + col] >= cut;
    const look = getComputedStyle(document.documentElement);
    pen.fillStyle = `rgba(${look.getPropertyValue("--veil")}, .78)`;
    pen.strokeStyle = look.getPropertyValue("--kept");
    pen.lineWidth = 3;
    pen.beginPath();
    for (let row = 0; row < rows; row++) {
      for (let col = 0; col < cols; col++) {
        const [x, y, right, below] = [col * width / cols, row * height / rows, (col + 1) * width / cols, (row + 1) * height / rows];
        if (!kept(row, col)) { pen.fillRect(x, y, right - x, below - y); continue; }
        if (!kept(row - 1, col)) { pen.moveTo(x, y); pen.lineTo(right, y); }
        if (!kept(row + 1, col)) { pen.moveTo(x, below); pen.lineTo(right, below); }
        if (!kept(row, col - 1)) { pen.moveTo(x, y); pen.lineTo(x, below); }
        if (!kept(row, col + 1)) { pen.moveTo(right, y); pen.lineTo(right, below); }
      }
    }
    pen.stroke();
  }

  function answers(clip, word, draw) {
    const list = make("dl", "answers");
    const buttons = [];
    for (const answer of clip.answers) {
      const asked = marked(make("dt"), answer.asked, word);
      const said = make("dd");
      const text = marked(make("p", "text"), answer.text, word);
      asked.dir = text.dir = "auto";
      const facts = make("p", "facts-line");
      if (answer.status) facts.append(make("span", "tag", answer.status));
      facts.append(make("span", "", answer.kept));
      if (answer.cost) facts.append(make("span", "", `${answer.cost} of unpruned`));
      if (answer.chars) facts.append(make("span", "", `the first of ${answer.chars.toLocaleString("en")} characters`));
      if (answer.text.length > 400 || answer.text.split("\n").length > 6) facts.append(unfold(text));
      if (draw && clip.picture.kept.length > 1 && answer.selection !== undefined) {
        buttons.push(pick(answer.selection, buttons, draw));
        facts.append(buttons.at(-1));
      }
      said.append(text, facts);
      const pair = make("div");
      pair.append(asked, said);
      list.append(pair);
    }
    buttons[0]?.setAttribute("aria-pressed", "true");
    return list;
  }

  function unfold(text) {
    const button = make("button", "", "Show all");
    button.type = "button";
    button.setAttribute("aria-expanded", "false");
    button.onclick = () => {
      const open = text.classList.toggle("open");
      text.tabIndex = open ? 0 : -1;
      button.textContent = open ? "Show less" : "Show all";
      button.setAttribute("aria-expanded", String(open));
    };
    return button;
  }

  function pick(number, buttons, draw) {
    const button = make("button", "", "Show its tokens");
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    button.onclick = () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      draw(number);
    };
    return button;
  }

  data.prompts.forEach(({ id }, number) => {
    const option = make("option", "", id);
    option.value = number;
    prompt.append(option);
  });
  let waiting;
  search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 120); });
  for (const select of [prompt, status]) select.addEventListener("change", filter);
  byId("filter").addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => extend()?.firstElementChild.focus());
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select, textarea");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) { event.preventDefault(); search.focus(); }
    if (event.key === "Escape" && event.target === search) { search.value = ""; filter(); }
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", filter);
  filter();
})();
