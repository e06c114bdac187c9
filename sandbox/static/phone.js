// The phone page: shows what the sandbox's feed tells, and does what a fan does through its control routes.
// It keeps no truth of its own: whenever the feed begins anew, everything shown is replaced by what it says.
// Whatever fans and bots wrote reaches the page as text nodes only.
"use strict";

const FIRST_FAN = "oSandbox-FirstFan00000000001";
const KEPT_MESSAGES = 100; // what the feed tells of the past, see state.py
const KEPT_PUSHES = 50;
const KEPT_CALLS = 50;

const ZH = {
  "WeChat sandbox": "微信沙箱", "Parts of this page": "页面各部分", Phone: "手机", Switches: "开关",
  "Behind the chat": "聊天背后", Fans: "粉丝", "New fan": "新粉丝", "The account": "公众号", Chat: "聊天",
  Message: "消息", "Type, paste or drop": "输入、粘贴或拖入", Send: "发送",
  "More to send": "更多", Pictures: "图片", Voice: "语音", Video: "视频", Follow: "关注", Unfollow: "取消关注",
  "Menu key": "菜单 KEY", "Tap the menu": "点菜单", Mode: "模式", plain: "明文", compat: "兼容", safe: "安全",
  Deliveries: "投递", "as the platform does": "与微信平台一致", "three in turn, though answered": "已回复仍连投三次",
  "three at once": "同时投三次", Fault: "故障", Apply: "应用", Callback: "回调",
  "A stand-in for the WeChat platform: nothing leaves this computer.": "模拟微信平台，一切只在本机。",
  "none: start with --callback URL": "无：请用 --callback URL 启动",
  "Each thing this fan does is pushed to the bot, and shown here with the answer.":
    "这位粉丝的每个动作都会推送给机器人，推送与回复显示在这里。",
  "Calls of the bot": "机器人的 API 调用", "None yet.": "还没有。", Picture: "图片", Close: "关闭",
  "Connected": "已连接", "Connecting …": "正在连接……", Fan: "粉丝", new: "条新消息",
  "You:": "我：", "Account:": "公众号：", "Platform:": "平台：",
  "passive reply": "被动回复", "customer service": "客服消息",
  "You followed the account": "你关注了公众号", "You unfollowed the account": "你取消了关注",
  "You tapped the menu:": "你点了菜单：", "Picture from you": "你发的图片", "Picture from the account": "公众号发来的图片",
  "show it whole": "查看大图", "no longer there": "已失效", download: "下载", "cannot be shown here": "无法在此显示",
  text: "文本", image: "图片", voice: "语音", video: "视频", shortvideo: "小视频", event: "事件", file: "文件",
  music: "音乐", news: "图文", thumb: "缩略图", location: "位置", link: "链接",
  reply: "已回复", silent: "不回复", timeout: "超时", refused: "不接受", of: "/", "Not by the book:": "不合规范：", "waiting …": "等待中……",
  "Send a picture: it comes back.": "发一张图片，它会回来。",
  "Signed query": "带签名的参数", "XML sent": "发出的 XML",
  "XML sent, before encryption": "发出的 XML（加密前）", "As it was sent": "实际发出的内容",
  "Answer": "收到的回复", "Answer, decrypted": "收到的回复（解密后）", "As it was received": "实际收到的内容",
  "No answer was received.": "没有收到回复。", "The fan saw:": "粉丝看到：", nothing: "什么也没有", "the failure text": "失败提示",
  "No fault is in force.": "当前没有故障。", "In force:": "生效中：", "Done:": "已执行：", "a fault set elsewhere": "别处设置的故障",
  "The sandbox does not answer. Is it still running?": "沙箱没有响应，它还在运行吗？",
  "Only pictures, voices (MP3, AMR) and videos (MP4) can be sent.": "只能发送图片、语音（MP3、AMR）和视频（MP4）。",
  "No fault": "无故障", "API slow: 3 s": "API 变慢：3 秒", "API down: HTTP 502, twice": "API 故障：HTTP 502，两次",
  "API closes the connection, once": "API 断开连接，一次",
  "Access token expires now": "access_token 立即失效",
  "Token dead until force_refresh": "token 失效，直到 force_refresh",
  "40001 invalid token, once": "40001 token 无效，一次", "40164 IP not in the whitelist": "40164 IP 不在白名单",
  "45009 daily quota used up": "45009 当日额度用完", "40007 media unknown": "40007 media_id 无效",
  "48001 no right to send": "48001 无客服消息权限",
  "Media break off half way, twice": "素材中途断开，两次", "Answer lost on its way, once": "回复在途中丢失，一次",
  "Answer always too late": "回复总是太迟", "Answer garbled": "回复内容损坏",
};

