// The phone page: shows what the sandbox's feed tells, and does what a fan does through its control routes.
// It keeps no truth of its own: whenever the feed begins anew, everything shown is replaced by what it says.
// Whatever fans and bots wrote reaches the page as text nodes only. The Chinese words are in zh.js.
"use strict";

const FIRST_FAN = "oSandbox-FirstFan00000000001";
const KEPT_MESSAGES = 100; // what the feed tells of the past, see state.py
const KEPT_PUSHES = 50;
const KEPT_CALLS = 200;

const chinese = (navigator.languages || []).map((one) => one.toLowerCase()).find((one) => /^(en|zh)\b/.test(one))?.startsWith("zh");
const language = chinese ? "zh-CN" : "en";
const t = (text) => (chinese && Object.hasOwn(window.ZH, text) ? window.ZH[text] : text); // anything may come, such as "constructor"

const $ = (id) => document.getElementById(id);
const ofAccount = (path) => ("several" in document.body.dataset ? `${path}?appid=${document.body.dataset.appid}` : path);
const callbackPath = document.body.dataset.callbackPath || "/";
const SILENT = "The sandbox does not answer. Is it still running?";
const everyCall = (fault) =>
  ["/cgi-bin/token", "/cgi-bin/stable_token", "/cgi-bin/media/get", "/cgi-bin/media/upload", "/cgi-bin/message/custom/send"].map(
    (path) => ({ path, ...fault }),
  );
const tokenCalls = (fault) => everyCall(fault).slice(0, 2);
const tokenUsers = (fault) => everyCall(fault).slice(2);

const PRESETS = [
  { name: "No fault", faults: [] },
  { name: "API slow: 3 s", faults: everyCall({ delay: 3 }) },
  { name: "API down: HTTP 502, twice", faults: everyCall({ status: 502, times: 2 }) },
  { name: "API closes the connection, once", faults: everyCall({ disconnect: true, times: 1 }) },
  { name: "Access token expires now", stuck: false },
  { name: "Token dead until force_refresh", stuck: true },
  { name: "40001 invalid token, once", faults: tokenUsers({ errcode: 40001, times: 1 }) },
  { name: "40164 IP not in the whitelist", faults: tokenCalls({ errcode: 40164 }) },
  { name: "45009 daily quota used up", faults: tokenUsers({ errcode: 45009 }) },
  { name: "40007 media unknown", faults: [{ path: "/cgi-bin/media/get", errcode: 40007 }] },
  { name: "48001 no right to send", faults: [{ path: "/cgi-bin/message/custom/send", errcode: 48001 }] },
  { name: "Media break off half way, twice", faults: [{ path: "/cgi-bin/media/get", truncate: 1000, times: 2 }] },
  { name: "Answer lost on its way, once", faults: [{ path: callbackPath, disconnect: true, times: 1 }] },
  { name: "Answer always too late", faults: [{ path: callbackPath, delay: 60 }] },
  { name: "Answer garbled", faults: [{ path: callbackPath, body: "<html>Bad Gateway</html>" }] },
];

// openid -> { messages, unread, following }, in the order in which the fans came
const fans = new Map();
const pushes = new Map(); // number -> push
let current = FIRST_FAN;

