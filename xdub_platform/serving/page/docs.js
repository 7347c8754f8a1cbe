"use strict";

// Shows /openapi.json without anything from the network.

function made(tag, text, ...children) {
  const node = Object.assign(document.createElement(tag), { textContent: text || "" });
  node.append(...children);
  return node;
}

function resolved(spec, schema) {
  return schema && schema.$ref ? spec.components.schemas[schema.$ref.split("/").pop()] : schema || {};
}

function example(spec, schema) {
  const one = resolved(spec, schema);
  if (one.examples) return one.examples[0];
  if (one.default !== undefined) return one.default;
  if (one.enum) return one.enum[0];
  if (one.anyOf) return example(spec, one.anyOf[0]);
  if (one.properties) {
    return Object.fromEntries(Object.entries(one.properties).map(([name, value]) => [name, example(spec, value)]));
  }
  if (one.type === "array") return [example(spec, one.items)];
  if (one.format === "date-time") return "2026-01-31T12:00:00Z";
  return { string: one.format === "binary" ? "(a file)" : "text", integer: 0, number: 0, boolean: true }[one.type] ?? null;
}

function table(names, rows) {
  const head = made("tr");
  head.append(...names.map((name) => made("th", name)));
  const body = rows.map((row) => {
    const line = made("tr");
    line.append(...row.map((cell) => made("td", cell)));
    return line;
  });
  return made("table", "", head, ...body);
}

function operation(spec, path, method, what) {
  const section = made("section");
  section.append(made("h2", "", made("span", method.toUpperCase()), made("code", path)));
  section.firstChild.firstChild.className = "method";
  section.append(made("p", [what.summary, what.description].filter(Boolean).join(". ")));
  const parameters = (what.parameters || []).map((each) => [each.name, each.in, each.description || ""]);
  if (parameters.length) section.append(made("h3", "Parameters"), table(["name", "in", ""], parameters));
  for (const [kind, body] of Object.entries((what.requestBody || {}).content || {})) {
    const shown = body.example || example(spec, body.schema);
    section.append(made("h3", `Body: ${kind}`), made("pre", JSON.stringify(shown, null, 2)));
  }
  section.append(made("h3", "Answers"));
  section.append(table(["status", ""], Object.entries(what.responses).map(([code, answer]) => [code, answer.description])));
  const json = Object.values(what.responses).map((answer) => (answer.content || {})["application/json"]).find(Boolean);
  if (json && json.schema && json.schema.$ref) {
    section.append(made("h3", "Example"), made("pre", JSON.stringify(example(spec, json.schema), null, 2)));
  }
  return section;
}

async function show() {
  const spec = await (await fetch("/openapi.json")).json();
  document.getElementById("about").textContent = spec.info.summary;
  const shell = document.getElementById("shell");
  shell.textContent = shell.textContent.replaceAll("SERVER", location.origin);
  const place = document.getElementById("operations");
  place.append(made("p", spec.info.description));
  for (const [path, methods] of Object.entries(spec.paths)) {
    for (const [method, what] of Object.entries(methods)) place.append(operation(spec, path, method, what));
  }
}

show();