const chinese = (navigator.languages || []).map((one) => one.toLowerCase()).find((one) => /^(en|zh)\b/.test(one))?.startsWith("zh");
const language = chinese ? "zh-CN" : "en";
const t = (text) => (chinese && ZH[text]) || text;

const $ = (id) => document.getElementById(id);
const callbackPath = document.body.dataset.callbackPath || "/";
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

// openid -> { messages, unread }, in the order in which the fans came
const fans = new Map();
const pushes = new Map(); // number -> push
let current = FIRST_FAN;
let arrived = () => {}; // called when the feed shows something new from the fan

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
    const answer = await fetch(path, {
      method,
      body: json ? JSON.stringify(body) : body,
      headers: json ? { "Content-Type": "application/json" } : {},
    });
    const said = await answer.json();
    complain(answer.ok ? "" : said.error);
    return answer.ok;
  } catch {
    complain(t("The sandbox does not answer. Is it still running?"));
    return false;
  }
}

// What a fan does.

function push(fields, file) {
  const form = new FormData();
  for (const [name, value] of Object.entries({ ...fields, mode: $("mode").value })) form.append(name, value);
  const delivery = $("delivery").value;
  if (delivery !== "once") {
    form.append("attempts", "3");
    form.append(delivery, "true");
  }
  if (file) form.append("file", file, file.name || "file");
  return ask("POST", `/sandbox/fans/${encodeURIComponent(current)}/messages`, form);
}

function kindOf(file) {
  const name = file.name.toLowerCase();
  if (/\.(amr|mp3)$/.test(name) || file.type.startsWith("audio/")) return "voice";
  if (/\.mp4$/.test(name) || file.type.startsWith("video/")) return "video";
  return file.type.startsWith("image/") ? "image" : null;
}

// In their order: the next leaves when the one before it is in the chat, however long its answer takes.
async function sendFiles(files, kind) {
  for (const file of files) {
    const type = kind || kindOf(file);
    if (!type) {
      complain(t("Only pictures, voices (MP3, AMR) and videos (MP4) can be sent."));
      continue;
    }
    const shown = new Promise((resolve) => (arrived = resolve));
    await Promise.race([push({ type }, file), shown]);
  }
}

function follows(openid) {
  const last = fans.get(openid)?.messages.findLast((message) => message.from === "fan");
  return Boolean(last) && !(last.type === "event" && last.content.startsWith("unsubscribe"));
}

function listenToFan() {
  const text = $("text");
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!text.value.trim()) return;
    push({ type: "text", content: text.value });
    text.value = "";
    text.focus();
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
    button.addEventListener("click", () => input.click());
    input.addEventListener("change", () => {
      const files = [...input.files];
      input.value = ""; // so that the same file can be chosen again
      sendFiles(files, kind);
    });
  }
  $("follow").addEventListener("click", () => push({ type: "event", event: follows(current) ? "unsubscribe" : "subscribe" }));
  $("menu").addEventListener("submit", (event) => {
    event.preventDefault();
    if ($("menu-key").value) push({ type: "event", event: "CLICK", event_key: $("menu-key").value });
  });

  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (!files.length) return;
    event.preventDefault();
    sendFiles(files);
  });
  const chat = $("chat");
  chat.addEventListener("scroll", () => (atEnd = chat.scrollHeight - chat.scrollTop - chat.clientHeight < 60));
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
  if (!fans.has(openid)) fans.set(openid, { messages: [], unread: 0 });
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
  $("follow").textContent = t(follows(current) ? "Unfollow" : "Follow");
}

