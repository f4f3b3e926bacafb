"use strict";
// Shows the rows of the page: sorts, filters and searches them, and marks the words in which two texts differ.
// Plain JavaScript without a library, so that the page is one file. All text of the data is put into text nodes or
// attributes, never into HTML. Only a window of the rows is in the list; scrolling or a key adds more.

const data = JSON.parse(document.getElementById("data").textContent);
const WINDOW = 100; // rows that are added to the list at once
const COMPARED = 16e6; // words of one text times words of the other: 32 MB to compare them
const FIRST = 160; // characters of a row's text in the list
// What cannot be seen: control and format characters, and letters without a glyph. Not the joiners between two letters
// that are not ASCII: Persian, Hindi and emoji are written with them.
const UNSEEN = new RegExp(
  "((?![\\t\\n])(?!(?<=[^\\0-\\x7f])[\\u200c\\u200d][^\\0-\\x7f])" +
    "[\\p{Cc}\\p{Cf}\\p{Zl}\\p{Zp}\\p{Cs}\\u034f\\u115f\\u1160\\u2800\\u3164\\uffa0])\\1*",
  "gu",
);

const at = (id) => document.getElementById(id);
// order: numbers of the rows that are chosen and sorted; shown: how many of them the list has; place: the chosen one
const state = { set: data.sets[0], sort: null, falling: false, only: {}, order: [], shown: 0, place: -1 };
const marked = new Map(); // key -> source
const searchedText = new Map(); // row -> all that is searched of it; made when the first search needs it
const inOrder = new Intl.Collator("en", { numeric: true }).compare; // row 9 before row 10
let unsaved = false;

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// ---- text

function nameOf(found) {
  const character = String.fromCodePoint(found.codePointAt(0));
  const name = "U+" + character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
  return found.length > character.length ? `${name}×${found.length / character.length}` : name;
}

function show(element, text) {
  let from = 0;
  for (const found of text.matchAll(UNSEEN)) {
    if (found.index > from) element.append(text.slice(from, found.index));
    const hidden = make("span", { className: "hidden" }, found[0]);
    hidden.dataset.name = nameOf(found[0]);
    element.append(hidden);
    from = found.index + found[0].length;
  }
  if (from < text.length) element.append(text.slice(from));
  return element;
}

const inOneLine = (text) => text.replace(UNSEEN, (found) => `⟨${nameOf(found)}⟩`); // where no element can stand

function valueText(value) {
  if (value === null) return "–";
  if (typeof value !== "number") return String(value);
  return Number.isInteger(value) ? value.toLocaleString("en") : Number(value.toPrecision(4)).toString();
}

function words(text) {
  return Array.from(new Intl.Segmenter("en", { granularity: "word" }).segment(text), (each) => each.segment);
}

// For each word of two texts, whether it differs: all that is not in their longest common subsequence.
function differing(first, second) {
  let start = 0;
  while (start < Math.min(first.length, second.length) && first[start] === second[start]) start++;
  let end = 0;
  const most = Math.min(first.length, second.length) - start;
  while (end < most && first[first.length - 1 - end] === second[second.length - 1 - end]) end++;
  const rows = first.length - start - end;
  const columns = second.length - start - end;
  if ((rows + 1) * (columns + 1) > COMPARED) return null;
  const width = columns + 1;
  const longest = new Uint16Array((rows + 1) * width);
  for (let i = rows - 1; i >= 0; i--) {
    for (let j = columns - 1; j >= 0; j--) {
      longest[i * width + j] =
        first[start + i] === second[start + j]
          ? longest[(i + 1) * width + j + 1] + 1
          : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    }
  }
  const differs = [[first, rows], [second, columns]].map(([parts, count]) => {
    return parts.map((_, place) => place >= start && place < start + count);
  });
  for (let i = 0, j = 0; i < rows && j < columns; ) {
    if (first[start + i] === second[start + j]) {
      differs[0][start + i++] = false;
      differs[1][start + j++] = false;
    } else if (longest[(i + 1) * width + j] >= longest[i * width + j + 1]) i++;
    else j++;
  }
  return differs;
}