// Small things.

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const unseen = (text) => make("span", { class: "unseen" }, `${text} `);
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString(language, { hour12: false });
const lasted = (seconds) => (seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(1)} s`);
const bytes = (size) => (size < 1e6 ? `${Math.ceil(size / 1e3)} kB` : `${(size / 1e6).toFixed(1)} MB`);
const fanName = (openid) => `${t("Fan")} ${[...fans.keys()].indexOf(openid) + 1}`;

function translate() {
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-t]")) element.textContent = t(element.textContent);
  for (const element of document.querySelectorAll("[data-t-label]")) element.setAttribute("aria-label", t(element.dataset.tLabel));
  for (const element of document.querySelectorAll("[data-t-placeholder]")) element.placeholder = t(element.dataset.tPlaceholder);
}

function complain(text) {
  $("problem").textContent = text;
}

async function ask(method, path, body) {
  const json = !(body instanceof FormData);
  try {
    const answer = await fetch(ofAccount(path), {
      method,
      body: json ? JSON.stringify(body) : body,
      headers: json ? { "Content-Type": "application/json" } : {},
    });
    const said = await answer.json();
    complain(answer.ok ? "" : chinese ? said.error_zh : said.error);
    return answer.ok;
  } catch {
    complain(t(SILENT));
    return false;
  }
}

// Asks for some values in a dialog; null when it is given up. A field is {name, label, value, type, options, required}.
function inquire(title, fields, done = "Send") {
  const form = $("asker").querySelector("form");
  $("asker-done").textContent = t(done);
  $("asker-title").textContent = title;
  $("asker-fields").replaceChildren(
    ...fields.map((field) => {
      const control = make(field.type === "textarea" || field.type === "select" ? field.type : "input", { name: field.name, id: `ask-${field.name}`, autocomplete: "off" });
      if (field.type === "select") control.append(...field.options.map(([value, text]) => make("option", { value }, text)));
      else if (control.localName === "input") control.type = field.type || "text";
      if (field.type === "textarea") control.rows = 9;
      if (field.type === "number") control.step = "any";
      control.required = Boolean(field.required);
      if (field.type === "checkbox") control.checked = field.value;
      else control.value = field.value ?? "";
      field.ready?.(control, form);
      return make("p", { class: field.type === "checkbox" ? "check" : "" }, make("label", { for: control.id }, field.label), control);
    }),
  );
  $("asker").returnValue = "";
  $("asker").showModal();
  return new Promise((resolve) => {
    $("asker").addEventListener(
      "close",
      () => {
        const value = (field) => (field.type === "checkbox" ? form.elements[field.name].checked : form.elements[field.name].value);
        resolve($("asker").returnValue ? Object.fromEntries(fields.map((field) => [field.name, value(field)])) : null);
      },
      { once: true },
    );
  });
}

// What a fan does.

// Done once the push has begun, so that no bot that hangs can use up the browser's few connections: the rest comes
// with the feed.
function push(fields, file, openid = current) {
  const address = `/sandbox/fans/${encodeURIComponent(openid)}/messages`;
  const all = { ...fields, mode: $("mode").value, wait: false };
  const delivery = $("delivery").value;
  if (delivery !== "once") Object.assign(all, { attempts: 3, [delivery]: true });
  if (!file) return ask("POST", address, all);
  const form = new FormData(); // not for texts: a form makes two characters of each line break
  for (const [name, value] of Object.entries(all)) form.append(name, value);
  form.append("file", file, file.name || "file");
  return ask("POST", address, form);
}

function kindOf(file) {
  const name = file.name.toLowerCase();
  if (/\.(amr|mp3)$/.test(name) || file.type.startsWith("audio/")) return "voice";
  if (/\.mp4$/.test(name) || file.type.startsWith("video/")) return "video";
  return file.type.startsWith("image/") ? "image" : null;
}

const WANTED = {
  image: "This is not a picture (JPEG, PNG, GIF).",
  voice: "This is not a voice (MP3, AMR).",
  video: "This is not a video (MP4).",
  shortvideo: "This is not a video (MP4).",
};

// In their order: the next leaves when the one before it is in the chat, however long its answer takes. All to the fan
// for whom they were chosen, though the reader may turn to another meanwhile.
async function sendFiles(files, kind, openid = current) {
  const complaints = new Set(); // told at the end, since each file that is sent clears what was said before
  for (const file of files) {
    const found = kindOf(file);
    if (!found || (kind && found !== kind.replace("shortvideo", "video"))) {
      const wanted = t(kind ? WANTED[kind] : "Only pictures, voices (MP3, AMR) and videos (MP4) can be sent.");
      complaints.add(`${file.name}: ${wanted}`);
    } else if (!(await push({ type: kind || found }, file, openid))) complaints.add($("problem").textContent);
  }
  if (complaints.size) complain([...complaints].join("\n"));
}

async function askPlace(title) {
  const asked = await inquire(title, [
    { name: "latitude", label: t("Latitude"), type: "number", value: "31.230416", required: true },
    { name: "longitude", label: t("Longitude"), type: "number", value: "121.473701", required: true },
    { name: "label", label: t("Name of the place"), value: "上海市黄浦区测试路 1 号" },
  ]);
  return asked && `${asked.latitude},${asked.longitude},16,${asked.label}`;
}

const ACTS = {
  async location() {
    const content = await askPlace(t("Location"));
    if (content !== null) push({ type: "location", content });
  },
  async link() {
    const asked = await inquire(t("Link"), [
      { name: "title", label: t("Title"), value: "图尚往来" },
      { name: "description", label: t("Description"), value: "" },
      { name: "url", label: t("Address"), type: "url", value: "https://example.org/" },
    ]);
    if (asked) push({ type: "link", content: `${asked.title}\n${asked.description}\n${asked.url}` });
  },
  async scan() {
    const asked = await inquire(t("Scan a QR code of the account"), [{ name: "scene", label: t("Scene value"), value: "42" }]);
    if (!asked) return;
    const event = fanOf(current).following ? { event: "SCAN", event_key: asked.scene } : { event: "subscribe", event_key: `qrscene_${asked.scene}` };
    push({ type: "event", ...event });
  },
  async view() {
    const asked = await inquire(t("Tap a link in the menu"), [{ name: "url", label: t("Address"), type: "url", value: "https://example.org/" }]);
    if (asked) push({ type: "event", event: "VIEW", event_key: asked.url });
  },
  async raw() {
    const odd = ODD.map(([name], index) => [index, t(name)]);
    const fill = (control, form) => control.addEventListener("change", () => (form.elements.xml.value = textXml(ODD[control.value][1])));
    const asked = await inquire(t("Odd text"), [
      { name: "kind", label: t("Example"), type: "select", options: odd, value: 0, ready: fill },
      { name: "xml", label: t("XML as it crosses the wire; \\xNN is a byte"), type: "textarea", value: textXml(ODD[0][1]) },
    ]);
    if (asked) push({ raw_base64: base64(asked.xml) });
  },
};

// What fans have been seen to type, and what no field can say.
const ODD = [
  ["Control characters", "a\\x00\\x02\\x08\\x0b\\x1db"],
  ["]]> not split", "a ]]> b"],
  ["XML in the text", "<a><status><![CDATA[1]]></status></a>"],
  ["A character cut in its middle", "\\xe5\\xad"],
  ["References that XML forbids", "&#x1D; &#55357;"],
];

function textXml(content) {
  const names = `<ToUserName><![CDATA[${$("screen").dataset.account}]]></ToUserName><FromUserName><![CDATA[${current}]]></FromUserName>`;
  const id = BigInt(Date.now()) * 16000n;
  return `<xml>${names}<CreateTime>${Math.floor(Date.now() / 1000)}</CreateTime><MsgType><![CDATA[text]]></MsgType><Content><![CDATA[${content}]]></Content><MsgId>${id}</MsgId></xml>`;
}

// \xNN stands for one byte, all else for itself in UTF-8.
function base64(text) {
  const parts = text.split(/\\x([0-9a-fA-F]{2})/);
  const all = parts.flatMap((part, index) => (index % 2 ? [parseInt(part, 16)] : [...new TextEncoder().encode(part)]));
  return encode(all);
}

const encode = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));

// Closes a details element; the keyboard's place must not vanish with what was inside.
function fold(details) {
  if (details.contains(document.activeElement)) details.querySelector("summary").focus();
  details.open = false;
}

// The account's menu.

let beforePictures = null; // the event that a menu button pushes before the pictures that are being chosen

async function tap(button) {
  const event = { type: "event", event: button.type, event_key: button.key };
  if (button.type === "click") push({ ...event, event: "CLICK" });
  else if (button.type === "view") push({ type: "event", event: "VIEW", event_key: button.url });
  else if (button.type === "miniprogram") push({ type: "event", event: "view_miniprogram", event_key: button.pagepath });
  else if (button.type.startsWith("scancode_")) {
    const asked = await inquire(button.name, [{ name: "result", label: t("What the code says"), value: "ORDER-0007" }]);
    if (asked) push({ ...event, content: asked.result });
  } else if (button.type.startsWith("pic_")) {
    beforePictures = event;
    $("choose-image").click();
  } else if (button.type === "location_select") {
    const openid = current;
    const content = await askPlace(button.name);
    if (content === null) return;
    await push({ ...event, content }, null, openid);
    push({ type: "location", content }, null, openid);
  } else complain(t("WeChat shows the material itself; nothing is pushed."));
}

function showMenu(buttons) {
  const item = (button) => {
    const element = make("button", { type: "button" }, button.name);
    element.addEventListener("click", () => {
      const submenu = element.closest("details");
      if (submenu) fold(submenu);
      tap(button);
    });
    return element;
  };
  $("menu").hidden = !buttons;
  $("menu").replaceChildren(
    ...(buttons || []).map((button) => {
      if (!button.sub_button.length) return item(button);
      return make("details", { name: "menu" }, make("summary", {}, button.name), make("div", { class: "sub" }, ...button.sub_button.map(item)));
    }),
  );
}

function listenToFan() {
  const text = $("text");
  $("composer").addEventListener("submit", async (event) => {
    event.preventDefault();
    const typed = text.value;
    if (!typed.trim()) return;
    text.value = "";
    text.focus();
    if (await push({ type: "text", content: typed })) return;
    text.value = text.value ? `${typed}\n${text.value}` : typed; // it was not sent: it must not be lost
  });
  text.addEventListener("keydown", (event) => {
    // Enter also ends a word of an input method: then it must not send.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("composer").requestSubmit();
  });
  for (const button of document.querySelectorAll("[data-choose]")) {
    const kind = button.dataset.choose;
    const input = $(`choose-${kind}`);
    button.addEventListener("click", () => {
      beforePictures = null;
      input.click();
    });
    input.addEventListener("change", async () => {
      const files = [...input.files];
      const openid = current;
      input.value = ""; // so that the same file can be chosen again
      if (kind === "image" && beforePictures) await push(beforePictures, null, openid);
      sendFiles(files, kind, openid);
    });
  }
  for (const button of document.querySelectorAll("[data-act]")) button.addEventListener("click", ACTS[button.dataset.act]);
  $("follow").addEventListener("click", () => push({ type: "event", event: fanOf(current).following ? "unsubscribe" : "subscribe" }));
  $("menu-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if ($("menu-key").value) push({ type: "event", event: "CLICK", event_key: $("menu-key").value });
  });

  const closeMenu = (event) => {
    if (event.key && event.key !== "Escape") return;
    for (const open of $("menu").querySelectorAll("details[open]")) if (event.key || !open.contains(event.target)) fold(open);
  };
  document.addEventListener("click", closeMenu);
  document.addEventListener("keydown", closeMenu);
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (!files.length) return;
    event.preventDefault();
    sendFiles(files);
  });
  const chat = $("chat");
  let before = 0;
  chat.addEventListener("scroll", () => {
    if (chat.scrollTop < before) atEnd = false; // a picture that grows moves the end, but scrolls nothing up
    if (chat.scrollHeight - chat.scrollTop - chat.clientHeight < 60) atEnd = true;
    before = chat.scrollTop;
  });
  const screen = $("screen");
  const carriesFiles = (event) => event.dataTransfer.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault(); // else the browser would leave the page for a file dropped beside the phone
    screen.classList.add("drop");
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget || screen.classList.remove("drop"));
  document.addEventListener("drop", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    screen.classList.remove("drop");
    sendFiles([...event.dataTransfer.files]);
  });
}

// The fans.

function fanOf(openid) {
  if (!fans.has(openid)) fans.set(openid, { messages: [], unread: 0, following: null }); // null: has not done anything
  return fans.get(openid);
}

function showFans() {
  const focused = document.activeElement?.dataset.openid;
  $("fans").replaceChildren(
    ...[...fans].map(([openid, fan]) => {
      const button = make("button", { type: "button", title: openid, "aria-pressed": openid === current, "data-openid": openid });
      button.append(fanName(openid));
      if (fan.unread) button.append(make("span", { class: "dot" }, String(fan.unread), unseen(` ${t("new")}`)));
      button.addEventListener("click", () => turnTo(openid));
      if (openid === focused) queueMicrotask(() => button.focus());
      return button;
    }),
  );
}

function turnTo(openid) {
  current = openid;
  fanOf(openid).unread = 0;
  complain("");
  showFans();
  showChat();
  showPushes();
}

// The chat.

let atEnd = true; // the reader has not scrolled up

function stayAtEnd() {
  if (atEnd) $("chat").scrollTop = $("chat").scrollHeight;
}

function showChat() {
  const chat = $("chat");
  const messages = fanOf(current).messages.map(line);
  chat.setAttribute("aria-busy", "true"); // what was said before is not news
  chat.replaceChildren(...(messages.length ? messages : [make("p", { class: "hint" }, t("Send a picture: it comes back."))]));
  atEnd = true;
  stayAtEnd();
  requestAnimationFrame(() => chat.removeAttribute("aria-busy"));
  showFollow();
}

function showFollow() {
  const { following } = fans.get(current);
  const gone = following === false;
  $("follow").textContent = t(following ? "Unfollow" : "Follow");
  $("gone").textContent = gone ? t("This fan has unfollowed: follow again to write.") : "";
  for (const control of $("screen").querySelectorAll("textarea, input, .composer button, .acts button, .menu button")) {
    control.disabled = gone && control.id !== "follow" && control.dataset.act !== "scan";
  }
  stayAtEnd(); // what is said here has taken room from the chat
}

function addMessage(openid, following, message) {
  const known = fans.has(openid);
  const fan = fanOf(openid);
  fan.following = following;
  fan.messages.push(message);
  if (fan.messages.length > KEPT_MESSAGES) fan.messages.shift();
  if (openid !== current) {
    if (message.from !== "fan") fan.unread += 1;
    showFans();
    return;
  }
  if (!known) showFans();
  const chat = $("chat");
  const element = line(message);
  element.classList.add("new");
  chat.querySelector(".hint")?.remove();
  chat.append(element);
  if (chat.children.length > KEPT_MESSAGES) chat.firstElementChild.remove();
  if (message.from === "fan") atEnd = true;
  stayAtEnd();
  showFollow();
}

function line(message) {
  const event = message.from === "fan" && message.type === "event";
  const side = event ? "system" : message.from;
  const failure = message.by === "platform" ? " failure" : "";
  const by = { passive: ` · ${t("passive reply")}`, custom: ` · ${t("customer service")}` }[message.by] || "";
  const who = { fan: t("You:"), account: t("Account:"), system: t("Platform:") }[side];
  const said = make(
    "div",
    { class: "said" },
    event ? make("p", { class: "bubble", dir: "auto" }, eventText(message.content)) : make("div", { class: "body" }, unseen(who), ...body(message)),
    make("small", {}, `${clock(message.time)}${by}`),
  );
  const element = make("div", { class: `message ${side}${failure}` }, said);
  if (side !== "system") element.prepend(make("span", { class: "face", "aria-hidden": "true" }, side === "fan" ? fanName(current).split(" ")[1] : "图"));
  return element;
}

const EVENTS = new Map([["CLICK", "You tapped the menu:"], ["VIEW", "You opened a link of the menu:"], ["SCAN", "You scanned a QR code:"]]);

function eventText(content) {
  const [name, ...key] = content.split(" ");
  if (name === "subscribe") return t("You followed the account");
  if (name === "unsubscribe") return t("You unfollowed the account");
  const words = EVENTS.get(name);
  // A raw event may have no name.
  return words ? `${t(words)} ${key.join(" ")}` : content || t("event");
}

function body(message) {
  const parts = [];
  if (message.media_id) parts.push(media(message));
  if (message.content) parts.push(make("p", { class: "bubble", dir: "auto" }, message.content));
  for (const [id, text] of message.choices) {
    const button = make("button", { type: "button" }, text);
    button.addEventListener("click", () => push({ type: "text", content: text, event_key: id }));
    parts.push(button);
  }
  if (!parts.length) parts.push(make("p", { class: "bubble" }, `[${t(message.type)}]`));
  return parts;
}

// By what the bytes are, not by what they are called: all that is not known to be harmless is a download.
function media(message) {
  const facts = message.media;
  const address = ofAccount(`/sandbox/media/${encodeURIComponent(message.media_id)}`);
  if (!facts) return make("p", { class: "bubble" }, `[${t(message.type)}: ${t("no longer there")}]`);
  const link = (why) => {
    const length = facts.seconds === null ? bytes(facts.size) : lasted(facts.seconds);
    const words = `${t(message.type)} · ${facts.extension.toUpperCase()} · ${length}`;
    return make("p", { class: "bubble" }, `${words}${why} `, make("a", { href: address, download: "" }, t("download")));
  };
  const orLink = (element, shown = element) => {
    element.addEventListener("error", () => shown.replaceWith(link(` · ${t("cannot be shown here")}`)));
    return shown;
  };
  if (["jpg", "png", "gif"].includes(facts.extension)) {
    const name = t(message.from === "fan" ? "Picture from you" : "Picture from the account");
    const picture = make("img", { src: address, alt: name });
    const button = make("button", { type: "button", class: "picture", title: t("show it whole") }, picture);
    button.addEventListener("click", () => view(address, name));
    picture.addEventListener("load", stayAtEnd); // only now it has its height
    return orLink(picture, button);
  }
  if (facts.extension === "mp3") return orLink(make("audio", { src: address, controls: "", preload: "metadata", "aria-label": t("Voice") }));
  if (facts.extension === "mp4") {
    const video = make("video", { src: address, controls: "", preload: "metadata", "aria-label": t("Video") });
    video.addEventListener("loadedmetadata", stayAtEnd);
    return orLink(video);
  }
  return link("");
}

function view(address, name) {
  $("viewer-picture").src = address;
  $("viewer-picture").alt = name;
  $("viewer").showModal();
}

// Pushes.

function filter(input, list) {
  const wanted = $(input).value.trim().toLowerCase();
  for (const item of $(list).children) item.hidden = !item.textContent.toLowerCase().includes(wanted);
}

function showPushes() {
  const own = [...pushes.values()].filter((one) => one.openid === current);
  const newest = own.reverse().map((one, index) => pushItem(one, index === 0));
  $("pushes").replaceChildren(...newest);
  $("no-pushes").hidden = own.length > 0;
  filter("filter", "pushes");
}

function addPush(one) {
  placePush(one);
  filter("filter", "pushes");
}

function placePush(one) {
  const oldest = pushes.keys().next().value;
  if (one.number < oldest) return; // it was so slow that the page has forgotten it
  const known = pushes.has(one.number);
  pushes.set(one.number, one);
  if (pushes.size > KEPT_PUSHES) {
    pushes.delete(oldest);
    $(`push-${oldest}`)?.remove();
    $("no-pushes").hidden = $("pushes").children.length > 0;
  }
  if (one.openid !== current) return;
  const old = $(`push-${one.number}`);
  if (!known || !old) {
    for (const item of $("pushes").querySelectorAll("details[data-latest]")) {
      fold(item);
      delete item.dataset.latest; // if the reader opens it again, it stays open
    }
    $("pushes").prepend(pushItem(one, true));
    $("no-pushes").hidden = true;
    return;
  }
  // The same item again with more in it: what the reader has opened stays open, and the focus stays.
  const open = new Map([...old.querySelectorAll("details")].map((item) => [item.dataset.key, item.open]));
  const focused = old.contains(document.activeElement) && document.activeElement.closest("details")?.dataset.key;
  const item = pushItem(one, false);
  for (const part of item.querySelectorAll("details")) {
    part.open = open.get(part.dataset.key) ?? false;
    if (part.dataset.key === "push" && old.querySelector("[data-latest]")) part.dataset.latest = "";
  }
  old.replaceWith(item);
  if (focused) item.querySelector(`details[data-key="${focused}"] > summary`)?.focus();
}

function pushItem(one, latest) {
  const what = [t(one.type), one.type === "event" || one.type === "text" ? one.summary : ""].filter(Boolean).join(" · ");
  const summary = make("summary", {}, make("time", {}, clock(one.time)), make("span", { class: "what" }, [...what].slice(0, 80).join("")));
  for (const attempt of one.attempts) summary.append(badge(attempt));
  if (!one.ended) summary.append(make("span", { class: "badge" }, t("waiting …")));
  const facts = [t(one.mode), one.msg_id === null ? "" : `MsgId ${one.msg_id}`, one.ended ? `${t("The fan saw:")} ${seen(one)}` : ""];
  const details = make(
    "details",
    { "data-key": "push" },
    summary,
    make("p", { class: "fine facts" }, facts.filter(Boolean).join(" · ")),
    actions(one),
    ...one.attempts.map((attempt, index) => attemptPart(one, attempt, index)),
  );
  if (latest) {
    details.open = true;
    details.dataset.latest = "";
  }
  return make("li", { id: `push-${one.number}` }, details);
}

function actions(one) {
  const group = make("p", { class: "actions", role: "group", "aria-label": t("With this push") });
  const add = (name, act, ready = true) => {
    const button = make("button", { type: "button" }, t(name));
    button.disabled = !ready;
    button.addEventListener("click", act);
    group.append(button);
  };
  const again = (fields) => ask("POST", `/sandbox/pushes/${one.id}/resend`, { mode: $("mode").value, wait: false, ...fields });
  add("Send again", () => again({}));
  add("Send as new", () => again({ new: true }));
  add("Edit and send", async () => {
    const asked = await inquire(t("Edit and send"), [
      { name: "xml", label: t("XML as it crosses the wire; \\xNN is a byte"), type: "textarea", value: one.editable },
      { name: "fresh", label: t("Under a new MsgId"), type: "checkbox", value: true },
    ]);
    if (asked) again({ new: asked.fresh, raw_base64: base64(asked.xml) });
  });
  add("Copy as curl", () => copy(curl(one)), one.attempts.length > 0);
  add("Copy the XML", () => copy(one.plain));
  add("Save as a sample", () => {
    const bytes = one.plain_base64 ? Uint8Array.from(atob(one.plain_base64), (byte) => byte.charCodeAt(0)) : one.plain;
    const address = URL.createObjectURL(new Blob([bytes], { type: "application/xml" }));
    const name = one.type === "event" ? `event-${one.event}` : `message-${one.type}`;
    make("a", { href: address, download: `${name.toLowerCase()}.xml` }).click();
    URL.revokeObjectURL(address);
  });
  return group;
}

async function copy(text) {
  $("copied").textContent = "";
  try {
    await navigator.clipboard.writeText(text);
    $("copied").textContent = t("Copied.");
  } catch {
    $("copied").textContent = t("The browser does not allow copying.");
  }
}

// The newest delivery as it crossed the wire; the bot takes its timestamp for ten minutes.
function curl(one) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const attempt = one.attempts.at(-1);
  const typed = /[\x00-\x08\x0b-\x1f]/.test(attempt.sent); // a terminal would take these as keys
  const body = one.for_page.at(-1).sent_base64 || (typed && encode(new TextEncoder().encode(attempt.sent)));
  const target = quoted(`${document.body.dataset.callback}?${attempt.query}`);
  const start = `curl -sS ${target} -H 'Content-Type: text/xml' --data-binary`;
  return body ? `echo ${body} | base64 -d | ${start} @-` : `${start} ${quoted(attempt.sent)}`;
}

function seen(one) {
  if (!one.shown.length) return t("nothing");
  return one.shown[0].by === "platform" ? t("the failure text") : t(one.shown[0].type);
}

const badge = (attempt) => make("span", { class: `badge ${attempt.verdict}` }, `${t(attempt.verdict)} · ${lasted(attempt.seconds)}`);

function attemptPart(one, attempt, index) {
  const title = chinese ? `第 ${index + 1} 次投递` : `Delivery ${index + 1}`;
  const said = chinese ? one.for_page[index] : attempt;
  const bar = make("div", { class: attempt.verdict === "timeout" ? "bar late" : "bar", "aria-hidden": "true" }, make("i"));
  bar.firstChild.style.width = `${Math.min(100, (100 * attempt.seconds) / one.timeout)}%`;
  const part = make(
    "section",
    { class: "attempt" },
    make("h3", {}, title, badge(attempt), make("span", { class: "fine" }, `${attempt.seconds.toFixed(3)} s ${t("of")} ${one.timeout} s`)),
    bar,
    make("p", {}, said.why),
    ...(said.notes || []).map((note) => make("p", { class: "note" }, `${t("Not by the book:")} ${note}`)),
    folded(`query-${index}`, t("Signed query"), attempt.query.split("&").map(readable).join("\n")),
  );
  const sent = make("div");
  if (attempt.sent === one.plain) sent.append(...block(t("XML sent"), xml(attempt.sent)));
  else {
    sent.append(...block(t("XML sent, before encryption"), xml(one.plain)));
    sent.append(folded(`sent-${index}`, t("As it was sent"), xml(attempt.sent)));
  }
  const received = make("div");
  const answer = attempt.received;
  if (!answer) received.append(...block(t("Answer"), t("No answer was received.")));
  else if (attempt.opened === null || attempt.opened === answer.body) received.append(...block(`${t("Answer")} · HTTP ${answer.status}`, xml(answer.body)));
  else {
    received.append(...block(`${t("Answer, decrypted")} · HTTP ${answer.status}`, xml(attempt.opened)));
    received.append(folded(`received-${index}`, t("As it was received"), xml(answer.body)));
  }
  part.append(make("div", { class: "pair" }, sent, received));
  return part;
}

const readable = (pair) => {
  const [name, value] = pair.split("=");
  return `${name} = ${decodeURIComponent(value)}`;
};

const pre = (text, name) => make("pre", { tabindex: "0", role: "group", "aria-label": name }, text);
const block = (title, text) => [make("h4", {}, title), pre(text, title)];
const folded = (key, title, text) => make("details", { "data-key": key }, make("summary", {}, title), pre(text, title));

// Line breaks between elements, for reading: nothing inside an element changes.
function xml(text) {
  if (!text.startsWith("<xml")) return text;
  let depth = 0;
  let result = "";
  let before = "";
  for (const token of text.match(/<!\[CDATA\[[\s\S]*?\]\]>|<[^>]*>|[^<]+|</g)) {
    const kind = token.startsWith("<![CDATA[") || !token.startsWith("<") ? "text" : token.startsWith("</") ? "end" : "start";
    if (kind === "end") depth -= 1;
    if ((kind === "start" && before) || (kind === "end" && before === "end")) result += `\n${"  ".repeat(Math.max(0, depth))}`;
    if (kind === "start" && !token.endsWith("/>")) depth += 1;
    result += token;
    before = kind === "start" && token.endsWith("/>") ? "end" : kind;
  }
  return result;
}

// The bot's calls, and faults.

function addCall(call) {
  const good = call.outcome === "ok";
  const summary = make(
    "summary",
    {},
    make("time", {}, clock(call.time)),
    make("code", {}, call.path),
    make("span", { class: good ? "badge reply" : "badge refused" }, call.outcome),
    make("span", { class: "fine" }, lasted(call.seconds)),
  );
  const asked = [`${call.method} ${call.path}${call.query && `?${call.query}`}`, call.request].filter(Boolean).join("\n\n");
  const details = make("details", {}, summary, ...block(t("Request"), asked), ...block(t("Answer"), call.answer));
  $("calls").prepend(make("li", {}, details));
  if ($("calls").children.length > KEPT_CALLS) $("calls").lastElementChild.remove();
  $("no-calls").hidden = true;
  filter("filter-calls", "calls");
}

const FAULT = ["errcode", "errmsg", "status", "body", "delay", "truncate", "disconnect", "content_type", "times"];
const given = (fault) => FAULT.filter((name) => ![undefined, null, false].includes(fault[name]));
const inWords = (fault) => `${fault.path} ${given(fault).map((name) => `${name} ${JSON.stringify(fault[name])}`).join(", ")}`;

// A fault that has struck its last time is gone, so what is left of a preset still is that preset.
function isPreset(preset, faults) {
  const wanted = (preset.faults || []).map(inWords);
  const there = faults.map(inWords);
  return there.every((one) => wanted.includes(one)) && wanted.every((one, index) => preset.faults[index].times || there.includes(one));
}

function showFaults(faults) {
  const found = PRESETS.find((preset) => isPreset(preset, faults));
  $("fault-now").classList.toggle("on", faults.length > 0);
  $("fault-now").textContent = faults.length ? `${t("In force:")} ${found ? t(found.name) : faults.map(inWords).join("; ")}` : t("No fault is in force.");
}

async function askFault() {
  const number = (name, label) => ({ name, label: t(label), type: "number" });
  const asked = await inquire(t("Another fault …"), [
    { name: "path", label: t("Path of the API, or of the callback"), value: "/cgi-bin/media/get" },
    number("errcode", "errcode"),
    { name: "errmsg", label: "errmsg" },
    number("status", "HTTP status"),
    { name: "body", label: t("Body instead of the answer") },
    { name: "content_type", label: "Content-Type" },
    number("delay", "Delay in seconds"),
    number("truncate", "Break off after so many bytes"),
    { name: "disconnect", label: t("Close the connection without an answer"), type: "checkbox", value: false },
    number("times", "How often (empty: for ever)"),
  ], "Apply");
  if (!asked) return;
  for (const name of ["errcode", "status", "delay", "truncate", "times"]) asked[name] &&= Number(asked[name]);
  const given = Object.entries(asked).filter(([, value]) => value !== "" && value !== false);
  ask("PUT", "/sandbox/faults", [Object.fromEntries(given)]);
}

function listenToSettings() {
  $("fault").append(...PRESETS.map((preset, index) => make("option", { value: index }, t(preset.name))));
  $("faults").addEventListener("submit", async (event) => {
    event.preventDefault();
    const preset = PRESETS[$("fault").value];
    $("fault-done").textContent = "";
    if (preset.faults) await ask("PUT", "/sandbox/faults", preset.faults);
    else if (await ask("POST", "/sandbox/token/expire", { stuck: preset.stuck })) $("fault-done").textContent = `${t("Done:")} ${t(preset.name)}`;
  });
  $("new-fan").addEventListener("click", () => {
    const random = crypto.getRandomValues(new Uint8Array(8));
    turnTo(`oSandbox-Fan${[...random].map((one) => one.toString(16).padStart(2, "0")).join("")}`);
    $("text").focus();
  });
  $("free-fault").addEventListener("click", askFault);
  $("filter").addEventListener("input", () => filter("filter", "pushes"));
  $("filter-calls").addEventListener("input", () => filter("filter-calls", "calls"));
  $("clear").addEventListener("click", () => ask("DELETE", "/sandbox/history", {}));
  $("viewer-close").addEventListener("click", () => $("viewer").close());
  $("viewer").addEventListener("click", (event) => event.target === $("viewer") && $("viewer").close());
}

// The feed.

function begin(state) {
  const before = JSON.stringify(fans.get(current)?.messages);
  for (const fan of fans.values()) Object.assign(fan, { messages: [], following: null });
  for (const [openid, messages] of Object.entries(state.fans)) Object.assign(fanOf(openid), { messages, following: state.following[openid] });
  for (const fan of fans.values()) if (!fan.messages.length) fan.unread = 0;
  if (!fans.get(current)) {
    if (fans.size) [current] = fans.keys();
    fanOf(current);
  }
  pushes.clear();
  for (const one of state.pushes) pushes.set(one.number, one);
  showFans();
  if (JSON.stringify(fans.get(current).messages) !== before) showChat(); // else nothing that plays is disturbed
  else showFollow();
  showPushes();
  $("calls").replaceChildren();
  $("no-calls").hidden = false;
  state.calls.forEach(addCall);
  showMenu(state.menu);
  showFaults(state.faults);
}

function connect() {
  const feed = new EventSource(ofAccount("/sandbox/events"));
  const on = (name, handle) => feed.addEventListener(name, (event) => handle(JSON.parse(event.data)));
  on("state", (state) => {
    if (state.made_for !== document.body.dataset.madeFor) return location.reload(); // another sandbox has this address now
    begin(state);
    if ($("problem").textContent === t(SILENT)) complain("");
    showLive(true);
  });
  on("message", ({ openid, following, ...message }) => addMessage(openid, following, message));
  on("push", addPush);
  on("call", addCall);
  on("menu", ({ menu }) => showMenu(menu));
  on("faults", ({ faults }) => showFaults(faults));
  on("cleared", begin);
  on("reset", () => begin({ fans: {}, following: {}, pushes: [], calls: [], menu: null, faults: [] }));
  feed.addEventListener("error", async () => {
    showLive(false);
    if (document.hidden) {
      feed.close(); // the browser's few connections are for the pages that somebody looks at
      return document.addEventListener("visibilitychange", connect, { once: true });
    }
    if (feed.readyState !== EventSource.CLOSED) return; // the browser tries again itself
    const answer = await fetch(ofAccount("/sandbox/calls")).catch(() => null);
    const said = answer?.status === 404 && (await answer.json().catch(() => null)); // another program may be there now
    if (said?.error_zh) location.assign(ofAccount("/")); // the account is gone: that page says so
    else setTimeout(connect, 2000);
  });
}

function showLive(on) {
  $("live").textContent = t(on ? "Connected" : "Connecting …");
  $("live").classList.toggle("on", on);
}

translate();
listenToFan();
listenToSettings();
showLive(false);
connect();
