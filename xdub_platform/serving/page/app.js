"use strict";

const at = (id) => document.getElementById(id);
const key = at("key");
let job = null;

key.value = sessionStorage.getItem("key") || "";
key.addEventListener("change", () => { sessionStorage.setItem("key", key.value); list(); });

function headers() {
  return key.value ? { Authorization: `Bearer ${key.value}` } : {};
}

async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  if (!answer.ok) throw new Error(await reason(answer));
  return answer;
}

async function reason(answer) {
  const told = await answer.json().catch(() => ({}));
  const what = typeof told.detail === "string" ? told.detail : `the server answered ${answer.status}`;
  return told.remedy ? `${what} (${told.remedy})` : what;
}

function fail(message) {
  at("error").textContent = message;
  at("error").hidden = false;
}

function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

// --- choosing files -----------------------------------------------------------------------------

for (const drop of document.querySelectorAll(".drop")) {
  const input = drop.querySelector("input");
  const name = drop.querySelector("[data-name]");
  const empty = name.textContent;
  const show = () => {
    name.textContent = input.files.length ? input.files[0].name : empty;
    drop.classList.toggle("full", input.files.length > 0);
  };
  input.addEventListener("change", show);
  for (const kind of ["dragenter", "dragover"]) {
    drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files.length) input.files = event.dataTransfer.files;
    show();
  });
}

// --- a job from upload to download ---------------------------------------------------------------

function upload(form, name) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", "/v1/jobs");
    for (const [header, value] of Object.entries(headers())) request.setRequestHeader(header, value);
    request.setRequestHeader("Idempotency-Key", name);
    request.upload.addEventListener("progress", (event) => {
      if (event.lengthComputable) progress("uploading", event.loaded, event.total);
    });
    request.addEventListener("load", async () => {
      const answer = new Response(request.responseText, { status: request.status });
      if (request.status === 202) resolve(await answer.json());
      else reject(new Error(await reason(answer)));
    });
    request.addEventListener("error", () => reject(new Error("the server cannot be reached")));
    request.send(form);
  });
}

function progress(stage, done, total) {
  at("stage").textContent = stage;
  if (total > 0) at("progress").value = done / total;
  else at("progress").removeAttribute("value");
}

async function follow() {
  while (["queued", "running"].includes(job.state)) {
    if (job.state === "queued") progress("waiting for its turn", 0, 0);
    else progress(job.progress.stage, job.progress.done, job.progress.total);
    at("detail").textContent = job.model_version ? `model ${job.model_version}` : "";
    await pause(400);
    job = await (await ask(`/v1/jobs/${job.id}`)).json();
  }
}

function name() {
  // randomUUID is only there on https and localhost
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

at("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  at("error").hidden = at("compare").hidden = true;
  at("submit").disabled = true;
  at("work").hidden = false;
  at("cancel").disabled = true;
  at("detail").textContent = "";
  const original = at("video").files[0];
  try {
    progress("uploading", 0, 1);
    job = await upload(new FormData(at("form")), name());
    at("cancel").disabled = false;
    await follow();
    if (job.state === "failed") fail(job.error);
    if (job.state === "done") await compare(job, original);
  } catch (error) {
    fail(error.message);
  }
  at("work").hidden = true;
  at("submit").disabled = false;
  list();
});

at("cancel").addEventListener("click", async () => {
  at("cancel").disabled = true;
  try {
    await ask(`/v1/jobs/${job.id}`, { method: "DELETE" });
  } catch (error) {
    fail(error.message);
  }
});

// --- side by side ----------------------------------------------------------------------------------

const before = at("before");
const after = at("after");

function source(video, blob) {
  if (video.src) URL.revokeObjectURL(video.src);
  video.src = blob ? URL.createObjectURL(blob) : "";
  video.closest("figure").hidden = !blob;
}

async function compare(made, original) {
  const blob = await (await ask(made.result)).blob();
  source(before, original);
  source(after, blob);
  at("version").textContent = made.model_version;
  at("download").href = after.src;
  at("download").download = `dub-${made.id.slice(0, 8)}.mp4`;
  at("notes").replaceChildren(...made.notes.map((note) => Object.assign(document.createElement("li"), { textContent: note })));
  at("compare").hidden = false;
  at("play").focus();
}

at("play").addEventListener("click", () => {
  if (!after.paused) {
    before.pause();
    after.pause();
    return;
  }
  for (const video of [before, after]) {
    if (!video.closest("figure").hidden) {
      video.currentTime = 0;
      video.play();
    }
  }
});
after.addEventListener("play", () => { at("play").textContent = "Pause"; });
for (const kind of ["pause", "ended"]) {
  after.addEventListener(kind, () => { at("play").textContent = "Play both"; before.pause(); });
}

// --- earlier jobs and the model ----------------------------------------------------------------------

async function list() {
  const answer = await fetch("/v1/jobs", { headers: headers() });
  at("past").hidden = !answer.ok;
  if (!answer.ok) return;
  const { jobs } = await answer.json();
  at("past").hidden = !jobs.length;
  at("jobs").replaceChildren(...jobs.slice(0, 12).map(row));
}

function row(one) {
  const line = document.createElement("tr");
  const state = one.error ? `${one.state}: ${one.error}` : one.state;
  for (const text of [new Date(one.created).toLocaleString(), state, one.model_version || ""]) {
    line.append(Object.assign(document.createElement("td"), { textContent: text }));
  }
  const last = document.createElement("td");
  if (one.result) {
    const show = Object.assign(document.createElement("button"), { type: "button", textContent: "Show" });
    show.addEventListener("click", () => compare(one, null).catch((error) => fail(error.message)));
    last.append(show);
  }
  line.append(last);
  return line;
}

async function model() {
  try {
    const told = await (await fetch("/readyz")).json();
    const problem = told.problems.length ? ` · ${told.problems.join("; ")}` : "";
    at("model").textContent = (told.ready ? `model version ${told.model_version}` : "no model is ready") + problem;
  } catch {
    at("model").textContent = "the server cannot be reached";
  }
}

async function begin() {
  const answer = await fetch("/v1/jobs");
  at("keyfield").hidden = answer.ok;
  list();
  model();
  setInterval(model, 5000);
}

begin();
