// Shows the part #live anew when it has changed: it is asked for every `data-live` seconds, while somebody looks at it.
"use strict";
// Which link or button of which entry it is, in the part that was shown and in the new one.
const nameOf = (one) => [one.closest("li")?.querySelector("a").href, one.href ?? one.textContent].join(" ");
// Whether somebody plays, selects or unfolds something in it; that may begin while an answer is on its way.
const inUse = (part) =>
  part.querySelector("details[open]") ||
  [...part.querySelectorAll("audio, video")].some((one) => one.currentTime > 0 && !one.ended) ||
  !getSelection().isCollapsed;
const refresh = async () => {
  const live = document.getElementById("live");
  if (!live || !live.dataset.live) return;
  setTimeout(refresh, live.dataset.live * 1000);
  if (document.hidden || inUse(live)) return;
  try {
    const answer = await fetch(location.href, { redirect: "manual" });
    // The entry was deleted elsewhere, or the session is over: nothing of it stays on the screen.
    if (answer.status === 404 || answer.type === "opaqueredirect") return location.reload();
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.getElementById("live");
    if (!answer.ok || !fresh || inUse(live) || fresh.innerHTML === live.innerHTML) return;
    const focused = live.contains(document.activeElement) && nameOf(document.activeElement);
    live.replaceWith(fresh);
    const again = focused && [...fresh.querySelectorAll("a, button, summary")].find((one) => nameOf(one) === focused);
    if (again) again.focus({ preventScroll: true });
  } catch {} // away for a moment
};
const live = document.getElementById("live");
if (live && live.dataset.live) setTimeout(refresh, live.dataset.live * 1000);