function showMarked(element, parts, differs) {
  for (let from = 0, to; from < parts.length; from = to) {
    for (to = from + 1; to < parts.length && differs[to] === differs[from]; ) to++;
    const run = parts.slice(from, to).join("");
    if (differs[from]) element.append(show(make("mark"), run));
    else show(element, run);
  }
}

// ---- the chosen row

function textBox([title, number, folded, cut], differs, parts) {
  const text = data.texts[number];
  const body = make("div", { className: "text" });
  if (differs) showMarked(body, parts, differs);
  else show(body, text);
  const copy = make("button", { type: "button", textContent: "copy" });
  copy.setAttribute("aria-label", `Copy ${inOneLine(title)}`);
  copy.onclick = () => {
    const refused = () => say("The browser does not allow it. Select the text and copy it.");
    if (!navigator.clipboard) refused();
    else navigator.clipboard.writeText(text).then(() => say("Copied."), refused);
  };
  const heading = make("div", { className: "heading" }, show(make("h4"), title), copy);
  const said = `${valueText(cut)} more characters are not in this page. ${data.rest}`;
  const rest = cut ? [make("p", { className: "note" }, said)] : [];
  if (!folded) return make("section", {}, heading, body, ...rest);
  const summary = show(make("summary"), `${title} (${valueText(text.length)} characters)`);
  return make("details", {}, summary, heading, body, ...rest);
}

function bandOf([compared, columns]) {
  const band = make("div", { className: "band" });
  const found = [];
  if (compared && columns.length > 1) {
    const parts = columns.slice(0, 2).map((column) => words(data.texts[column[0][1]]));
    const differs = differing(...parts);
    if (differs) differs.forEach((each, side) => (found[side] = [each, parts[side]]));
    else band.dataset.uncompared = "";
  }
  columns.forEach((column, side) => {
    const boxes = column.map((text, place) => textBox(text, ...(place === 0 && found[side] ? found[side] : [])));
    band.append(make("div", { className: "column" }, ...boxes));
  });
  if ("uncompared" in band.dataset) {
    return make("div", {}, band, make("p", { className: "note" }, "Too long to mark where the two differ."));
  }
  return band;
}

function choose(place, focus = true) {
  if (place < 0 || place >= state.order.length) return;
  select(place);
  if (focus) at("body").rows[place].querySelector("button").focus();
  say(`Row ${place + 1} of ${valueText(state.order.length)}.`);
}

function select(place) {
  state.place = place;
  while (state.shown <= place) addRows();
  for (const old of at("body").querySelectorAll("tr[data-current]")) {
    delete old.dataset.current;
    old.querySelector("button").removeAttribute("aria-current");
  }
  const line = at("body").rows[place];
  line.dataset.current = "";
  line.querySelector("button").setAttribute("aria-current", "true");
  showChosen();
}

function showChosen() {
  const [key, values, bands] = state.set.rows[state.order[state.place]];
  const source = String(values[0]);
  const step = (name, by) => {
    return make("button", { type: "button", textContent: name, onclick: () => choose(state.place + by, false) });
  };
  const buttons = make("span", { className: "steps" }, step("previous", -1), " ", step("next", 1));
  if (state.set.markable) {
    const mark = make("button", { type: "button", textContent: "mark", onclick: () => toggleMark() });
    mark.setAttribute("aria-pressed", marked.has(key));
    buttons.append(" ", mark);
  }
  const list = make("dl", { className: "values" });
  state.set.columns.forEach((name, index) => {
    if (index) list.append(make("div", {}, show(make("dt"), name), show(make("dd"), valueText(values[index]))));
  });
  const top = make("div", { className: "top" }, show(make("h3"), source), buttons);
  at("chosen").replaceChildren(top, list, ...bands.map(bandOf));
  at("chosen").scrollTop = 0;
  highlight();
}

