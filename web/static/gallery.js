// Shows the part #live anew when it has changed: it is asked for every `data-live` seconds, while somebody looks at it.
"use strict";
const refresh = async () => {
  const live = document.getElementById("live");
  if (!live || !live.dataset.live) return;
  setTimeout(refresh, live.dataset.live * 1000);
  const inUse = live.contains(document.activeElement) || live.querySelector("details[open]");
  if (document.hidden || inUse || !getSelection().isCollapsed) return;
  try {
    const answer = await fetch(location.href, { redirect: "error" });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.getElementById("live");
    if (answer.ok && fresh && fresh.innerHTML !== live.innerHTML) live.replaceWith(fresh);
  } catch {} // away for a moment, or signed out
};
const live = document.getElementById("live");
if (live && live.dataset.live) setTimeout(refresh, live.dataset.live * 1000);