function addMessage(openid, message) {
  const known = fans.has(openid);
  const fan = fanOf(openid);
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
  if (message.from === "fan") arrived();
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
    event ? make("p", { class: "bubble" }, eventText(message.content)) : make("div", { class: "body" }, unseen(who), ...body(message)),
    make("small", {}, `${clock(message.time)}${by}`),
  );
  const element = make("div", { class: `message ${side}${failure}` }, said);
  if (side !== "system") element.prepend(make("span", { class: "face", "aria-hidden": "true" }, side === "fan" ? fanName(current).split(" ")[1] : "图"));
  return element;
}

function eventText(content) {
  const [name, ...key] = content.split(" ");
  if (name === "subscribe") return t("You followed the account");
  if (name === "unsubscribe") return t("You unfollowed the account");
  return name === "CLICK" ? `${t("You tapped the menu:")} ${key.join(" ")}` : content;
}

function body(message) {
  const parts = [];
  if (message.media_id) parts.push(media(message));
  if (message.content) parts.push(make("p", { class: "bubble" }, message.content));
  if (!parts.length) parts.push(make("p", { class: "bubble" }, `[${t(message.type)}]`));
  return parts;
}

// By what the bytes are, not by what they are called: all that is not known to be harmless is a download.
function media(message) {
  const facts = message.media;
  const address = `/sandbox/media/${encodeURIComponent(message.media_id)}`;
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

// Behind the chat.

function showPushes() {
  const own = [...pushes.values()].filter((one) => one.openid === current);
  const newest = own.reverse().map((one, index) => pushItem(one, index === 0));
  $("pushes").replaceChildren(...newest);
  $("no-pushes").hidden = own.length > 0;
}

function addPush(one) {
  const known = pushes.has(one.number);
  pushes.set(one.number, one);
  if (pushes.size > KEPT_PUSHES) pushes.delete(pushes.keys().next().value);
  if (one.openid !== current) return;
  const old = $(`push-${one.number}`);
  if (!known || !old) {
    for (const item of $("pushes").querySelectorAll("details[data-latest]")) item.open = false;
    $("pushes").prepend(pushItem(one, true));
    while ($("pushes").children.length > KEPT_PUSHES) $("pushes").lastElementChild.remove();
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
  const summary = make("summary", {}, make("time", {}, clock(one.time)), make("span", { class: "what" }, what.slice(0, 80)));
  for (const attempt of one.attempts) summary.append(badge(attempt));
  if (!one.ended) summary.append(make("span", { class: "badge" }, t("waiting …")));
  const facts = [t(one.mode), one.msg_id === null ? "" : `MsgId ${one.msg_id}`, one.ended ? `${t("The fan saw:")} ${seen(one)}` : ""];
  const details = make(
    "details",
    { "data-key": "push" },
    summary,
    make("p", { class: "fine facts" }, facts.filter(Boolean).join(" · ")),
    ...one.attempts.map((attempt, index) => attemptPart(one, attempt, index)),
  );
  if (latest) {
    details.open = true;
    details.dataset.latest = "";
  }
  return make("li", { id: `push-${one.number}` }, details);
}

function seen(one) {
  if (!one.shown.length) return t("nothing");
  return one.shown[0].by === "platform" ? t("the failure text") : t(one.shown[0].type);
}

const badge = (attempt) => make("span", { class: `badge ${attempt.verdict}` }, `${t(attempt.verdict)} · ${lasted(attempt.seconds)}`);

function attemptPart(one, attempt, index) {
  const title = chinese ? `第 ${index + 1} 次投递` : `Delivery ${index + 1}`;
  const said = chinese ? one.chinese[index] : attempt;
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
  const outcome = make("span", { class: good ? "badge reply" : "badge refused" }, call.outcome);
  $("calls").prepend(make("li", {}, make("time", {}, clock(call.time)), make("code", {}, call.path), outcome));
  if ($("calls").children.length > KEPT_CALLS) $("calls").lastElementChild.remove();
  $("no-calls").hidden = true;
}

const isPreset = (preset, faults) =>
  preset.faults?.every((wanted) => faults.some((fault) => Object.keys(wanted).every((key) => fault[key] === wanted[key])));

function showFaults(faults) {
  // A fault that has struck its last time is gone, so part of a preset still is that preset.
  const all = PRESETS.filter((preset) => preset.faults?.length);
  const found =
    all.find((preset) => isPreset(preset, faults)) ||
    all.find((preset) => faults.every((fault) => preset.faults.some((wanted) => isPreset({ faults: [wanted] }, [fault]))));
  $("fault-now").classList.toggle("on", faults.length > 0);
  $("fault-now").textContent = faults.length ? `${t("In force:")} ${t(found ? found.name : "a fault set elsewhere")}` : t("No fault is in force.");
}

function listenToSwitches() {
  $("fault").append(...PRESETS.map((preset, index) => make("option", { value: index }, t(preset.name))));
  $("faults").addEventListener("submit", async (event) => {
    event.preventDefault();
    const preset = PRESETS[$("fault").value];
    if (preset.faults) await ask("PUT", "/sandbox/faults", preset.faults);
    else if (await ask("POST", "/sandbox/token/expire", { stuck: preset.stuck })) $("fault-now").textContent = `${t("Done:")} ${t(preset.name)}`;
  });
  $("new-fan").addEventListener("click", () => {
    const random = crypto.getRandomValues(new Uint8Array(8));
    turnTo(`oSandbox-Fan${[...random].map((one) => one.toString(16).padStart(2, "0")).join("")}`);
    $("text").focus();
  });
  $("viewer-close").addEventListener("click", () => $("viewer").close());
  $("viewer").addEventListener("click", (event) => event.target === $("viewer") && $("viewer").close());
}

// The feed.

function begin(state) {
  const before = JSON.stringify(fans.get(current)?.messages);
  for (const fan of fans.values()) fan.messages = [];
  for (const [openid, messages] of Object.entries(state.fans)) fanOf(openid).messages = messages;
  if (!fans.get(current)) {
    if (fans.size) [current] = fans.keys();
    fanOf(current);
  }
  pushes.clear();
  for (const one of state.pushes) pushes.set(one.number, one);
  showFans();
  if (JSON.stringify(fans.get(current).messages) !== before) showChat(); // else nothing that plays is disturbed
  showPushes();
  $("calls").replaceChildren();
  $("no-calls").hidden = false;
  state.calls.forEach(addCall);
  showFaults(state.faults);
}

function connect() {
  const feed = new EventSource("/sandbox/events");
  const on = (name, handle) => feed.addEventListener(name, (event) => handle(JSON.parse(event.data)));
  on("state", (state) => {
    begin(state);
    showLive(true);
  });
  on("message", ({ openid, ...message }) => addMessage(openid, message));
  on("push", addPush);
  on("call", addCall);
  on("faults", ({ faults }) => showFaults(faults));
  on("reset", () => begin({ fans: {}, pushes: [], calls: [], faults: [] }));
  feed.addEventListener("error", () => {
    showLive(false);
    if (feed.readyState === EventSource.CLOSED) setTimeout(connect, 2000); // else the browser tries again itself
  });
}

function showLive(on) {
  $("live").textContent = t(on ? "Connected" : "Connecting …");
  $("live").classList.toggle("on", on);
}

translate();
listenToFan();
listenToSwitches();
showLive(false);
connect();