// Where the searched words stand in the chosen row. Browsers without highlights show the row as it is.
function highlight() {
  if (!CSS.highlights) return;
  CSS.highlights.delete("found");
  const sought = at("search").value.toLowerCase();
  if (!sought) return;
  const ranges = [];
  const nodes = document.createTreeWalker(at("chosen"), NodeFilter.SHOW_TEXT);
  for (let node; (node = nodes.nextNode()); ) {
    const text = node.data.toLowerCase();
    if (text.length !== node.data.length) continue; // a letter that has another length in lower case
    for (let from = text.indexOf(sought); from >= 0; from = text.indexOf(sought, from + sought.length)) {
      const range = new Range();
      range.setStart(node, from);
      range.setEnd(node, from + sought.length);
      ranges.push(range);
    }
  }
  CSS.highlights.set("found", new Highlight(...ranges));
}

// ---- the list

function searched(row) {
  if (!searchedText.has(row)) {
    const texts = row[2].flatMap(([, columns]) => columns.flat().map(([, number]) => data.texts[number]));
    searchedText.set(row, [...row[1], ...texts].join("\n").toLowerCase());
  }
  return searchedText.get(row);
}

function compareValues(one, other) {
  if (typeof one === "number" && typeof other === "number") return one - other;
  return inOrder(String(one), String(other));
}

function update() {
  const { set, only } = state;
  const sought = at("search").value.toLowerCase();
  const filters = Object.entries(only).map(([name, value]) => [set.columns.indexOf(name), value]);
  const kept = set.rows
    .map((row, index) => index)
    .filter((index) => filters.every(([column, value]) => nameOfValue(set.rows[index][1][column]) === value))
    .filter((index) => !sought || searched(set.rows[index]).includes(sought));
  const column = set.columns.indexOf(state.sort);
  const valueOf = (index) => set.rows[index][1][column] ?? null;
  const known = (index) => valueOf(index) !== null;
  const sign = state.falling ? -1 : 1;
  const sorted = kept.filter(known).sort((a, b) => sign * compareValues(valueOf(a), valueOf(b)));
  state.order = [...sorted, ...kept.filter((index) => !known(index))];
  state.shown = 0;
  state.place = -1;
  at("body").replaceChildren();
  at("chosen").replaceChildren();
  at("list").scrollTop = 0;
  addRows();
  showHead();
  showFilters();
  const held = valueText(set.rows.length);
  const gaps = sought ? "" : aboutGaps();
  const all = set.rows.length < set.total ? `; the page holds ${held} of ${valueText(set.total)}.${gaps} ${data.rest}` : "";
  if (state.order.length) select(0);
  at("count").textContent = `${valueText(state.order.length)} of ${held} rows${all}`;
}

// Rows that the page has no room for may be missing between those of a view: up to where is none?
function aboutGaps() {
  const [, column, falling, only, unbroken] = state.set.views[at("view").selectedIndex];
  const asOpened =
    state.sort === column && state.falling === falling && JSON.stringify(state.only) === JSON.stringify(only);
  if (!asOpened || unbroken >= state.set.total) return "";
  return ` In this view none is missing before row ${valueText(unbroken + 1)}.`;
}

function addRows() {
  const end = Math.min(state.shown + WINDOW, state.order.length);
  const lines = [];
  for (; state.shown < end; state.shown++) lines.push(lineOf(state.shown));
  at("body").append(...lines);
}

function lineOf(place) {
  const [key, values, bands] = state.set.rows[state.order[place]];
  const opening = bands[0][1][0].at(-1);
  const start = opening ? data.texts[opening[1]].slice(0, FIRST).replace(/\s+/g, " ") : "";
  const first = show(make("span", { className: "first" }), start);
  const button = make("button", { type: "button", className: "open" }, show(make("span"), String(values[0])), first);
  button.onclick = () => {
    choose(state.order.indexOf(Number(line.dataset.row)));
    if (matchMedia("(max-width: 60rem)").matches) at("chosen").scrollIntoView({ block: "nearest" }); // it is below
  };
  const head = make("th", { scope: "row" }, button);
  const line = make("tr", {}, head);
  line.dataset.row = state.order[place];
  if (marked.has(key)) line.dataset.marked = "";
  values.slice(1).forEach((value) => {
    line.append(show(make("td", { className: typeof value === "number" ? "number" : "" }), valueText(value)));
  });
  return line;
}

function showHead() {
  at("head").replaceChildren(
    ...state.set.columns.map((name) => {
      const button = show(make("button", { type: "button" }), name);
      button.onclick = () => {
        state.falling = state.sort === name && !state.falling;
        state.sort = name;
        update();
        at("head").children[state.set.columns.indexOf(name)].firstChild.focus();
      };
      const cell = make("th", { scope: "col" }, button);
      if (state.sort === name) cell.setAttribute("aria-sort", state.falling ? "descending" : "ascending");
      return cell;
    }),
  );
}

// A list of values for each column that has one, and a table for each two columns that are counted against each other.
function showChoices() {
  state.lists = state.set.choices.map((name) => {
    const counts = countBy([name]);
    const values = valuesOf(name);
    const list = make("select", {}, new Option("any", ""));
    list.append(...values.map((value, index) => new Option(`${inOneLine(value)} (${counts.get(value)})`, index)));
    list.onchange = () => {
      if (list.selectedIndex) state.only[name] = values[list.selectedIndex - 1];
      else delete state.only[name];
      update();
    };
    return { name, list, values };
  });
  at("filters").replaceChildren(...state.lists.map(({ name, list }) => make("label", {}, inOneLine(name), " ", list)));
  state.cells = [];
  at("tables").hidden = !state.set.tables.length;
  at("tables").lastElementChild.replaceChildren(...state.set.tables.map(([down, across]) => countTable(down, across)));
}

const nameOfValue = (value) => (value === null ? "–" : String(value)); // as it is chosen by and counted
const valuesOf = (name) => [...countBy([name]).keys()].sort(inOrder);

function countBy(names) {
  const columns = names.map((name) => state.set.columns.indexOf(name));
  const counts = new Map();
  for (const [, values] of state.set.rows) {
    const found = columns.map((column) => nameOfValue(values[column])).join("\0");
    counts.set(found, (counts.get(found) || 0) + 1);
  }
  return counts;
}

function countTable(down, across) {
  const counts = countBy([down, across]);
  const columns = valuesOf(across);
  const head = make("tr", {}, make("th", { scope: "col" }, inOneLine(`${down} ↓ ${across} →`)));
  head.append(...columns.map((name) => show(make("th", { scope: "col" }), name)));
  const lines = valuesOf(down).map((row) => {
    const line = make("tr", {}, show(make("th", { scope: "row" }), row));
    for (const column of columns) {
      const count = counts.get(`${row}\0${column}`) || 0;
      const button = make("button", { type: "button", textContent: valueText(count), disabled: !count });
      button.setAttribute("aria-label", inOneLine(`${count} rows: ${down} ${row}, ${across} ${column}`));
      const pressed = () => state.only[down] === row && state.only[across] === column;
      button.onclick = () => showAll(pressed() ? {} : { [down]: row, [across]: column }); // as many as are counted
      state.cells.push([button, pressed]);
      line.append(make("td", {}, button));
    }
    return line;
  });
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...lines));
}

// All rows, or those with these values: nothing else that was chosen or searched leaves any out.
function showAll(only = {}) {
  at("search").value = "";
  state.only = only;
  update();
}

function showFilters() {
  for (const { name, list, values } of state.lists) {
    list.selectedIndex = name in state.only ? values.indexOf(state.only[name]) + 1 : 0;
  }
  for (const [button, pressed] of state.cells) button.setAttribute("aria-pressed", pressed());
}

// ---- marked rows

function toggleMark() {
  if (!state.set.markable || state.place < 0) return;
  const [key, values] = state.set.rows[state.order[state.place]];
  if (!marked.delete(key)) marked.set(key, String(values[0]));
  marksChanged();
}

function marksChanged() {
  unsaved = marked.size > 0;
  for (const line of at("body").rows) {
    line.toggleAttribute("data-marked", marked.has(state.set.rows[line.dataset.row][0]));
  }
  const pressed = at("chosen").querySelector("[aria-pressed]");
  if (pressed) pressed.setAttribute("aria-pressed", marked.has(state.set.rows[state.order[state.place]][0]));
  say(`${valueText(marked.size)} rows are marked.`);
}

function saveMarked() {
  if (!marked.size) return say("No row is marked.");
  const lines = Array.from(marked, ([key, source]) => `${key}  ${source.replace(/[\r\n]/g, " ")}\n`);
  const href = URL.createObjectURL(new Blob(lines, { type: "text/plain" }));
  make("a", { href, download: "marked_rows.txt" }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000); // some browsers read it after the click
  unsaved = false;
  say(`${valueText(marked.size)} rows are in marked_rows.txt.`);
}

// ---- what the reader does

let saying;
function say(text) {
  clearTimeout(saying);
  saying = setTimeout(() => (at("said").textContent = text), 50); // one message, not one for each key
}

function openView(index) {
  const view = state.set.views[index];
  [, state.sort, state.falling] = view;
  state.only = { ...view[3] };
  update();
}

function openSet(index) {
  state.set = data.sets[index];
  at("view").replaceChildren(...state.set.views.map(([title], place) => new Option(title, place)));
  at("note").replaceChildren();
  show(at("note"), state.set.note);
  at("marking").hidden = !state.set.markable;
  at("search").value = "";
  showChoices();
  openView(0);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !state.set) return;
  const typing = event.target.matches("input, select, textarea");
  const inList = at("list").contains(event.target); // elsewhere the arrow keys scroll
  if (event.key === "Escape" && event.target === at("search")) choose(Math.max(state.place, 0));
  else if (typing) return;
  else if (event.key === "/") at("search").focus();
  else if (event.key === "j" || (event.key === "ArrowDown" && inList)) choose(state.place + 1);
  else if (event.key === "k" || (event.key === "ArrowUp" && inList)) choose(state.place - 1);
  else if (event.key === "x") toggleMark();
  else return;
  event.preventDefault();
}

// Copied text is the text itself, without the numbers of what cannot be seen, and with what the browser would drop.
function onCopy(event) {
  const selection = document.getSelection();
  if (selection.isCollapsed) return;
  const range = selection.getRangeAt(0);
  const common = range.commonAncestorContainer;
  const element = common.nodeType === Node.ELEMENT_NODE ? common : common.parentElement;
  if (!element?.closest(".text, .shown")) return;
  event.clipboardData.setData("text/plain", range.toString());
  event.preventDefault();
}

function start() {
  for (const element of document.querySelectorAll(".shown")) {
    const text = element.textContent;
    element.replaceChildren();
    show(element, text);
  }
  document.addEventListener("copy", onCopy);
  if (!data.sets.length) {
    const nothing = make("p", { textContent: "There is no row to show." });
    at("examples").replaceChildren(make("h2", { id: "examples-title", textContent: "Rows" }), nothing);
    return;
  }
  at("examples").append(make("p", { id: "said", className: "unseen", role: "status" }));
  at("set").append(...data.sets.map((set, index) => new Option(inOneLine(set.title), index)));
  at("set").onchange = () => openSet(at("set").selectedIndex);
  at("view").onchange = () => openView(at("view").selectedIndex);
  at("all").onclick = () => showAll();
  let waiting;
  at("search").oninput = () => {
    clearTimeout(waiting);
    waiting = setTimeout(update, 120);
  };
  document.querySelector(".controls").onsubmit = (event) => event.preventDefault();
  at("mark-shown").onclick = () => {
    for (const index of state.order) marked.set(state.set.rows[index][0], String(state.set.rows[index][1][0]));
    marksChanged();
  };
  at("save").onclick = saveMarked;
  at("list").onscroll = () => {
    const list = at("list");
    if (list.scrollTop + list.clientHeight > list.scrollHeight - 600 && state.shown < state.order.length) addRows();
  };
  document.addEventListener("keydown", onKey);
  window.addEventListener("beforeunload", (event) => unsaved && event.preventDefault());
  openSet(0);
}

start();
